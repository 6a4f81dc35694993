"""Somebody else's reading of a ledger: complete, without its keys, without writing, whatever the file is."""

import dataclasses
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.privacy.conftest import DELTA, EVENT, SECRET, WIDE, change, charge_of, copy_of, rules

from isthmus.errors import Refused, RunError
from isthmus.privacy.accounting import epsilon
from isthmus.privacy.chain import now
from isthmus.privacy.custody import key_path, open_chain
from isthmus.privacy.heads import Head, make_head, make_receipt, read_head, read_receipt
from isthmus.privacy.keys import fresh_keys
from isthmus.privacy.ledger import Ledger
from isthmus.privacy.lines import Noted
from isthmus.privacy.links import CHAIN_TABLES, LEDGER_TABLES
from isthmus.privacy.reading import read_heads, read_ledger
from isthmus.records import RoundReply
from isthmus.server.heads import HeadLog

COORDINATOR = fresh_keys()


def show(ledger: Ledger, round_: int) -> Head:
    """The coordinator gets the ledger's head and the ledger keeps its receipt."""
    head = ledger.head()
    ledger.keep_receipt(make_receipt(head, run="run", round=round_, time=now(), keys=COORDINATOR))
    return head


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger with three charges, the first released, each shown to the coordinator."""
    ledger = Ledger(tmp_path / "books" / "ledger.db", name="books", secret=SECRET)
    ledger.follow('{"rule":1}')
    for number in range(3):
        entry = ledger.charge(charge_of(number), WIDE)
        if number == 0:
            ledger.keep_release(entry, b"payload")
        show(ledger, number)
    ledger.refuse(Refused("no", rule="clip"), run="run", round_=9, kind="update")
    ledger.close()
    return ledger.path


def state_of(folder: Path) -> list[tuple[str, bytes]]:
    """Names and contents of a folder's files."""
    return sorted((file.name, file.read_bytes()) for file in folder.iterdir())


# What is read.


def test_a_ledger_is_read_without_its_key(path: Path) -> None:
    """Everything in it, as its owner sees it, and nothing is written, not even beside it."""
    ledger = Ledger(path, secret=SECRET)
    expected = list(ledger.entries())
    key = ledger.chain.keys.public
    ledger.close()
    key_path(path).unlink()
    before = state_of(path.parent)
    books = read_ledger(path, trusted=key)
    assert state_of(path.parent) == before
    assert books.findings == ()
    assert (books.owner, books.name, len(books.ledger)) == ("domain", "books", 32)
    assert list(books.entries) == expected
    assert [entry.released for entry in books.entries] == [True, False, False]
    assert epsilon(books.spending, DELTA) == epsilon([EVENT] * 3, DELTA)
    assert [line.text for line in books.policies] == ['{"rule":1}']
    assert [line.rule for line in books.refusals] == ["clip"]
    assert [receipt.round for receipt in books.receipts] == [0, 1, 2]
    assert [line.seq for line in books.lines] == [link.seq for link in books.links] == list(range(1, 8))


def test_a_ledger_in_use_is_read_as_it_stands(tmp_path: Path) -> None:
    """Lines and receipts that are in the write-ahead log and not yet in the file count as well."""
    ledger = Ledger(tmp_path / "ledger.db", secret=SECRET)
    ledger.charge(charge_of(), WIDE)
    show(ledger, 0)
    assert path_of_log(ledger).stat().st_size > 0
    books = read_ledger(ledger.path)
    assert (len(books.entries), len(books.receipts), books.findings) == (1, 1, ())
    ledger.close()


def path_of_log(ledger: Ledger) -> Path:
    """SQLite's write-ahead log."""
    return ledger.path.with_name(ledger.path.name + "-wal")


def test_a_read_only_folder_can_be_read(path: Path, tmp_path: Path) -> None:
    """As on a share or a disc: nobody may write there, and a folder of files is all there is."""
    folder = tmp_path / "share"
    folder.mkdir()
    copy = folder / "ledger.db"
    shutil.copy(path, copy)
    copy.chmod(0o444)
    folder.chmod(0o555)
    try:
        assert rules(copy) == set()
        assert [file.name for file in folder.iterdir()] == ["ledger.db"]
    finally:
        folder.chmod(0o755)


