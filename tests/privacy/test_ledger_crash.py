"""The ledger as a file: what survives kill -9 and a power cut, full disks and wrong files, copies."""

import dataclasses
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.privacy.conftest import DELTA, EVENT, FORK, WIDE, change, charge_of, content, fields_of, rules

from isthmus.errors import RunError
from isthmus.privacy.accounting import NOTHING, epsilon
from isthmus.privacy.chain import Chain
from isthmus.privacy.custody import key_path
from isthmus.privacy.entries import Charge
from isthmus.privacy.keys import fresh_keys, save_keys, secret_from_environment
from isthmus.privacy.ledger import Ledger
from isthmus.privacy.lines import Charged
from isthmus.privacy.links import CHAIN_TABLES, LEDGER_TABLES
from isthmus.privacy.reading import read_ledger

# Real processes are what is tested; newer Pythons warn of a fork beside the threads of a numerical library.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

ROOT = Path(__file__).parents[2]


class Endless(Chain):
    """Mutant: a transaction stays open when it has ended."""

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Begin, and never commit."""
        if not self.db.in_transaction:
            self.db.execute("BEGIN IMMEDIATE")
        yield


class Unfinished(Ledger):
    """Mutant: a charge stays in an open transaction when it returns."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.chain.__class__ = Endless


