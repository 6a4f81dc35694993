"""Readers of interaction and item tables: one `Table` whatever the file's layout.

    source = open_table(Path("events.csv.gz"), declared=None)
    source.columns                                  # header, types of RecBole removed
    table = source.read({"interactions.user": "user", "interactions.item": "item"})
    table.ids("user")                               # (rows,) text: "007" stays "007"
    for piece in source.pieces({...}):              # the same rows, some at a time

    read_sequences(Path("seq.tsv.gz"))              # user <tab> item item item ..., as rows of user, item

Layouts: Parquet; CSV (RFC 4180 quoting); TSV (no quoting: a quote is a character); RecBole atomic files
(tab-separated, header of name:type); ordered sequences. Text layouts may be gzip. Nothing is repaired
here: what is not the declared layout raises `DataError` with file, line and way out.
"""

import difflib
import enum
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from isthmus.clients.data.rawtext import check_fields, has_regular_quotes, quoted_header, read_irregular, read_text
from isthmus.config import TableFormat
from isthmus.errors import ConfigError, DataError

_PIECE = 1 << 20
"""Rows of a piece, more or less."""
_RECBOLE_TYPES = ("token", "token_seq", "float", "float_seq")


class Layout(enum.Enum):
    """How the bytes of a table are arranged."""

    PARQUET = "Parquet"
    CSV = "CSV"
    TSV = "TSV"
    RECBOLE = "RecBole"
    SEQUENCE = "sequence"


