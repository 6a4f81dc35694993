"""Readers: every layout gives the same rows, and a broken file is refused with its place."""

import gzip

import polars as pl
import pytest

from isthmus.clients.data import load_domain_data
from isthmus.clients.data.rawtext import has_regular_quotes
from isthmus.clients.data.tables import open_table, read_sequences
from isthmus.config import Interactions, TableFormat
from isthmus.errors import ConfigError, DataError

ROWS = [("ann", "a", 10), ("ann", "b", 20), ("bob", "b", 5), ("ann", "c", 30), ("bob", "a", 6), ("007", "c", 1)]
TYPED = pl.DataFrame(ROWS, schema={"user": pl.String, "item": pl.String, "timestamp": pl.Int64}, orient="row")


def as_text(separator, header, quote=""):
    lines = [header, *(separator.join(f"{quote}{field}{quote}" for field in row) for row in ROWS)]
    return "\n".join(lines) + "\n"


DATED = TYPED.with_columns(pl.from_epoch("timestamp").dt.replace_time_zone("UTC"))
HEADER = "user,item,timestamp"
LAYOUTS = {
    "parquet": ("e.parquet", TYPED),
    "parquet-datetime": ("e.parquet", DATED),
    "parquet-categories": ("e.pq", TYPED.with_columns(pl.col("user", "item").cast(pl.Categorical))),
    "csv": ("e.csv", as_text(",", HEADER)),
    "csv-quoted": ("e.csv", as_text(",", HEADER, quote='"')),
    "csv-windows": ("e.CSV", "\ufeff" + as_text(",", HEADER).replace("\n", "\r\n")),
    "csv-old-mac": ("e.csv", as_text(",", HEADER).replace("\n", "\r")),
    "csv-no-last-newline": ("e.csv", as_text(",", HEADER).rstrip()),
    "tsv.gz": ("e.tsv.gz", gzip.compress(as_text("\t", HEADER.replace(",", "\t")).encode())),
    "recbole": ("e.inter", as_text("\t", "user_id:token\titem_id:token\ttimestamp:float")),
    "recbole-declared": ("e.log", as_text("\t", "user_id:token\titem_id:token\ttimestamp:float")),
    "sequence": ("e.txt", "bob\tb a\n007\tc\nann\ta b c\n"),
    "sequence.gz": ("e.gz", gzip.compress(b"bob\tb a\n007\tc\nann\ta b c", mtime=0)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_the_same_data_gives_the_same_domain(toy, layout) -> None:
    """Users, histories, targets and fingerprint do not depend on how the file is laid out."""
    name, content = LAYOUTS[layout]
    if isinstance(content, pl.DataFrame):
        content.write_parquet(toy.folder / name)
    else:
        toy.write(name, content)
    said = {"path": name}
    if layout.startswith("sequence"):
        said = {"path": name, "format": TableFormat.SEQUENCE, "timestamp": None}
    if layout == "recbole-declared":
        said = {"path": name, "format": TableFormat.RECBOLE}
    data = toy.load(**said)
    assert data.users == ("007", "ann", "bob")
    assert [data.before_test.row(user).tolist() for user in range(3)] == [[2], [0, 1], [1, 0]]
    assert [data.train.row(user).tolist() for user in range(3)] == [[2], [0], [1, 0]]
    assert data.validation.tolist() == [-1, 1, -1]
    assert data.test.tolist() == [-1, 2, -1]
    reference = toy.load(as_text(",", HEADER))
    assert data.fingerprint == reference.fingerprint


@pytest.mark.parametrize("name", ["i.csv", "i.tsv", "i.tsv.gz", "i.item", "i.parquet"])
def test_item_tables_read_the_same_in_every_layout(toy, name) -> None:
    """Ids keep their zeros and accents, titles keep quotes and commas, whatever the layout."""
    rows = [("007", '8 1/2" pipe', "tools, small"), ("\u00e9", "Caf\u00e9", "drink"), ("e\u0301", "\u6771\u4eac", "")]
    frame = pl.DataFrame(rows, schema=["item_id", "title", "category"], orient="row")
    header = "item_id:token\ttitle:token_seq\tcategory:token" if name == "i.item" else "item_id\ttitle\tcategory"
    text = "\n".join([header, *("\t".join(row) for row in rows)])
    if name.endswith("parquet"):
        frame.write_parquet(toy.folder / name)
    elif name.endswith("csv"):
        frame.write_csv(toy.folder / name)
    else:
        toy.write(name, gzip.compress(text.encode()) if name.endswith("gz") else text)
    toy.write("events.csv", "user,item,timestamp\nu,007,1\nu,\u00e9,2\nu,e\u0301,3\n")
    catalogue = toy.load(items={"path": name, "text": "{title} ({category})"}).catalogue
    assert catalogue.ids == ("007", "e\u0301", "\u00e9")  # two ways to write e-acute stay two ids
    assert catalogue.titles == ('8 1/2" pipe', "\u6771\u4eac", "Caf\u00e9")
    assert catalogue.texts == ('8 1/2" pipe (tools, small)', "\u6771\u4eac ()", "Caf\u00e9 (drink)")


def test_parquet_columns_of_other_types_become_text(toy) -> None:
    """Whole-number ids and list, number and null text columns have an exact text form."""
    pl.DataFrame(
        {"item_id": [1, 2], "title": ["A", None], "tags": [["x", "y"], []], "year": [1999, None]}
    ).write_parquet(toy.folder / "i.parquet")
    pl.DataFrame({"user": [7, 7], "item": [1, 2]}).write_parquet(toy.folder / "e.parquet")
    data = toy.load(path="e.parquet", timestamp=None, items={"path": "i.parquet", "text": "{title} {tags} {year}"})
    assert data.users == ("7",)
    assert data.catalogue.texts == ("A x y 1999", "2")


def test_a_quoted_field_may_hold_separators_newlines_and_quotes(tmp_path) -> None:
    """RFC 4180 quoting is read exactly, and lines are counted as an editor counts them."""
    path = tmp_path / "t.csv"
    path.write_text('a,b\n"x,1","two\nlines"\n\n"say ""hi""",""\nlast,\n')
    table = open_table(path, declared=None).read({"k": "a", "l": "b"})
    assert table.frame.rows() == [("x,1", "two\nlines"), ('say "hi"', ""), ("last", "")]
    assert [table.where(row) for row in range(3)] == ["line 2", "line 5", "line 6"]
    assert table.blank_lines == 1


@pytest.mark.parametrize(
    ("text", "regular"),
    [('"a",b\n', True), ('a,"b"', True), ('"","",""""\n', True), ('5" pipe,b\n', False), ('"a"b,c"d"', False)],
)
def test_regular_quotes_are_those_around_whole_fields(text, regular) -> None:
    """Only quotes that a strict reader accepts count as regular."""
    assert has_regular_quotes(text.encode()) is regular


def test_a_stray_quote_inside_an_unquoted_field_is_a_character(tmp_path) -> None:
    """A CSV file whose titles hold inch marks is read as it stands."""
    path = tmp_path / "t.csv"
    path.write_text('a,b\n5" pipe,x\n"q",y\n')
    assert open_table(path, declared=None).read({"k": "a"}).frame.rows() == [('5" pipe',), ("q",)]


def test_sequence_lines_keep_order_and_count_lines_without_items(tmp_path) -> None:
    """Extra spaces separate once; a user without items is a row with an empty item."""
    path = tmp_path / "s.tsv"
    path.write_text("u\tb  a b \n\nv\t\nu\tc\n")
    table = read_sequences(path)
    assert table.frame.rows() == [("u", "b"), ("u", "a"), ("u", "b"), ("v", ""), ("u", "c")]
    assert table.where(4) == "line 4"
    assert table.blank_lines == 1


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("e.csv", b"", ["the file is empty"]),
        ("e.csv", b"\n \n", ["the file is empty"]),
        ("e.csv", b"user,item\n", ["header but no rows"]),
        ("e.csv", b"user,item\nu,i\nu,i,x\n", ["line 3", "3 fields, expected 2", "'u,i,x'"]),
        ("e.csv", b"user,item\n\nu,i\nu\n", ["line 4", "1 field, expected 2", "'u'"]),
        ("e.csv", b'user,item\n"u\nv",i\n"u"\n', ["line 4", "1 field, expected 2"]),
        ("e.csv", b'user,item\nu,i\nu,"i\nu,j\n', ["line 3", "broken quoting"]),
        ("e.csv", b'us\rer,"item"\nu,"i"\n', ["the header cannot be read", "line 1"]),
        ("e.csv", b'user,item\nu"u,i\n\nu"\n', ["line 4", "1 field, expected 2"]),
        ("e.csv", b'user,item\nu"u,i\nu\n', ["line 3", "1 field, expected 2"]),
        ("e.tsv", b"user\titem\nu\ti\nu\n", ["line 3", "1 field, expected 2"]),
        ("e.csv", "user,item\nu,i\nJos\u00e9,i\n".encode("latin-1"), ["0xe9 at offset 17", "line 3", "UTF-8"]),
        ("e.csv", "user,item\n".encode("utf-16"), ["this is UTF-16"]),
        ("e.csv", "user,item\n".encode("utf-16-le"), ["0x00 at offset 1"]),
        ("e.csv", b"PAR1....", ["this is Parquet"]),
        ("e.csv", b"usr,item\nu,i\n", ["no column 'user'", "Did you mean 'usr'?", "interactions.user"]),
        ("e.csv", b"user;item\nu;i\n", ["no column 'user'", "'user;item'", "separator"]),
        ("e.csv", b"user,item,user\nu,i,u\n", ["'user' stands twice"]),
        ("e.csv", b'"user","item","user"\n"u","i","u"\n', ["'user' stands twice"]),
        ("e.csv.gz", b"user,item\n", ["it is not gzip"]),
        ("e.csv.gz", gzip.compress(b"user,item\nu,i\n" * 99, mtime=0)[:-12], ["broken gzip"]),
        ("e.parquet", b"", ["cannot be read as Parquet"]),
        ("e.parquet", b"user,item\nu,i\n", ["cannot be read as Parquet"]),
        ("e.inter", b"user_id\titem_id\nu\ti\n", ["line 1", "'user_id' is not a RecBole column", "name:type"]),
        ("e.inter", b"user_id:token\titem_id:int\nu\ti\n", ["'item_id:int'", "token_seq"]),
    ],
)
def test_a_broken_file_is_refused_with_file_place_and_value(toy, name, content, words) -> None:
    """Nothing is guessed from a file that is not what it was declared to be."""
    path = toy.write(name, content)
    with pytest.raises(DataError) as refused:
        toy.load(path=name, timestamp=None)
    message = str(refused.value)
    assert str(path) in message
    for word in words:
        assert word in message


