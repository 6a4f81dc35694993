"""The books: what an entry says, what a budget refuses, one answer to one question, and what it all adds up to."""

import dataclasses
import sqlite3
from pathlib import Path

import pytest
from dp_accounting.pld import PLDAccountant
from tests.privacy.conftest import DELTA, EVENT, TWO, WIDE, charge_of, content

import isthmus
from isthmus.errors import BudgetExhausted, Refused
from isthmus.privacy.accounting import NOTHING, epsilon, gaussian, poisson_gaussian
from isthmus.privacy.budget import PrivacyBudget
from isthmus.privacy.ledger import Ledger

# What an entry says.


def test_an_entry_says_what_was_charged(ledger: Ledger) -> None:
    """Every field comes back, for each kind of event, and the entry that was returned is the one on disk."""
    charges = [
        charge_of(0, event=poisson_gaussian(0.05, 1.9, 8)),
        dataclasses.replace(charge_of(0, kind="metric", event=gaussian(20.0)), private=False, dataset=b"\x00\xff"),
        charge_of(0, kind="catalogue", event=NOTHING),
    ]
    returned = [ledger.charge(charge, WIDE) for charge in charges]
    assert [entry.charge for entry in returned] == charges
    assert content(ledger) == returned
    assert [entry.seq for entry in returned] == [1, 2, 3]
    assert {entry.version for entry in returned} == {isthmus.__version__}
    assert all(entry.time.endswith("+00:00") and not entry.released for entry in returned)


def test_entries_come_oldest_first(ledger: Ledger) -> None:
    """In the order in which they were charged, whatever their rounds."""
    for number in (5, 1, 3):
        ledger.charge(charge_of(number), WIDE)
    assert [entry.charge.round for entry in ledger.entries()] == [5, 1, 3]


# The budget.


def test_an_exhausted_budget_leaves_the_ledger_as_it_was(ledger: Ledger) -> None:
    """The refusal says what is spent, of what, what it would be and the way out; no row, no byte changes."""
    for number in range(2):
        ledger.charge(charge_of(number), TWO)
    before = content(ledger)
    with pytest.raises(BudgetExhausted) as refusal:
        ledger.charge(charge_of(2), TWO)
    spent, more = (epsilon([EVENT] * count, DELTA) for count in (2, 3))
    for part in (
        f"epsilon {spent:.3f} of {spent:g} is spent",
        "delta 1e-05",
        "the update of round 2",
        f"to {more:.3f}",
    ):
        assert part in str(refusal.value)
    assert "Raise `epsilon` in domain.toml" in str(refusal.value)
    assert content(ledger) == before
    assert not ledger.is_charged("run", 2, "update")


def test_all_runs_share_one_budget(ledger: Ledger) -> None:
    """Another run, and data of another fingerprint, start from what is already spent."""
    ledger.charge(charge_of(0, run="first"), TWO)
    ledger.charge(dataclasses.replace(charge_of(0, run="second"), dataset=b"grown"), TWO)
    with pytest.raises(BudgetExhausted):
        ledger.charge(charge_of(0, run="third"), TWO)


def test_a_budget_can_be_spent_to_the_last_bit(tmp_path: Path) -> None:
    """A planned horizon fits its own epsilon exactly, charged in pieces; one step more does not."""
    budget = PrivacyBudget(epsilon([poisson_gaussian(0.05, 2.0, 60), gaussian(20.0, 2)], DELTA), DELTA)
    ledger = Ledger(tmp_path / "ledger.db")
    for number in range(6):
        ledger.charge(charge_of(number, event=poisson_gaussian(0.05, 2.0, 10)), budget)
        if number % 3 == 2:
            ledger.charge(charge_of(number, kind="metric", event=gaussian(20.0)), budget)
    assert ledger.epsilon(DELTA) == budget.epsilon
    with pytest.raises(BudgetExhausted):
        ledger.charge(charge_of(6, event=poisson_gaussian(0.05, 2.0, 1)), budget)
    ledger.charge(charge_of(7, kind="catalogue", event=NOTHING), budget)  # public data is always free


def test_room_is_checked_without_writing(ledger: Ledger) -> None:
    """A whole run is refused, or not, and nothing is charged for the question."""
    ledger.charge(charge_of(), TWO)
    ledger.require_room([EVENT], TWO, what="one more round")
    with pytest.raises(BudgetExhausted, match="two more rounds would bring it to"):
        ledger.require_room([EVENT, EVENT], TWO, what="two more rounds")
    assert len(content(ledger)) == 1


# One question, one answer.


def test_the_same_request_is_charged_once(ledger: Ledger) -> None:
    """Asked again after a crash, even with no room left: the entry that was paid for, no second one."""
    first = ledger.charge(charge_of(), TWO)
    ledger.charge(charge_of(1), TWO)
    again = Ledger(ledger.path)
    assert again.charge(charge_of(), TWO) == first
    assert again.charge(charge_of(), PrivacyBudget(1e-3, DELTA)) == first
    again.close()
    assert len(content(ledger)) == 2


@pytest.mark.parametrize("released", [False, True])
def test_another_request_for_the_same_round_is_refused(ledger: Ledger, released: bool) -> None:
    """A replay with other content, before and after the release: both digests in the message, nothing written."""
    entry = ledger.charge(charge_of(), WIDE)
    if released:
        ledger.keep_release(entry, b"payload")
    before = content(ledger)
    replay = dataclasses.replace(charge_of(), request=b"something else")
    with pytest.raises(Refused, match=rf"{b'run/0'.hex()[:12]}.*{replay.request.hex()[:12]}.*start a new run"):
        ledger.charge(replay, WIDE)
    assert content(ledger) == before