_ENDINGS = {
    ".parquet": Layout.PARQUET,
    ".pq": Layout.PARQUET,
    ".csv": Layout.CSV,
    ".tsv": Layout.TSV,
    ".inter": Layout.RECBOLE,
    ".item": Layout.RECBOLE,
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """Rows of a table as they stand in the file, in file order.

    Attributes:
        path: The file, for messages.
        frame: (rows, columns asked for); text layouts give text columns, Parquet its own types.
        lines: (rows,) line of each row in a text file, from 1; None for Parquet, which has rows only.
        blank_lines: Empty lines that were set aside; of a piece, those of the whole file with the first.
        first: Row of the file with which a piece begins, from 0.
    """

    path: Path
    frame: pl.DataFrame
    lines: NDArray[np.int64] | None
    blank_lines: int
    first: int = 0

    def where(self, row: int) -> str:
        """Where a row stands in the file, e.g. "line 7"."""
        return f"row {self.first + row + 1}" if self.lines is None else f"line {self.lines[row]}"

    def pieces(self) -> Iterator["Table"]:
        """The rows in order, some at a time."""
        for start in range(0, self.frame.height, _PIECE):
            yield Table(
                path=self.path,
                frame=self.frame.slice(start, _PIECE),
                lines=None if self.lines is None else self.lines[start : start + _PIECE],
                blank_lines=0 if start else self.blank_lines,
                first=start,
            )

    def ids(self, column: str) -> pl.Series:
        """A column as id text, "" where missing; ids are never parsed, trimmed or normalised.

        Raises:
            DataError: If the column is neither text nor whole numbers.
        """
        series = self.frame[column]
        if not (series.dtype in (pl.String, pl.Categorical, pl.Enum, pl.Null) or series.dtype.is_integer()):
            raise DataError(
                f"{self.path}: column '{column}' holds {series.dtype}; ids are text or whole numbers. "
                "Write the column as text."
            )
        return series.cast(pl.String).fill_null("")

    def text(self, column: str) -> pl.Series:
        """A column as text for people, "" where missing; a list becomes its words with spaces between.

        Raises:
            DataError: If the column has no plain text form (nested records, bytes).
        """
        series = self.frame[column]
        scalar = series.dtype.inner if isinstance(series.dtype, pl.List) else series.dtype
        if scalar.is_nested() or scalar in (pl.Binary, pl.Object):
            raise DataError(
                f"{self.path}: column '{column}' holds {series.dtype}, which has no text form. "
                "Write the column as text, or leave it out of the `text` template."
            )
        if isinstance(series.dtype, pl.List):
            words = series.cast(pl.List(pl.String))
            return words.list.join(" ", ignore_nulls=True).fill_null("")
        return series.cast(pl.String).fill_null("")


class Source(ABC):
    """A table whose header has been read and whose rows have not."""

    def __init__(self, path: Path, columns: tuple[str, ...]) -> None:
        self.path = path
        self.columns = columns

    def read(self, wanted: Mapping[str, str]) -> Table:
        """Rows of some columns.

        Args:
            wanted: Key of domain.toml that names the column -> column; two keys may name the same one.

        Raises:
            DataError: If a column is missing (naming the nearest), a row is broken, or there are no rows.
        """
        table = self._rows(self._names(wanted))
        if not table.frame.height:
            raise self._empty()
        return table

    def pieces(self, wanted: Mapping[str, str]) -> Iterator[Table]:
        """The rows that `read` gives, some at a time; a text file's bytes are held all the same.

        Raises:
            DataError: As `read`, at the first piece or, of broken rows, when they are met.
        """
        yield from self.read(wanted).pieces()

    def _names(self, wanted: Mapping[str, str]) -> list[str]:
        """Columns in file order; refuses what is not there."""
        for key, name in wanted.items():
            if name not in self.columns:
                raise self._missing(key, name)
        return sorted(set(wanted.values()), key=self.columns.index)

    def _empty(self) -> DataError:
        return DataError(f"{self.path}: the file has a header but no rows")

    @abstractmethod
    def _rows(self, names: list[str]) -> Table:
        """Rows of the columns `names`, which exist and are in file order."""

    def _missing(self, key: str, name: str) -> DataError:
        """The error for a column that is not there."""
        listed = ", ".join(f"'{column}'" for column in self.columns)
        if len(self.columns) == 1:
            hint = "It has one column: is the separator another one (.csv is comma, .tsv is tab)?"
        else:
            near = difflib.get_close_matches(name, self.columns, n=1, cutoff=0.0)[0]
            hint = f"Did you mean '{near}'? Set `{key}` in domain.toml."
        return DataError(f"{self.path}: no column '{name}' (`{key}`). Columns: {listed}. {hint}")


def layout_of(path: Path, declared: TableFormat | None) -> Layout:
    """Layout of a file, from what domain.toml declares or from the file's ending.

    Raises:
        ConfigError: If the ending says nothing, or contradicts `format = "table"`.
    """
    if declared is TableFormat.SEQUENCE:
        return Layout.SEQUENCE
    if declared is TableFormat.RECBOLE:
        return Layout.RECBOLE
    name = path.name.removesuffix(".gz")
    layout = _ENDINGS.get(Path(name).suffix.lower())
    if layout is None or (declared is TableFormat.TABLE and layout is Layout.RECBOLE):
        raise ConfigError(
            f"{path}: the ending does not tell the layout{' of a table' if declared else ''}. Known: "
            '.parquet, .csv, .tsv, .inter, .item (.gz allowed for text). Rename the file, or say `format = "recbole"` '
            'or `format = "sequence"` in domain.toml.'
        )
    return layout


def open_table(path: Path, *, declared: TableFormat | None) -> Source:
    """Read the header of a table.

    Args:
        path: The file.
        declared: `format` of domain.toml; told from the ending when None.

    Raises:
        ConfigError: If the layout is unknown, or is a sequence file (which has no header).
        DataError: If the file cannot be read as its layout.
    """
    layout = layout_of(path, declared)
    if layout is Layout.SEQUENCE:
        raise ConfigError(f"{path}: a sequence file holds users and item ids only; it cannot be an item table")
    if layout is Layout.PARQUET:
        return _ParquetSource(path)
    return _TextSource(path, layout)


def read_sequences(path: Path) -> Table:
    """Read `user <tab> item item ...` lines as rows of columns `user` and `item`, in order.

    A line without items gives one row whose item is "", so that it is counted and not lost.

    Raises:
        DataError: If a line does not have exactly one tab.
    """
    data = read_text(path)
    if b"\t" not in data:
        raise DataError(f"{path}: line 1 has no tab; a sequence line is `user <tab> item item ...`")
    lines = check_fields(path, data, separator=b"\t", fields=2)
    row = pl.Series("row", lines.data.decode("utf-8").removesuffix("\n").split("\n"), dtype=pl.String)
    parts = row.str.split_exact("\t", 1).struct.unnest()
    frame = pl.DataFrame(
        {
            "user": parts.to_series(0),
            "item": parts.to_series(1).str.strip_chars(" ").str.split(" "),
            "line": lines.numbers,
        }
    ).explode("item")
    # Two spaces in a row are one separator; a line without items keeps its one empty row.
    lone = pl.col("line").is_first_distinct() & (pl.col("item").len().over("line") == 1)
    frame = frame.filter((pl.col("item") != "") | lone)
    return Table(path=path, frame=frame.select("user", "item"), lines=frame["line"].to_numpy(), blank_lines=lines.blank)


class _ParquetSource(Source):
    """A Parquet file: columns are read by name."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise DataError(f"{path}: no such file. Check `path` in domain.toml.")
        try:
            columns = tuple(pl.read_parquet_schema(path))
        except (pl.exceptions.PolarsError, OSError) as error:
            raise self._unreadable(path, error) from None
        super().__init__(path, columns)

    def pieces(self, wanted: Mapping[str, str]) -> Iterator[Table]:
        """As `Source.pieces`, and no more than a piece is in memory."""
        names, first = self._names(wanted), 0
        for rows in self._piece_sizes():
            try:
                frame = pl.scan_parquet(self.path, glob=False).select(names).slice(first, rows).collect()
            except (pl.exceptions.PolarsError, OSError) as error:
                raise self._unreadable(self.path, error) from None
            yield Table(path=self.path, frame=frame, lines=None, blank_lines=0, first=first)
            first += rows
        if not first:
            raise self._empty()

    def _piece_sizes(self) -> list[int]:
        """Rows of each piece: whole row groups, because part of one costs as much to read as all of it."""
        try:
            with pq.ParquetFile(self.path) as file:
                groups = [file.metadata.row_group(at).num_rows for at in range(file.metadata.num_row_groups)]
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(self.path, error) from None
        sizes: list[int] = []
        for rows in groups:
            if sizes and sizes[-1] + rows <= _PIECE:
                sizes[-1] += rows
            elif rows:
                sizes.append(rows)
        return sizes

    def _rows(self, names: list[str]) -> Table:
        try:
            frame = pl.read_parquet(self.path, columns=names, glob=False)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise self._unreadable(self.path, error) from None
        return Table(path=self.path, frame=frame, lines=None, blank_lines=0)

    @staticmethod
    def _unreadable(path: Path, error: Exception) -> DataError:
        """The error for a file that is not what its ending says."""
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "unknown reason"
        return DataError(f"{path}: cannot be read as Parquet: {reason}. Write the file again.")


class _TextSource(Source):
    """A CSV, TSV or RecBole file: its bytes are held, checked, until rows are asked for."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self._separator = b"," if layout is Layout.CSV else b"\t"
        self._data = read_text(path)
        self._quotes = layout is Layout.CSV and b'"' in self._data
        self._irregular: tuple[list[list[str]], list[int], int] | None = None
        if self._quotes and not has_regular_quotes(self._data):
            self._irregular = read_irregular(path, self._data)
            columns = tuple(self._irregular[0][0])
        elif self._quotes:
            columns = quoted_header(path, self._data)
        else:
            first = self._data.lstrip(b"\n").partition(b"\n")[0]
            columns = tuple(first.decode("utf-8").split(self._separator.decode()))
        if layout is Layout.RECBOLE:
            columns = _untyped(path, columns)
        twice = sorted({name for name in columns if columns.count(name) > 1})
        if twice:
            raise DataError(f"{path}: column '{twice[0]}' stands twice in the header. Rename one of them.")
        super().__init__(path, columns)

    def _rows(self, names: list[str]) -> Table:
        wanted = [self.columns.index(name) for name in names]
        if self._irregular is not None:
            (_, *body), numbers, blank = self._irregular
            data = {self.columns[at]: [row[at] for row in body] for at in wanted}
            frame = pl.DataFrame(data, schema=dict.fromkeys(names, pl.String))
            return Table(path=self.path, frame=frame, lines=np.array(numbers[1:]), blank_lines=blank)
        checked = check_fields(
            self.path, self._data, separator=self._separator, fields=len(self.columns), quotes=self._quotes
        )
        frame = pl.DataFrame(schema=dict.fromkeys(names, pl.String))
        if checked.numbers.size > 1:
            frame = pl.read_csv(
                checked.data,
                columns=wanted,
                separator=self._separator.decode(),
                quote_char='"' if self._quotes else None,
                infer_schema=False,
                has_header=False,
            )[1:]  # the header is read as a row: polars would rename an empty column
            frame.columns = names
            frame = frame.with_columns(pl.all().fill_null(""))  # polars tells `,,` from `,"",`; we do not
        if frame.height != checked.numbers.size - 1:
            raise DataError(f"{self.path}: {checked.numbers.size - 1} rows stand in it, {frame.height} were read")
        return Table(path=self.path, frame=frame, lines=checked.numbers[1:], blank_lines=checked.blank)


def _untyped(path: Path, header: tuple[str, ...]) -> tuple[str, ...]:
    """Column names of a RecBole header such as `user_id:token`."""
    for field in header:
        kind = field.rpartition(":")[2] if ":" in field else None
        if kind not in _RECBOLE_TYPES:
            raise DataError(
                f"{path}: line 1: '{field}' is not a RecBole column; write name:type, type one of "
                f"{', '.join(_RECBOLE_TYPES)}. For a plain header use a .tsv file."
            )
    return tuple(field.rpartition(":")[0] for field in header)