class Unsynced(Ledger):
    """Mutant: the operating system is left to write when it likes."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.chain.db.execute("PRAGMA synchronous = OFF")


# Durable before it returns.


def charge_and_say_so(kind: type[Ledger], path: Path, marker: int) -> None:
    """Charge, then write to a pipe that it is done, then wait for the end."""
    ledger = kind(path)
    ledger.charge(charge_of(), WIDE)
    os.write(marker, b"charged")
    time.sleep(60)


def entries_after_kill(kind: type[Ledger], path: Path) -> int:
    """Entries in a ledger whose process was killed -9 right after `charge` returned."""
    Ledger(path).close()
    reader, writer = os.pipe()
    process = FORK.Process(target=charge_and_say_so, args=(kind, path, writer))
    process.start()
    os.close(writer)
    assert os.read(reader, 7) == b"charged"
    process.kill()
    process.join()
    os.close(reader)
    assert process.exitcode == -signal.SIGKILL
    survivor = Ledger(path)
    count = len(list(survivor.entries()))
    survivor.close()
    return count


def test_a_charge_survives_kill_9_once_it_returned(tmp_path: Path) -> None:
    """Five times: the entry is there; a ledger that commits later is caught by the same check."""
    assert [entries_after_kill(Ledger, tmp_path / f"{number}.db") for number in range(5)] == [1] * 5
    assert entries_after_kill(Unfinished, tmp_path / "unfinished.db") == 0


def trace_a_charge(kind: str, path: str) -> None:
    """Charge and mark the moment: run under strace by `unsynced_at_return`."""
    ledger = {"Ledger": Ledger, "Unsynced": Unsynced}[kind](path)
    os.write(1, b"BEFORE")
    ledger.charge(charge_of(event=NOTHING), WIDE)
    os.write(1, b"AFTER")


def unsynced_at_return(kind: str, path: Path) -> list[str]:
    """Files of a ledger that were written to during `charge` and not yet synced when it returned."""
    code = f"from tests.privacy.test_ledger_crash import trace_a_charge; trace_a_charge({kind!r}, {str(path)!r})"
    traced = subprocess.run(
        ["strace", "-y", "-e", "trace=write,pwrite64,fsync,fdatasync", sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    if "BEFORE" not in traced.stdout:
        pytest.skip(f"a process cannot be traced here: {traced.stderr.strip().splitlines()[-1][:200]}")
    during = traced.stderr[traced.stderr.index('"BEFORE"') : traced.stderr.index('"AFTER"')]
    pending: list[str] = []
    written = 0
    for call, file in re.findall(r"^(\w+)\(\d+<([^>]*)>", during, flags=re.MULTILINE):
        if not file.startswith(str(path)) or file.endswith("-shm"):  # the index of the log is rebuilt after a crash
            continue
        if call in ("fsync", "fdatasync"):
            pending = [other for other in pending if other != file]
        else:
            pending.append(file)
            written += 1
    assert written, "a charge that writes nothing is not a charge"
    return pending


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_charge_survives_a_power_cut_once_it_returned(tmp_path: Path) -> None:
    """Every write to the file was followed by a sync before the call came back; without syncs the check says so."""
    assert unsynced_at_return("Ledger", tmp_path / "ledger.db") == []
    assert unsynced_at_return("Unsynced", tmp_path / "unsynced.db") != []


def test_a_ledger_asks_for_full_durability(ledger: Ledger) -> None:
    """Write-ahead log, a sync at each commit, and releases that belong to an entry."""
    names = ("journal_mode", "synchronous", "foreign_keys")
    assert [ledger.chain.db.execute(f"PRAGMA {name}").fetchone()[0] for name in names] == ["wal", 2, 1]


# Files.


def a_text(path: Path) -> None:
    """Not a database."""
    path.write_text("run,round,epsilon\n" * 100, encoding="utf-8")


def a_folder(path: Path) -> None:
    """Not a file."""
    path.mkdir()


def a_foreign_database(path: Path) -> None:
    """SQLite, of something else."""
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE customers (name TEXT)")


def a_lookalike(path: Path) -> None:
    """A table of our name with other columns."""
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE chain (note TEXT)")


def an_empty_file(path: Path) -> None:
    """What is left of a ledger that somebody emptied; its key is there."""
    Ledger(path).close()
    path.write_bytes(b"")


def a_ledger_without_tables(path: Path) -> None:
    """A ledger of which somebody dropped everything; its key is there."""
    Ledger(path).close()
    change(path, "DROP TABLE releases", "DROP TABLE receipts", "DROP TABLE chain")


def a_cut_ledger(path: Path) -> None:
    """A ledger of which the disk kept only the beginning."""
    ledger = Ledger(path)
    for number in range(40):
        ledger.charge(charge_of(number, event=NOTHING), WIDE)
    ledger.close()
    os.truncate(path, 5000)


@pytest.mark.parametrize(
    "make",
    [a_text, a_folder, a_foreign_database, a_lookalike, a_cut_ledger, an_empty_file, a_ledger_without_tables],
)
def test_what_is_not_a_ledger_is_refused_and_left_alone(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """One sentence with the path and the way out; the file is not touched, no new ledger replaces it."""
    path = tmp_path / "ledger.db"
    make(path)
    save_keys(key_path(path), fresh_keys(), secret_from_environment())
    before = None if path.is_dir() else path.read_bytes()
    with pytest.raises(RunError, match=r"ledger\.db: cannot be used as a ledger: .*Restore it from a backup"):
        Ledger(path)
    if before is not None:
        assert path.read_bytes() == before


def test_an_entry_of_a_later_version_is_refused(ledger: Ledger) -> None:
    """An event that cannot be read is never skipped: the sum would be too small."""
    ledger.charge(charge_of(), WIDE)
    with ledger.chain.transaction():  # as a later version would write it, signed and all
        line = ledger.chain.append(Charged, {**fields_of(charge_of(1)), "event": '{"kind":"laplace","v":2}'})
    for use in (lambda: ledger.epsilon(DELTA), lambda: ledger.charge(charge_of(2), WIDE)):
        with pytest.raises(RunError, match=r"ledger\.db: line 3 cannot be read: .*version 2 is not known.*Isthmus 0,"):
            use()
    assert ledger.chain.last().seq == line.seq == 3
    with pytest.raises(RunError, match=r"line 3 cannot be read: .*Use the version of Isthmus that wrote it"):
        Ledger(ledger.path)
    assert rules(ledger.path) == {"event"}


def test_a_full_disk_charges_nothing_and_can_be_asked_again(ledger: Ledger) -> None:
    """The charge fails in words, the file is as it was, and with room again the same request goes through."""
    ledger.charge(charge_of(), WIDE)
    entry = ledger.charge(charge_of(1), WIDE)
    pages = ledger.chain.db.execute("PRAGMA page_count").fetchone()[0]
    ledger.chain.db.execute(f"PRAGMA max_page_count = {pages}")
    large = [dataclasses.replace(charge_of(number), request=bytes(512)) for number in range(2, 100)]
    with pytest.raises(RunError, match=r"the ledger cannot be written: .*full.*make room on the disk"):
        charge_all(ledger, large)
    with pytest.raises(RunError, match="the ledger cannot be written"):
        ledger.keep_release(entry, bytes(10_000))
    fitted = len(content(ledger))
    assert 2 <= fitted < 100
    assert not any(known.released for known in content(ledger))
    assert ledger.epsilon(DELTA) == epsilon([EVENT] * fitted, DELTA)
    ledger.chain.db.execute("PRAGMA max_page_count = 100000")
    assert ledger.charge(large[fitted - 2], WIDE).seq == fitted + 2
    assert ledger.keep_release(entry, bytes(10_000)) == bytes(10_000)


def charge_all(ledger: Ledger, charges: list[Charge]) -> None:
    """One after the other."""
    for charge in charges:
        ledger.charge(charge, WIDE)


def test_a_held_ledger_is_a_refusal_in_words(ledger: Ledger) -> None:
    """Another process holds the file for longer than we wait: nothing is charged."""
    other = sqlite3.connect(ledger.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    ledger.chain.db.execute("PRAGMA busy_timeout = 50")
    with pytest.raises(RunError, match="the ledger cannot be written: database is locked"):
        ledger.charge(charge_of(), WIDE)
    other.execute("ROLLBACK")
    other.close()
    assert ledger.charge(charge_of(), WIDE).seq == 2


def test_a_new_ledger_is_made_with_its_folder(tmp_path: Path) -> None:
    """The first process makes it; opening it again changes nothing."""
    path = tmp_path / "a" / "b" / "ledger.db"
    for _ in range(2):
        ledger = Ledger(path)
        assert list(ledger.entries()) == []
        ledger.close()


def test_a_backup_is_consistent_while_the_ledger_is_in_use(ledger: Ledger, tmp_path: Path) -> None:
    """Taken while another process charges: a ledger of its own, a prefix of the entries, with the kept releases."""
    entry = ledger.charge(charge_of(0, run="kept"), WIDE)
    ledger.keep_release(entry, b"payload")
    ledger.close()
    process = FORK.Process(target=keep_charging, args=(ledger.path,))
    process.start()
    busy = Ledger(ledger.path)
    copies = []
    try:
        deadline = time.monotonic() + 30
        while len(list(busy.entries())) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        for number in range(3):
            target = tmp_path / "copies" / f"{number}.db"
            busy.backup(target)
            copies.append(target)
    finally:
        process.kill()
        process.join()
    everything = list(busy.entries())
    busy.close()
    for copy in copies:
        books = read_ledger(copy)
        assert books.findings == ()
        assert len(books.entries) >= 5
        assert list(books.entries) == everything[: len(books.entries)]
        shutil.copy(key_path(ledger.path), key_path(copy))  # with its key it is a ledger again
        again = Ledger(copy)
        assert again.kept_release(entry) == b"payload"
        again.close()


def keep_charging(path: Path) -> None:
    """Charge round after round until the end comes."""
    ledger = Ledger(path)
    for number in range(100_000):
        ledger.charge(charge_of(number, event=NOTHING), WIDE)


def test_a_backup_replaces_an_older_one(ledger: Ledger, tmp_path: Path) -> None:
    """The same target again holds what the ledger holds now."""
    target = tmp_path / "copy.db"
    for number in range(2):
        ledger.charge(charge_of(number), WIDE)
        ledger.backup(target)
        assert list(read_ledger(target).entries) == list(ledger.entries())


def test_a_copy_without_its_key_is_read_and_not_written_to(ledger: Ledger, tmp_path: Path) -> None:
    """Who has the file alone can check it, and can neither charge nor start anew; nothing appears beside it."""
    ledger.charge(charge_of(), WIDE)
    target = tmp_path / "copies" / "copy.db"
    ledger.backup(target)
    before = target.read_bytes()
    with pytest.raises(RunError, match=r"copy\.key: the ledger's key is missing; restore it from a backup"):
        Ledger(target)
    assert len(read_ledger(target).entries) == 1
    assert [file.name for file in target.parent.iterdir()] == ["copy.db"]
    assert target.read_bytes() == before


def test_a_backup_that_cannot_be_written_is_said_in_words(ledger: Ledger, tmp_path: Path) -> None:
    """A folder in the way, a file that is no database: named, with the way out."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.db").write_text("not a database\n" * 100)
    for target in (tmp_path / "folder", tmp_path / "text.db"):
        with pytest.raises(RunError, match=rf"{target.name}: the ledger cannot be copied there: .*name another file"):
            ledger.backup(target)


