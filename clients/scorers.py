"""The local methods that a federation has to beat, behind one small interface.

    cf = ItemCf.fit(data.before_test, items=len(data.catalogue.ids))
    ranks = rank_users(cf, data.before_test, users, data.test[users])

A `Scorer` scores the whole catalogue for some users of a `Histories`; the backbone is one more of them. The
methods here learn from one domain's own histories, without noise: their scores never leave the domain, and no
released quantity may depend on them.

Recency is the same everywhere: the last 10 items of the history count, weighted 0.8 ** age. Item-CF is cosine
co-occurrence over users (Sarwar et al., "Item-based collaborative filtering", WWW 2001) under that recency.
"""

from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from isthmus.clients.data import Histories
from isthmus.metrics import rank_targets

LAST = 10
"""Latest items of a history that count."""

DECAY = 0.8
"""Weight of an item / weight of the one after it."""

BACKWARD = np.float32(0.3)
"""Of `Transitions`: what an item that came before counts beside one that came as soon after."""

# Breaks ties between items of equal co-occurrence by popularity, and orders items with none.
_TIE_BREAK = 1e-9

# Scores in memory at once while ranking (16 MiB a signal): bounds memory whatever the catalogue, and stays near the
# processor, so that counting costs little beside scoring.
_SCORES = 1 << 22
_FEWEST, _MOST = 16, 256  # users at once: below, products of matrices get slow; above, nothing is gained