@pytest.mark.parametrize("make", ["nothing", "folder", "text", "empty", "foreign", "lookalike", "view", "virtual"])
def test_what_is_not_a_ledger_is_said_in_words(tmp_path: Path, make: str) -> None:
    """With its path, for a ledger and for a log of heads; and it is left as it is."""
    path = tmp_path / "ledger.db"
    if make == "folder":
        path.mkdir()
    elif make in {"text", "empty"}:
        path.write_text("" if make == "empty" else "run,round\n" * 100)
    elif make != "nothing":
        sql = {
            "foreign": "CREATE TABLE customers (name TEXT)",
            "lookalike": "CREATE TABLE chain (seq INTEGER, body TEXT)",
            # Reading this one would never end.
            "view": "CREATE VIEW chain AS WITH RECURSIVE n(seq) AS (SELECT 1 UNION ALL SELECT seq + 1 FROM n) "
            "SELECT seq, '' AS body, '' AS previous, '' AS digest, '' AS key, '' AS signature FROM n",
            "virtual": "CREATE VIRTUAL TABLE chain USING fts5(seq, body, previous, digest, key, signature)",
        }[make]
        change(path, sql)
    for read in (read_ledger, read_heads):
        with pytest.raises(RunError, match=r"ledger\.db: (not a ledger|no such file)"):
            read(path)


# What is wrong with a file.

CELLS = st.none() | st.integers(-5, 2**62) | st.floats() | st.text(max_size=20) | st.binary(max_size=40)
ROWS = st.lists(st.tuples(st.integers(-3, 9), *[CELLS] * 5), max_size=4, unique_by=lambda row: row[0])
LOOSE = CHAIN_TABLES[0].replace(") STRICT", ")").replace(" NOT NULL", "")


@given(ROWS, st.lists(CELLS, max_size=2, unique=True))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_of_any_type_are_findings_and_no_traceback(
    tmp_path: Path, rows: list[tuple[object, ...]], receipts: list[object]
) -> None:
    """NULLs, numbers, text where bytes belong, in a table that says of itself that it is strict and is not."""
    path = tmp_path / "ledger.db"
    path.unlink(missing_ok=True)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(LOOSE)
        db.execute("CREATE TABLE receipts (seq, text)")
        db.executemany("INSERT INTO chain VALUES (?, ?, ?, ?, ?, ?)", rows)
        db.executemany("INSERT INTO receipts VALUES (1, ?)", [(text,) for text in receipts])
        db.execute("PRAGMA writable_schema = ON")
        db.execute("UPDATE sqlite_master SET sql = ? WHERE name = 'chain'", (CHAIN_TABLES[0].strip(),))
    found = read_ledger(path).findings
    assert {finding.rule for finding in found} >= ({"file"} if rows else {"empty"})
    assert sum(finding.rule == "receipt" for finding in found) == len(receipts)
    assert all(finding.text.isprintable() and isinstance(finding.line, int) for finding in found)
    read_heads(path)


def test_a_table_that_is_not_strict_is_no_ledger(path: Path) -> None:
    """Rebuilt without its checks, with the same rows: not what this version makes, for a reader or for its owner."""
    change(
        path,
        "PRAGMA foreign_keys = OFF",
        "ALTER TABLE chain RENAME TO old",
        LOOSE,
        "INSERT INTO chain SELECT * FROM old",
        "DROP TABLE old",
    )
    with pytest.raises(RunError, match="not a ledger: it has no table of lines as this version makes it"):
        read_ledger(path)
    with pytest.raises(RunError, match="cannot be used as a ledger: it has no table of lines as this version makes it"):
        Ledger(path, secret=SECRET)


def test_bytes_that_are_no_text_are_found(path: Path) -> None:
    """Not UTF-8, in the middle of a line."""
    change(path, *drops(), "UPDATE chain SET body = CAST(x'7bff7d' AS TEXT) WHERE seq = 3")
    found = read_ledger(path).findings
    assert {(finding.line, finding.rule) for finding in found} >= {(0, "file"), (3, "form"), (3, "digest")}
    assert all(finding.text.isprintable() for finding in found)


