"""Which events train, which validate and which test.

    parts = split_histories(histories, times, config.split)
    parts.train, parts.before_test, parts.validation, parts.test

Leave-one-out: a user with at least `min_events` events gives the last as test target and the one before as
validation target; the rest trains. Any other user trains only, with everything.

Temporal: what lies before `validation_from` trains, for every user. A user with at least `min_events` events in
all gives the first event in [`validation_from`, `test_from`) as validation target, if an event trains before it;
and the first at or after `test_from` as test target, if any event lies before `test_from`. Events at or after
`test_from` that are no target are used nowhere.

The input of a validation target is `train`, that of a test target `before_test`: all events before the target
(of a user without test target: before `test_from`, or all). Both are cut to the latest `max_history` events, after
splitting, so that a long test period cannot push the training events out.

The rules in full are in docs/data.md. Everything is vectorised over blocks of users.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isthmus.config import Split

_BLOCK = 1 << 20
"""Events looked at at once: what is worked out for each of them would else take many times their own memory."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Histories:
    """Ragged item lists, one row per user, oldest event first.

    Attributes:
        offsets: (users + 1,) row u is items[offsets[u]:offsets[u + 1]].
        items: (events,) catalogue indices.
        strangers: Whether these are people whom no method was fitted on.

    >>> Histories(offsets=np.array([0, 2, 3]), items=np.array([7, 8, 9], dtype=np.int32)).row(0)
    array([7, 8], dtype=int32)
    """

    offsets: NDArray[np.int64]
    items: NDArray[np.int32]
    strangers: bool = False

    def __post_init__(self) -> None:
        """Refuse offsets that do not cover the items."""
        offsets = self.offsets
        if offsets.ndim != 1 or not offsets.size or offsets[0] != 0 or offsets[-1] != self.items.size:
            raise ValueError(f"offsets must run from 0 to {self.items.size}, got shape {offsets.shape}")
        if (np.diff(offsets) < 0).any():
            raise ValueError("offsets must not decrease")

    def __len__(self) -> int:
        """How many users there are."""
        return self.offsets.size - 1

    def row(self, user: int) -> NDArray[np.int32]:
        """(events of the user,) items, oldest first. A view: do not write to it."""
        if not 0 <= user < len(self):
            raise IndexError(f"user must be in [0, {len(self)}), got {user}")
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    def lengths(self) -> NDArray[np.int64]:
        """(users,) events of each user."""
        return np.diff(self.offsets)

    def blocks(self) -> Iterator[slice]:
        """Users, some after the others, with about a million events each time; one with more stands alone."""
        start = 0
        while start < len(self):
            stop = int(np.searchsorted(self.offsets, self.offsets[start] + _BLOCK, side="right")) - 1
            stop = min(max(stop, start + 1), len(self))
            yield slice(start, stop)
            start = stop

    def touched(self) -> NDArray[np.int64]:
        """(items,) indices that occur, sorted."""
        seen = np.zeros(int(self.items.max()) + 1 if self.items.size else 0, dtype=np.bool_)
        seen[self.items] = True
        return np.flatnonzero(seen)

    def take(self, users: NDArray[np.int64]) -> "Histories":
        """The rows of some users, in the order named."""
        lengths = self.offsets[users + 1] - self.offsets[users]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        at = np.arange(offsets[-1]) + np.repeat(self.offsets[users] - offsets[:-1], lengths)
        return Histories(offsets=offsets, items=self.items[at])


@dataclass(frozen=True, kw_only=True)
class SplitCounts:
    """What the split did with the events. Private: exact counts never leave the domain.

    Attributes:
        users_below_min_events: Users with too few events to evaluate; they train only.
        users_with_validation_target: Users who validate.
        users_with_test_target: Users who test.
        users_without_train_events: Users whose `train` row is empty (temporal only).
        train_events: Events in `train`.
        events_cut_by_max_history: Events in no part, because `max_history` later ones are.
        events_after_test: Events at or after `test_from` that are no target; used nowhere (temporal only).
        repeat_validation_targets: Validation targets that occur in their input.
        repeat_test_targets: Test targets that occur in their input.
    """

    users_below_min_events: int
    users_with_validation_target: int
    users_with_test_target: int
    users_without_train_events: int
    train_events: int
    events_cut_by_max_history: int
    events_after_test: int
    repeat_validation_targets: int
    repeat_test_targets: int


