"""Times: seconds and ISO forms are read exactly, anything else is null."""

from datetime import UTC, date, datetime, timedelta, timezone

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus.clients.data.clock import iso, to_microseconds

MICRO = 1_000_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("978300019", datetime(2000, 12, 31, 22, 0, 19, tzinfo=UTC)),
        (" 978300019.25 ", datetime(2000, 12, 31, 22, 0, 19, 250_000, tzinfo=UTC)),
        ("9.78300019e8", datetime(2000, 12, 31, 22, 0, 19, tzinfo=UTC)),
        ("-1", datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC)),
        ("2024-02-29", datetime(2024, 2, 29, tzinfo=UTC)),
        ("2024-02-29T10:11", datetime(2024, 2, 29, 10, 11, tzinfo=UTC)),
        ("2024-02-29 10:11:12", datetime(2024, 2, 29, 10, 11, 12, tzinfo=UTC)),
        ("2024-02-29T10:11:12.5", datetime(2024, 2, 29, 10, 11, 12, 500_000, tzinfo=UTC)),
        ("2024-02-29T10:11:12Z", datetime(2024, 2, 29, 10, 11, 12, tzinfo=UTC)),
        ("2024-02-29T10:11:12+02:00", datetime(2024, 2, 29, 10, 11, 12, tzinfo=timezone(timedelta(hours=2)))),
        ("2024-02-29 10:11:12-0530", datetime(2024, 2, 29, 15, 41, 12, tzinfo=UTC)),
    ],
)
def test_a_time_in_text_is_read_as_the_moment_it_names(text, expected) -> None:
    """Python's own date arithmetic gives the same microsecond."""
    found = to_microseconds(pl.Series([text, "never"])).to_list()
    assert found == [(expected - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1), None]


@pytest.mark.parametrize(
    "text", ["", "soon", "nan", "inf", "2023-02-29", "2024-13-01", "978300019000", "1_000", "12:30"]
)
def test_what_is_no_time_is_null(text) -> None:
    """Impossible dates, milliseconds and words are never guessed at."""
    assert to_microseconds(pl.Series([text])).to_list() == [None]


def test_typed_columns_of_every_kind_name_the_same_moment() -> None:
    """Integers, floats, dates and date-times of any unit or zone agree."""
    moment = datetime(2001, 9, 9, tzinfo=UTC)
    seconds = int(moment.timestamp())
    columns = [
        pl.Series([seconds], dtype=pl.Int64),
        pl.Series([seconds], dtype=pl.UInt32),
        pl.Series([float(seconds)]),
        pl.Series([date(2001, 9, 9)]),
        pl.Series([moment.replace(tzinfo=None)], dtype=pl.Datetime("ns")),
        pl.Series([moment], dtype=pl.Datetime("ms", "UTC")).dt.convert_time_zone("Asia/Tokyo"),
        pl.Series(["2001-09-09"], dtype=pl.Categorical),
    ]
    assert [to_microseconds(column).to_list() for column in columns] == [[seconds * MICRO]] * len(columns)


def test_null_and_infinite_numbers_are_null() -> None:
    """Missing values stay missing and do not become 1970."""
    assert to_microseconds(pl.Series([None, float("nan"), float("inf"), 1.0])).to_list() == [None, None, None, MICRO]
    assert to_microseconds(pl.Series([None, 2**62, 1])).to_list() == [None, None, MICRO]


def test_a_column_that_cannot_hold_times_is_an_error() -> None:
    """Truth values are not seconds."""
    with pytest.raises(TypeError, match="Boolean"):
        to_microseconds(pl.Series([True]))


@given(st.lists(st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1)), min_size=1))  # noqa: DTZ001
def test_numbers_and_iso_text_may_be_mixed_in_one_column(moments) -> None:
    """Each value is read by its own form, whatever stands beside it."""
    epoch = datetime(1970, 1, 1)  # noqa: DTZ001
    expected = [(moment - epoch) // timedelta(microseconds=1) for moment in moments]
    whole = [micro // MICRO * MICRO for micro in expected]
    mixed = [
        part for moment, micro in zip(moments, whole, strict=True) for part in (moment.isoformat(), str(micro // MICRO))
    ]
    found = to_microseconds(pl.Series(mixed)).to_list()
    assert found[0::2] == expected
    assert found[1::2] == whole


def test_a_time_is_shown_in_utc() -> None:
    """People read the moment, not a number."""
    assert iso(978300019 * MICRO) == "2000-12-31T22:00:19Z"
