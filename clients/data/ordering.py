"""From a log in the order of its file to one history per user, in time that grows with the log and no faster.

    numbers = UserNumbers()
    who = [numbers.number(piece) for piece in pieces_of_ids]       # user numbers, in order of first appearance
    users, who = numbers.ordered(who)
    log = Log(users=users, who=who, what=items, when=times, keep_times=False)
    ordered = order_log(log)
    ordered.histories.row(0)

Users are taken a block at a time, so that sorting, and looking for rows that repeat, needs little memory beside the
log itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from isthmus.clients.data.splits import Histories
from isthmus.clients.data.users import UserIds

_BLOCK = 1 << 20
"""Events of a block of users, more or less."""
_MOST_BLOCKS = 1 << 16  # block numbers are 16 bits wide: numpy sorts those in linear time


@dataclass(frozen=True, kw_only=True, eq=False)
class Log:
    """Usable events in the order of the file.

    Attributes:
        users: Ids, sorted; each has an event.
        who: (events,) place of the event's user in `users`.
        what: (events,) catalogue index.
        when: (events,) microseconds since 1970; None without a clock.
        keep_times: Whether the ordered times are wanted.
    """

    users: UserIds
    who: NDArray[np.int32]
    what: NDArray[np.int32]
    when: NDArray[np.int64] | None
    keep_times: bool

    @property
    def clock(self) -> tuple[int, int] | None:
        """First and last time; None without a clock."""
        return None if self.when is None else (int(self.when.min()), int(self.when.max()))


@dataclass(frozen=True, kw_only=True, eq=False)
class Ordered:
    """Histories, and what was found while they were made.

    Attributes:
        histories: One row per user, oldest first.
        times: (events,) along `histories.items`, where wanted.
        duplicates: Events dropped because an earlier one has the same user, item and time (with a clock only).
        first_duplicate: The first of them, as a place in the log; -1 for none.
        out_of_order: Events older than the one before them of the same user in the file.
        repeats: Events with the same item as the user's event before.
        items_with_events: Distinct items.
    """

    histories: Histories
    times: NDArray[np.int64] | None
    duplicates: int
    first_duplicate: int
    out_of_order: int
    repeats: int
    items_with_events: int


class UserNumbers:
    """Numbers for user ids as they turn up, from one table of ids: a join would build its own for every piece."""

    def __init__(self) -> None:
        self._type = pl.Categorical(pl.Categories.random())
        self._table = pl.Series([], dtype=pl.String).cast(self._type)  # the table lives as long as a column of it
        self._count = 0

    def number(self, ids: pl.Series) -> NDArray[np.int32]:
        """(rows,) the number of each id; an id that is new gets the next one."""
        numbers = ids.cast(self._type).to_physical().to_numpy().astype(np.int32)
        self._count = max(self._count, int(numbers.max(initial=-1)) + 1)
        return numbers

    def ordered(self, parts: Sequence[NDArray[np.int32]]) -> tuple[UserIds, NDArray[np.int32]]:
        """All ids in byte order, and the numbers of several pieces, end to end, as places among them."""
        known = pl.int_range(self._count, dtype=pl.UInt32, eager=True).cat.to(self._type).cast(pl.String)
        order = known.arg_sort()
        place = np.empty(self._count, dtype=np.int32)
        place[order.to_numpy()] = np.arange(self._count, dtype=np.int32)
        return UserIds.of(known.gather(order)), np.concatenate([place[part] for part in parts])


def order_log(log: Log) -> Ordered:
    """Group by user, drop exact duplicates, sort by time; ties, and rows without a clock, keep the file's order."""
    users, events = len(log.users), log.who.size
    blocks = min(max(events // _BLOCK, 1), _MOST_BLOCKS, users)
    size = -(-users // blocks)  # users of a block
    block = (log.who // size).astype(np.uint16)
    grouped = np.argsort(block, kind="stable")  # (events,) places in the log, block by block
    ends = np.cumsum(np.bincount(block, minlength=blocks))
    del block
    items = np.empty(events, dtype=np.int32)
    times = np.empty(events, dtype=np.int64) if log.when is not None and log.keep_times else None
    lengths = np.zeros(users, dtype=np.int64)
    done, first_duplicate, out_of_order, repeats = 0, -1, 0, 0
    for start, end in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True):
        part = _order_block(log, grouped[start:end])
        at = part.places
        who, what = log.who[at], log.what[at]
        items[done : done + at.size] = what
        if times is not None and log.when is not None:
            times[done : done + at.size] = log.when[at]
        base = int(who[0]) if at.size else 0
        counts = np.bincount(who - base)
        lengths[base : base + counts.size] = counts
        repeats += int(((np.diff(what) == 0) & (np.diff(who) == 0)).sum())
        out_of_order += part.out_of_order
        if part.first_duplicate >= 0 and not 0 <= first_duplicate < part.first_duplicate:
            first_duplicate = part.first_duplicate
        done += at.size
    histories = Histories(offsets=np.concatenate([[0], np.cumsum(lengths)]), items=items[:done])
    return Ordered(
        histories=histories,
        times=None if times is None else times[:done],
        duplicates=events - done,
        first_duplicate=first_duplicate,
        out_of_order=out_of_order,
        repeats=repeats,
        items_with_events=histories.touched().size,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _OrderedBlock:
    """Places in the log of a block's events, by user and time, and what was found."""

    places: NDArray[np.int64]
    first_duplicate: int
    out_of_order: int


def _order_block(log: Log, places: NDArray[np.int64]) -> _OrderedBlock:
    """Order the events of some users; `places` are in the order of the file."""
    who = log.who[places]
    places = places[np.argsort(who, kind="stable")]  # by user, then as in the file
    if log.when is None or not places.size:
        return _OrderedBlock(places=places, first_duplicate=-1, out_of_order=0)
    again = _again(log, places)
    first = int(places[again].min()) if again.any() else -1
    places = places[~again]
    who, when = log.who[places], log.when[places]
    out_of_order = int(((np.diff(when) < 0) & (np.diff(who) == 0)).sum())
    if out_of_order:
        places = places[np.lexsort((when, who))]
    return _OrderedBlock(places=places, first_duplicate=first, out_of_order=out_of_order)


def _again(log: Log, places: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(events,) which repeat user, item and time of one before them; `places` are by user, then as in the file."""
    who, when = log.who[places], _times(log)[places]
    if ((np.diff(when) < 0) & (np.diff(who) == 0)).any():
        order = np.lexsort((when, who))
        who, when = who[order], when[order]
    else:
        order = np.arange(places.size)
    again = np.zeros(places.size, dtype=np.bool_)
    tied = np.concatenate([(np.diff(who) == 0) & (np.diff(when) == 0), [False]])  # with the next one
    tied[1:] |= tied[:-1].copy()
    if tied.any():
        order, who, when = order[tied], who[tied], when[tied]
        what = log.what[places[order]]
        within = np.lexsort((what, when, who))  # stable: of equals, the first in the file stays first
        who, when, what = who[within], when[within], what[within]
        same = (np.diff(who) == 0) & (np.diff(when) == 0) & (np.diff(what) == 0)
        again[order[within[1:]]] = same
    return again


def _times(log: Log) -> NDArray[np.int64]:
    """Times of a log that has a clock."""
    if log.when is None:
        raise ValueError("a log without a clock has no times")
    return log.when
