"""Several at once: real processes that race for the last of a budget, and threads of one process."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from tests.privacy.conftest import DELTA, EVENT, FORK, TWO, WIDE, charge_of, content, fields_of, rules

from isthmus.errors import BudgetExhausted
from isthmus.privacy.accounting import Spending, epsilon
from isthmus.privacy.chain import Chain
from isthmus.privacy.entries import LedgerEntry
from isthmus.privacy.ledger import Ledger
from isthmus.privacy.lines import Charged

# Real processes are what is tested; newer Pythons warn of a fork beside the threads of a numerical library.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


class Slow(Ledger):
    """Not a mutant: a ledger that takes its time between the check and the entry, so that a race is a race."""

    def _require_room(self, *args: object, **kwargs: object) -> None:
        super()._require_room(*args, **kwargs)  # type: ignore[arg-type]
        time.sleep(0.05 + os.getpid() % 10 / 40)  # not the same in two processes: they have numbers of their own


class Unguarded(Chain):
    """Mutant: what belongs together is not one transaction."""

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Begin nothing."""
        yield


class CheckThenWrite(Slow):
    """Mutant: the check and the entry are two transactions."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.chain.__class__ = Unguarded


def race(kind: type[Ledger], path: Path, racers: int) -> list[LedgerEntry]:
    """Processes ask for the last of a budget at once; the entries afterwards."""
    first = Ledger(path)
    first.charge(charge_of(0), TWO)
    first.close()
    line = FORK.Barrier(racers)
    processes = [FORK.Process(target=ask_at_once, args=(kind, path, line, number + 1)) for number in range(racers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    after = Ledger(path)
    entries = content(after)
    after.close()
    # The ones that were refused say so by their exit code: 0 for an entry, 3 for a refusal.
    won = len(entries) - 1
    assert sorted(process.exitcode or 0 for process in processes) == [0] * won + [3] * (racers - won)
    return entries


def ask_at_once(kind: type[Ledger], path: Path, line: Barrier, number: int) -> None:
    """Charge one round when everybody is ready."""
    ledger = kind(path)
    line.wait()
    try:
        ledger.charge(charge_of(number), TWO)
    except BudgetExhausted:
        sys.exit(3)


@pytest.mark.parametrize("racers", [2, 8])
def test_of_processes_that_race_for_the_last_of_a_budget_one_wins(tmp_path: Path, racers: int) -> None:
    """Races of real processes: one more entry each, within the budget, in a chain that is whole."""
    for number, kind in enumerate([Ledger] * 4 + [Slow] * (4 // racers)):
        entries = race(kind, tmp_path / f"{number}.db", racers)
        assert len(entries) == 2
        assert epsilon([entry.event for entry in entries], DELTA) <= TWO.lifetime.epsilon


def test_a_check_outside_the_transaction_is_caught(tmp_path: Path) -> None:
    """The mutant charges three times what fits twice: the same race sees it."""
    assert len(race(CheckThenWrite, tmp_path / "mutant.db", 2)) == 3


def make_at_once(path: Path, line: Barrier, number: int) -> None:
    """Open a ledger that is not there yet, when everybody is ready, and charge."""
    line.wait()
    Ledger(path).charge(charge_of(number), WIDE)


def test_of_processes_that_make_a_ledger_at_once_all_get_the_same(tmp_path: Path) -> None:
    """One makes it and its key, the others wait and use it: every charge is in one chain."""
    path, line = tmp_path / "books" / "ledger.db", FORK.Barrier(6)
    processes = [FORK.Process(target=make_at_once, args=(path, line, number)) for number in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 6
    ledger = Ledger(path)
    assert sorted(entry.round for entry in content(ledger)) == list(range(6))
    assert ledger.epsilon(DELTA) == epsilon([EVENT] * 6, DELTA)
    ledger.close()
    assert rules(path) == set()
    assert sorted(file.name for file in path.parent.iterdir()) == ["ledger.db", "ledger.key"]


# One process, several threads.


def test_a_thread_never_sees_the_middle_of_a_transaction(ledger: Ledger) -> None:
    """While a charge is being written, what another thread asks for waits: a head of it could be taken back."""
    before = ledger.head()
    answers: list[object] = []
    thread = threading.Thread(target=ask_everything, args=(ledger, answers))
    with pytest.raises(ZeroDivisionError):
        charge_and_fail(ledger, thread)
    thread.join()
    assert answers == [before, False, Spending()]


def charge_and_fail(ledger: Ledger, meanwhile: threading.Thread) -> None:
    """Write a line, let another thread look for a while, and take it back."""
    with ledger.chain.transaction():
        ledger.chain.append(Charged, fields_of(charge_of()))
        meanwhile.start()
        meanwhile.join(0.2)
        raise ZeroDivisionError


def ask_everything(ledger: Ledger, answers: list[object]) -> None:
    """What a vault asks outside of its own lock."""
    answers += [ledger.head(), ledger.is_charged("run", 0, "update"), ledger.spending()]
