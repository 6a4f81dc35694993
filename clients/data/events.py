"""Interactions, cleaned: who did what in which order, and what had to be set aside for it.

    found = read_events(config, catalogue)
    found.histories.row(0)            # item indices of the first user, oldest first

Every row of the file is used or counted once, under the first rule that sets it aside, in this order: no user,
no item, an event type that is not kept, an unreadable time, an unknown item, an exact duplicate. So

    rows = events + rows_without_user + rows_without_item + events_of_other_types
           + rows_with_bad_timestamp + events_with_unknown_item + exact_duplicates

Where nothing usable would be left the table is refused instead (`DataError`).
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from isthmus.clients.data.catalogue import Catalogue
from isthmus.clients.data.clock import iso, to_microseconds
from isthmus.clients.data.splits import Histories
from isthmus.clients.data.tables import Layout, Table, layout_of, open_table, read_sequences
from isthmus.config import DomainConfig, Interactions
from isthmus.errors import ConfigError, DataError


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
        times: (events,) microseconds since 1970 along `histories.items`; None without a clock.
        counts: What was found and repaired.
        notes: Sentences that say so.
        blank_lines: Empty lines of the file.
    """

    users: tuple[str, ...]
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
    """Rows still alive, how many each rule took, and a sentence for each rule that took some."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.alive: NDArray[np.bool_] = np.ones(table.frame.height, dtype=np.bool_)
        self.counts: dict[str, int] = {}
        self.notes: list[str] = []

    def drop(self, count: str, bad: NDArray[np.bool_], what: str, examples: pl.Series | None = None) -> None:
        """Set aside the living rows in `bad`; say how many there were and where the first stands."""
        hit = np.flatnonzero(self.alive & bad)
        self.counts[count] = hit.size
        if hit.size:
            first = int(hit[0])
            shown = "" if examples is None else f"'{examples[first]}' on "
            self.notes.append(f"{hit.size} rows {what} and were dropped; first: {shown}{self.table.where(first)}.")
            self.alive = self.alive & ~bad


def open_interactions(config: DomainConfig) -> tuple[Table, Columns, tuple[str, ...]]:
    """Read the columns of the interaction table that the configuration names.

    Returns:
        The rows, the columns' names in them, and notes. A RecBole file has the column names user_id, item_id and
        timestamp (where present) unless domain.toml says otherwise; a sequence file has `user` and `item`.

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
        return read_sequences(path), Columns("user", "item", None, None), ()
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
    return source.read(keys), columns, tuple(notes)


