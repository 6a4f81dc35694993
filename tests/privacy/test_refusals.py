"""Whoever asks without end cannot make a ledger grow without end, hide that they asked, or stop a charge."""

import datetime as dt
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.privacy.conftest import FORK, TWO, WIDE, change, charge_of, rules

from isthmus.errors import BudgetExhausted, Refused, RunError
from isthmus.privacy import chain as chains
from isthmus.privacy import refusals
from isthmus.privacy.audit import make_audit, read_sources
from isthmus.privacy.audit.verification import verify_files
from isthmus.privacy.ledger import Ledger
from isthmus.privacy.lines import Ebbed, Flooded
from isthmus.privacy.reading import Books, read_ledger
from isthmus.privacy.refusals import LONGEST_REFUSAL, MOST_REFUSALS, Refusals
from isthmus.report.audit_page import render_audit_page

# Real processes are what is tested; newer Pythons warn of a fork beside the threads of a numerical library.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

NO = Refused("no", rule="kinds", asked="release update", limit="only metric")
NOON = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)

SetDay = Callable[[int], None]


@pytest.fixture
def day(monkeypatch: pytest.MonkeyPatch) -> SetDay:
    """Set the machine's clock to noon of a day."""

    def set_clock(number: int) -> None:
        time = (NOON + dt.timedelta(days=number)).isoformat(timespec="milliseconds")
        for module in (chains, refusals):
            monkeypatch.setattr(module, "now", lambda: time)

    set_clock(0)
    return set_clock


def flood(ledger: Ledger, count: int, *, of: str = "run") -> None:
    """So many refused requests, each of another run; nobody signed them."""
    for number in range(count):
        ledger.refuse(NO, run=f"{of} {number}", round_=1, kind="update")


def floods(books: Books) -> list[Flooded | Ebbed]:
    """What a reader who finds nothing wrong sees of them."""
    assert books.findings == ()
    return [line for line in books.lines if isinstance(line, Flooded | Ebbed)]


def test_a_day_holds_so_many_refusals_and_counts_the_others(ledger: Ledger, day: SetDay) -> None:
    """One line says that they are not written from here on, and the first one of another day how many there were."""
    flood(ledger, MOST_REFUSALS + 50)
    books = read_ledger(ledger.path)
    assert len(books.refusals) == MOST_REFUSALS
    (flooded,) = floods(books)
    assert isinstance(flooded, Flooded)
    assert (flooded.seq, flooded.most) == (MOST_REFUSALS + 2, MOST_REFUSALS)
    day(1)
    flood(ledger, 3, of="next day")
    books = read_ledger(ledger.path)
    assert [line.run for line in books.refusals[-3:]] == ["next day 0", "next day 1", "next day 2"]
    (_, ebbed) = floods(books)
    assert isinstance(ebbed, Ebbed)
    assert (ebbed.flood, ebbed.count, ebbed.seq) == (flooded.seq, 50, flooded.seq + 1)


def test_what_is_on_record_is_not_counted_again(ledger: Ledger, day: SetDay) -> None:
    """The same question as before the flood, in the flood; a question that was only counted counts each time."""
    flood(ledger, MOST_REFUSALS + 1)
    flood(ledger, MOST_REFUSALS + 1)
    day(1)
    ledger.charge(charge_of(), WIDE)
    (_, ebbed) = floods(read_ledger(ledger.path))
    assert isinstance(ebbed, Ebbed)
    assert ebbed.count == 2


