"""The books: what an entry says, what a budget refuses, one answer to one question, and what it all adds up to."""

import dataclasses
from pathlib import Path

import pytest
from dp_accounting.pld import PLDAccountant
from tests.privacy.conftest import DELTA, EVENT, TWO, WIDE, change, charge_of, content

import isthmus
from isthmus.errors import BudgetExhausted, Refused, RunError
from isthmus.privacy.accounting import NOTHING, encode_event, epsilon, gaussian, poisson_gaussian
from isthmus.privacy.budget import PrivacyBudget
from isthmus.privacy.entries import Charge, LedgerEntry, Limits
from isthmus.privacy.ledger import Ledger
from isthmus.privacy.lines import Charged
from isthmus.privacy.reading import read_ledger
from isthmus.privacy.refusals import LONGEST_REFUSAL


def asked(item: Charge | LedgerEntry) -> tuple[object, ...]:
    """What a charge asks for, or an entry says that it asked for; its data apart."""
    event = encode_event(item.event)
    return item.run, item.round, item.kind, item.request, event, item.private, item.coordinator


# What an entry says.


def test_an_entry_says_what_was_charged(ledger: Ledger) -> None:
    """Every field comes back, for each kind of event, and the entry that was returned is the one on disk."""
    charges = [
        charge_of(0, event=poisson_gaussian(0.05, 1.9, 8)),
        dataclasses.replace(charge_of(0, kind="metric", event=gaussian(20.0)), private=False, dataset=b"\x00\xff"),
        dataclasses.replace(charge_of(0, kind="catalogue", event=NOTHING), coordinator="ab" * 32),
    ]
    returned = [ledger.charge(charge, WIDE) for charge in charges]
    assert [asked(entry) for entry in returned] == [asked(charge) for charge in charges]
    assert content(ledger) == returned
    assert [entry.seq for entry in returned] == [2, 3, 4]  # line 1 opened the ledger
    assert {entry.version for entry in returned} == {isthmus.__version__}
    assert all(entry.time.endswith("+00:00") for entry in returned)
    assert not any(entry.released or entry.withheld for entry in returned)


def test_an_entry_says_which_data_without_saying_anything_about_it(ledger: Ledger, tmp_path: Path) -> None:
    """The same data is the same hash within a ledger, and another one in another ledger: it is keyed."""
    entries = [
        ledger.charge(dataclasses.replace(charge_of(number), dataset=data), WIDE)
        for number, data in enumerate((b"data", b"data", b"other"))
    ]
    elsewhere = Ledger(tmp_path / "elsewhere" / "ledger.db")
    there = elsewhere.charge(charge_of(), WIDE)
    elsewhere.close()
    assert entries[0].dataset == entries[1].dataset
    assert len({entries[0].dataset, entries[2].dataset, there.dataset, b"data"}) == 4
    assert b"data".hex() not in ledger.chain.last().body


def test_entries_come_oldest_first(ledger: Ledger) -> None:
    """In the order in which they were charged, whatever their rounds."""
    for number in (5, 1, 3):
        ledger.charge(charge_of(number), WIDE)
    assert [entry.round for entry in ledger.entries()] == [5, 1, 3]


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
        f"epsilon {spent:.3f} of {spent:g} is spent over all runs",
        "delta 1e-05",
        "the update of round 2",
        f"to {more:.3f}",
    ):
        assert part in str(refusal.value)
    assert "Raise the limit (`epsilon` in domain.toml, or the policy's), or do without" in str(refusal.value)
    assert (refusal.value.rule, refusal.value.asked) == ("budget", f"epsilon {more:.4f}")
    assert refusal.value.limit == f"epsilon {spent:g} at delta 1e-05"
    assert content(ledger) == before
    assert not ledger.is_charged("run", 2, "update")


def test_all_runs_share_one_budget(ledger: Ledger) -> None:
    """Another run, and data of another fingerprint, start from what is already spent."""
    ledger.charge(charge_of(0, run="first"), TWO)
    ledger.charge(dataclasses.replace(charge_of(0, run="second"), dataset=b"grown"), TWO)
    with pytest.raises(BudgetExhausted):
        ledger.charge(charge_of(0, run="third"), TWO)


