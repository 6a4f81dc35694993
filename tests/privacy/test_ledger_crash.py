"""The ledger as a file: what survives kill -9 and a power cut, races of real processes, full disks and wrong files."""

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
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from tests.privacy.conftest import DELTA, FORK, TWO, WIDE, charge_of, content

from isthmus.errors import BudgetExhausted, RunError
from isthmus.privacy import ledger as module
from isthmus.privacy.accounting import NOTHING, epsilon
from isthmus.privacy.ledger import Ledger, LedgerEntry

# Real processes are what is tested; newer Pythons warn of a fork beside the threads of a numerical library.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

ROOT = Path(__file__).parents[2]


class Unfinished(Ledger):
    """Mutant: a charge stays in an open transaction when it returns."""

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        if not self._db.in_transaction:
            self._db.execute("BEGIN IMMEDIATE")
        yield


class Slow(Ledger):
    """Not a mutant: a ledger that takes its time between the check and the entry, so that a race is a race."""

    def require_room(self, *args: object, **kwargs: object) -> None:
        """Check, then wait."""
        super().require_room(*args, **kwargs)  # type: ignore[arg-type]
        time.sleep(0.1)


class CheckThenWrite(Slow):
    """Mutant: the check and the entry are two transactions."""

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        yield


class Unsynced(Ledger):
    """Mutant: the operating system is left to write when it likes."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self._db.execute("PRAGMA synchronous = OFF")


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
    settings = [ledger._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
    assert settings == ["wal", 2]
    assert ledger._db.execute("PRAGMA foreign_keys").fetchone() == (1,)


# Races.


def race(kind: type[Ledger], path: Path) -> list[LedgerEntry]:
    """Two processes ask for the last of a budget at once; the entries afterwards."""
    first = Ledger(path)
    first.charge(charge_of(0), TWO)
    first.close()
    line = FORK.Barrier(2)
    processes = [FORK.Process(target=ask_at_once, args=(kind, path, line, number)) for number in (1, 2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    after = Ledger(path)
    entries = list(after.entries())
    after.close()
    # The one that was refused says so by its exit code: 0 for an entry, 3 for a refusal.
    assert sorted(str(p.exitcode) for p in processes) == ["0"] * (len(entries) - 1) + ["3"] * (3 - len(entries))
    return entries


def ask_at_once(kind: type[Ledger], path: Path, line: Barrier, number: int) -> None:
    """Charge one round when everybody is ready."""
    ledger = kind(path)
    line.wait()
    try:
        ledger.charge(charge_of(number), TWO)
    except BudgetExhausted:
        sys.exit(3)


def test_of_two_processes_that_race_for_the_last_of_a_budget_one_wins(tmp_path: Path) -> None:
    """Eight races of real processes: one more entry each, within the budget; a check outside is caught."""
    for number, kind in enumerate([Ledger] * 4 + [Slow] * 4):
        entries = race(kind, tmp_path / f"{number}.db")
        assert len(entries) == 2
        assert epsilon([entry.charge.event for entry in entries], DELTA) <= TWO.epsilon
    assert len(race(CheckThenWrite, tmp_path / "mutant.db")) == 3


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
        db.execute("CREATE TABLE entries (note TEXT)")


def a_cut_ledger(path: Path) -> None:
    """A ledger of which the disk kept only the beginning."""
    ledger = Ledger(path)
    for number in range(40):
        ledger.charge(charge_of(number, event=NOTHING), WIDE)
    ledger.close()
    os.truncate(path, 5000)


@pytest.mark.parametrize("make", [a_text, a_folder, a_foreign_database, a_lookalike, a_cut_ledger])
def test_what_is_not_a_ledger_is_refused_and_left_alone(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """One sentence with the path and the way out; the file is not touched, no new ledger replaces it."""
    path = tmp_path / "ledger.db"
    make(path)
    before = None if path.is_dir() else path.read_bytes()
    with pytest.raises(RunError, match=r"ledger\.db: cannot be used as a ledger: .*Restore it from a backup"):
        Ledger(path)
    if before is not None:
        assert path.read_bytes() == before


def test_an_entry_of_a_later_version_is_refused(ledger: Ledger) -> None:
    """An event that cannot be read is never skipped: the sum would be too small."""
    ledger.charge(charge_of(), WIDE)
    ledger._db.execute("""UPDATE entries SET event = '{"kind":"laplace","v":2}'""")
    for use in (lambda: ledger.epsilon(DELTA), lambda: ledger.charge(charge_of(1), WIDE)):
        with pytest.raises(RunError, match=r"ledger\.db: entry 1 cannot be read: .*version 2 is not known"):
            use()
    assert ledger._db.execute("SELECT count(*) FROM entries").fetchone() == (1,)


def test_a_full_disk_charges_nothing_and_can_be_asked_again(ledger: Ledger) -> None:
    """The charge fails in words, the file is as it was, and with room again the same request goes through."""
    ledger.charge(charge_of(), WIDE)
    pages = ledger._db.execute("PRAGMA page_count").fetchone()[0]
    ledger._db.execute(f"PRAGMA max_page_count = {pages}")
    large = dataclasses.replace(charge_of(1), dataset=bytes(100_000))
    with pytest.raises(RunError, match=r"the ledger cannot be written: .*full.*make room on the disk"):
        ledger.charge(large, WIDE)
    assert len(content(ledger)) == 1
    ledger._db.execute("PRAGMA max_page_count = 100000")
    assert ledger.charge(large, WIDE).seq == 2


def test_a_held_ledger_is_a_refusal_in_words(ledger: Ledger) -> None:
    """Another process holds the file for longer than we wait: nothing is charged."""
    other = sqlite3.connect(ledger.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    ledger._db.execute("PRAGMA busy_timeout = 50")
    with pytest.raises(RunError, match="the ledger cannot be written: database is locked"):
        ledger.charge(charge_of(), WIDE)
    other.execute("ROLLBACK")
    other.close()
    assert ledger.charge(charge_of(), WIDE).seq == 1


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
            copies.append(Ledger(target))
    finally:
        process.kill()
        process.join()
    everything = list(busy.entries())
    busy.close()
    for copy in copies:
        entries = list(copy.entries())
        assert len(entries) >= 5
        assert entries == everything[: len(entries)]
        assert copy.kept_release(entry) == b"payload"
        assert copy._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        copy.close()


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
        copy = Ledger(target)
        assert list(copy.entries()) == list(ledger.entries())
        copy.close()


def test_the_columns_of_the_file_are_the_documented_ones() -> None:
    """Ledgers outlive versions: a column that goes or changes its meaning would make old books unreadable."""
    columns = re.findall(r"^    (\w+) (?:INTEGER|TEXT|BLOB)", module._SCHEMA, flags=re.MULTILINE)
    entries = ["seq", "time", "dataset", "run", "round", "kind", "request", "event", "private", "version"]
    assert columns == [*entries, "seq", "payload"]
