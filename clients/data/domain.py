r"""One domain's data, ready to train on: `DomainData` and what loading it found, `DataReport`.

    data = load_domain_data(load_domain("shopping"))
    data.train.row(0), data.validation[0]       # input and target of the first user
    print("\n".join(data.report.notes))

Everything here except the catalogue is private. Users and items are sorted by id, so the same data give the same
arrays whatever layout, compression or (with a clock, ties aside) row order they come in.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isthmus.clients.data.catalogue import Catalogue, ItemCounts, read_catalogue
from isthmus.clients.data.clock import iso
from isthmus.clients.data.events import EventCounts, FoundEvents, read_events
from isthmus.clients.data.splits import Histories, SplitCounts, split_histories
from isthmus.clients.data.users import UserIds
from isthmus.config import DomainConfig
from isthmus.errors import DataError


@dataclass(frozen=True, kw_only=True)
class DataReport(SplitCounts, EventCounts, ItemCounts):
    """Everything that was found and repaired while a domain was loaded. Private, the item counts aside.

    The counts are documented where they are made: `ItemCounts`, `EventCounts`, `SplitCounts`. They add up:
    rows = events + what was dropped, and every event is in a part of the split or counted as unused.

    Attributes:
        blank_lines: Empty lines of both files.
        notes: One sentence for each finding, for people.
    """

    blank_lines: int
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values in a stable order, for JSON."""
        return {**asdict(self), "notes": list(self.notes)}


@dataclass(frozen=True, kw_only=True, eq=False)
class DomainData:
    """A loaded domain; users in the same order everywhere.

    Attributes:
        config: What was asked for.
        catalogue: Items; an item's index is its place here. Public.
        users: User ids, sorted.
        train: What models are fitted on; a row may be empty under a temporal split.
        before_test: A user's events before the test target, the latest `max_history` of them.
        validation: (users,) target item whose input is `train`, -1 for none.
        test: (users,) target item whose input is `before_test`, -1 for none.
        fingerprint: 32 bytes that identify the private data set (see `fingerprint`). Private.
        report: What was found and repaired.
    """

    config: DomainConfig
    catalogue: Catalogue
    users: Sequence[str]
    train: Histories
    before_test: Histories
    validation: NDArray[np.int32]
    test: NDArray[np.int32]
    fingerprint: bytes
    report: DataReport


def load_domain_data(config: DomainConfig) -> DomainData:
    """Read, check, repair, order and split the tables of a domain.

    Raises:
        ConfigError: If domain.toml asks for what the files cannot give.
        DataError: If a table cannot be read as declared or holds nothing usable.
    """
    items = read_catalogue(config)
    events = read_events(config, items.catalogue)
    parts = split_histories(events.histories, events.times, config.split)
    if not parts.counts.train_events:
        raise _nothing_trains(config, events)
    report = DataReport(
        **asdict(items.counts),
        **asdict(events.counts),
        **asdict(parts.counts),
        blank_lines=items.blank_lines + events.blank_lines,
        notes=(*items.notes, *events.notes, *_split_notes(config, events.counts, parts.counts)),
    )
    return DomainData(
        config=config,
        catalogue=items.catalogue,
        users=events.users,
        train=parts.train,
        before_test=parts.before_test,
        validation=parts.validation,
        test=parts.test,
        fingerprint=fingerprint(events.users, items.catalogue.ids, events.histories),
        report=report,
    )


def check_domain(config: DomainConfig) -> DataReport:
    """What loading a domain finds; loading is the check, nothing is trained.

    Raises:
        ConfigError, DataError: As `load_domain_data`.
    """
    return load_domain_data(config).report


def fingerprint(users: Sequence[str], items: Sequence[str], histories: Histories) -> bytes:
    """Identity of a private data set: SHA-256 over user ids and their ordered, whole histories of item ids.

    Args:
        users: (users,) ids, sorted.
        items: Catalogue ids, sorted; only those that occur in a history count.
        histories: Whole cleaned histories, before splitting.

    Guarantees:
        - The same users and histories give the same 32 bytes, whatever the layout, path or compression.
        - Any change of a user id, an item id or an order gives others (ids are length-prefixed: no two lists of
          ids read as the same bytes).
        - Nothing public changes it: not an item's text, the text template, an untouched item, `max_history` or
          the split. So rewording a catalogue cannot open a fresh budget on the same people.
    """
    touched = histories.touched()
    digest = hashlib.sha256(b"isthmus histories 1\0")
    for ids in (users, [items[at] for at in touched]):
        encoded = ids if isinstance(ids, UserIds) else UserIds.of(ids)
        digest.update(np.concatenate([[len(encoded)], np.diff(encoded.ends)]).astype("<u8").tobytes())
        digest.update(encoded.text.tobytes())
    digest.update(histories.offsets.astype("<i8").tobytes())
    local = np.zeros(int(touched[-1]) + 1 if touched.size else 0, dtype="<i8")
    local[touched] = np.arange(touched.size)
    for block in histories.blocks():
        own = histories.items[histories.offsets[block.start] : histories.offsets[block.stop]]
        digest.update(local[own].tobytes())
    return digest.digest()


def _nothing_trains(config: DomainConfig, events: FoundEvents) -> DataError:
    """The error for a temporal split whose training period is empty."""
    cut = (config.split.validation_from or 0) * 1_000_000
    times = np.zeros(1, dtype=np.int64) if events.times is None else events.times
    return DataError(
        f"{config.interactions_path}: no event lies before split.validation_from ({iso(cut)}); the clock runs from "
        f"{iso(int(times.min()))} to {iso(int(times.max()))}. Move validation_from and test_from into that range."
    )


def _split_notes(config: DomainConfig, events: EventCounts, split: SplitCounts) -> list[str]:
    """Sentences about what the split left out."""
    said = config.split
    notes = []
    if split.users_below_min_events:
        notes.append(f"{split.users_below_min_events} users have fewer than {said.min_events} events and train only.")
    if split.users_without_train_events:
        notes.append(f"{split.users_without_train_events} users have no event before validation_from.")
    if split.events_cut_by_max_history:
        notes.append(
            f"{split.events_cut_by_max_history} events are older than their user's latest {said.max_history} "
            "and are not used."
        )
    if split.events_after_test:
        notes.append(f"{split.events_after_test} events at or after test_from are no target and are not used.")
    if split.repeat_test_targets:
        notes.append(f"{split.repeat_test_targets} test targets repeat an item of their input.")
    if events.consecutive_repeats:
        notes.append(f"{events.consecutive_repeats} events repeat the item just before them; they are kept.")
    if not split.users_with_validation_target:
        notes.append("No user has a validation target: nothing can be tuned on this domain.")
    if not split.users_with_test_target:
        notes.append("No user has a test target: nothing can be measured on this domain.")
    return notes
