"""The pooled backbone learns what is in the pool, and never ends below where it started."""

from pathlib import Path

import numpy as np
import pytest
import torch

from isthmus.backbone import Backbone
from isthmus.clients.backbone_scorer import BackboneScorer
from isthmus.clients.data import DomainData, load_domain_data
from isthmus.clients.evaluation import validation_ndcg
from isthmus.clients.trainer import make_training_set
from isthmus.config import BackboneConfig, FeatureConfig, Trained, TrainingConfig, load_domain
from isthmus.demo import DOMAINS, DemoDomain, _write_domain
from isthmus.features import encode_texts, fit_whitening, text_moments
from isthmus.records import Recipe
from isthmus.simulation.ceiling import Pooled, train_centralised

SHAPE = BackboneConfig(width=16, layers=1, heads=2, feedforward=16, positions=8)
TRAINING = TrainingConfig(train=Trained.ALL, rivals=40)


def drifting(folder: Path, name: str, users: int) -> DomainData:
    """A domain of the demo, whose planted drift no text tells, with fewer users and items."""
    like = next(domain for domain in DOMAINS if domain.name == name)
    small = DemoDomain(name=name, users=users, items=48, forms=like.forms, kinds=like.kinds)
    _write_domain(folder / name, small, np.random.default_rng(0))
    return load_domain_data(load_domain(folder / name))


def test_a_pool_teaches_what_text_does_not_tell(tmp_path: Path) -> None:
    """Above the text prior in both domains together; the same seed gives the same backbone."""
    domains = [drifting(tmp_path, name, users) for name, users in (("music", 500), ("dining", 100))]
    texts = [encode_texts(data.catalogue.texts, "hash:64", cache_dir=tmp_path / "cache") for data in domains]
    whitening = fit_whitening([text_moments(encoded) for encoded in texts], eps=1e-3, dim=32)
    recipe = Recipe(features=FeatureConfig(encoder="hash:64"), backbone=SHAPE, training=TRAINING, whitening="")
    pool = [
        Pooled(users=make_training_set(data.train, whitening.apply(encoded), recipe), data=data)
        for data, encoded in zip(domains, texts, strict=True)
    ]
    both = [train_centralised(pool, backbone_config=SHAPE, training=TRAINING, seed=1) for _ in range(2)]
    first, second = (one.backbone for one in both)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    prior = Backbone(32, SHAPE)
    gains = [
        validation_ndcg(BackboneScorer(first, part.users.features), part.data).mean()
        - validation_ndcg(BackboneScorer(prior, part.users.features), part.data).mean()
        for part in pool
    ]
    assert np.mean(gains) > 0.02
    assert both[0].gain == pytest.approx(np.mean(gains))