def drops() -> list[str]:
    """SQL that removes every index that looks into a line."""
    return [
        f"DROP INDEX {sql.split('INDEX ')[1].split()[0]}" for sql in (*CHAIN_TABLES, *LEDGER_TABLES) if "json" in sql
    ]


def test_what_can_be_read_is_read_beside_what_cannot(path: Path) -> None:
    """One line is spoiled: its finding, and all the other entries."""
    change(path, *drops(), "UPDATE chain SET body = '{}' WHERE seq = 3")
    books = read_ledger(path)
    assert [entry.round for entry in books.entries] == [1, 2]
    assert {finding.rule for finding in books.findings if finding.line == 3} == {"digest", "form"}


@pytest.mark.parametrize("name", [index.split("INDEX ")[1].split()[0] for index in LEDGER_TABLES if "INDEX" in index])
def test_a_missing_index_is_found(path: Path, name: str) -> None:
    """It could let a question be answered twice."""
    change(path, f"DROP INDEX {name}")
    assert rules(path) == {"file"}


# The other side's word.


def test_a_cut_tail_is_found_by_the_receipts_that_lie_beside_it(path: Path) -> None:
    """Its owner cut the lines and forgot the receipts: found by a reader, and refused by the ledger itself."""
    change(path, "PRAGMA foreign_keys = OFF", "DELETE FROM chain WHERE seq > 4")
    assert rules(path) == {"truncated"}
    with pytest.raises(RunError, match="changed by somebody else: line 6 was shown to others, this copy ends at 4"):
        Ledger(path, secret=SECRET)


def test_a_restored_copy_is_found_by_the_coordinators_heads(path: Path, tmp_path: Path) -> None:
    """Whole and consistent, with its own old receipts: only who saw the later lines knows; and so after it went on."""
    old = copy_of(path, tmp_path / "old")
    ledger = Ledger(path, secret=SECRET)
    ledger.charge(charge_of(3), WIDE)
    later = show(ledger, 3)
    receipt = make_receipt(later, run="run", round=3, time=now(), keys=COORDINATOR)
    ledger.close()
    assert rules(old) == set()
    assert rules(old, heads=[later]) == {"truncated"}
    # The restored ledger is refused as soon as the coordinator shows what it has seen.
    restored = Ledger(old, secret=SECRET)
    with pytest.raises(Refused, match="shows line 8 of this ledger as .*, which it does not hold") as refusal:
        restored.keep_receipt(receipt)
    assert refusal.value.rule == "receipt"
    restored.charge(charge_of(3, run="another"), WIDE)
    with pytest.raises(Refused, match="bring back the newest one"):
        restored.keep_receipt(receipt)
    restored.close()
    assert rules(old) == set()
    assert rules(old, heads=[later]) == {"rewritten"}


def test_nobody_can_make_a_ledger_keep_a_false_receipt(path: Path) -> None:
    """A head that a stranger signed, of this ledger's id, of lines that it never had: it would condemn its owner."""
    ledger = Ledger(path, secret=SECRET)
    before = read_ledger(path).receipts
    stranger = fresh_keys()
    for head in (
        make_head(ledger.chain.ledger, 10**6, bytes(32), stranger),
        make_head(ledger.chain.ledger, 3, bytes(32), stranger),
        make_head("00" * 16, 3, ledger.chain.last().digest, stranger),
    ):
        with pytest.raises(Refused) as refusal:
            ledger.keep_receipt(make_receipt(head, run="run", round=1, time=now(), keys=COORDINATOR))
        assert refusal.value.rule == "receipt"
    ledger.close()
    assert read_ledger(path).receipts == before
    assert rules(path) == set()


def test_a_receipt_is_kept_once(path: Path) -> None:
    """The same text again changes nothing."""
    ledger = Ledger(path, secret=SECRET)
    receipt = make_receipt(ledger.head(), run="run", round=7, time=now(), keys=COORDINATOR)
    for _ in range(3):
        ledger.keep_receipt(receipt)
    ledger.close()
    assert read_ledger(path).receipts[-1] == receipt
    assert len(read_ledger(path).receipts) == 4


