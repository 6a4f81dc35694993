"""Times of events as whole microseconds since 1970, UTC.

    to_microseconds(pl.Series(["978300019", "2000-12-31T22:00:19Z", "soon"]))   # two equal times, one null

Numbers are unix **seconds**; text may also be an ISO date or date-time (UTC unless it says otherwise).
A time that cannot be read is null, never a guess: milliseconds fall outside the year 9999 and are null too.
"""

from datetime import UTC, datetime, timedelta

import polars as pl

_EARLIEST = -62_135_596_800  # unix seconds of 0001-01-01
_LATEST = 253_402_300_799  # unix seconds of 9999-12-31T23:59:59
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ISO = ("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M", "%Y-%m-%d")
_ISO_WITH_ZONE = ("%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%dT%H:%M%#z")


def to_microseconds(times: pl.Series) -> pl.Series:
    """Read a column of times.

    Args:
        times: (rows,) numbers, text, dates or date-times.

    Returns:
        (rows,) Int64 microseconds since 1970 UTC, null where unreadable or missing.

    Raises:
        TypeError: If the column's type holds no times at all (booleans, lists, ...).
    """
    if times.dtype == pl.Date:
        times = times.cast(pl.Datetime("us"))
    if times.dtype == pl.Datetime:
        return times.dt.timestamp("us")
    if times.dtype in (pl.Categorical, pl.Enum):
        times = times.cast(pl.String)
    if times.dtype.is_numeric() or times.dtype == pl.Null:
        return _from_numbers(times)
    if times.dtype == pl.String:
        return _from_text(times)
    raise TypeError(str(times.dtype))


def iso(microseconds: int) -> str:
    """A time as people read it, e.g. "2000-12-31T22:00:19Z"."""
    return (_EPOCH + timedelta(microseconds=microseconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def _from_numbers(seconds: pl.Series) -> pl.Series:
    """Unix seconds, integer or float; whole ones are exact."""
    within = pl.col("s").is_between(_EARLIEST, _LATEST)
    if seconds.dtype.is_integer():
        micro = pl.when(within).then(pl.col("s")).cast(pl.Int64) * 1_000_000
    else:
        micro = (pl.when(within).then(pl.col("s").cast(pl.Float64)) * 1e6).round().cast(pl.Int64)
    return pl.DataFrame({"s": seconds}).select(micro).to_series()


def _from_text(text: pl.Series) -> pl.Series:
    """Numbers in text first, then ISO forms for what is left."""
    text = text.str.strip_chars()
    whole = text.cast(pl.Int64, strict=False)
    result = _from_numbers(whole)
    rest = whole.is_null()
    if rest.any():
        left = text.filter(rest)
        read = pl.DataFrame({"n": _from_numbers(left.cast(pl.Float64, strict=False)), "iso": _from_iso(left)})
        spread = pl.Series("at", rest).cum_sum().cast(pl.Int64) - 1  # (rows,) position among the rest
        other = read.select(pl.coalesce("n", "iso")).to_series().gather(spread.clip(0))
        result = pl.select(pl.when(rest).then(other).otherwise(result)).to_series()
    return result


def _from_iso(text: pl.Series) -> pl.Series:
    """ISO dates and date-times, `T` or a space between, with or without a zone."""
    frame = pl.DataFrame({"t": text}).with_columns(
        pl.col("t").str.replace(" ", "T", literal=True).str.replace("[Zz]$", "+00:00")
    )
    naive = [pl.col("t").str.to_datetime(form, time_unit="us", strict=False) for form in _ISO]
    zoned = [
        pl.col("t").str.to_datetime(form, time_unit="us", time_zone="UTC", strict=False) for form in _ISO_WITH_ZONE
    ]
    return frame.select(pl.coalesce(part.dt.timestamp("us") for part in (*naive, *zoned))).to_series()
