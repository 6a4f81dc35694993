"""Score a ranking of the whole catalogue: rank of the held-out item, then HR, NDCG, MRR, then intervals.

    ranks = rank_targets(scores, targets, seen)     # one chunk of users at a time: no user's scores are kept
    every = ranking_metrics(ranks, cutoffs=(5, 10, 20))
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


def recall_at_k(ranks: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """Recall@k of each user with one relevant item: that is `hr_at_k`, under the name that other papers use.

    Raises:
        ValueError: If k is below 1.

    >>> recall_at_k(np.array([1, 11]), 10)
    array([1., 0.])
    """
    return hr_at_k(ranks, k)


def precision_at_k(ranks: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """Precision@k of each user with one relevant item: 1 / k where it is found, so never above that.

    Raises:
        ValueError: If k is below 1.

    >>> precision_at_k(np.array([1, 11]), 10)
    array([0.1, 0. ])
    """
    return hr_at_k(ranks, k) / k


def f1_at_k(ranks: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """Harmonic mean of precision@k and recall@k of each user with one relevant item: 2 / (k + 1), or 0.

    Raises:
        ValueError: If k is below 1.

    >>> f1_at_k(np.array([1, 4]), 3)
    array([0.5, 0. ])
    """
    return hr_at_k(ranks, k) * (2.0 / (k + 1))


def ranking_metrics(ranks: NDArray[np.int64], cutoffs: Sequence[int]) -> dict[str, NDArray[np.float64]]:
    """Every metric of each user, by name: `ndcg@10` and the like for each cut-off, and `mrr`.

    Args:
        ranks: (users,) ranks from 1.
        cutoffs: In items.

    Raises:
        ValueError: If a cut-off is below 1.
    """
    named = {"hr": hr_at_k, "ndcg": ndcg_at_k, "recall": recall_at_k, "precision": precision_at_k, "f1": f1_at_k}
    metrics = {f"{name}@{k}": metric(ranks, k) for name, metric in named.items() for k in cutoffs}
    return {**metrics, "mrr": reciprocal_rank(ranks)}


def sampled_ranks(
    ranks: NDArray[np.int64], candidates: NDArray[np.int64], *, negatives: int, seed: int
) -> NDArray[np.int64]:
    """Ranks that the same scores would get among a few sampled negatives instead of the whole catalogue.

    **Biased**: at small cut-offs sampled metrics are far above those of the whole catalogue, and can order methods
    otherwise. They are for comparison with papers that sample (999 negatives in FedDCSR), and for nothing else.

    No score is looked at again. Of the items in the race, rank - 1 are not below the target; a sample without
    replacement holds a hypergeometric number of them, so that number is what is drawn.

    Args:
        ranks: (users,) ranks from 1 in the whole catalogue.
        candidates: (users,) items in each user's race, the target included.
        negatives: Sampled for each user; all there are, where there are fewer.
        seed: Of the draw; one draw for each user, in their order.

    Returns:
        (users,) ranks from 1 to negatives + 1.

    Raises:
        ValueError: If a rank is not in [1, candidates], or negatives is below 1.

    Reference: Krichene and Rendle, "On Sampled Metrics for Item Recommendation", KDD 2020.

    >>> sampled_ranks(np.array([1, 20]), np.array([20, 20]), negatives=5, seed=0)
    array([1, 6])
    """
    if negatives < 1:
        raise ValueError(f"negatives must be at least 1, got {negatives}")
    if ranks.shape != candidates.shape or (ranks < 1).any() or (ranks > candidates).any():
        raise ValueError("each rank must be in [1, candidates of its user]")
    ahead, others = ranks - 1, candidates - 1
    drawn = np.random.default_rng(seed).hypergeometric(ahead, others - ahead, np.minimum(negatives, others))
    return 1 + drawn.astype(np.int64)


def race_sizes(
    seen: Sequence[NDArray[np.integer[Any]]], targets: NDArray[np.integer[Any]], *, items: int
) -> NDArray[np.int64]:
    """(users,) items that each target competes with, itself included: the catalogue less what is masked.

    Args:
        seen: Per user, the items of the history.
        targets: (users,) held-out items.
        items: Size of the catalogue.
    """
    return np.array(
        [
            items if target in history else items - np.unique(history).size
            for history, target in zip(seen, targets, strict=True)
        ],
        dtype=np.int64,
    )


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
