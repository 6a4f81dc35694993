"""The domain's own backbone is never worse on validation than the text prior that it starts from."""

import dataclasses

import numpy as np
import pytest
import torch
from tests.clients.test_head import rows_to_histories, toy_domain

from isthmus.backbone import Backbone
from isthmus.clients import local_training
from isthmus.clients.backbone_scorer import BackboneScorer
from isthmus.clients.data import DomainData
from isthmus.clients.evaluation import validation_ndcg
from isthmus.clients.local_training import train_alone
from isthmus.clients.trainer import TrainingSet, make_training_set
from isthmus.config import BackboneConfig, FeatureConfig, Trained, TrainingConfig
from isthmus.records import Recipe

SHAPE = BackboneConfig(width=8, heads=2, layers=1, feedforward=8, positions=6)
TRAINING = TrainingConfig(train=Trained.ALL, rivals=30, positions=4)


def trainable(data: DomainData, features: np.ndarray) -> TrainingSet:
    """What the domain trains on."""
    recipe = Recipe(features=FeatureConfig(), backbone=SHAPE, training=TRAINING, whitening="")
    return make_training_set(data.train, features, recipe)


def planted_domain() -> tuple[DomainData, np.ndarray]:
    """Item i is always followed by i + 1: the text says nothing of it, the histories do."""
    rng = np.random.default_rng(5)
    items = 24
    features = rng.normal(size=(items, 16))
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    data, _ = toy_domain(120, 80, seed=5)
    whole = [(rng.integers(items) + np.arange(7)).astype(np.int32) % items for _ in range(120)]
    return dataclasses.replace(
        data,
        train=rows_to_histories([row[:5] for row in whole]),
        before_test=rows_to_histories([row[:6] for row in whole]),
        validation=np.array([row[5] for row in whole], dtype=np.int32),
    ), features


def value(backbone: Backbone, users: TrainingSet, data: DomainData) -> float:
    """Mean validation NDCG@10."""
    return float(validation_ndcg(BackboneScorer(backbone, users.features), data).mean())


def alone(users: TrainingSet, data: DomainData, *, seed: int = 0) -> Backbone:
    """Train under the test's settings."""
    return train_alone(users, data, backbone_config=SHAPE, training=TRAINING, seed=seed)


def prior() -> Backbone:
    """The text prior."""
    return Backbone(16, SHAPE)


def test_training_finds_what_only_the_histories_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    """On planted sequences it ends far above the prior."""
    monkeypatch.setattr(local_training, "LEARNING_RATE", 1e-2)
    data, features = planted_domain()
    users = trainable(data, features)
    assert value(alone(users, data), users, data) > value(prior(), users, data) + 0.1


@pytest.mark.parametrize("rate", [1e-3, 0.3, 30.0], ids=["as served", "too fast", "absurd"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_it_never_ends_below_the_prior_on_validation(monkeypatch: pytest.MonkeyPatch, rate: float, seed: int) -> None:
    """Also where training only does harm: then the prior itself comes back."""
    monkeypatch.setattr(local_training, "LEARNING_RATE", rate)
    data, features = toy_domain(40, 80, seed=seed)
    users = trainable(data, features)
    assert value(alone(users, data, seed=seed), users, data) >= value(prior(), users, data)


def test_without_validation_items_it_stays_the_prior() -> None:
    """Nothing could tell whether training helps, so nothing is trained."""
    data, features = planted_domain()
    data = dataclasses.replace(data, validation=np.full(120, -1, dtype=np.int32))
    users = trainable(data, features)
    scores = [
        BackboneScorer(backbone, users.features).score(data.train, np.arange(120))
        for backbone in (alone(users, data), prior())
    ]
    np.testing.assert_array_equal(*scores)


def test_users_with_nothing_to_learn_leave_the_prior() -> None:
    """One event each: no loss anywhere, no error either."""
    data, features = toy_domain(10, 80, seed=6)
    data = dataclasses.replace(data, train=rows_to_histories([data.train.row(user)[:1] for user in range(10)]))
    users = trainable(data, features)
    assert not alone(users, data).head.weight.any()


def test_the_same_seed_trains_the_same_backbone_and_global_randomness_is_left_alone() -> None:
    """Repeatable, another seed is another start, and torch's own generator is where it was."""
    data, features = planted_domain()
    users = trainable(data, features)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one, two, other = alone(users, data), alone(users, data), alone(users, data, seed=1)
    assert torch.rand(1) == expected
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.adaptor.weight, other.adaptor.weight)
    assert not one.training


def test_patience_ends_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes without a better value are counted, and the last better one is what comes back."""
    data, features = planted_domain()
    users = trainable(data, features)
    judged = iter([0.5, 0.6, 0.1, 0.2, 0.9])  # start, better, worse, worse: the 0.9 is never asked for
    monkeypatch.setattr(local_training, "_value", lambda *_: next(judged))
    backbone = alone(users, data)
    assert list(judged) == [0.9]
    monkeypatch.setattr(local_training, "EPOCHS", 1)
    monkeypatch.setattr(local_training, "_value", lambda *_: next(first_pass))
    first_pass = iter([0.5, 0.6])
    assert torch.equal(alone(users, data).head.weight, backbone.head.weight)
