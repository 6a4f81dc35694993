"""Splits: no target is in its input's past, every event is used or counted, rules hold user by user."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus.clients.data.splits import Histories, split_histories
from isthmus.config import Split

MICRO = 1_000_000


def ragged(rows):
    """Histories of a list of lists."""
    lengths = [len(row) for row in rows]
    return Histories(
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        items=np.array([item for row in rows for item in row], dtype=np.int32),
    )


def as_lists(histories):
    """A list of lists of histories."""
    return [histories.row(user).tolist() for user in range(len(histories))]


def test_leave_one_out_takes_the_last_two_of_users_with_enough_events() -> None:
    """A user below min_events trains with everything and is not evaluated."""
    parts = split_histories(ragged([[1, 2, 3, 4], [5, 6], [7, 8, 9]]), None, Split())
    assert as_lists(parts.train) == [[1, 2], [5, 6], [7]]
    assert as_lists(parts.before_test) == [[1, 2, 3], [5, 6], [7, 8]]
    assert parts.validation.tolist() == [3, -1, 8]
    assert parts.test.tolist() == [4, -1, 9]
    assert parts.counts.users_below_min_events == 1
    assert parts.validation.dtype == parts.test.dtype == np.int32


def test_max_history_keeps_the_latest_events_of_each_input() -> None:
    """Inputs are cut after the targets are taken, and what no part holds is counted."""
    parts = split_histories(ragged([[1, 2, 3, 4, 5, 6]]), None, Split(max_history=2))
    assert as_lists(parts.train) == [[3, 4]]
    assert as_lists(parts.before_test) == [[4, 5]]
    assert (parts.validation.tolist(), parts.test.tolist()) == ([5], [6])
    assert parts.counts.events_cut_by_max_history == 2


def test_a_temporal_split_follows_the_clock() -> None:
    """Each documented case once: full user, no training period, no validation period, below min_events, late only."""
    rows = [[1, 2, 3, 4, 5], [6, 7, 8], [9, 10, 11], [12, 13], [14, 15, 16]]
    times = [[1, 10, 11, 20, 21], [10, 12, 20], [1, 2, 25], [1, 20], [20, 21, 22]]
    flat = np.array([second * MICRO for row in times for second in row])
    parts = split_histories(ragged(rows), flat, Split(kind="temporal", validation_from=10, test_from=20))
    assert as_lists(parts.train) == [[1], [], [9, 10], [12], []]
    assert as_lists(parts.before_test) == [[1, 2, 3], [6, 7], [9, 10], [12], []]
    assert parts.validation.tolist() == [2, -1, -1, -1, -1]
    assert parts.test.tolist() == [4, 8, 11, -1, -1]
    counts = parts.counts
    assert (counts.users_without_train_events, counts.users_below_min_events) == (2, 1)
    assert (counts.users_with_validation_target, counts.users_with_test_target) == (1, 3)
    assert counts.events_after_test == 1 + 1 + 3


def test_repeat_targets_are_those_that_their_own_input_holds() -> None:
    """An item of another user, or one that max_history cut away, is no repeat."""
    rows = [[1, 2, 1, 2], [3, 3, 4], [5, 6, 7, 8, 5], [2, 9, 3]]
    counts = split_histories(ragged(rows), None, Split(max_history=2)).counts
    assert counts.repeat_validation_targets == 2  # [1, 2] -> 1 and [3] -> 3
    assert counts.repeat_test_targets == 1  # [2, 1] -> 2; 5 was cut from [5, 6, 7, 8]


SECONDS = st.integers(0, 30)
HISTORY = st.lists(st.tuples(SECONDS, st.integers(0, 5)), min_size=1, max_size=12)


@given(st.lists(HISTORY, min_size=1, max_size=8), st.integers(3, 5), st.integers(2, 6))
def test_leave_one_out_keeps_its_rule_for_every_user(rows, min_events, max_history) -> None:
    """Sliced in a loop, user by user, the parts are the same; all events are accounted for."""
    histories = ragged([[item for _, item in row] for row in rows])
    parts = split_histories(histories, None, Split(min_events=min_events, max_history=max_history))
    cut = 0
    for user, row in enumerate(as_lists(histories)):
        evaluated = len(row) >= min_events
        train, before = (row[:-2], row[:-1]) if evaluated else (row, row)
        assert parts.train.row(user).tolist() == train[-max_history:]
        assert parts.before_test.row(user).tolist() == before[-max_history:]
        assert parts.validation[user] == (row[-2] if evaluated else -1)
        assert parts.test[user] == (row[-1] if evaluated else -1)
        cut += max(0, len(train) - max_history)
    assert parts.counts.events_cut_by_max_history == cut
    assert parts.counts.events_after_test == 0


@given(
    st.lists(HISTORY, min_size=1, max_size=8),
    st.integers(3, 5),
    st.integers(2, 6),
    st.tuples(SECONDS, SECONDS).map(sorted).filter(lambda pair: pair[0] < pair[1]),
)
def test_a_temporal_split_never_leaks_and_loses_nothing(rows, min_events, max_history, cutoffs) -> None:
    """Events are numbered, so that each one is found in its part, in the past of its target, or in a count."""
    validation_from, test_from = cutoffs
    rows = [sorted(second for second, _ in row) for row in rows]
    number = iter(range(10_000))
    numbered = [[(second, next(number)) for second in row] for row in rows]
    clock = {event: second for row in numbered for second, event in row}
    histories = ragged([[event for _, event in row] for row in numbered])
    times = np.array([second * MICRO for row in rows for second in row])
    split = Split(
        kind="temporal",
        validation_from=validation_from,
        test_from=test_from,
        min_events=min_events,
        max_history=max_history,
    )
    parts = split_histories(histories, times, split)
    used: set[int] = set()
    unused_after = 0
    for user, row in enumerate(numbered):
        train, before = parts.train.row(user).tolist(), parts.before_test.row(user).tolist()
        validation, test = int(parts.validation[user]), int(parts.test[user])
        early = [event for second, event in row if second < validation_from]
        between = [event for second, event in row if validation_from <= second < test_from]
        late = [event for second, event in row if second >= test_from]
        enough = len(row) >= min_events
        assert train == early[-max_history:]
        assert before == [*early, *between][-max_history:]
        assert validation == (between[0] if enough and early and between else -1)
        assert test == (late[0] if enough and (early or between) and late else -1)
        if validation >= 0:
            assert train
            assert max(clock[event] for event in train) < validation_from <= clock[validation]
        if test >= 0:
            assert before
            assert max(clock[event] for event in before) < test_from <= clock[test]
        used |= {*train, *before, validation, test} - {-1}
        unused_after += len(late) - (test >= 0)
    counts = parts.counts
    assert counts.events_after_test == unused_after
    assert len(used) + counts.events_cut_by_max_history + counts.events_after_test == len(clock)


def test_histories_refuse_offsets_that_do_not_cover_the_items() -> None:
    """A wrong ragged array is a bug that stops at once."""
    items = np.arange(3, dtype=np.int32)
    for offsets in ([0, 2], [1, 3], [0, 3, 2, 3], []):
        with pytest.raises(ValueError, match="offsets must"):
            Histories(offsets=np.array(offsets, dtype=np.int64), items=items)
    with pytest.raises(IndexError, match=r"user must be in \[0, 1\), got -1"):
        Histories(offsets=np.array([0, 3]), items=items).row(-1)


def test_a_temporal_split_without_times_is_an_error() -> None:
    """The caller must have refused it before."""
    with pytest.raises(ValueError, match="needs times"):
        split_histories(ragged([[1]]), None, Split(kind="temporal", validation_from=1, test_from=2))
