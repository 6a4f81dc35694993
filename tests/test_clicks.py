"""AUC against every pair, log-loss against a product of probabilities."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus.clicks import auc, log_loss


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.booleans()), min_size=2, max_size=12))
def test_auc_is_the_share_of_pairs_in_the_right_order(shown: list[tuple[float, bool]]) -> None:
    """Over all pairs, ties half; refused where there is no pair."""
    scores, clicked = np.array([s for s, _ in shown]), np.array([c for _, c in shown])
    pairs = [(a, b) for a, yes in shown if yes for b, also in shown if not also]
    if not pairs:
        with pytest.raises(ValueError, match="both clicks"):
            auc(scores, clicked)
        return
    assert auc(scores, clicked) == pytest.approx(np.mean([(a > b) + 0.5 * (a == b) for a, b in pairs]))


def test_log_loss_is_the_likelihood_of_what_was_clicked() -> None:
    """-log of a product, and finite for a sure mistake."""
    probabilities, clicked = np.array([0.9, 0.2, 0.6]), np.array([True, False, False])
    assert log_loss(probabilities, clicked) == pytest.approx(-math.log(0.9 * 0.8 * 0.4) / 3)
    assert math.isfinite(log_loss(np.array([0.0]), np.array([True])))


@pytest.mark.parametrize(
    ("values", "clicked", "words"),
    [
        (np.array([0.5, math.nan]), np.array([True, False]), "finite"),
        (np.array([0.5]), np.array([True, False]), "one value"),
        (np.array([1.5]), np.array([True]), r"in \[0, 1\]"),
        (np.array([0.5]), np.array([1]), "boolean"),
    ],
)
def test_what_is_no_prediction_is_refused(values: np.ndarray, clicked: np.ndarray, words: str) -> None:
    """NaN, other shapes, impossible probabilities, labels that are no booleans."""
    with pytest.raises(ValueError, match=words):
        log_loss(values, clicked)
