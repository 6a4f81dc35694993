"""Interactions, cleaned: who did what in which order, and what had to be set aside for it.

    found = read_events(config, catalogue)
    found.histories.row(0)            # item indices of the first user, oldest first

Every row of the file is used or counted once, under the first rule that sets it aside, in this order: no user,
no item, an event type that is not kept, an unreadable time, an unknown item, an exact duplicate. So

    rows = events + rows_without_user + rows_without_item + events_of_other_types
           + rows_with_bad_timestamp + events_with_unknown_item + exact_duplicates

Where nothing usable would be left the table is refused instead (`DataError`).

A table is read a piece at a time and kept as numbers: memory is some 30 bytes per event, not its text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from isthmus.clients.data.catalogue import Catalogue
from isthmus.clients.data.clock import iso, to_microseconds
from isthmus.clients.data.ordering import Log, UserNumbers, order_log
from isthmus.clients.data.splits import Histories
from isthmus.clients.data.tables import Layout, Table, layout_of, open_table, read_sequences
from isthmus.config import DomainConfig, Interactions
from isthmus.errors import ConfigError, DataError

_SAME = "the user, item and time of an earlier row"
_TIMES = "Times are unix seconds (not milliseconds) or ISO date-times"
_SHOWN = 3  # unknown items in a message


@dataclass(frozen=True, kw_only=True)
class EventCounts:
    """What the interaction table held. Private: exact counts never leave the domain.

    Attributes:
        rows: Rows of the table (of a sequence file: items, and lines without any).
        rows_without_user: Rows dropped because the user id is empty.
        rows_without_item: Rows dropped because the item id is empty.
        events_of_other_types: Rows dropped because `keep_events` does not list their type.
        rows_with_bad_timestamp: Rows dropped because their time is missing or unreadable.
        events_with_unknown_item: Rows dropped because the catalogue lacks their item.
        exact_duplicates: Rows dropped because an earlier one has the same user, item and time (with a clock only).
        events: What is left: the histories.
        users: Users with at least one event.
        users_with_one_event: Users with exactly one.
        median_history: Median events per user.
        events_out_of_order: Events older than the row before them of the same user; sorted (with a clock only).
        consecutive_repeats: Events with the same item as the user's event before; kept.
        items_without_events: Catalogue items nobody touched; kept, they can be recommended.
        clock_start: First time, unix seconds; None without a clock.
        clock_end: Last time, unix seconds; None without a clock.
    """

    rows: int
    rows_without_user: int
    rows_without_item: int
    events_of_other_types: int
    rows_with_bad_timestamp: int
    events_with_unknown_item: int
    exact_duplicates: int
    events: int
    users: int
    users_with_one_event: int
    median_history: float
    events_out_of_order: int
    consecutive_repeats: int
    items_without_events: int
    clock_start: float | None
    clock_end: float | None


@dataclass(frozen=True, kw_only=True, eq=False)
class FoundEvents:
    """Cleaned histories, users sorted by id (byte order).

    Attributes:
        users: User ids.
        histories: One row per user, whole, oldest event first; never empty rows.
        times: (events,) microseconds since 1970 along `histories.items`; only for a temporal split, else None.
        counts: What was found and repaired.
        notes: Sentences that say so.
        blank_lines: Empty lines of the file.
    """

    users: Sequence[str]
    histories: Histories
    times: NDArray[np.int64] | None
    counts: EventCounts
    notes: tuple[str, ...]
    blank_lines: int


class Columns(NamedTuple):
    """Columns of an interaction table after the defaults of its layout."""

    user: str
    item: str
    timestamp: str | None
    event: str | None


class _Sieve:
    """How many rows each rule took, over all pieces of a table, and a sentence for each rule that took some."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self._said: dict[str, str] = {}

    def drop(  # noqa: PLR0913, PLR0917 - a rule, where it looks, and what it says
        self,
        count: str,
        table: Table,
        alive: NDArray[np.bool_],
        bad: NDArray[np.bool_],
        what: str,
        examples: pl.Series | None = None,
    ) -> None:
        """Set aside the living rows of a piece that are in `bad`: they are no longer alive."""
        hit = alive & bad
        if hit.any():
            first = int(hit.argmax())
            shown = "" if examples is None else f"'{examples[first]}' on "
            self.add(count, int(hit.sum()), f"{what} and were dropped; first: {shown}{table.where(first)}.")
            alive &= ~bad
        else:
            self.add(count, 0, "")

    def add(self, count: str, rows: int, said: str) -> None:
        """Count rows; of several sentences about a rule the first stays."""
        self.counts[count] = self.counts.get(count, 0) + rows
        if rows:
            self._said.setdefault(count, said)

    def note(self, count: str) -> list[str]:
        """The sentence about a rule, if it took any row."""
        return [f"{self.counts[count]} rows {self._said[count]}"] if self.counts[count] else []