def read_events(config: DomainConfig, catalogue: Catalogue) -> FoundEvents:
    """Read, clean and order the interactions of a domain.

    Raises:
        ConfigError: If the layout cannot hold what is asked of it, or a temporal split has no clock.
        DataError: If the table cannot be read, or nothing usable is in it.
    """
    table, columns, remarks = open_interactions(config)
    if config.split.kind == "temporal" and columns.timestamp is None:
        raise ConfigError(
            f'{config.folder / "domain.toml"}: split.kind = "temporal" needs `interactions.timestamp`, got none. '
            'Name the column of times, or use "leave-one-out".'
        )
    sieve = _Sieve(table)
    user, item = table.ids(columns.user), table.ids(columns.item)
    sieve.drop("rows_without_user", _blank(user), "have no user")
    sieve.drop("rows_without_item", _blank(item), "have no item")
    if not sieve.alive.any():
        raise DataError(f"{table.path}: no usable event: none of its {sieve.alive.size} rows has a user and an item")
    _drop_other_types(config.interactions, columns, sieve)
    micro = _drop_bad_times(columns, sieve)
    index = _drop_unknown(config, catalogue, sieve, item)

    users = user.filter(pl.Series(sieve.alive)).unique().sort()
    number = user.replace_strict(users, pl.int_range(users.len(), eager=True), default=-1, return_dtype=pl.Int64)
    rows = pl.DataFrame({"user": number, "item": index, "time": 0 if micro is None else micro})
    again = np.zeros_like(sieve.alive)
    if micro is not None:
        first = rows.filter(pl.Series(sieve.alive)).select(pl.struct(pl.all()).is_first_distinct()).to_series()
        again[sieve.alive] = ~first.to_numpy()
    sieve.drop("exact_duplicates", again, "repeat the user, item and time of an earlier row")
    rows = rows.filter(pl.Series(sieve.alive))
    who, what, when = (rows[name].to_numpy() for name in ("user", "item", "time"))
    by_user = np.argsort(who, kind="stable")
    out_of_order = int(((np.diff(when[by_user]) < 0) & (np.diff(who[by_user]) == 0)).sum())
    order = np.lexsort((when, who))  # stable: ties, and rows without a clock (all 0), keep the file's order
    who, what, when = who[order], what[order], when[order]
    lengths = np.bincount(who, minlength=users.len())

    counts = EventCounts(
        **sieve.counts,
        rows=table.frame.height,
        events=what.size,
        users=users.len(),
        users_with_one_event=int((lengths == 1).sum()),
        median_history=float(np.median(lengths)),
        events_out_of_order=out_of_order,
        consecutive_repeats=int(((np.diff(what) == 0) & (np.diff(who) == 0)).sum()),
        items_without_events=len(catalogue) - int(np.unique(what).size),
        clock_start=None if micro is None else float(when.min()) / 1e6,
        clock_end=None if micro is None else float(when.max()) / 1e6,
    )
    notes = [*remarks, *sieve.notes]
    if out_of_order:
        notes.append(f"{out_of_order} events stood after a later one of their user and were sorted.")
    if micro is not None:
        notes.append(f"The clock runs from {iso(int(when.min()))} to {iso(int(when.max()))}.")
    return FoundEvents(
        users=tuple(users.to_list()),
        histories=Histories(offsets=np.concatenate([[0], np.cumsum(lengths)]), items=what),
        times=None if micro is None else when,
        counts=counts,
        notes=tuple(notes),
        blank_lines=table.blank_lines,
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


def _blank(ids: pl.Series) -> NDArray[np.bool_]:
    """Which ids are empty or only spaces."""
    return (ids.str.strip_chars() == "").to_numpy()


def _drop_other_types(said: Interactions, columns: Columns, sieve: _Sieve) -> None:
    """Keep the event types that domain.toml lists."""
    if columns.event is None or said.keep_events is None:
        sieve.counts["events_of_other_types"] = 0
        return
    types = sieve.table.ids(columns.event)
    other = ~types.is_in(list(said.keep_events)).to_numpy()
    seen = sorted(types.filter(pl.Series(sieve.alive)).unique().to_list())
    absent = [name for name in said.keep_events if name not in seen]
    if len(absent) == len(said.keep_events):
        raise DataError(
            f"{sieve.table.path}: no row of column '{columns.event}' has a type in keep_events "
            f"({', '.join(map(repr, said.keep_events))}); it holds {', '.join(map(repr, seen[:10]))}."
        )
    sieve.drop("events_of_other_types", other, "have an event type that keep_events does not list", types)
    sieve.notes.extend(f"No event has the type '{name}' that keep_events lists." for name in absent)


def _drop_bad_times(columns: Columns, sieve: _Sieve) -> pl.Series | None:
    """Times in microseconds, None without a clock; rows whose time cannot be read are set aside."""
    if columns.timestamp is None:
        sieve.counts["rows_with_bad_timestamp"] = 0
        return None
    raw = sieve.table.frame[columns.timestamp]
    rule = "Times are unix seconds (not milliseconds) or ISO date-times"
    try:
        micro = to_microseconds(raw)
    except TypeError:
        raise DataError(f"{sieve.table.path}: column '{columns.timestamp}' holds {raw.dtype}. {rule}.") from None
    bad = micro.is_null().to_numpy()
    if bad[sieve.alive].all():
        row = int(np.flatnonzero(sieve.alive)[0])
        raise DataError(
            f"{sieve.table.path}: no time in column '{columns.timestamp}' can be read; "
            f"{sieve.table.where(row)} has '{raw[row]}'. {rule}."
        )
    sieve.drop("rows_with_bad_timestamp", bad, "have no readable time", raw)
    return micro.fill_null(0)


def _drop_unknown(config: DomainConfig, catalogue: Catalogue, sieve: _Sieve, item: pl.Series) -> pl.Series:
    """Catalogue index of each row's item; rows whose item has no text are set aside, -1."""
    index = item.replace_strict(
        pl.Series(catalogue.ids, dtype=pl.String),
        pl.int_range(len(catalogue), eager=True, dtype=pl.Int32),
        default=-1,
        return_dtype=pl.Int32,
    )
    unknown = (index < 0).to_numpy()
    if unknown[sieve.alive].all():
        some = item.filter(pl.Series(sieve.alive)).unique(maintain_order=True).to_list()[:3]
        raise DataError(
            f"{sieve.table.path}: none of its items is in {config.items_path}: events have "
            f"{', '.join(map(repr, some))}, the catalogue has {', '.join(map(repr, catalogue.ids[:3]))}. "
            "Check `interactions.item` and `items.id` in domain.toml."
        )
    sieve.drop("events_with_unknown_item", unknown, "have an item that the catalogue lacks", item)
    return index
