"""Whether one method beats another on the same users, and what is left of that when many are compared.

    p = paired_p_value(ndcg_of_one, ndcg_of_other, resamples=10_000, seed=0)
    adjusted = holm([p, 0.04, 0.2])

The test is the paired randomisation test: were the two methods alike, each user's difference could as well have had
the other sign. It assumes no distribution. `isthmus.metrics.paired_bootstrap_ci` says how large a difference is.

References: Smucker, Allan and Carterette, "A Comparison of Statistical Significance Tests for Information Retrieval
Evaluation", CIKM 2007; Holm, "A Simple Sequentially Rejective Multiple Test Procedure", 1979.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Numbers drawn at once: bounds memory to 8 MiB and changes no result.
_DRAWS_AT_ONCE = 1 << 20
_ROUNDING = 1e-12  # sums of the same figures in another order are still the same figure


def paired_p_value(first: NDArray[np.float64], second: NDArray[np.float64], *, resamples: int, seed: int) -> float:
    """Two-sided p of the paired randomisation (sign-flip) test on the mean difference.

    Users with equal absolute differences are drawn together: how many of them keep their sign is binomial.

    Args:
        first: (users,) a metric of one method.
        second: (users,) the same metric of another, the same users in the same order.
        resamples: Random assignments of signs; the smallest p that can come out is 1 / (resamples + 1).
        seed: Of the draw.

    Returns:
        A value in (0, 1]; 1 where all users are alike.

    Raises:
        ValueError: If the shapes differ, there are no users, a value is not finite, or resamples is below 1.

    >>> paired_p_value(np.ones(20), np.zeros(20), resamples=999, seed=0)
    0.001
    """
    if first.shape != second.shape or not first.size:
        raise ValueError(f"paired values must be of the same users, at least one, got {first.shape}, {second.shape}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    difference = first - second
    if not np.isfinite(difference).all():
        raise ValueError("paired values must be finite")
    sizes, counts = np.unique(np.abs(difference), return_counts=True)
    seen = abs(float(difference.sum())) - _ROUNDING * float(np.abs(difference).sum())
    rng = np.random.default_rng(seed)
    as_far, block = 0, max(1, _DRAWS_AT_ONCE // sizes.size)
    for start in range(0, resamples, block):
        draws = rng.binomial(counts, 0.5, size=(min(block, resamples - start), sizes.size))
        sums = (2 * draws - counts) @ sizes  # (block,)
        as_far += int(np.count_nonzero(np.abs(sums) >= seen))
    return (1 + as_far) / (1 + resamples)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: below 0.05 for all that may be called significant together at 5 %.

    Args:
        p_values: Of every comparison that is made; leaving some out is what this is against.

    Returns:
        One for each, in the same order, at least as large and at most 1.

    Raises:
        ValueError: If one is not in [0, 1].

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise ValueError(f"p-values must be in [0, 1], got {list(p_values)}")
    adjusted, most = [0.0] * len(p_values), 0.0
    for done, at in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        most = max(most, min(1.0, (len(p_values) - done) * p_values[at]))
        adjusted[at] = most
    return adjusted
