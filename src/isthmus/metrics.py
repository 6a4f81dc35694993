"""Score a ranking of the whole catalogue: rank of the held-out item, then HR, NDCG, MRR, then intervals.

    ranks = rank_targets(scores, targets, seen)     # one chunk of users at a time: no user's scores are kept
    result = summarise(np.concatenate(chunks), k=10, resamples=1000, seed=0)
    gain = paired_bootstrap_ci(ndcg_at_k(ours, 10), ndcg_at_k(theirs, 10), resamples=1000, seed=0)

Protocol: the target competes with the whole catalogue, never with a sample of it. Items in the user's history
are out of the race, unless the target itself is one of them (a repeat): then nothing is masked. Ties count
against us, so a constant model scores as the worst one. A score that is NaN beats every target, and a target
whose own score is NaN comes last.

The module sees one chunk of users at a time and knows nothing about models or tables.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Numbers drawn at once by a bootstrap: bounds its memory to 8 MiB and changes no result.
_DRAWS_AT_ONCE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class RankingSummary:
    """How one method ranked the held-out items of a group of users.

    Attributes:
        hr: Mean hit rate at the cut-off, in [0, 1].
        ndcg: Mean NDCG at the cut-off, in [0, 1].
        mrr: Mean reciprocal rank over the whole catalogue, in (0, 1].
        ndcg_ci95: Percentile bootstrap interval of `ndcg` over users.
    """

    hr: float
    ndcg: float
    mrr: float
    ndcg_ci95: tuple[float, float]


def rank_targets(
    scores: NDArray[np.floating[Any]],
    targets: NDArray[np.integer[Any]],
    seen: Sequence[NDArray[np.integer[Any]]],
) -> NDArray[np.int64]:
    """Rank of each user's held-out item in the whole catalogue, ties against us.

    Args:
        scores: (users, items), higher is better; left as it is.
        targets: (users,) index of the held-out item.
        seen: Per user, the item indices of the history; repeats are allowed. They are masked, unless the
            target is among them: then nothing is.

    Returns:
        (users,) ranks from 1 (best) to items.

    Raises:
        ValueError: If the lengths differ, or a target or seen item is not an item.

    >>> rank_targets(np.array([[0.9, 0.5, 0.1]]), np.array([1]), [np.array([0])])
    array([1])
    """
    users, items = scores.shape
    if len(targets) != users or len(seen) != users:
        raise ValueError(f"{users} rows of scores, {len(targets)} targets and {len(seen)} histories do not match")
    if users and (targets.min() < 0 or targets.max() >= items):
        raise ValueError(f"targets must be in [0, {items}), got {targets.min()} to {targets.max()}")
    own = scores[np.arange(users), targets]  # (users,)
    ranks = np.empty(users, dtype=np.int64)
    below = np.empty(items, dtype=np.bool_)
    for user in range(users):  # one row fits into the processor's cache, so that it is read from memory once
        np.less(scores[user], own[user], out=below)
        # "Not below" counts ties and NaN against us; the target is not below itself, so 1 is best.
        ranks[user] = items - np.count_nonzero(below)
    return ranks - _masked_before_target(scores, own, targets, seen)


def _masked_before_target(
    scores: NDArray[np.floating[Any]],
    own: NDArray[np.floating[Any]],
    targets: NDArray[np.integer[Any]],
    seen: Sequence[NDArray[np.integer[Any]]],
) -> NDArray[np.int64]:
    """(users,) seen items that are out of the race and not below the target; 0 where the target was seen."""
    users, items = scores.shape
    lengths = np.fromiter((len(history) for history in seen), dtype=np.int64, count=users)
    if not lengths.any():
        return np.zeros(users, dtype=np.int64)
    user = np.repeat(np.arange(users), lengths)
    flat = np.concatenate([history for history in seen if len(history)]).astype(np.int64)
    if flat.min() < 0 or flat.max() >= items:
        raise ValueError(f"seen items must be in [0, {items}), got {flat.min()} to {flat.max()}")
    repeats = np.bincount(user[flat == targets[user]], minlength=users) > 0
    user, item = np.divmod(np.unique(user * items + flat), items)  # an item that was seen twice is one item
    counts = ~(scores[user, item] < own[user]) & ~repeats[user]
    return np.bincount(user[counts], minlength=users)


def hr_at_k(ranks: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """Whether each user's held-out item is among the first k: 1.0 or 0.0.

    Raises:
        ValueError: If k is below 1.

    >>> hr_at_k(np.array([1, 11]), 10)
    array([1., 0.])
    """
    _check_k(k)
    return (ranks <= k).astype(np.float64)


def ndcg_at_k(ranks: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """NDCG@k of each user with one relevant item: 1 / log2(rank + 1) within the first k, else 0.

    Raises:
        ValueError: If k is below 1.

    >>> ndcg_at_k(np.array([1, 3, 11]), 10)
    array([1. , 0.5, 0. ])
    """
    _check_k(k)
    return np.where(ranks <= k, 1.0 / np.log2(ranks + 1.0), 0.0)


def reciprocal_rank(ranks: NDArray[np.int64]) -> NDArray[np.float64]:
    """1 / rank of each user's held-out item; its mean is the MRR.

    >>> reciprocal_rank(np.array([1, 4]))
    array([1.  , 0.25])
    """
    return 1.0 / ranks.astype(np.float64)


def bootstrap_ci(values: NDArray[np.float64], *, resamples: int, seed: int, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean over users.

    How often each *distinct* value is drawn is multinomial, so that is what is drawn: the same distribution as
    drawing users with replacement, the same result in any order of the users, and, since metrics take few
    values, much less work.

    Args:
        values: (users,) one finite number per user.
        resamples: Bootstrap samples.
        seed: Of the draw; the same seed gives the same interval.
        level: Coverage aimed at, in (0, 1).

    Returns:
        Lower and upper end.

    Raises:
        ValueError: If there are no values, one is not finite, or an argument is out of range.

    >>> bootstrap_ci(np.ones(5), resamples=100, seed=0)
    (1.0, 1.0)
    """
    if not values.size or not np.isfinite(values).all():
        raise ValueError(f"an interval needs at least one value and finite ones only, got {values.size} values")
    if resamples < 1 or not 0 < level < 1:
        raise ValueError(f"resamples must be at least 1 and level in (0, 1), got {resamples} and {level}")
    distinct, counts = np.unique(values, return_counts=True)
    rng = np.random.default_rng(seed)
    share = counts / values.size
    block = max(1, _DRAWS_AT_ONCE // distinct.size)
    means = np.empty(resamples, dtype=np.float64)
    for start in range(0, resamples, block):
        stop = min(start + block, resamples)
        draws = rng.multinomial(values.size, share, size=stop - start)  # (block, distinct values)
        means[start:stop] = draws @ distinct / values.size
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return float(low), float(high)


def paired_bootstrap_ci(
    first: NDArray[np.float64], second: NDArray[np.float64], *, resamples: int, seed: int, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of mean(first - second), the same users drawn for both.

    Args:
        first: (users,) a metric of one method.
        second: (users,) the same metric of another, on the same users in the same order.
        resamples: Bootstrap samples.
        seed: Of the draw.
        level: Coverage aimed at, in (0, 1).

    Returns:
        Lower and upper end; an interval above 0 says that `first` is better.

    Raises:
        ValueError: If the shapes differ, or as `bootstrap_ci` does.

    >>> paired_bootstrap_ci(np.array([0.5, 1.0]), np.array([0.0, 0.5]), resamples=100, seed=0)
    (0.5, 0.5)
    """
    if first.shape != second.shape:
        raise ValueError(f"paired values must be of the same users, got {first.shape} and {second.shape}")
    return bootstrap_ci(first - second, resamples=resamples, seed=seed, level=level)


def summarise(ranks: NDArray[np.int64], *, k: int, resamples: int, seed: int) -> RankingSummary:
    """Means of all metrics over users, with the interval of NDCG@k.

    Args:
        ranks: (users,) ranks from 1, at least one.
        k: Cut-off, in items.
        resamples: Bootstrap samples.
        seed: Of the bootstrap.

    Raises:
        ValueError: If there are no users or k is below 1.

    >>> summarise(np.array([1, 1]), k=10, resamples=100, seed=0)
    RankingSummary(hr=1.0, ndcg=1.0, mrr=1.0, ndcg_ci95=(1.0, 1.0))
    """
    ndcg = ndcg_at_k(ranks, k)
    return RankingSummary(
        ndcg_ci95=bootstrap_ci(ndcg, resamples=resamples, seed=seed),
        hr=float(hr_at_k(ranks, k).mean()),
        ndcg=float(ndcg.mean()),
        mrr=float(reciprocal_rank(ranks).mean()),
    )


def _check_k(k: int) -> None:
    if k < 1:
        raise ValueError(f"k must be at least 1 item, got {k}")