@dataclass(frozen=True, kw_only=True, eq=False)
class SplitHistories:
    """The parts of a split; users in the order of the histories.

    Attributes:
        train: What models are fitted on, and the input of `validation`.
        before_test: The input of `test`.
        validation: (users,) target item, -1 for none.
        test: (users,) target item, -1 for none.
        counts: How many of each.
    """

    train: Histories
    before_test: Histories
    validation: NDArray[np.int32]
    test: NDArray[np.int32]
    counts: SplitCounts


def split_histories(histories: Histories, times: NDArray[np.int64] | None, split: Split) -> SplitHistories:
    """Split whole histories.

    Args:
        histories: One row per user, oldest first; no empty rows.
        times: (events,) microseconds since 1970, not decreasing within a user; needed by a temporal split.
        split: The rule.

    Raises:
        ValueError: If a temporal split gets no times.
    """
    starts, lengths = histories.offsets[:-1], histories.lengths()
    enough = lengths >= split.min_events  # (users,)
    if split.kind == "leave-one-out":
        has_test = has_validation = enough
        train_end = np.where(enough, lengths - 2, lengths)
        test_at = np.where(enough, lengths - 1, lengths)
    else:
        if times is None or split.validation_from is None or split.test_from is None:
            raise ValueError("a temporal split needs times and cut-offs")
        train_end = _count_before(histories, times, split.validation_from)
        test_at = _count_before(histories, times, split.test_from)
        has_validation = enough & (train_end > 0) & (test_at > train_end)
        has_test = enough & (test_at > 0) & (lengths > test_at)

    # All positions are within a user's row: train [a, train_end), validation at train_end, before [b, test_at).
    train_start = np.maximum(train_end - split.max_history, 0)
    before_start = np.maximum(test_at - split.max_history, 0)
    train = _rows(histories, train_start, train_end)
    before_test = _rows(histories, before_start, test_at)
    validation = _pick(histories, starts + train_end, has_validation)
    test = _pick(histories, starts + test_at, has_test)
    used = train.lengths() + (test_at - np.maximum(before_start, train_end))
    used += has_validation & (before_start > train_end)  # a target older than its user's kept input
    counts = SplitCounts(
        users_below_min_events=int((~enough).sum()),
        users_with_validation_target=int(has_validation.sum()),
        users_with_test_target=int(has_test.sum()),
        users_without_train_events=int((train_end == 0).sum()),
        train_events=train.items.size,
        events_cut_by_max_history=int((test_at - used).sum()),
        events_after_test=int((lengths - test_at - has_test).sum()),
        repeat_validation_targets=_repeats(train, validation),
        repeat_test_targets=_repeats(before_test, test),
    )
    return SplitHistories(train=train, before_test=before_test, validation=validation, test=test, counts=counts)


def _count_before(histories: Histories, times: NDArray[np.int64], seconds: int) -> NDArray[np.int64]:
    """(users,) events of each user before a moment."""
    counts = np.empty(len(histories), dtype=np.int64)
    for users in histories.blocks():
        offsets = histories.offsets[users.start : users.stop + 1]
        running = np.concatenate([[0], np.cumsum(times[offsets[0] : offsets[-1]] < seconds * 1_000_000)])
        counts[users] = np.diff(running[offsets - offsets[0]])
    return counts


def _rows(histories: Histories, start: NDArray[np.int64], stop: NDArray[np.int64]) -> Histories:
    """Each user's events [start, stop), positions within the row."""
    lengths = stop - start
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    shift = histories.offsets[:-1] + start - offsets[:-1]  # (users,) from new position to old
    items = np.empty(offsets[-1], dtype=np.int32)
    for users in histories.blocks():
        new = slice(offsets[users.start], offsets[users.stop])
        items[new] = histories.items[np.arange(new.start, new.stop) + np.repeat(shift[users], lengths[users])]
    return Histories(offsets=offsets, items=items)


def _pick(histories: Histories, at: NDArray[np.int64], wanted: NDArray[np.bool_]) -> NDArray[np.int32]:
    """(users,) the item at a position of the flat array, -1 where not wanted."""
    picked = np.full(at.size, -1, dtype=np.int32)
    picked[wanted] = histories.items[at[wanted]]
    return picked


def _repeats(rows: Histories, target: NDArray[np.int32]) -> int:
    """How many users have their target in their input."""
    count = 0
    for users in rows.blocks():
        offsets = rows.offsets[users.start : users.stop + 1]
        user = np.repeat(np.arange(users.start, users.stop), np.diff(offsets))
        hits = rows.items[offsets[0] : offsets[-1]] == target[user]
        count += int(np.unique(user[hits]).size)
    return count