class Scorer(Protocol):
    """Whatever can score a catalogue for the users of a `Histories`."""

    def score(self, histories: Histories, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """Score every item for some users.

        Args:
            histories: What the users did; an item that is held out must not be in it.
            users: Row numbers in `histories`.

        Returns:
            (len(users), items), higher is better; seen items are not masked. A new array, the caller's to change.
        """
        ...


@runtime_checkable
class Sifter(Protocol):
    """A scorer that can tell, without scoring a whole catalogue, that a target is not among the first few."""

    def beyond(
        self, histories: Histories, users: NDArray[np.int64], targets: NDArray[np.int32], k: int
    ) -> NDArray[np.bool_]:
        """(len(users),) whether the target certainly ranks below the k-th place; False where that is not clear."""
        ...


def rank_users(  # noqa: PLR0913 - keyword-only after whose target is ranked
    scorer: Scorer,
    histories: Histories,
    users: NDArray[np.int64],
    targets: NDArray[np.int32],
    *,
    chunk: int | None = None,
    within: int | None = None,
) -> NDArray[np.int64]:
    """Rank each user's held-out item under a scorer: scored and counted a chunk of users at a time, nothing is kept.

    Args:
        scorer: The method.
        histories: What the users did before the held-out item; these items are masked as `rank_targets` says.
        users: Row numbers in `histories`.
        targets: (len(users),) held-out item of each of `users`.
        chunk: Users scored at once, as many as `chunk_users` says when None; no result depends on it.
        within: Ranks beyond this place do not matter: some are given as `within + 1`, which is much faster. None: all
            are exact.

    Returns:
        (len(users),) ranks from 1.

    Raises:
        ValueError: If `users` and `targets` differ in length or a target is not an item.
    """
    if len(users) != len(targets):
        raise ValueError(f"each user needs one target, got {len(users)} users and {len(targets)} targets")
    if within is not None and isinstance(scorer, Sifter):
        near = ~scorer.beyond(histories, users, targets, within)
        ranks = np.full(len(users), within + 1, dtype=np.int64)
        ranks[near] = rank_users(scorer, histories, users[near], targets[near], chunk=chunk)
        return ranks
    ranks = np.empty(len(users), dtype=np.int64)
    start, size = 0, chunk or _FEWEST
    while start < len(users):
        some = slice(start, start + size)
        scores = scorer.score(histories, users[some])
        ranks[some] = rank_targets(scores, targets[some], [histories.row(int(user)) for user in users[some]])
        start += size
        size = chunk or chunk_users(scores.shape[1])  # the first few tell how large the catalogue is
    return ranks


def chunk_users(items: int) -> int:
    """How many users' scores of a whole catalogue are in memory at once."""
    return min(max(_SCORES // items, _FEWEST), _MOST)


def recency_weights(
    histories: Histories, users: NDArray[np.int64], *, items: int, last: int = LAST, decay: float = DECAY
) -> sparse.csr_array:
    """What each item of a history weighs: decay ** age over the last few, age 0 the latest.

    Args:
        histories: Rows to read.
        users: Row numbers.
        items: Size of the catalogue.
        last: Latest items that count.
        decay: Weight of an item / weight of the one after it, in (0, 1].

    Returns:
        (len(users), items) float32; an item that occurs twice adds up.
    """
    rows = [histories.row(int(user))[-last:] for user in users]
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    ends = np.concatenate([[0], np.cumsum(lengths)])
    columns = np.concatenate([np.empty(0, dtype=np.int32), *rows])
    age = np.repeat(ends[1:], lengths) - 1 - np.arange(ends[-1])
    return sparse.csr_array(((decay**age).astype(np.float32), columns, ends), shape=(len(users), items))


@dataclass(frozen=True, kw_only=True)
class Popularity:
    """The same score for everyone: how often an item occurs in the histories.

    Attributes:
        counts: (items,) float32 number of events.
    """

    counts: NDArray[np.float32]

    @classmethod
    def fit(cls, histories: Histories, *, items: int) -> Self:
        """Count events.

        Args:
            histories: Events to learn from.
            items: Size of the catalogue.
        """
        return cls(counts=np.bincount(histories.items, minlength=items).astype(np.float32))

    def score(self, histories: Histories, users: NDArray[np.int64]) -> NDArray[np.float32]:  # noqa: ARG002
        """As `Scorer.score`: the counts, whatever the user did."""
        return np.tile(self.counts, (len(users), 1))


@dataclass(frozen=True, kw_only=True)
class ItemCf:
    """Items that share users with the items of the history.

    Attributes:
        similarity: (items, items) float32: users with both / sqrt(events of one x events of the other), 0 on
            the diagonal.
        events: (items,) how often each occurs; of equal similarities the one of the more frequent item is higher.
        last: Latest items of a history that count.
        decay: Weight of an item / weight of the one after it.
    """

    similarity: sparse.csr_array
    events: NDArray[np.int64]
    last: int = LAST
    decay: float = DECAY

    @classmethod
    def fit(cls, histories: Histories, *, items: int, last: int = LAST, decay: float = DECAY) -> Self:
        """Count pairs of items.

        Args:
            histories: Events to learn from.
            items: Size of the catalogue.
            last: Latest items of a history that count when scoring.
            decay: Weight of an item / weight of the one after it.
        """
        shared = cls._pairs(histories, items)
        pairs = shared.row != shared.col
        row, column = shared.row[pairs], shared.col[pairs]
        events = np.bincount(histories.items, minlength=items)
        size = np.sqrt(np.maximum(events, 1.0))
        cosine = (shared.data[pairs] / (size[row] * size[column])).astype(np.float32)
        return cls(
            similarity=sparse.csr_array((cosine, (row, column)), shape=(items, items)),
            events=events,
            last=last,
            decay=decay,
        )

    @staticmethod
    def _pairs(histories: Histories, items: int) -> sparse.coo_array:
        """(items, items) users who share each pair; an item counts once per user."""
        shape = (len(histories), items)
        ones = np.ones(len(histories.items), dtype=np.float32)
        # A copy: merging repeats works in place and would reorder the histories themselves.
        once = sparse.csr_array((ones, histories.items, histories.offsets), shape=shape, copy=True)
        once.sum_duplicates()
        once.data[:] = 1.0
        return sparse.coo_array(once.T @ once)

    def score(self, histories: Histories, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """As `Scorer.score`: similarity to the latest items, summed by recency.

        Guarantees:
            - A stranger has the scores that it would have if it had been there when the others were counted. Else its
              own items, which nobody else combined, would not set the scale on which a blend weighs all the others.
        """
        items = len(self.events)
        weights = recency_weights(histories, users, items=items, last=self.last, decay=self.decay)
        scores: NDArray[np.float32]
        if histories.strangers:
            scores = self._scores_of_strangers(weights, histories, users)
        else:
            scores = (weights @ self.similarity).toarray()
        scores += (_TIE_BREAK * self.events).astype(np.float32)
        return scores

    def _scores_of_strangers(
        self, weights: sparse.csr_array, histories: Histories, users: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """(users, items) each user's scores, with the user alone counted in."""
        items = len(self.events)
        rows = [histories.row(int(user)) for user in users]
        lengths = np.array([len(row) for row in rows], np.int64)
        places = np.repeat(np.arange(len(rows)), lengths) * items + np.concatenate([np.empty(0, np.int64), *rows])
        # Each user's items, each once: its place in the scores, and how often it occurs.
        mine, at, times = np.unique(places, return_inverse=True, return_counts=True)
        events = self.events[mine % items]
        size = np.sqrt(events + times)
        shrunk = np.sqrt(np.maximum(events, 1)) / size
        # 1. What others have combined, with items that are now a little more frequent.
        latest = sparse.coo_array(weights)
        where = np.searchsorted(mine, latest.row.astype(np.int64) * items + latest.col)
        thinned = sparse.csr_array((latest.data * shrunk[where], (latest.row, latest.col)), shape=weights.shape)
        scores: NDArray[np.float32] = (thinned @ self.similarity).toarray()
        # 2. The pairs that each has combined itself.
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        pairs = self._pairs(Histories(offsets=offsets, items=at.astype(np.int32)), len(mine))
        pairs.data[pairs.row == pairs.col] = 0.0
        each = np.bincount(where, latest.data, minlength=len(mine)) / size
        flat = scores.reshape(-1)
        flat[mine] = flat[mine] * shrunk + (each @ pairs) / size + _TIE_BREAK * times
        return scores


@dataclass(frozen=True, kw_only=True)
class Transitions(ItemCf):
    """Items that came soon after the items of the history, in other histories; a little, those that came before.

    As `ItemCf`, where a pair counts `DECAY` for each event between the two (of ten at most), and `BACKWARD` of that the
    other way round: sequential rules (Ludewig and Jannach, "Evaluation of session-based recommendation algorithms",
    User Modeling and User-Adapted Interaction 2018, section 3.1) with a way back.
    """

    @staticmethod
    def _pairs(histories: Histories, items: int) -> sparse.coo_array:
        """(items, items) sum over users of how near the second came after the first."""
        user = np.repeat(np.arange(len(histories)), histories.lengths())
        total = sparse.csr_array((items, items), dtype=np.float32)
        for gap in range(1, LAST + 1):
            same = user[:-gap] == user[gap:]
            first, second = histories.items[:-gap][same], histories.items[gap:][same]
            near = np.full(len(first), DECAY ** (gap - 1), np.float32)
            total = total + sparse.coo_array((near, (first, second)), shape=(items, items)).tocsr()
        return sparse.coo_array(total + BACKWARD * total.T)


@dataclass(frozen=True, kw_only=True)
class TextNeighbours:
    """Items whose public text is close to that of the history; learns nothing from anyone.

    Attributes:
        features: (items, dim) float32, rows of length 1, or 0 for an item without text.
        last: Latest items of a history that count.
        decay: Weight of an item / weight of the one after it.
    """

    features: NDArray[np.float32]
    last: int = LAST
    decay: float = DECAY

    def score(self, histories: Histories, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """As `Scorer.score`: cosine to the latest items, summed by recency."""
        items = len(self.features)
        weights = recency_weights(histories, users, items=items, last=self.last, decay=self.decay)
        profile: NDArray[np.float32] = weights @ self.features  # (users, dim)
        return profile @ self.features.T