def test_a_receipt_that_was_changed_is_found(path: Path) -> None:
    """By its signature; the ledger is not opened over it."""
    change(path, "UPDATE receipts SET text = replace(text, '\"round\":2', '\"round\":9')")
    assert rules(path) == {"receipt"}
    with pytest.raises(RunError, match="not a signed statement"):
        Ledger(path, secret=SECRET)


# The coordinator's log.


def test_the_coordinators_log_says_where_every_ledger_stood(path: Path, tmp_path: Path) -> None:
    """By domain, oldest first, signed by the domain; a reply without a head is not noted."""
    ledger = Ledger(path, secret=SECRET)
    log = HeadLog(tmp_path / "run" / "heads.db", SECRET)
    heads = []
    for number in range(2):
        heads.append(ledger.head())
        reply = RoundReply(domain="books", run="run\nforged", round=number, head=heads[-1].text())
        assert log.note(reply, domain="books") != ""
        ledger.charge(charge_of(number, run="later"), WIDE)
    assert log.note(RoundReply(domain="games", run="run", round=1, head="none"), domain="games") == ""
    log.close()
    ledger.close()
    noted = read_heads(tmp_path / "run" / "heads.db")
    assert noted.findings == ()
    assert noted.heads == {"books": tuple(heads)}
    assert rules(path, heads=noted.heads["books"]) == set()
    assert read_ledger(tmp_path / "run" / "heads.db").owner == "coordinator"


def test_another_ledger_of_the_same_length_is_refused(path: Path, tmp_path: Path) -> None:
    """An older copy that has caught up by other lines: its last line has the number that was noted, and is another."""
    copy = copy_of(path, tmp_path / "copy")
    log = HeadLog(tmp_path / "run" / "heads.db", SECRET)
    for file, run in ((path, "here"), (copy, "there")):
        ledger = Ledger(file, secret=SECRET)
        ledger.charge(charge_of(1, run=run), WIDE)
        reply = RoundReply(domain="books", run=run, round=1, head=ledger.head().text())
        if file == path:
            assert log.note(reply, domain="books") != ""
            assert log.note(reply, domain="books") != "", "the same line again is no other"
        else:
            with pytest.raises(Refused, match=r"now it is at line (\d+) of .*, which says something else") as refused:
                log.note(reply, domain="books")
            assert refused.value.rule == "head"
        ledger.close()
    log.close()


def test_a_receipt_of_the_coordinator_is_kept_by_the_ledger(path: Path, tmp_path: Path) -> None:
    """What one side writes the other one reads."""
    ledger = Ledger(path, secret=SECRET)
    log = HeadLog(tmp_path / "run" / "heads.db", SECRET)
    from_log = log.note(RoundReply(domain="books", run="run", round=1, head=ledger.head().text()), domain="books")
    ledger.keep_receipt(read_receipt(from_log))
    assert read_ledger(path).receipts[-1].key == log.keys.public.hex()
    log.close()
    ledger.close()


def test_a_log_that_was_tampered_with_is_found(path: Path, tmp_path: Path) -> None:
    """The same chain, the same rules; and a head in it that no domain signed is one more."""
    ledger = Ledger(path, secret=SECRET)
    log = HeadLog(tmp_path / "heads.db", SECRET)
    good = ledger.head()
    log.note(RoundReply(domain="books", run="run", round=1, head=good.text()), domain="books")
    trusted = log.keys.public
    forged = dataclasses.replace(good, seq=1)
    log.close()
    chain = open_chain(tmp_path / "heads.db", owner="coordinator", name="", secret=SECRET)
    with chain.transaction():
        chain.append(Noted, {"domain": "books", "run": "r", "round": 1, "head": forged.text()})
    chain.close()
    ledger.close()
    found = read_heads(tmp_path / "heads.db", trusted=trusted)
    assert [(finding.line, finding.rule) for finding in found.findings] == [(3, "head")]
    assert found.heads == {"books": (good,)}
    change(tmp_path / "heads.db", "DELETE FROM chain WHERE seq = 2")
    assert {finding.rule for finding in read_heads(tmp_path / "heads.db").findings} >= {"order", "link"}
    other = read_heads(tmp_path / "heads.db", trusted=fresh_keys().public)
    assert "key" in {finding.rule for finding in other.findings}
    assert read_head(good.text()) == good