def test_a_run_has_a_limit_of_its_own(ledger: Ledger) -> None:
    """A run that is through leaves the others what they had, and the lifetime limit still holds for all."""
    limits = Limits(
        lifetime=PrivacyBudget(epsilon([EVENT] * 3, DELTA), DELTA), run=PrivacyBudget(TWO.lifetime.epsilon, DELTA)
    )
    for number in range(2):
        ledger.charge(charge_of(number, run="first"), limits)
    with pytest.raises(BudgetExhausted, match="is spent in run 'first'") as refusal:
        ledger.charge(charge_of(2, run="first"), limits)
    assert refusal.value.rule == "run-budget"
    ledger.charge(charge_of(0, run="second"), limits)
    with pytest.raises(BudgetExhausted, match="is spent over all runs") as refusal:
        ledger.charge(charge_of(1, run="second"), limits)
    assert refusal.value.rule == "budget"


def test_a_budget_can_be_spent_to_the_last_bit(tmp_path: Path) -> None:
    """A planned horizon fits its own epsilon exactly, charged in pieces; one step more does not."""
    whole = epsilon([poisson_gaussian(0.05, 2.0, 60), gaussian(20.0, 2)], DELTA)
    budget = Limits(lifetime=PrivacyBudget(whole, DELTA))
    ledger = Ledger(tmp_path / "ledger.db")
    for number in range(6):
        ledger.charge(charge_of(number, event=poisson_gaussian(0.05, 2.0, 10)), budget)
        if number % 3 == 2:
            ledger.charge(charge_of(number, kind="metric", event=gaussian(20.0)), budget)
    assert ledger.epsilon(DELTA) == whole
    with pytest.raises(BudgetExhausted):
        ledger.charge(charge_of(6, event=poisson_gaussian(0.05, 2.0, 1)), budget)
    ledger.charge(charge_of(7, kind="catalogue", event=NOTHING), budget)  # public data is always free
    ledger.close()


def test_room_is_checked_without_writing(ledger: Ledger) -> None:
    """A whole run is refused, or not, and nothing is charged for the question."""
    ledger.charge(charge_of(), TWO)
    ledger.require_room([EVENT], TWO, run="run", what="one more round")
    with pytest.raises(BudgetExhausted, match="two more rounds would bring it to"):
        ledger.require_room([EVENT, EVENT], TWO, run="run", what="two more rounds")
    assert len(content(ledger)) == 1


# One question, one answer.


def test_the_same_request_is_charged_once(ledger: Ledger) -> None:
    """Asked again after a crash, even with no room left: the entry that was paid for, no second one."""
    first = ledger.charge(charge_of(), TWO)
    ledger.charge(charge_of(1), TWO)
    again = Ledger(ledger.path)
    assert again.charge(charge_of(), TWO) == first
    assert again.charge(charge_of(), Limits(lifetime=PrivacyBudget(1e-3, DELTA))) == first
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
    assert again == dataclasses.replace(entry, released=True)
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
    for seq, problem in ((7, "line 7 is missing"), (1, "line 1 charges nothing, so no release belongs to it")):
        with pytest.raises(RunError, match=problem):
            ledger.keep_release(dataclasses.replace(entry, seq=seq), b"payload")
    later = ledger.charge(charge_of(1), WIDE)
    assert ledger.kept_release(later) is None
    assert not any(known.released for known in content(ledger))


