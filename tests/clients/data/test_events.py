"""Interactions: each repair is counted under one rule, and an unusable table is refused."""

from dataclasses import asdict

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from isthmus.config import Split
from isthmus.errors import ConfigError, DataError

HEADER = "user,item,timestamp\n"
DROPPED = (
    "rows_without_user",
    "rows_without_item",
    "events_of_other_types",
    "rows_with_bad_timestamp",
    "events_with_unknown_item",
    "exact_duplicates",
)


def row_of(data, user):
    """Ids of a user's whole history, as far as the split keeps it."""
    at = data.users.index(user)
    items = [*data.before_test.row(at), *([data.test[at]] if data.test[at] >= 0 else [])]
    return "".join(data.catalogue.ids[item] for item in items)


def test_each_repair_is_counted_once_and_shown_with_its_place(toy) -> None:
    """A table with one of everything adds up, and the notes say where each first stands."""
    data = toy.load(
        "user,item,timestamp,kind\n"
        "u,a,1,buy\n"
        ",a,1,buy\n"
        "u,,1,buy\n"
        "u,b,2,view\n"
        "u,b,soon,buy\n"
        "u,zzz,3,buy\n"
        "u,a,1,buy\n"
        "u,b,4,buy\n"
        "u,c,3,buy\n",
        event="kind",
        keep_events=("buy",),
    )
    report = data.report
    assert {name: getattr(report, name) for name in DROPPED} == dict.fromkeys(DROPPED, 1)
    assert (report.rows, report.events, report.users, report.events_out_of_order) == (9, 3, 1, 1)
    assert row_of(data, "u") == "acb"
    places = {
        "have no user": "line 3",
        "have no item": "line 4",
        "event type": "'view' on line 5",
        "no readable time": "'soon' on line 6",
        "catalogue lacks": "'zzz' on line 7",
        "repeat the user, item and time": "line 8",
    }
    for words, place in places.items():
        assert any(words in note and place in note for note in report.notes), (words, report.notes)


def test_events_are_sorted_by_time_and_ties_keep_the_file_order(toy) -> None:
    """A clock wins over the file's order; where it says nothing, the file's order stands."""
    data = toy.load(HEADER + "u,d,5\nu,c,1\nu,b,5\nu,a,5\nv,a,9\nv,b,2\n")
    assert row_of(data, "u") == "cdba"
    assert row_of(data, "v") == "ba"
    assert data.report.events_out_of_order == 2
    assert any("2 events stood after a later one" in note for note in data.report.notes)


def test_without_a_clock_the_file_order_stands_and_repeats_are_kept(toy) -> None:
    """People buy the same thing twice; only a clock can tell that from a copied row."""
    data = toy.load("user,item\nu,b\nv,a\nu,b\nu,a\nu,b\n", timestamp=None)
    assert row_of(data, "u") == "bbab"
    report = data.report
    assert (report.exact_duplicates, report.consecutive_repeats, report.events_out_of_order) == (0, 1, 0)
    assert (report.clock_start, report.clock_end) == (None, None)
    assert report.repeat_test_targets == 1


def test_only_exact_duplicates_are_dropped(toy) -> None:
    """The same item at another time, or another item at the same time, is another event."""
    data = toy.load(HEADER + "u,a,1\nu,a,2\nu,b,2\nu,a,1.0\nv,a,1\n")
    assert row_of(data, "u") == "aab"
    assert data.report.exact_duplicates == 1


def test_an_unused_clock_is_pointed_out(toy) -> None:
    """A column of times that domain.toml does not name is not silently passed over."""
    notes = toy.load(timestamp=None).report.notes
    assert any("Column 'timestamp' is not used" in note for note in notes)
    assert not any("is not used:" in note for note in toy.load().report.notes)


def test_users_with_one_event_and_the_clock_are_reported(toy) -> None:
    """The toy domain's figures, counted by hand."""
    report = toy.load().report
    assert (report.rows, report.events, report.users, report.items) == (8, 8, 3, 4)
    assert (report.users_with_one_event, report.median_history) == (1, 3.0)
    assert (report.clock_start, report.clock_end) == (1.0, 40.0)
    assert (report.items_without_events, report.blank_lines) == (0, 0)
    assert report.notes[0] == "The clock runs from 1970-01-01T00:00:01Z to 1970-01-01T00:00:40Z."


def test_an_item_nobody_touched_is_counted_and_kept(toy) -> None:
    """A cold item can still be recommended."""
    data = toy.load(HEADER + "u,a,1\nu,b,2\n")
    assert data.report.items_without_events == 2
    assert len(data.catalogue) == 4


def test_an_event_type_that_never_occurs_is_pointed_out(toy) -> None:
    """A misspelt type in keep_events shows."""
    data = toy.load("user,item,timestamp,kind\nu,a,1,buy\nu,b,2,view\n", event="kind", keep_events=("buy", "purchase"))
    assert any("No event has the type 'purchase'" in note for note in data.report.notes)
    assert data.report.events_of_other_types == 1


