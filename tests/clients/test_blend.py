"""Signals on one scale, and sums of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from isthmus.clients import blend as blend_module
from isthmus.clients.blend import Blend, Signal, Signals, check_weights, peak_scale, rank_blends
from isthmus.clients.data import Histories
from isthmus.clients.scorers import ItemCf, Popularity, TextNeighbours, rank_users

ROWS = Histories(offsets=np.array([0, 3, 5, 5]), items=np.array([0, 1, 0, 2, 3], dtype=np.int32))
FEATURES = np.eye(6, 4, dtype=np.float32)  # the last two items have no text
USERS = np.arange(3)


class Fixed:
    """A scorer with given scores, as a frozen backbone has."""

    def __init__(self, scores: NDArray[np.float32]) -> None:
        self.scores = scores

    def score(self, histories: Histories, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """The rows of these users."""
        return self.scores[users]


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 1000), st.floats(-100, 100))
def test_scale_and_offset_of_a_signal_do_not_matter(seed: int, factor: float, offset: float) -> None:
    """A backbone's logits may have any temperature and any zero."""
    scores = np.random.default_rng(seed).normal(size=(3, 50)).astype(np.float32)
    moved = (scores.astype(np.float64) * factor + offset * factor).astype(np.float32)
    distance = [scaled - scaled[:, :1] for scaled in (peak_scale(scores), peak_scale(moved))]
    assert distance[1] == pytest.approx(distance[0], abs=1e-3)


def test_from_the_average_to_the_best_item_is_one() -> None:
    """Row by row, and a row that says nothing becomes 0."""
    scores = np.array([[1, 2, 3, 6], [0.1, 0.1, 0.1, 0.1]], dtype=np.float32)
    assert peak_scale(scores) == pytest.approx(np.array([[1 / 3, 2 / 3, 1, 2], [0, 0, 0, 0]]))


def test_a_blend_is_the_weighted_sum_of_its_scaled_signals() -> None:
    """Each signal is fitted as it would be alone; a backbone comes as it is."""
    backbone = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    signals = Signals.fit(ROWS, features=FEATURES, backbone=Fixed(backbone))
    weights = {Signal.TEXT: 0.5, Signal.ITEM_CF: 0.2, Signal.POPULARITY: 0.1, Signal.BACKBONE: 0.2}
    expected = (
        0.5 * peak_scale(TextNeighbours(features=FEATURES).score(ROWS, USERS))
        + 0.2 * peak_scale(ItemCf.fit(ROWS, items=6).score(ROWS, USERS))
        + 0.1 * peak_scale(Popularity.fit(ROWS, items=6).score(ROWS, USERS))
        + 0.2 * peak_scale(backbone)
    )
    found = Blend(signals=signals, weights=weights).score(ROWS, USERS)
    assert found == pytest.approx(expected, abs=1e-6)
    assert found.dtype == np.float32


def test_a_blend_of_one_signal_ranks_as_the_signal() -> None:
    """The single methods of a table are blends, and lose nothing by it, not even the tie break."""
    signals = Signals.fit(ROWS, features=FEATURES)
    blended = Blend(signals=signals, weights={Signal.ITEM_CF: 0.3}).score(ROWS, USERS)
    plain = ItemCf.fit(ROWS, items=6).score(ROWS, USERS)
    assert blended.argsort(axis=1, kind="stable").tolist() == plain.argsort(axis=1, kind="stable").tolist()


def test_a_signal_of_weight_zero_is_not_needed() -> None:
    """A head fitted with a backbone serves without it where the backbone weighs nothing."""
    signals = Signals.fit(ROWS, features=FEATURES)
    alone = Blend(signals=signals, weights={Signal.TEXT: 1.0}).score(ROWS, USERS)
    beside = Blend(signals=signals, weights={Signal.TEXT: 1.0, Signal.BACKBONE: 0.0}).score(ROWS, USERS)
    assert beside.tolist() == alone.tolist()


def test_a_weighted_signal_that_is_missing_is_refused() -> None:
    """Serving a federated head without its backbone would quietly serve something else."""
    signals = Signals.fit(ROWS, features=FEATURES)
    with pytest.raises(ValueError, match="not given: backbone"):
        Blend(signals=signals, weights={Signal.TEXT: 0.5, Signal.BACKBONE: 0.5})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(value: float) -> None:
    """A NaN that slips into a comparison can look like a perfect rank."""
    scores = np.zeros((3, 6), dtype=np.float32)
    scores[1, 2] = value
    signals = Signals.fit(ROWS, features=FEATURES, backbone=Fixed(scores))
    with pytest.raises(ValueError, match="signal backbone gave scores that are not finite"):
        signals.score(Signal.BACKBONE, ROWS, USERS)


@pytest.mark.parametrize("weights", [{}, {Signal.TEXT: 0.0}, {Signal.TEXT: -0.1}, {Signal.TEXT: float("nan")}])
def test_weights_that_cannot_rank_are_refused(weights: dict[Signal, float]) -> None:
    """Nothing, zero, negative and NaN."""
    with pytest.raises(ValueError, match="weights must be finite"):
        check_weights(weights)


def test_blends_that_share_their_signals_rank_as_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every signal is scored once per chunk of users, whatever number of blends needs it; no chunk changes a rank."""
    monkeypatch.setattr(blend_module, "chunk_users", lambda _items: 7)
    rng = np.random.default_rng(3)
    rows = Histories(offsets=np.arange(0, 121, 6), items=rng.integers(0, 40, 120).astype(np.int32))
    users, targets = rng.permutation(20), rng.integers(0, 40, 20).astype(np.int32)
    backbone = Fixed(rng.normal(size=(20, 40)).astype(np.float32))
    features = rng.normal(size=(40, 4)).astype(np.float32)
    signals = Signals.fit(rows, features=features, backbone=backbone)
    blends = {
        "text": {Signal.TEXT: 1.0},
        "popularity": {Signal.POPULARITY: 0.2, Signal.TEXT: 0.0},
        "all": {Signal.TEXT: 0.3, Signal.ITEM_CF: 0.3, Signal.POPULARITY: 0.1, Signal.BACKBONE: 0.3},
    }
    found = rank_blends(signals, blends, rows, users, targets)
    assert list(found) == list(blends)
    for name, weights in blends.items():
        alone = rank_users(Blend(signals=signals, weights=weights), rows, users, targets)
        assert found[name].tolist() == alone.tolist()
    with pytest.raises(ValueError, match="one target"):
        rank_blends(signals, blends, rows, users, targets[:3])
    with pytest.raises(ValueError, match="not all 0"):
        rank_blends(signals, {"none": {}}, rows, users, targets)