def test_what_was_withheld_never_leaves(ledger: Ledger) -> None:
    """Its reason is in the entry, in one line; asked again it is refused, and nothing can be kept for it any more."""
    entry, other = ledger.charge(charge_of(), WIDE), ledger.charge(charge_of(1), WIDE)
    ledger.withhold(entry, "not finite\n\x1b[31mforged line")
    ledger.withhold(entry, "said twice")
    for ask in (lambda: ledger.kept_release(entry), lambda: ledger.keep_release(entry, b"payload")):
        with pytest.raises(Refused, match="was computed and did not leave"):
            ask()
    assert content(ledger) == [dataclasses.replace(entry, withheld="not finite  [31mforged line"), other]
    ledger.keep_release(other, b"payload")
    ledger.withhold(other, "too late: it may have left")
    assert ledger.kept_release(other) == b"payload"
    assert [(known.released, known.withheld != "") for known in content(ledger)] == [(False, True), (True, False)]


def test_a_kept_release_that_was_changed_does_not_leave(ledger: Ledger) -> None:
    """One byte of it on disk, and it is not what was charged."""
    entry = ledger.charge(charge_of(), WIDE)
    ledger.keep_release(entry, b"payload")
    change(ledger.path, "UPDATE releases SET payload = x'7061796c6f6165'")
    with pytest.raises(RunError, match="the kept release of line 2 was changed"):
        ledger.kept_release(entry)


def test_the_ledger_says_what_was_charged_and_not_sent(ledger: Ledger) -> None:
    """Neither released nor withheld: a process died in between."""
    sent, held, lost = (ledger.charge(charge_of(number), WIDE) for number in range(3))
    ledger.keep_release(sent, b"payload")
    ledger.withhold(held, "not finite")
    assert ledger.unsent() == [lost]


# Refusals and policies.


def test_a_refusal_is_written_once(ledger: Ledger) -> None:
    """The same rule about the same question: one line with rule, value asked and limit; another rule: another line."""
    refusal = Refused("no", rule="clip", asked="clip 2", limit="at most 1")
    for _ in range(3):
        ledger.refuse(refusal, run="run", round_=1, kind="update")
    ledger.refuse(Refused("too late", rule="replay"), run="run", round_=1, kind="update")
    ledger.refuse(refusal, run="run", round_=2, kind="update", coordinator="cd" * 32)
    books = read_ledger(ledger.path)
    assert books.findings == ()
    assert [(line.round, line.rule, line.asked, line.limit, line.coordinator) for line in books.refusals] == [
        (1, "clip", "clip 2", "at most 1", ""),
        (1, "replay", "too late", "", ""),
        (2, "clip", "clip 2", "at most 1", "cd" * 32),
    ]
    assert ledger.epsilon(DELTA) == 0.0


def test_a_hostile_text_in_a_refusal_is_written_as_one_line(ledger: Ledger) -> None:
    """What a coordinator calls its run cannot forge a line, and the refusal is recorded all the same."""
    hostile = "run\n2026 charged nothing\u202e\x1b[2J" + "x" * 5000
    refusal = Refused(hostile, rule=hostile, limit=hostile)
    for _ in range(2):
        ledger.refuse(refusal, run=hostile, round_=1, kind=hostile)
    (line,) = read_ledger(ledger.path).refusals
    for text in (line.run, line.kind, line.rule, line.asked, line.limit):
        assert text.isprintable()
        assert text.startswith("run 2026 charged nothing")
        assert len(text) == LONGEST_REFUSAL


def test_names_of_parameters_are_written_once(ledger: Ledger) -> None:
    """Before the first charge for them, whatever their order; again only for another set; none where there are none."""
    for number, names in enumerate((("a", "b"), ("b", "a"), (), ("a",), ("a", "b"))):
        ledger.charge(dataclasses.replace(charge_of(number), layers=names, clip=0.5), WIDE)
    books = read_ledger(ledger.path)
    assert books.findings == ()
    charged = [line for line in books.lines if isinstance(line, Charged)]
    assert [books.layers.get(line.layers) for line in charged] == [("a", "b"), ("a", "b"), None, ("a",), ("a", "b")]
    assert [line.type for line in books.lines].count("layers") == 2
    assert {line.clip for line in charged} == {0.5}