def test_a_parquet_file_with_broken_pages_is_refused(toy) -> None:
    """A readable footer does not make the rows readable."""
    path = toy.folder / "e.parquet"
    TYPED.write_parquet(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:4] + b"\xff" * 60 + whole[64:])
    with pytest.raises(DataError, match=r"e\.parquet: cannot be read as Parquet: \w+"):
        toy.load(path="e.parquet")


@pytest.mark.parametrize("name", ["absent.csv", "absent.parquet"])
def test_a_missing_file_is_refused(toy, name) -> None:
    """The message names the file and the key to look at."""
    with pytest.raises(DataError, match=r"absent\.\w+: no such file.*domain\.toml"):
        toy.load(path=name)


def test_a_folder_in_place_of_a_file_is_refused(toy) -> None:
    """The reason of the operating system is shown."""
    (toy.folder / "dir.csv").mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        toy.load(path="dir.csv")


def test_a_sequence_line_without_a_tab_is_refused(toy) -> None:
    """A user and its items are told apart by the tab alone."""
    toy.write("s.txt", "u a b\nv a\n")
    with pytest.raises(DataError, match="line 1 has no tab"):
        toy.load(path="s.txt", format=TableFormat.SEQUENCE, timestamp=None)
    toy.write("s.txt", "u\ta b\nv a\n")
    with pytest.raises(DataError, match="line 2 has 1 field, expected 2"):
        toy.load(path="s.txt", format=TableFormat.SEQUENCE, timestamp=None)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"path": "events.log"}, "ending does not tell"),
        ({"path": "events.inter", "format": TableFormat.TABLE}, "ending does not tell the layout of a table"),
        ({"format": TableFormat.SEQUENCE}, "neither times nor event types"),
        ({"items": {"format": TableFormat.SEQUENCE}}, "cannot be an item table"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(toy, changes, match) -> None:
    """The layout comes from the ending or from domain.toml, never from a guess at the content."""
    toy.write("events.log", "user,item\nu,a\n")
    with pytest.raises(ConfigError, match=match):
        toy.load(**changes)


def test_ids_that_are_not_text_or_whole_numbers_are_refused(toy) -> None:
    """A float id would be read as 7.0 here and as 7 there."""
    pl.DataFrame({"user": [7.0], "item": ["a"]}).write_parquet(toy.folder / "e.parquet")
    with pytest.raises(DataError, match="column 'user' holds Float64; ids are text or whole numbers"):
        toy.load(path="e.parquet", timestamp=None)


def test_a_text_column_without_a_text_form_is_refused(toy) -> None:
    """Bytes and records are not turned into text."""
    pl.DataFrame({"item_id": ["a"], "title": [b"x"]}).write_parquet(toy.folder / "i.parquet")
    with pytest.raises(DataError, match="column 'title' holds Binary"):
        toy.load(items={"path": "i.parquet"})


def test_recbole_names_apply_only_where_the_configuration_is_silent(toy) -> None:
    """A column that domain.toml names wins over RecBole's own name."""
    toy.write("e.inter", "uid:token\titem_id:token\nu\ta\nu\tb\n")
    data = toy.load(path="e.inter", user="uid", timestamp=None, item="item_id")
    assert data.users == ("u",)
    assert data.train.row(0).tolist() == [0, 1]


def test_recbole_times_are_used_where_the_file_has_them(toy) -> None:
    """With a silent domain.toml the column `timestamp` of an .inter file orders the events."""
    toy.write("e.inter", "user_id:token\titem_id:token\ttimestamp:float\nu\ta\t2.5\nu\tb\t1\n")
    silent = toy.config().model_copy(update={"interactions": Interactions(path="e.inter")})
    data = load_domain_data(silent)
    assert data.train.row(0).tolist() == [1, 0]
    assert (data.report.clock_start, data.report.clock_end) == (1.0, 2.5)
