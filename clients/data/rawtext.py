"""Bytes of a text table, checked before anything parses them.

    text = read_text(path)                       # decompressed, UTF-8 proven, newlines unified
    rows = check_fields(text, separator=b",", fields=3)

Parsers repair silently: a short row becomes nulls, a wrong encoding becomes other letters. Here a
broken row or byte is refused, with its line or offset. Everything is vectorised over the bytes; only
a CSV file with stray quotes is read row by row, to say where (`read_irregular`).
"""

import csv
import gzip
import io
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from isthmus.errors import DataError

_NEWLINE, _QUOTE, _COMMA = b'\n",'
_FIELD_LIMIT = 16 * 1024 * 1024  # characters of one quoted field; the csv module's own limit is 128 KiB
_MAGIC = {b"PAR1": "Parquet", b"PK\x03\x04": "a zip archive", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


@dataclass(frozen=True, kw_only=True)
class CheckedLines:
    """Non-blank lines of a text whose rows all have the same number of fields.

    Attributes:
        data: The lines joined by newlines, blank lines removed.
        numbers: (rows,) line number of each in the file, from 1.
        blank: Lines that were removed because they were empty.
    """

    data: bytes
    numbers: NDArray[np.int64]
    blank: int


def read_bytes(path: Path) -> bytes:
    """Content of a file, decompressed when it is gzip (told from its first bytes, not its name).

    Raises:
        DataError: If the file is absent, unreadable, empty, or broken as gzip.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file. Check `path` in domain.toml.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    if data.startswith(b"\x1f\x8b"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: broken gzip file ({error}). Copy or compress it again.") from None
    elif data and path.suffix == ".gz":
        raise DataError(f"{path}: named .gz but it is not gzip. Rename it, or compress it.")
    if not data:
        raise DataError(f"{path}: the file is empty")
    return data


def read_text(path: Path) -> bytes:
    r"""Content of a text file as valid UTF-8 with ``\n`` line ends and no byte-order mark.

    Raises:
        DataError: As `read_bytes`; and if the text is not UTF-8, giving offset and line of the first bad byte.
    """
    data = read_bytes(path)
    for magic, kind in _MAGIC.items():
        if data.startswith(magic):
            raise DataError(f"{path}: this is {kind}, not UTF-8 text. Convert it, or name it for what it is.")
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start} "
            f"(line {_line_at(data, error.start)}). Save the file as UTF-8."
        ) from None
    nul = data.find(b"\0")
    if nul >= 0:
        raise DataError(
            f"{path}: byte 0x00 at offset {nul} (line {_line_at(data, nul)}): this is not a text file. "
            "Save it as UTF-8 text."
        )
    data = data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n")
    if b"\n" not in data:
        data = data.replace(b"\r", b"\n")
    if not data.strip():
        raise DataError(f"{path}: the file is empty")
    return data


def check_fields(path: Path, data: bytes, *, separator: bytes, fields: int, quotes: bool = False) -> CheckedLines:
    """Refuse the first line that does not have `fields` fields; set blank lines aside.

    Args:
        path: The file, for messages.
        data: Text as `read_text` gives it.
        separator: One byte.
        fields: Fields of a row.
        quotes: Separators and newlines between quotes are content; `has_regular_quotes` must hold.

    Raises:
        DataError: Naming the line, the fields it has and how it starts.
    """
    raw = np.frombuffer(data, dtype=np.uint8)
    newline, between = raw == _NEWLINE, raw == separator[0]
    breaks = np.flatnonzero(newline)
    if quotes:
        outside = ~np.bitwise_xor.accumulate((raw == _QUOTE).view(np.uint8)).view(np.bool_)
        newline, between = newline & outside, between & outside
    ends = np.flatnonzero(newline)
    if not data.endswith(b"\n"):
        ends = np.append(ends, len(data))
    starts = np.concatenate([[0], ends[:-1] + 1])
    numbers = np.searchsorted(breaks, starts) + 1  # (rows,) line on which each starts
    found = np.diff(np.searchsorted(np.flatnonzero(between), ends), prepend=0) + 1  # (rows,) fields of each
    blank = ends == starts
    broken = np.flatnonzero(~blank & (found != fields))
    if broken.size:
        row = int(broken[0])
        raise broken_row(path, int(numbers[row]), fields, int(found[row]), data[starts[row] : ends[row]])
    if blank.any():
        data = b"\n".join(data[start:end] for start, end in zip(starts[~blank], ends[~blank], strict=True))
    return CheckedLines(data=data, numbers=numbers[~blank], blank=int(blank.sum()))


def has_regular_quotes(data: bytes) -> bool:
    """Whether every quote of a CSV text opens or closes a whole field, or is written twice inside one."""
    raw = np.frombuffer(b"\n" + data + b"\n", dtype=np.uint8)
    at = np.flatnonzero(raw == _QUOTE)
    if at.size % 2:
        return False
    ends_field = np.zeros(256, dtype=np.bool_)
    ends_field[[_NEWLINE, _QUOTE, _COMMA]] = True
    return bool(ends_field[raw[at[0::2] - 1]].all() and ends_field[raw[at[1::2] + 1]].all())


def broken_row(path: Path, line: int, expected: int, found: int, content: bytes) -> DataError:
    """The error for a row with the wrong number of fields."""
    start = content[:60].decode("utf-8", errors="ignore")
    return DataError(
        f"{path}: line {line} has {found} field{'s' * (found != 1)}, expected {expected}: {start!r}. "
        "Mend or remove the line."
    )


def quoted_header(path: Path, data: bytes) -> tuple[str, ...]:
    """First row of a CSV text with regular quotes.

    Raises:
        DataError: If a stray carriage return stands in it.
    """
    try:
        rows = csv.reader(io.StringIO(data.decode("utf-8"), newline="\n"), strict=True)
        return tuple(next(row for row in rows if row))
    except csv.Error as error:
        raise DataError(f"{path}: the header cannot be read ({error}). Mend line 1.") from None


def read_irregular(path: Path, data: bytes) -> tuple[list[list[str]], list[int], int]:
    """Rows of a CSV text with quotes in odd places, read one by one, the first of them the header.

    A quote inside a field that does not start with one is a character (`5" pipe`); anything else is refused.

    Returns:
        Rows, the line on which each starts (from 1), and how many blank lines were set aside.

    Raises:
        DataError: If a quote is unbalanced or a row has another number of fields than the header.
    """
    rows: list[list[str]] = []
    numbers: list[int] = []
    blank, line = 0, 1
    limit = csv.field_size_limit(_FIELD_LIMIT)
    try:
        reader = csv.reader(io.StringIO(data.decode("utf-8"), newline="\n"), strict=True)
        for row in reader:
            if row:
                rows.append(row)
                numbers.append(line)
            else:
                blank += 1
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path}: line {line}: broken quoting ({error}). Write a quote inside a quoted field twice."
        ) from None
    finally:
        csv.field_size_limit(limit)
    width = len(rows[0])
    for row, number in zip(rows, numbers, strict=True):
        if len(row) != width:
            raise broken_row(path, number, width, len(row), ",".join(row).encode())
    return rows, numbers, blank


def _line_at(data: bytes, offset: int) -> int:
    """Line of a byte, from 1."""
    return data.count(b"\n", 0, offset) + 1