def test_names_that_no_line_can_hold_charge_nothing(ledger: Ledger) -> None:
    """Refused by rule, and nothing of it is written, its names neither."""
    for names in (("a\nb",), ("x" * 5000,)):
        with pytest.raises(Refused, match="cannot be written into a ledger"):
            ledger.charge(dataclasses.replace(charge_of(), layers=names), WIDE)
    assert ledger.chain.last().seq == 1


def test_work_goes_on_under_the_clip_that_was_charged_only(ledger: Ledger) -> None:
    """Nothing was released yet, and the clip is another one now: what the ledger says of it would be wrong."""
    charge = dataclasses.replace(charge_of(), clip=0.5)
    entry = ledger.charge(charge, WIDE)
    with pytest.raises(Refused, match=r"clip: 0\.5\) and would now be .*clip: 2\.0") as refusal:
        ledger.charge(dataclasses.replace(charge, clip=2.0), WIDE)
    assert refusal.value.rule == "cost"
    ledger.keep_release(entry, b"payload")
    assert ledger.charge(dataclasses.replace(charge, clip=2.0), WIDE).clip == 0.5


def test_a_policy_is_written_when_it_changes(ledger: Ledger) -> None:
    """Not again while it stays, and again when it comes back; each charge names the one in force."""
    for number, policy in enumerate(('{"a":1}', '{"a":1}', '{"a":2}', '{"a":1}')):
        ledger.follow(policy)
        ledger.charge(charge_of(number), WIDE)
    books = read_ledger(ledger.path)
    assert books.findings == ()
    assert [line.text for line in books.policies] == ['{"a":1}', '{"a":2}', '{"a":1}']
    digests = [line.digest for line in books.policies]
    charged = [line.policy for line in books.lines if isinstance(line, Charged)]
    assert charged == [digests[0], digests[0], digests[1], digests[2]]


def test_a_charge_names_the_policy_of_the_process_that_wrote_it(ledger: Ledger) -> None:
    """Two processes under two policies: neither charge is booked under the other's."""
    other = Ledger(ledger.path)
    ledger.follow('{"strict":1}')
    other.follow('{"loose":1}')
    ledger.charge(charge_of(0), WIDE)
    other.charge(charge_of(1), WIDE)
    other.close()
    books = read_ledger(ledger.path)
    named = {line.digest: line.text for line in books.policies}
    charged = [named[line.policy] for line in books.lines if isinstance(line, Charged)]
    assert charged == ['{"strict":1}', '{"loose":1}']


@pytest.mark.parametrize(
    "hostile", ["a\nb", "a\rb", "a\x1b[31mb", "a\u202eb", "a\u2028b", "a\x00b", "a\x85b", "\ud800"]
)
@pytest.mark.parametrize("field", ["run", "kind"])
def test_a_text_that_could_forge_a_line_is_not_charged(ledger: Ledger, field: str, hostile: str) -> None:
    """Line breaks, control and direction characters: refused by rule, in one visible line, nothing written."""
    charge = dataclasses.replace(charge_of(), **{field: hostile})  # type: ignore[arg-type]
    with pytest.raises(Refused, match="cannot be written into a ledger") as refusal:
        ledger.charge(charge, WIDE)
    assert refusal.value.rule == "text"
    assert str(refusal.value).isprintable()
    assert content(ledger) == []


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
    assert ledger.epsilon(DELTA, upto=1) == 0.0
    assert ledger.epsilon(DELTA, upto=3) == epsilon(events[:2], DELTA)
    assert ledger.epsilon(DELTA, without_run="first") == epsilon(events[1:2], DELTA)
    assert ledger.epsilon(DELTA, upto=2, without_run="first") == 0.0
    assert ledger.epsilon(DELTA, without_run="unknown") == ledger.epsilon(DELTA)


def test_what_was_charged_counts_released_or_not(ledger: Ledger) -> None:
    """A crash over-counts: an entry without a release costs as much as one with."""
    entry = ledger.charge(charge_of(), WIDE)
    before = ledger.epsilon(DELTA)
    ledger.keep_release(entry, b"payload")
    assert ledger.epsilon(DELTA) == before == epsilon([EVENT], DELTA) > 0