def test_the_columns_of_the_file_are_the_documented_ones() -> None:
    """Ledgers outlive versions: a column that goes or changes its meaning would make old books unreadable."""
    columns = {
        name: re.findall(r"^    (\w+) (?:INTEGER|TEXT|BLOB)", sql, flags=re.MULTILINE)
        for sql in (*CHAIN_TABLES, *LEDGER_TABLES)
        for name in re.findall(r"CREATE TABLE (\w+) \(\n", sql)
    }
    assert columns == {
        "chain": ["seq", "body", "previous", "digest", "key", "signature"],
        "releases": ["seq", "run", "kind", "round", "payload"],
        "receipts": ["seq", "text"],
        "floods": ["line", "count"],
    }


# A file that goes away under a process that has it open.


@pytest.mark.parametrize("replaced", [False, True])
def test_a_process_whose_ledger_is_gone_charges_nothing(tmp_path: Path, replaced: bool) -> None:
    """Deleted, or replaced by a copy: an open file can still be written to, and nobody would find it afterwards."""
    path = tmp_path / "books" / "ledger.db"
    ledger = Ledger(path)
    ledger.charge(charge_of(0), WIDE)
    copy = tmp_path / "copy.db"
    ledger.backup(copy)
    path.unlink()
    if replaced:
        shutil.copy(copy, path)
    with pytest.raises(RunError, match="moved, deleted or replaced under this process"):
        ledger.charge(charge_of(1), WIDE)
    ledger.close()
    assert path.exists() == replaced