def test_a_restart_starts_no_new_day(ledger: Ledger, day: SetDay) -> None:
    """Neither the lines nor the count begin anew, in however many processes one after the other."""
    for number in range(5):
        again = Ledger(ledger.path)
        flood(again, MOST_REFUSALS // 4, of=f"process {number}")
        again.close()
    assert len(read_ledger(ledger.path).refusals) == MOST_REFUSALS
    day(1)
    flood(ledger, 1)
    (_, ebbed) = floods(read_ledger(ledger.path))
    assert isinstance(ebbed, Ebbed)
    assert ebbed.count == MOST_REFUSALS // 4


def test_processes_that_flood_at_once_share_one_bound(ledger: Ledger, day: SetDay) -> None:
    """Four real ones: no more lines than one of them would write, and each refusal is written or counted."""
    processes = [FORK.Process(target=flood_alone, args=(ledger.path, f"process {number}")) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert len(read_ledger(ledger.path).refusals) == MOST_REFUSALS
    day(1)
    flood(ledger, 1)
    (_, ebbed) = floods(read_ledger(ledger.path))
    assert isinstance(ebbed, Ebbed)
    assert ebbed.count == 4 * 60 - MOST_REFUSALS


def flood_alone(path: Path, name: str) -> None:
    """In a process of its own."""
    ledger = Ledger(path)
    flood(ledger, 60, of=name)
    ledger.close()


def test_a_flood_stops_no_charge_and_no_limit(ledger: Ledger, day: SetDay) -> None:
    """In it and on the next day: what there is room for is charged, the rest is refused as before."""
    flood(ledger, MOST_REFUSALS + 10)
    ledger.keep_release(ledger.charge(charge_of(0), TWO), b"payload")
    day(1)
    ledger.charge(charge_of(1), TWO)
    with pytest.raises(BudgetExhausted):
        ledger.charge(charge_of(2), TWO)
    assert [entry.round for entry in read_ledger(ledger.path).entries] == [0, 1]
    assert [type(line) for line in floods(read_ledger(ledger.path))] == [Flooded, Ebbed]


def test_texts_of_a_refusal_are_short(ledger: Ledger) -> None:
    """A day's lines are some hundred kilobytes at most, whatever is put into them."""
    long = "x" * 5000
    ledger.refuse(Refused(long, rule=long, asked=long, limit=long), run=long, round_=1, kind=long)
    (line,) = read_ledger(ledger.path).refusals
    for text in (line.run, line.kind, line.rule, line.asked, line.limit):
        assert text == "x" * (LONGEST_REFUSAL - 1) + "…"


@pytest.mark.slow
def test_ten_thousand_refusals_are_a_hundred_and_two_lines(ledger: Ledger, day: SetDay) -> None:
    """And the file stays small: the longest texts, in letters that take the most room."""
    long = "\U0001f600" * 5000
    for number in range(10_000):
        refusal = Refused(long, rule=long, asked=long, limit=long)
        ledger.refuse(refusal, run=f"{number}{long}", round_=number, kind=long)
    assert ledger.chain.last().seq == 1 + MOST_REFUSALS + 1
    ledger.chain.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert ledger.path.stat().st_size < 15 * 2**20
    day(1)
    ledger.charge(charge_of(), WIDE)
    (_, ebbed) = floods(read_ledger(ledger.path))
    assert isinstance(ebbed, Ebbed)
    assert ebbed.count == 10_000 - MOST_REFUSALS


def test_without_the_bound_the_check_of_it_fails(ledger: Ledger, day: SetDay, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: nothing is ever too much. The line of the flood is missing then, and there are as many as were asked."""
    monkeypatch.setattr(Refusals, "_counted", lambda _: False)
    flood(ledger, MOST_REFUSALS + 5)
    assert len(read_ledger(ledger.path).refusals) == MOST_REFUSALS + 5
    assert floods(read_ledger(ledger.path)) == []


@pytest.fixture
def flooded(ledger: Ledger, day: SetDay) -> Ledger:
    """A ledger in the middle of a flood: one refusal was only counted."""
    flood(ledger, MOST_REFUSALS + 1)
    return ledger


def test_an_audit_shows_what_was_only_counted(flooded: Ledger, day: SetDay) -> None:
    """While it goes on, that there are more; afterwards, how many: in the audit, on its page, and when verified."""
    (data_set,) = make_audit(read_sources([flooded.path])).data_sets
    assert [(one.most, one.count) for one in data_set.floods] == [(MOST_REFUSALS, None)]
    assert len(data_set.refusals) == MOST_REFUSALS
    day(1)
    flooded.charge(charge_of(), WIDE)
    audit = make_audit(read_sources([flooded.path]))
    assert [(one.most, one.count, one.line) for one in audit.data_sets[0].floods] == [(100, 1, MOST_REFUSALS + 2)]
    assert "2026-01-31: 100 refusals were written, and 1 more (from line 102 on)." in render_audit_page(audit)
    (verified,) = verify_files([flooded.path])
    (entries,) = [check for check in verified.checks if check.name == "entries"]
    assert entries.passed
    assert entries.detail == "1 release, 100 refusals and 1 that were only counted"


def test_a_count_that_was_thrown_away_is_found(flooded: Ledger) -> None:
    """It lies beside the chain while it grows: without it refusals are written again, or counted from nothing."""
    change(flooded.path, "DELETE FROM floods")
    flood(flooded, 1, of="another")
    assert rules(flooded.path) == {"flood"}
    with pytest.raises(RunError, match="the refusals from line 102 on were not counted before it"):
        Ledger(flooded.path)


def test_a_count_of_no_flood_is_found(ledger: Ledger) -> None:
    """A signed line that counts what was never announced, and one that does so twice."""
    with ledger.chain.transaction():
        ledger.chain.append(Ebbed, {"flood": 0, "count": 5})
        flooded = ledger.chain.append(Flooded, {"most": 100})
        for _ in range(2):
            ledger.chain.append(Ebbed, {"flood": flooded.seq, "count": 5})
    found = [(finding.line, finding.rule) for finding in read_ledger(ledger.path).findings]
    assert found == [(2, "flood"), (5, "flood")]