def open_interactions(config: DomainConfig) -> tuple[Iterator[Table], Columns, tuple[str, ...]]:
    """Read the columns of the interaction table that the configuration names, some rows at a time.

    Returns:
        Pieces of the table, the columns' names in them, and notes. A RecBole file has the column names user_id,
        item_id and timestamp (where present) unless domain.toml says otherwise; a sequence file has `user` and `item`.

    Raises:
        ConfigError: If the layout cannot hold what is asked of it.
        DataError: If the table cannot be read or lacks a column.
    """
    said = config.interactions
    path = config.interactions_path
    layout = layout_of(path, said.format)
    if layout is Layout.SEQUENCE:
        if said.timestamp is not None or said.event is not None:
            raise ConfigError(
                f"{path}: a sequence file has neither times nor event types; remove `timestamp` and `event` from "
                "[interactions] in domain.toml, or use a table."
            )
        return read_sequences(path).pieces(), Columns("user", "item", None, None), ()
    source = open_table(path, declared=said.format)
    columns = Columns(said.user, said.item, said.timestamp, said.event)
    if layout is Layout.RECBOLE:
        columns = _recbole_columns(said, source.columns)
    keys = {"interactions.user": columns.user, "interactions.item": columns.item}
    if columns.timestamp is not None:
        keys["interactions.timestamp"] = columns.timestamp
    if columns.event is not None:
        keys["interactions.event"] = columns.event
    notes = []
    unused = [name for name in source.columns if name.lower() in ("timestamp", "time", "date", "datetime")]
    if columns.timestamp is None and unused:
        notes.append(
            f"Column '{unused[0]}' is not used: the order of the file is taken as the order of time. "
            f'Set timestamp = "{unused[0]}" to sort by it.'
        )
    return source.pieces(keys), columns, tuple(notes)


def read_events(config: DomainConfig, catalogue: Catalogue) -> FoundEvents:
    """Read, clean and order the interactions of a domain.

    Raises:
        ConfigError: If the layout cannot hold what is asked of it, or a temporal split has no clock.
        DataError: If the table cannot be read, or nothing usable is in it.
    """
    pieces, columns, remarks = open_interactions(config)
    if config.split.kind == "temporal" and columns.timestamp is None:
        raise ConfigError(
            f'{config.folder / "domain.toml"}: split.kind = "temporal" needs `interactions.timestamp`, got none. '
            'Name the column of times, or use "leave-one-out".'
        )
    sifting = _Sifting(config, catalogue, columns)
    for piece in pieces:
        sifting.take(piece)
    sifting.refuse_nothing()
    log, sieve = sifting.log(), sifting.sieve
    found = order_log(log)
    first = found.first_duplicate
    where = "" if first < 0 else sifting.where(first)
    sieve.add("exact_duplicates", found.duplicates, f"repeat {_SAME} and were dropped; first: {where}.")

    lengths, clock = found.histories.lengths(), log.clock
    counts = EventCounts(
        **sieve.counts,
        rows=sifting.rows,
        events=found.histories.items.size,
        users=len(log.users),
        users_with_one_event=int((lengths == 1).sum()),
        median_history=float(np.median(lengths)),
        events_out_of_order=found.out_of_order,
        consecutive_repeats=found.repeats,
        items_without_events=len(catalogue) - found.items_with_events,
        clock_start=None if clock is None else clock[0] / 1e6,
        clock_end=None if clock is None else clock[1] / 1e6,
    )
    notes = [*remarks, *sifting.notes(), *sieve.note("exact_duplicates")]
    if found.out_of_order:
        notes.append(f"{found.out_of_order} events stood after a later one of their user and were sorted.")
    if clock is not None:
        notes.append(f"The clock runs from {iso(clock[0])} to {iso(clock[1])}.")
    return FoundEvents(
        users=log.users,
        histories=found.histories,
        times=found.times,
        counts=counts,
        notes=tuple(notes),
        blank_lines=sifting.blank_lines,
    )


