"""Score predictions of binary clicks: does the model order shown items well, and are its probabilities right?

    auc(scores, clicked)            # order only
    log_loss(probabilities, clicked)

For ads and feeds, where what was shown and not clicked is known; a ranking of a whole catalogue is
`isthmus.metrics`.

Reference: Fawcett, "An introduction to ROC analysis", 2006 (AUC as the probability of a right order, ties half).
"""

import numpy as np
from numpy.typing import NDArray

_LEAST = 1e-15
"""A probability is moved to at least this far from 0 and 1: one sure mistake must not cost infinitely much."""


def auc(scores: NDArray[np.float64], clicked: NDArray[np.bool_]) -> float:
    """Probability that a clicked impression scores above one that was not; a tie counts half.

    Args:
        scores: (impressions,) finite, higher for a likelier click.
        clicked: (impressions,) whether it was.

    Returns:
        A value in [0, 1]; 0.5 for a model that knows nothing.

    Raises:
        ValueError: If the shapes differ, a score is not finite, or all impressions are of one class.

    >>> auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True]))
    0.75
    """
    _check(scores, clicked)
    clicks, others = int(clicked.sum()), int((~clicked).sum())
    if not clicks or not others:
        raise ValueError(f"AUC needs both clicks and impressions without one, got {clicks} and {others}")
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    # Mean rank of each distinct score, from 1: equal scores share it, which is what counts a tie half.
    rank = np.cumsum(counts) - (counts - 1) / 2.0
    total = float(rank[place][clicked].sum())
    return (total - clicks * (clicks + 1) / 2.0) / (clicks * others)


def log_loss(probabilities: NDArray[np.float64], clicked: NDArray[np.bool_]) -> float:
    """Mean negative log-likelihood of the clicks, in nats.

    Args:
        probabilities: (impressions,) predicted probability of a click, in [0, 1].
        clicked: (impressions,) whether it was.

    Returns:
        A value of at least 0; the entropy of the click rate for a model that knows nothing else.

    Raises:
        ValueError: If the shapes differ, there are no impressions, or a probability is not in [0, 1].

    >>> log_loss(np.array([0.5, 0.5]), np.array([True, False]))
    0.6931...
    """
    _check(probabilities, clicked)
    if not probabilities.size or probabilities.min() < 0 or probabilities.max() > 1:
        raise ValueError("log-loss needs at least one impression, and probabilities in [0, 1]")
    bounded = probabilities.clip(_LEAST, 1 - _LEAST)
    return float(-np.log(np.where(clicked, bounded, 1 - bounded)).mean())


def _check(values: NDArray[np.float64], clicked: NDArray[np.bool_]) -> None:
    if values.shape != clicked.shape or values.ndim != 1 or clicked.dtype != np.bool_:
        raise ValueError(
            f"one value and one boolean for each impression are needed, got {values.shape} and {clicked.shape} "
            f"of {clicked.dtype}"
        )
    if not np.isfinite(values).all():
        raise ValueError("predictions must be finite")
