"""From a log to histories: pieces, blocks and numbers of users change nothing, and ids take little memory."""

import hashlib
import itertools

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.clients.data import Histories, fingerprint, ordering, splits, tables
from isthmus.clients.data.ordering import Log, UserNumbers, order_log
from isthmus.clients.data.splits import split_histories
from isthmus.clients.data.users import UserIds
from isthmus.config import Split

IDS = st.text("ab\u00e9\u4e2d\ufffd\U0001f600", min_size=1, max_size=3)


@given(st.lists(IDS, max_size=12), IDS)
def test_ids_behave_as_a_sorted_tuple(ids: list[str], wanted: str) -> None:
    """Any characters: length, places, slices, membership, equality and order."""
    expected = tuple(sorted(set(ids)))
    found = UserIds.of(expected)
    assert (len(found), tuple(found), found) == (len(expected), expected, expected)
    assert [found[at] for at in range(-len(expected), len(expected))] == list(expected * 2)
    assert found[1:3] == expected[1:3]
    assert (wanted in found) == (wanted in expected)
    assert [found.index(name) for name in expected] == list(range(len(expected)))
    assert found == UserIds.of(pl.Series(expected, dtype=pl.String))
    if wanted not in expected:
        assert found != (*expected, wanted)
        with pytest.raises(ValueError, match="no user"):
            found.index(wanted)
    with pytest.raises(IndexError):
        found[len(expected)]


def slow_order(rows: list[tuple[str, int, int]], *, clock: bool) -> tuple[dict[str, list[int]], list[int], int]:
    """Histories, places of the duplicates, and how many events were out of order, one row after the other."""
    seen, duplicates, late = set(), [], 0
    events: dict[str, list[tuple[int, int, int]]] = {}
    for place, (user, item, time) in enumerate(rows):
        if clock and (user, item, time) in seen:
            duplicates.append(place)
            continue
        seen.add((user, item, time))
        own = events.setdefault(user, [])
        late += bool(clock and own and time < own[-1][0])
        own.append((time, place, item))
    ordered = {user: [item for *_, item in (sorted(own) if clock else own)] for user, own in events.items()}
    return ordered, duplicates, late


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("cabed"), st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=60),
    st.booleans(),
    st.integers(1, 20),
    st.integers(1, 9),
)
def test_a_log_is_ordered_as_row_by_row(rows: list[tuple[str, int, int]], clock: bool, piece: int, block: int) -> None:
    """With ties, repeats and events out of order, whatever the size of pieces and blocks."""
    numbers = UserNumbers()
    users = pl.Series([user for user, *_ in rows])
    who = [numbers.number(users.slice(start, piece)) for start in range(0, len(rows), piece)]
    ids, places = numbers.ordered(who)
    log = Log(
        users=ids,
        who=places,
        what=np.array([item for _, item, _ in rows], dtype=np.int32),
        when=np.array([time for *_, time in rows], dtype=np.int64) if clock else None,
        keep_times=True,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ordering, "_BLOCK", block)
        found = order_log(log)
    expected, duplicates, late = slow_order(rows, clock=clock)
    histories = {user: found.histories.row(at).tolist() for at, user in enumerate(log.users)}
    assert histories == expected
    assert list(log.users) == sorted(expected)
    assert (found.duplicates, found.out_of_order) == (len(duplicates), late)
    assert found.first_duplicate == (duplicates[0] if duplicates else -1)
    assert found.repeats == sum(a == b for own in expected.values() for a, b in itertools.pairwise(own))
    assert found.items_with_events == len({item for own in expected.values() for item in own})
    if clock:
        assert found.times is not None
        own = [found.times[start:end] for start, end in itertools.pairwise(found.histories.offsets)]
        assert all((np.diff(times) >= 0).all() for times in own)


@pytest.mark.parametrize("layout", ["csv", "parquet"])
def test_pieces_of_a_table_change_no_count_and_no_note(toy, monkeypatch, layout: str) -> None:
    """Every repair, its first example and its place in the file, wherever a piece ends."""
    rows = [("u", "a", "1"), ("", "a", "2"), ("u", "", "3"), ("v", "zzz", "4"), ("u", "b", "soon"), ("v", "a", "9")]
    rows += [("u", "a", "1"), ("v", "b", "8"), ("w", "c", "5"), ("v", "a", "9"), ("v", "yyy", "4"), ("", "b", "2")]
    frame = pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")
    path = f"events.{layout}"
    if layout == "csv":
        frame.write_csv(toy.folder / path)
    else:
        frame.write_parquet(toy.folder / path, row_group_size=2)
    whole = toy.load(path=path)
    assert [whole.report.exact_duplicates, whole.report.events_out_of_order] == [2, 1]
    for piece in (1, 3, 4):
        monkeypatch.setattr(tables, "_PIECE", piece)
        found = toy.load(path=path)
        assert (found.report, found.fingerprint) == (whole.report, whole.fingerprint)
        assert found.train.items.tolist() == whole.train.items.tolist()


@given(st.lists(st.lists(st.integers(0, 5), max_size=6), min_size=1, max_size=6), st.integers(1, 8))
def test_the_fingerprint_is_what_it_always_was(rows: list[list[int]], block: int) -> None:
    """A slow reading of version 1: ledgers know data sets by it."""
    items = [f"item{number}" for number in range(6)]
    users = [f"é{number}" for number in range(len(rows))]
    flat = [item for row in rows for item in row]
    offsets = [0, *np.cumsum([len(row) for row in rows]).tolist()]
    touched = sorted(set(flat))
    content = b"isthmus histories 1\0"
    for ids in (users, [items[at] for at in touched]):
        encoded = [name.encode() for name in ids]
        content += b"".join(number.to_bytes(8, "little") for number in (len(encoded), *map(len, encoded)))
        content += b"".join(encoded)
    content += b"".join(number.to_bytes(8, "little") for number in offsets)
    content += b"".join(touched.index(item).to_bytes(8, "little") for item in flat)
    histories = Histories(offsets=np.array(offsets, dtype=np.int64), items=np.array(flat, dtype=np.int32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, "_BLOCK", block)
        assert fingerprint(users, items, histories) == hashlib.sha256(content).digest()


@pytest.mark.parametrize(
    "split", [Split(max_history=3), Split(kind="temporal", validation_from=4, test_from=7, max_history=3)]
)
def test_blocks_of_users_change_no_split(monkeypatch, split: Split) -> None:
    """A block may hold one user, users without events in a part, or one user who has more than a block."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 12, 40)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = rng.integers(0, 9, offsets[-1]).astype(np.int32)
    times = np.concatenate([np.sort(rng.integers(0, 10, length)) for length in lengths]) * 1_000_000
    histories = Histories(offsets=offsets, items=items)
    whole = split_histories(histories, times, split)
    for block in (1, 5, 30):
        monkeypatch.setattr(splits, "_BLOCK", block)
        found = split_histories(histories, times, split)
        assert found.counts == whole.counts
        for name in ("validation", "test"):
            assert getattr(found, name).tolist() == getattr(whole, name).tolist()
        for name in ("train", "before_test"):
            assert getattr(found, name).items.tolist() == getattr(whole, name).items.tolist()
            assert getattr(found, name).offsets.tolist() == getattr(whole, name).offsets.tolist()
