"""What a changed text encoder can do that a frozen one cannot: see that two texts belong together."""

import dataclasses
from pathlib import Path

import numpy as np
import torch
from tests.clients.test_head import rows_to_histories, toy_domain
from tests.tiny_bert import write_tiny_bert

from isthmus.backbone import Backbone
from isthmus.clients.backbone_scorer import BackboneScorer
from isthmus.clients.data import DomainData
from isthmus.clients.evaluation import validation_ndcg
from isthmus.clients.text_tower import TextTower, history_features
from isthmus.clients.trainer import make_training_set, train_round
from isthmus.config import BackboneConfig, FeatureConfig, LossName, PrivacyPolicy, Trained, TrainingConfig
from isthmus.features import encode_texts, fit_whitening, text_moments
from isthmus.features.tuned import text_shape
from isthmus.privacy.budget import PrivacyBudget
from isthmus.privacy.noise import SeededRandomness
from isthmus.privacy.plan import DpSgdConfig, DpSgdPlan
from isthmus.records import Recipe

KEYS, USERS = 12, 200
SHAPE = BackboneConfig(width=8, heads=2, layers=1, feedforward=8, positions=5, prior_items=4)
POLICY = PrivacyPolicy(
    epsilon=8.0,
    delta=1e-6,
    clip=1.0,
    sample_rate=0.5,
    expected_batch=100.0,
    steps_per_round=10,
    rounds=4,
    evaluations=0,
    metric_noise_multiplier=1.0,
)
LITTLE = DpSgdPlan(
    config=DpSgdConfig(budget=PrivacyBudget(8.0, 1e-6), sample_rate=0.5, steps=40), noise_multiplier=0.01
)


def accessories() -> tuple[DomainData, tuple[str, ...]]:
    """A device is followed by its accessory. They share one word of four; devices share three with each other."""
    rng = np.random.default_rng(0)
    texts = tuple(f"{'a b c' if item % 2 == 0 else 'd e f'} key{item // 2}" for item in range(2 * KEYS))
    whole = [
        np.concatenate([[2 * key, 2 * key + 1] for key in rng.choice(KEYS, 3, replace=False)]).astype(np.int32)
        for _ in range(USERS)
    ]
    data, _ = toy_domain(USERS, 80, seed=5)
    return dataclasses.replace(
        data,
        train=rows_to_histories([row[:5] for row in whole]),
        validation=np.array([row[5] for row in whole], dtype=np.int32),
    ), texts


def test_with_little_noise_it_learns_what_belongs_together(tmp_path: Path) -> None:
    """Forty steps: far above the prior, and above what the weights by age can do beside a frozen encoder."""
    data, texts = accessories()
    encoder = str(write_tiny_bert(tmp_path / "bert", [*"abcdef", *(f"key{key}" for key in range(KEYS))], spread=0.3))
    encoded = encode_texts(texts, encoder, cache_dir=None)
    whitening = fit_whitening([text_moments(encoded)], eps=1e-3, dim=None)
    features = whitening.apply(encoded)

    def trained(train: Trained) -> tuple[float, float]:
        """Exact validation NDCG@10 before and after."""
        rank = 4 if train is Trained.TEXT else None
        training = TrainingConfig(
            train=train, rank=rank, loss=LossName.CROSS_ENTROPY, temperature=0.2, rivals=15, learning_rate=5.0
        )
        named = FeatureConfig(encoder=encoder)
        recipe = Recipe(features=named, backbone=SHAPE, training=training, whitening="")
        tower = TextTower(texts, encoder, whitening) if rank else None
        users = make_training_set(data.train, features, recipe, tower=tower)
        backbone = Backbone(16, SHAPE, text=text_shape(named, training))

        def value() -> float:
            read = history_features(backbone, texts, encoder, whitening, cache_dir=None)
            scorer = BackboneScorer(backbone, torch.from_numpy(features), read=read)
            return float(validation_ndcg(scorer, data).mean())

        before = value()
        for round_ in range(4):
            train_round(
                backbone,
                users,
                training=training,
                policy=POLICY,
                plan=LITTLE,
                proximal_mu=0.0,
                randomness=SeededRandomness(0, str(round_)),
            )
        return before, value()

    prior, ages = trained(Trained.RECENCY)
    again, changed = trained(Trained.TEXT)
    assert again == prior
    assert changed > max(prior, ages) + 0.2