@pytest.mark.parametrize(
    "change", [{"event": gaussian(1.0)}, {"event": gaussian(8.0)}, {"event": NOTHING}, {"private": False}]
)
def test_a_request_is_not_worked_on_again_under_another_cost(ledger: Ledger, change: dict[str, object]) -> None:
    """The policy, or the seed, changed after a crash: what would now leave is not what was paid for."""
    entry = ledger.charge(charge_of(), WIDE)
    changed = dataclasses.replace(charge_of(), **change)  # type: ignore[arg-type]
    with pytest.raises(Refused, match="Go back to the policy and seed it was charged under, or start a new run"):
        ledger.charge(changed, WIDE)
    assert content(ledger) == [entry]
    # What was released already may be asked for again: it is sent as it was, which costs nothing.
    ledger.keep_release(entry, b"payload")
    again = ledger.charge(changed, WIDE)
    assert again.charge == entry.charge
    assert ledger.kept_release(again) == b"payload"


def test_rounds_runs_and_kinds_are_separate_questions(ledger: Ledger) -> None:
    """Each has an entry of its own, and is known to be charged only then."""
    for charge in (charge_of(0), charge_of(1), charge_of(0, run="other"), charge_of(0, kind="metric")):
        assert not ledger.is_charged(charge.run, charge.round, charge.kind)
        ledger.charge(charge, WIDE)
        assert ledger.is_charged(charge.run, charge.round, charge.kind)
    assert len(content(ledger)) == 4


# Releases that are kept.


def test_a_release_is_kept_and_survives_the_process(ledger: Ledger) -> None:
    """Nothing before, the very bytes after, and the entry says so to every reader."""
    entry = ledger.charge(charge_of(), WIDE)
    assert ledger.kept_release(entry) is None
    payload = bytes(range(256))
    assert ledger.keep_release(entry, payload) == payload
    other = Ledger(ledger.path)
    assert other.kept_release(entry) == payload
    assert [known.released for known in other.entries()] == [True]
    other.close()


def test_of_two_releases_the_first_one_wins(ledger: Ledger) -> None:
    """A slower process gets what the faster one kept, so only one noise ever leaves."""
    entry = ledger.charge(charge_of(), WIDE)
    other = Ledger(ledger.path)
    assert ledger.keep_release(entry, b"first") == b"first"
    assert other.keep_release(entry, b"second") == b"first"
    assert other.kept_release(entry) == b"first"
    other.close()


def test_earlier_rounds_are_forgotten_and_not_answered_again(ledger: Ledger) -> None:
    """A later release of the same run and kind makes room; the entries stay, marked as released."""
    first, metric, other, second = (
        ledger.charge(charge, WIDE)
        for charge in (charge_of(0), charge_of(0, kind="metric"), charge_of(0, run="other"), charge_of(1))
    )
    for entry in (first, metric, other, second):
        ledger.keep_release(entry, f"payload {entry.seq}".encode())
    with pytest.raises(Refused, match="round 0 of run 'run' was answered and a later one followed"):
        ledger.kept_release(first)
    for entry in (metric, other, second):
        assert ledger.kept_release(entry) == f"payload {entry.seq}".encode()
    with pytest.raises(Refused):
        ledger.keep_release(first, b"another noise for the same charge")
    assert all(entry.released for entry in content(ledger))


def test_a_release_without_an_entry_is_not_kept(ledger: Ledger) -> None:
    """Nobody can store an answer for a line that was never written."""
    entry = ledger.charge(charge_of(), WIDE)
    with pytest.raises(sqlite3.IntegrityError):
        ledger.keep_release(dataclasses.replace(entry, seq=7), b"payload")
    later = ledger.charge(charge_of(1), WIDE)
    assert ledger.kept_release(later) is None


# Sums.


def test_epsilon_is_derived_from_the_entries(ledger: Ledger) -> None:
    """The accountant's own composition of what was charged: all, up to a line, or without a run."""
    events = [gaussian(6.0), poisson_gaussian(0.1, 2.0, 20), gaussian(9.0)]
    for number, (run, event) in enumerate(zip(("first", "second", "first"), events, strict=True)):
        ledger.charge(charge_of(number, run=run, event=event), WIDE)
    accountant = PLDAccountant(value_discretization_interval=1e-4)
    for event in events:
        accountant.compose(event)
    assert ledger.epsilon(DELTA) == pytest.approx(float(accountant.get_epsilon(DELTA)), abs=1e-4)
    assert ledger.epsilon(DELTA) == epsilon(events, DELTA)
    assert ledger.epsilon(DELTA, upto=0) == 0.0
    assert ledger.epsilon(DELTA, upto=2) == epsilon(events[:2], DELTA)
    assert ledger.epsilon(DELTA, without_run="first") == epsilon(events[1:2], DELTA)
    assert ledger.epsilon(DELTA, upto=1, without_run="first") == 0.0
    assert ledger.epsilon(DELTA, without_run="unknown") == ledger.epsilon(DELTA)


def test_what_was_charged_counts_released_or_not(ledger: Ledger) -> None:
    """A crash over-counts: an entry without a release costs as much as one with."""
    entry = ledger.charge(charge_of(), WIDE)
    before = ledger.epsilon(DELTA)
    ledger.keep_release(entry, b"payload")
    assert ledger.epsilon(DELTA) == before == epsilon([EVENT], DELTA) > 0