def _recbole_columns(said: Interactions, header: tuple[str, ...]) -> Columns:
    """RecBole's own names where domain.toml is silent; its timestamp only where the file has one."""
    given = said.model_fields_set
    timestamp = said.timestamp
    if "timestamp" not in given and "timestamp" in header:
        timestamp = "timestamp"
    return Columns(
        said.user if "user" in given else "user_id",
        said.item if "item" in given else "item_id",
        timestamp,
        said.event,
    )


class _Sifting:
    """Takes a table piece by piece, sets aside what cannot be used, and keeps the rest as numbers."""

    def __init__(self, config: DomainConfig, catalogue: Catalogue, columns: Columns) -> None:
        self.sieve = _Sieve()
        self.rows = 0
        self.blank_lines = 0
        self._config = config
        self._columns = columns
        self._ids = pl.Series(catalogue.ids, dtype=pl.String)
        self._users = UserNumbers()
        self._log: list[tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64] | None]] = []
        self._alive: list[tuple[Table, NDArray[np.uint8]]] = []  # of each piece, a bit per row
        self._types: set[str] = set()
        self._left = dict.fromkeys(("types", "times", "items"), 0)  # rows that reached the rule
        self._untimed = ""  # the first row that reached the rule of times, and what its time was
        self._unknown: list[str] = []  # the first items that reached the rule of items

    def take(self, table: Table) -> None:
        """Sift one piece."""
        columns, sieve = self._columns, self.sieve
        alive = np.ones(table.frame.height, dtype=np.bool_)
        user, item = table.ids(columns.user), table.ids(columns.item)
        sieve.drop("rows_without_user", table, alive, _blank(user), "have no user")
        sieve.drop("rows_without_item", table, alive, _blank(item), "have no item")
        self._drop_other_types(table, alive)
        micro = self._drop_bad_times(table, alive)
        index = self._drop_unknown(table, alive, item)
        kept = pl.Series(alive)
        who, what = self._users.number(user.filter(kept)), index.filter(kept).to_numpy()
        self._log.append((who, what, None if micro is None else micro.filter(kept).to_numpy()))
        place = Table(path=table.path, frame=pl.DataFrame(), lines=table.lines, blank_lines=0, first=table.first)
        self._alive.append((place, np.packbits(alive)))
        self.rows += alive.size
        self.blank_lines += table.blank_lines

    def refuse_nothing(self) -> None:
        """DataError where a rule left nothing, in the order of the rules."""
        path, said = self._config.interactions_path, self._config.interactions
        if not self._left["types"]:
            raise DataError(f"{path}: no usable event: none of its {self.rows} rows has a user and an item")
        if self._columns.event is not None and said.keep_events is not None and not self._left["times"]:
            held = ", ".join(map(repr, sorted(self._types)[:10]))
            raise DataError(
                f"{path}: no row of column '{self._columns.event}' has a type in keep_events "
                f"({', '.join(map(repr, said.keep_events))}); it holds {held}."
            )
        if not self._left["items"]:
            raise DataError(
                f"{path}: no time in column '{self._columns.timestamp}' can be read; {self._untimed}. {_TIMES}."
            )
        if not any(who.size for who, _, _ in self._log):
            raise DataError(
                f"{path}: none of its items is in {self._config.items_path}: events have "
                f"{', '.join(map(repr, self._unknown))}, the catalogue has {', '.join(map(repr, self._ids[:3]))}. "
                "Check `interactions.item` and `items.id` in domain.toml."
            )

    def notes(self) -> list[str]:
        """What the rules took, in their order."""
        notes = []
        for count in list(self.sieve.counts):
            if count != "exact_duplicates":
                notes += self.sieve.note(count)
            if count == "events_of_other_types" and self._columns.event is not None:
                absent = [name for name in self._config.interactions.keep_events or () if name not in self._types]
                notes += [f"No event has the type '{name}' that keep_events lists." for name in absent]
        return notes

    def log(self) -> Log:
        """What was kept, in the order of the file; may be asked for once."""
        parts, self._log = self._log, []
        users, who = self._users.ordered([part[0] for part in parts])
        what = np.concatenate([part[1] for part in parts])
        times = [part[2] for part in parts if part[2] is not None]
        del parts
        return Log(
            users=users,
            who=who,
            what=what,
            when=np.concatenate(times) if times else None,
            keep_times=self._config.split.kind == "temporal",
        )

    def where(self, kept: int) -> str:
        """Where the row stands that is the `kept`-th, from 0, of those that were not set aside."""
        for place, packed in self._alive:
            rows = np.flatnonzero(np.unpackbits(packed))
            if kept < rows.size:
                return place.where(int(rows[kept]))
            kept -= rows.size
        raise IndexError(kept)

    def _drop_other_types(self, table: Table, alive: NDArray[np.bool_]) -> None:
        """Keep the event types that domain.toml lists."""
        self._left["types"] += int(alive.sum())
        said, column = self._config.interactions, self._columns.event
        none = np.zeros_like(alive)
        if column is None or said.keep_events is None:
            self.sieve.drop("events_of_other_types", table, alive, none, "")
            return
        types = table.ids(column)
        self._types.update(types.filter(pl.Series(alive)).unique().to_list())
        other = ~types.is_in(list(said.keep_events)).to_numpy()
        what = "have an event type that keep_events does not list"
        self.sieve.drop("events_of_other_types", table, alive, other, what, types)

    def _drop_bad_times(self, table: Table, alive: NDArray[np.bool_]) -> pl.Series | None:
        """Times in microseconds, None without a clock; rows whose time cannot be read are set aside."""
        self._left["times"] += int(alive.sum())
        column = self._columns.timestamp
        if column is None:
            self.sieve.drop("rows_with_bad_timestamp", table, alive, np.zeros_like(alive), "")
            return None
        raw = table.frame[column]
        try:
            micro = to_microseconds(raw)
        except TypeError:
            raise DataError(f"{table.path}: column '{column}' holds {raw.dtype}. {_TIMES}.") from None
        if not self._untimed and alive.any():
            first = int(alive.argmax())
            self._untimed = f"{table.where(first)} has '{raw[first]}'"
        bad = micro.is_null().to_numpy()
        self.sieve.drop("rows_with_bad_timestamp", table, alive, bad, "have no readable time", raw)
        return micro.fill_null(0)

    def _drop_unknown(self, table: Table, alive: NDArray[np.bool_], item: pl.Series) -> pl.Series:
        """Catalogue index of each row's item; rows whose item has no text are set aside, -1."""
        self._left["items"] += int(alive.sum())
        numbers = pl.int_range(self._ids.len(), eager=True, dtype=pl.Int32)
        index = item.replace_strict(self._ids, numbers, default=-1, return_dtype=pl.Int32)
        if len(self._unknown) < _SHOWN:
            some = item.filter(pl.Series(alive)).unique(maintain_order=True).head(_SHOWN).to_list()
            self._unknown = list(dict.fromkeys([*self._unknown, *some]))[:_SHOWN]
        unknown = (index < 0).to_numpy()
        what = "have an item that the catalogue lacks"
        self.sieve.drop("events_with_unknown_item", table, alive, unknown, what, item)
        return index


def _blank(ids: pl.Series) -> NDArray[np.bool_]:
    """Which ids are empty or only spaces."""
    return (ids.str.strip_chars() == "").to_numpy()