def test_all_event_types_count_when_none_are_listed(toy) -> None:
    """An event column alone filters nothing."""
    data = toy.load("user,item,timestamp,kind\nu,a,1,buy\nu,b,2,view\n", event="kind")
    assert (data.report.events, data.report.events_of_other_types) == (2, 0)


@pytest.mark.parametrize(
    ("events", "changes", "words"),
    [
        (HEADER + ",a,1\nu, ,1\n", {}, ["no usable event", "none of its 2 rows has a user and an item"]),
        (HEADER + "u,A1,1\nu,A2,2\n", {}, ["none of its items is in", "'A1', 'A2'", "'a', 'b', 'c'", "items.id"]),
        (HEADER + "u,a,soon\nu,b,later\n", {}, ["no time in column 'timestamp'", "line 2 has 'soon'"]),
        (HEADER + "u,a,978300019000\n", {}, ["'978300019000'", "not milliseconds"]),
        (
            "user,item,timestamp,kind\nu,a,1,view\nu,a,2,click\n",
            {"event": "kind", "keep_events": ("buy",)},
            ["has a type in keep_events ('buy')", "it holds 'click', 'view'"],
        ),
        (HEADER + "u,a,1\n", {"timestamp": "timestmap"}, ["no column 'timestmap'", "Did you mean 'timestamp'?"]),
        (HEADER + "u,a,1\n", {"event": "kind"}, ["no column 'kind'", "interactions.event"]),
    ],
)
def test_a_table_without_a_usable_event_is_refused(toy, events, changes, words) -> None:
    """The message shows what was seen and where to look."""
    with pytest.raises(DataError) as refused:
        toy.load(events, **changes)
    for word in words:
        assert word in str(refused.value)


def test_a_time_column_of_truth_values_is_refused(toy) -> None:
    """A Parquet column that cannot hold times is named with its type."""
    pl.DataFrame({"user": ["u"], "item": ["a"], "timestamp": [True]}).write_parquet(toy.folder / "e.parquet")
    with pytest.raises(DataError, match="column 'timestamp' holds Boolean"):
        toy.load(path="e.parquet")


def test_a_temporal_split_without_a_clock_is_refused(toy) -> None:
    """The order of a file says nothing about dates."""
    split = Split(kind="temporal", validation_from=10, test_from=20)
    with pytest.raises(ConfigError, match=r"needs `interactions\.timestamp`"):
        toy.load(timestamp=None, split=split)


def test_missing_values_of_a_parquet_table_are_counted(toy) -> None:
    """A null is a missing value, not the text 'null'; places are rows."""
    pl.DataFrame(
        {"user": ["u", None, "u", "u"], "item": ["a", "a", None, "b"], "timestamp": [1, 2, 3, None]}
    ).write_parquet(toy.folder / "e.parquet")
    report = toy.load(path="e.parquet").report
    assert (report.rows_without_user, report.rows_without_item, report.rows_with_bad_timestamp) == (1, 1, 1)
    assert any("have no user" in note and "row 2" in note for note in report.notes)


FIELD = st.sampled_from(["", " ", "u1", "u2", "007"])
ITEM = st.sampled_from(["", "a", "b", "unknown"])
TIME = st.sampled_from(["1", "2", "3.5", "never", "", "2024-01-01"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.lists(st.tuples(FIELD, ITEM, TIME, st.sampled_from(["buy", "view"])), min_size=1, max_size=30))
def test_every_row_is_used_or_counted_under_the_first_rule_that_fits(toy, rows) -> None:
    """A loop over the rows that applies the documented rules one by one gives the same counts and histories."""
    expected = dict.fromkeys(DROPPED, 0)
    kept: list[tuple[str, str, float]] = []
    times = {"1": 1.0, "2": 2.0, "3.5": 3.5, "2024-01-01": 1704067200.0}
    for user, item, time, kind in rows:
        if not user.strip():
            expected["rows_without_user"] += 1
        elif not item:
            expected["rows_without_item"] += 1
        elif kind != "buy":
            expected["events_of_other_types"] += 1
        elif time not in times:
            expected["rows_with_bad_timestamp"] += 1
        elif item == "unknown":
            expected["events_with_unknown_item"] += 1
        elif (user, item, times[time]) in kept:
            expected["exact_duplicates"] += 1
        else:
            kept.append((user, item, times[time]))
    text = "user,item,timestamp,kind\n" + "".join(",".join(row) + "\n" for row in rows)
    if not kept:
        with pytest.raises(DataError):
            toy.load(text, event="kind", keep_events=("buy",))
        return
    data = toy.load(text, event="kind", keep_events=("buy",))
    counts = asdict(data.report)
    assert {name: counts[name] for name in DROPPED} == expected
    assert counts["events"] == len(kept)
    assert counts["rows"] == counts["events"] + sum(expected.values())
    assert data.users == tuple(sorted({user for user, _, _ in kept}))
    for user in data.users:
        mine = sorted((event for event in kept if event[0] == user), key=lambda event: event[2])
        assert row_of(data, user) == "".join(item for _, item, _ in mine)
