"""What lists of recommendations show: how much of a catalogue, and how much of it is news.

    lists = top_items(scores, seen, k=10)                   # (users, 10), -1 where nothing is left
    coverage(lists, items=5000)
    novelty(lists, counts)                                  # (users,) bits

Accuracy alone rewards showing everybody the same famous items; these two say so. Novelty is the mean
self-information of what is shown: -log2 of the share of training events that an item has.

References: Zhou et al., "Solving the apparent diversity-accuracy dilemma of recommender systems", PNAS 2010
(self-information); Ge, Delgado-Battenfeld and Jannach, "Beyond accuracy", RecSys 2010 (coverage).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def top_items(scores: NDArray[np.floating[Any]], seen: Sequence[NDArray[np.integer[Any]]], k: int) -> NDArray[np.int64]:
    """The k best items that a user has not had, best first; of equal ones the first in the catalogue.

    Args:
        scores: (users, items), higher is better; left as it is.
        seen: Per user, the items of the history.
        k: Length of a list.

    Returns:
        (users, k) item indices, -1 where a user has no further item.

    Raises:
        ValueError: If k is below 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1 item, got {k}")
    users, items = scores.shape
    lists = np.full((users, k), -1, dtype=np.int64)
    for user in range(users):
        row = scores[user].astype(np.float64)
        row[seen[user]] = -np.inf
        left = min(k, items - np.unique(seen[user]).size)
        if not left:
            continue
        bar = np.partition(row, items - left)[items - left]  # the left-th best score
        near = np.flatnonzero(row >= bar)
        lists[user, :left] = near[np.argsort(-row[near], kind="stable")][:left]
    return lists


def coverage(lists: NDArray[np.int64], *, items: int) -> float:
    """Share of the catalogue that is in anybody's list, in [0, 1].

    It grows with the number of users, so compare it between methods on the same users only.

    Args:
        lists: (users, k) item indices, -1 for none.
        items: Size of the catalogue, at least 1.

    Raises:
        ValueError: If an index is not an item.

    >>> coverage(np.array([[0, 1], [1, -1]]), items=4)
    0.5
    """
    _check(lists, items)
    shown = np.unique(lists)
    return float(np.count_nonzero(shown >= 0)) / items


def novelty(lists: NDArray[np.int64], counts: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Mean self-information of each user's list, in bits; 0 for an empty list.

    One event is added to each item, so that one that nobody has met is very, and not infinitely, new.

    Args:
        lists: (users, k) item indices, -1 for none.
        counts: (items,) training events of each item.

    Returns:
        (users,) values of at least 0; higher means less known items.

    Raises:
        ValueError: If an index is not an item.

    >>> novelty(np.array([[0, 1]]), np.array([2, 0]))
    array([1.2075...])
    """
    _check(lists, len(counts))
    bits = np.log2(counts.sum() + len(counts)) - np.log2(counts + 1.0)  # (items,)
    there = lists >= 0
    total: NDArray[np.float64] = np.where(there, bits[lists.clip(0)], 0.0).sum(axis=1)
    mean: NDArray[np.float64] = total / np.maximum(there.sum(axis=1), 1)
    return mean


def _check(lists: NDArray[np.int64], items: int) -> None:
    if lists.size and (lists.min() < -1 or lists.max() >= items):
        raise ValueError(f"lists must hold items in [0, {items}), or -1, got {lists.min()} to {lists.max()}")
