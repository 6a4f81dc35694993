"""A backbone scores a catalogue: the query after a user's whole history, one user at a time or many."""

import numpy as np
import pytest
import torch
from tests.clients.sensitivity import SHAPE as CONFIG
from tests.clients.sensitivity import randomise

from isthmus.backbone import Backbone
from isthmus.clients import backbone_scorer as module
from isthmus.clients.backbone_scorer import BackboneScorer
from isthmus.clients.data import Histories
from isthmus.clients.scorers import TextNeighbours, rank_users
from isthmus.config import BackboneConfig
from isthmus.metrics import ndcg_at_k

ROWS = [[3, 1, 4], [], [5], [9, 2, 6, 5, 3, 5, 8, 7], [1, 1]]


def toy() -> tuple[Histories, torch.Tensor]:
    """Five users (one without history, one with more than the window) and ten items."""
    histories = Histories(
        offsets=np.cumsum([0, *map(len, ROWS)], dtype=np.int64),
        items=np.array([item for row in ROWS for item in row], dtype=np.int32),
    )
    features = np.random.default_rng(1).normal(size=(10, 8))
    return histories, torch.from_numpy((features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32))


@pytest.mark.parametrize("residual_only", [False, True])
def test_scores_are_those_of_one_user_at_a_time(residual_only: bool) -> None:
    """Padding and company change nothing; only the last items that fit count; no history scores 0."""
    histories, features = toy()
    backbone = randomise(Backbone(8, CONFIG), 2).float()
    scorer = BackboneScorer(backbone, features, residual_only=residual_only)
    scores = scorer.score(histories, np.array([3, 0, 1, 4, 2]))
    for place, user in enumerate([3, 0, 1, 4, 2]):
        row = ROWS[user][-CONFIG.positions :]
        if not row:
            assert not scores[place].any()
            continue
        with torch.no_grad():
            whole = features[row][None]
            query = (backbone.residual(whole) if residual_only else backbone(whole))[0, -1]
        np.testing.assert_allclose(scores[place], (features @ query).numpy(), rtol=1e-4, atol=1e-5)
    assert scores.dtype == np.float32


def test_users_without_any_history_score_zero() -> None:
    """A whole chunk of them too."""
    histories, features = toy()
    scores = BackboneScorer(Backbone(8, CONFIG), features).score(histories, np.array([1, 1]))
    assert scores.shape == (2, 10)
    assert not scores.any()


def test_an_untrained_backbone_ranks_as_the_text_neighbours() -> None:
    """It is the text prior: same ranks as the local method, whatever its random layers hold; its residual is 0."""
    rng = np.random.default_rng(3)
    rows = [rng.integers(0, 60, length) for length in (2, 5, 12, 20, 8)]
    histories = Histories(
        offsets=np.cumsum([0, *map(len, rows)], dtype=np.int64), items=np.concatenate(rows).astype(np.int32)
    )
    features = rng.normal(size=(60, 8))
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    backbone = Backbone(8, BackboneConfig(width=8, heads=2, layers=1, feedforward=8))
    users, targets = np.arange(5), rng.integers(0, 60, 5).astype(np.int32)
    ours = rank_users(BackboneScorer(backbone, torch.from_numpy(features)), histories, users, targets)
    theirs = rank_users(TextNeighbours(features=features), histories, users, targets)
    np.testing.assert_array_equal(ours, theirs)
    residual = BackboneScorer(backbone, torch.from_numpy(features), residual_only=True)
    assert not residual.score(histories, users).any()


@pytest.mark.parametrize("seed", range(4))
def test_sifting_drops_nobody_whose_item_is_among_the_first(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Twin items, seen items, repeats and empty histories: gains at the cut-off are those of all ranks."""
    monkeypatch.setattr(module, "_SAMPLE", 30)
    monkeypatch.setattr(module, "_SIFTED", 64)
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(240, 8))
    features[120:] = features[:120]  # every item has a twin with the same text
    features = torch.from_numpy((features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32))
    rows = [rng.integers(0, 240, length) for length in rng.integers(0, 40, 300)]
    histories = Histories(
        offsets=np.cumsum([0, *map(len, rows)], dtype=np.int64), items=np.concatenate(rows).astype(np.int32)
    )
    backbone = Backbone(8, BackboneConfig(width=8, heads=2, layers=1, feedforward=8))
    if seed % 2:
        torch.nn.init.normal_(backbone.head.weight, std=0.3)
    scorer, users = BackboneScorer(backbone, features), rng.permutation(300)
    targets = rng.integers(0, 240, 300).astype(np.int32)
    beyond = scorer.beyond(histories, users, targets, 10)
    exact = rank_users(scorer, histories, users, targets)
    assert beyond.mean() > 0.5, "most need not be ranked"
    assert (exact[beyond] > 10).all()
    sifted = rank_users(scorer, histories, users, targets, within=10)
    np.testing.assert_array_equal(ndcg_at_k(sifted, 10), ndcg_at_k(exact, 10))


def test_a_query_that_is_not_finite_is_sifted_out_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is clear about NaN, so its users are ranked in full, and come last."""
    monkeypatch.setattr(module, "_SAMPLE", 10)
    features = torch.rand(60, 4)
    backbone = Backbone(4, BackboneConfig(width=8, heads=2, layers=1, feedforward=8))
    torch.nn.init.constant_(backbone.head.weight, torch.nan)
    histories = Histories(offsets=np.array([0, 2]), items=np.array([3, 4], dtype=np.int32))
    scorer, targets = BackboneScorer(backbone, features), np.array([7], dtype=np.int32)
    assert not scorer.beyond(histories, np.array([0]), targets, 10).any()
    assert rank_users(scorer, histories, np.array([0]), targets, within=10).tolist() == [58]
