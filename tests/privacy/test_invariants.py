"""The invariants of the books, whatever happens in whatever order: a state machine over the real objects.

Two processes share one ledger (file, keys, gate, policy), a coordinator keeps heads and returns receipts. Requests
come in any order and again, mechanisms fail, processes die, race and restart, keys and policies change, files go back.
Beside it an outsider's plain lists (`tests.privacy.shadow`), compared with the file after every step.

Each mutant is one mistake in the ledger, the gate or the log of heads: the same machine, within the same settings, must
find it, by the invariant that it breaks.
"""

import contextlib
import dataclasses
import datetime as dt
import itertools
import math
import os
import shutil
import signal
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pytest
from dp_accounting import DpEvent
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from tests.privacy.conftest import DELTA, EVENT, FORK, SECRET, change, charge_of
from tests.privacy.shadow import TOLERANCE, BrokenError, Shadow, digest_of, hold, payload_of, question_of

from isthmus.errors import BudgetExhausted, IsthmusError, Refused, RunError
from isthmus.privacy import ledger
from isthmus.privacy.accounting import NOTHING, Spending, epsilon, gaussian, poisson_gaussian
from isthmus.privacy.custody import key_path, revoke_key, rotate_key
from isthmus.privacy.entries import Charge, LedgerEntry, Limits
from isthmus.privacy.gate import _GATE_ONLY, Gate, Payload, Release, _pack
from isthmus.privacy.heads import Receipt, read_head, read_receipt
from isthmus.privacy.keys import Secret
from isthmus.privacy.ledger import Ledger
from isthmus.privacy.lines import Opened, Released, Rotated
from isthmus.privacy.policy import Lifetime, Policy
from isthmus.privacy.reading import read_ledger
from isthmus.records import RoundReply
from isthmus.server.heads import HeadLog

# Real processes are what is tested; newer Pythons warn of a fork beside the threads of a numerical library.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

ANSWER = struct.Struct("<d")


def policy_of(lifetime: float, run: float | None = None) -> Policy:
    """A business unit's limits."""
    budget = Lifetime(epsilon=lifetime, delta=DELTA, run_epsilon=run)
    return Policy(approved_by="A. Officer", approved_on=dt.date(2026, 1, 31), budget=budget)


ONE, TWO, FOUR = (epsilon([EVENT] * count, DELTA) for count in (1, 2, 4))
POLICIES = {"low": policy_of(TWO), "per run": policy_of(FOUR, ONE), "high": policy_of(50.0)}
PLANS = {"low": EVENT, "per run": EVENT, "high": poisson_gaussian(0.1, 2.0, 20)}
"""What an update costs under each policy."""

AT, OTHER = st.sampled_from((0, 1)), (1, 0)
QUESTIONS = st.tuples(
    st.sampled_from(("run", "another")),
    st.integers(0, 2),
    st.sampled_from(("update", "update", "metric", "catalogue")),
)
CONTENTS = st.sampled_from((b"request", b"request", b'{"epsilon":0,"kind":"none"}'))
FATES = st.sampled_from(("fine", "fine", "fine", "nan", "infinite", "fails", "dies", "dies unsent"))


TAMPERED = {"truncated", "rewritten", "foreign-head", "retired-head"}
"""Findings of which a coordinator's heads that do not fit give one at least."""


class MechanismError(Exception):
    """A mechanism went wrong."""


class Killed(BaseException):
    """What ends a process; no code of ours may stop it."""


@dataclass
class Desk:
    """What one process holds open, and the policy that it follows."""

    ledger: Ledger
    gate: Gate
    policy: str = "high"
    private: bool = True


@dataclass
class Mechanism:
    """Computes an answer that no second computation gives; looks at the books while it does.

    Attributes:
        meanwhile: What another process does before this one is through.
        called: How often it was let to compute.
        number: What it computed.
    """

    machine: "Domain"
    desk: Desk
    charge: Charge
    fate: str
    meanwhile: Callable[[], None] | None = None
    called: int = 0
    number: float = math.nan

    def __call__(self) -> Payload:
        """Only paid for, never for what was answered or withheld."""
        shadow, question = self.machine.shadow, question_of(self.charge)
        self.called += 1
        shadow.accept(self.charge, POLICIES[self.desk.policy].limits, POLICIES[self.desk.policy].text())
        charged = {(entry.run, entry.round, entry.kind) for entry in shadow.read().entries}
        hold(question in charged, "paid first", f"{question} is computed, on disk is {charged}")
        self.number = next(self.machine.numbers)
        if self.meanwhile is not None:
            self.meanwhile()
        if self.fate == "fails":
            raise MechanismError
        if self.fate == "dies":
            raise Killed
        if self.fate == "infinite":
            return Payload(arrays={"update": np.array([1.0, 1e300])})
        return payload_of(math.nan if self.fate == "nan" else self.number)


@dataclass
class Dies:
    """A statement of SQL after which a process is killed -9, before it is run."""

    left: int

    def __call__(self, statement: str) -> None:
        """Count."""
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Order:
    """What a process of its own is to answer, with which number, under which policy."""

    charge: Charge
    policy: str
    number: float


class Domain(RuleBasedStateMachine):
    """One domain's vault seen from its books, and its coordinator."""

    ledger_kind: type[Ledger] = Ledger
    gate_kind: type[Gate] = Gate
    log_kind: type[HeadLog] = HeadLog

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="invariants-"))
        self.path = self.folder / "books" / "ledger.db"
        self.numbers = map(float, itertools.count(1))
        first = self.ledger_kind(self.path, secret=SECRET)
        self.shadow = Shadow(self.path, trusted=first.chain.keys.public)
        self.in_force = first.chain.keys.public
        self.desks = [self.seated(first), self.seated(self.ledger_kind(self.path, secret=SECRET))]
        self.log = self.log_kind(self.folder / "heads.db", SECRET)
        self.receipts: list[Receipt] = []
        self.copies: list[Path] = []

    def teardown(self) -> None:
        """Leave nothing behind."""
        for opened in (*(desk.ledger for desk in self.desks), self.log):
            opened.close()
        shutil.rmtree(self.folder)

    def seated(self, ledger: Ledger, policy: str = "high") -> Desk:
        """A process with its ledger open."""
        return Desk(ledger, self.gate_kind(ledger=ledger, limits=POLICIES[policy].limits), policy)

    def reopen(self, *places: int) -> None:
        """Start the processes again whose objects were dropped; each under the policy it had."""
        for at in places:
            before = self.desks[at]
            self.desks[at] = self.seated(self.ledger_kind(self.path, secret=SECRET), before.policy)
            self.desks[at].private = before.private

    def stop(self, *places: int) -> None:
        """Drop what processes have open."""
        for at in places:
            self.desks[at].ledger.close()

    def stale(self, desk: Desk) -> bool:
        """Whether another process has rotated the key."""
        return desk.ledger.chain.keys.public != self.in_force

    def charge_at(self, at: int, question: tuple[str, int, str], content: bytes = b"request") -> Charge:
        """What a process would charge for a question: its own plan and seed, whatever the request says."""
        run, number, kind = question
        event = {"update": PLANS[self.desks[at].policy], "metric": gaussian(8.0), "catalogue": NOTHING}[kind]
        charge = charge_of(number, run=run, kind=kind, event=event)
        return dataclasses.replace(charge, request=content, private=self.desks[at].private)

    # Requests.

    def ask(self, at: int, charge: Charge, fate: str = "fine", meanwhile: Callable[[], None] | None = None) -> None:
        """Answer one request as a vault does, and compare what happens with what may."""
        desk = self.desks[at]
        mechanism = Mechanism(self, desk, charge, fate, meanwhile)
        try:
            desk.ledger.follow(POLICIES[desk.policy].text())
            release = desk.gate.release(charge, mechanism)
        except Killed:
            self.stop(at)
            self.reopen(at)
        except MechanismError:
            pass
        except Refused as refusal:
            self.judge(desk, mechanism, refusal)
            with contextlib.suppress(RunError) if self.stale(desk) else contextlib.nullcontext():
                desk.ledger.refuse(refusal, run=charge.run, round_=charge.round, kind=charge.kind)
        except RunError as error:
            hold(self.stale(desk), "answers", f"{charge}: {error}")
        else:
            number = release.payload.values.get("number", math.inf)
            if fate == "dies unsent":
                self.shadow.accept(charge, POLICIES[desk.policy].limits, POLICIES[desk.policy].text())
                self.shadow.keep(charge, number)
                self.stop(at)
                self.reopen(at)
            else:
                self.shadow.leave(charge, number)

    def judge(self, desk: Desk, mechanism: Mechanism, refusal: Refused) -> None:
        """A refusal has a reason that an outsider can see, and nothing was computed for one of the budget."""
        charge, shadow = mechanism.charge, self.shadow
        paid, question = shadow.payment(charge), question_of(charge)
        if isinstance(refusal, BudgetExhausted):
            hold(not mechanism.called and paid is None, "fails closed", f"{charge}: {refusal}")
            hold(shadow.overspends(charge, POLICIES[desk.policy].limits, by=-TOLERANCE), "answers", str(refusal))
            return
        if mechanism.called and mechanism.fate in ("nan", "infinite") and question not in shadow.answers:
            shadow.withheld.add(question)
        if question in shadow.withheld | shadow.forgotten:
            return
        hold(paid is not None, "answers", f"{charge}: {refusal}")
        assert paid is not None
        cost = (paid.event, paid.private) != (charge.event, charge.private) and question not in shadow.answers
        hold(paid.request != charge.request or cost, "answers", f"{charge}: {refusal}")

    @rule(at=AT, question=QUESTIONS, content=CONTENTS, fate=FATES)
    def a_request_comes(self, at: int, question: tuple[str, int, str], content: bytes, fate: str) -> None:
        """Any, in any order, again or not."""
        self.ask(at, self.charge_at(at, question, content), fate)

    @precondition(lambda self: self.shadow.paid)
    @rule(at=AT, number=st.integers(0, 99), fate=FATES)
    def a_request_comes_again(self, at: int, number: int, fate: str) -> None:
        """The very same, to any process, at what it would cost there now."""
        known = self.shadow.paid[number % len(self.shadow.paid)].charge
        self.ask(at, self.charge_at(at, question_of(known), known.request), fate)

    @rule(at=AT, question=QUESTIONS, what=st.sampled_from(("the same", "not finite", "a later round", "a new key")))
    def something_happens_while_a_process_computes(self, at: int, question: tuple[str, int, str], what: str) -> None:
        """Two processes at once, one between the other's charge and its release."""
        other, (run, number, kind) = OTHER[at], question
        meanwhile: dict[str, Callable[[], None]] = {
            "the same": lambda: self.ask(other, self.charge_at(other, question)),
            "not finite": lambda: self.ask(other, self.charge_at(other, question), "nan"),
            "a later round": lambda: self.ask(other, self.charge_at(other, (run, number + 1, kind))),
            "a new key": lambda: self.rotate(other),
        }
        self.ask(at, self.charge_at(at, question), meanwhile=meanwhile[what])

    # Policies, keys, restarts.

    @rule(at=AT, policy=st.sampled_from(sorted(POLICIES)), private=st.booleans())
    def a_policy_changes(self, at: int, policy: str, private: bool) -> None:
        """To higher or lower limits, another plan, another seed."""
        self.desks[at] = self.seated(self.desks[at].ledger, policy)
        self.desks[at].private = private

    @rule(at=AT)
    def a_process_restarts(self, at: int) -> None:
        """It closes its files and opens them again."""
        self.stop(at)
        self.reopen(at)

    def rotate(self, at: int, *, doubted: int | None = None) -> None:
        """Another key, by a process that has the one in force; the others must start again."""
        desk = self.desks[at]
        try:
            if doubted is None:
                rotate_key(desk.ledger.chain, SECRET, reason="yearly")
            else:
                revoke_key(desk.ledger.chain, SECRET, since=doubted, reason="lost")
                self.shadow.doubted = True
        except RunError as error:
            hold(self.stale(desk) or doubted is not None, "answers", str(error))
        self.in_force = self.in_force if self.stale_file(desk) else desk.ledger.chain.keys.public

    def stale_file(self, desk: Desk) -> bool:
        """Whether a process's key is not the one that the chain names."""
        return desk.ledger.chain.key_in_force() != desk.ledger.chain.keys.public

    @rule(at=AT)
    def a_key_is_rotated(self, at: int) -> None:
        """As once a year."""
        self.rotate(at)

    @rule(at=AT, back=st.integers(0, 3))
    def a_key_is_revoked(self, at: int, back: int) -> None:
        """As from one of the last lines on; refused where an older key signed that one."""
        self.rotate(at, doubted=self.desks[at].ledger.chain.last().seq + 1 - back)

    # Heads and receipts.

    def reply(self, ledger: Ledger) -> RoundReply:
        """What goes to the coordinator."""
        return RoundReply(domain="books", run="run", round=1, head=ledger.head().text())

    @rule(at=AT, returned=st.booleans())
    def a_head_is_sent(self, at: int, returned: bool) -> None:
        """Noted by the coordinator; its receipt comes back with the next request, or is lost."""
        if self.stale(self.desks[at]):
            return
        reply = self.reply(self.desks[at].ledger)
        self.receipts.append(read_receipt(self.log.note(reply, domain="books")))
        self.shadow.heads.append(read_head(reply.head))
        if returned:
            self.desks[at].ledger.keep_receipt(self.receipts[-1])

    @rule()
    def the_coordinator_restarts(self) -> None:
        """It remembers."""
        self.log.close()
        self.log = self.log_kind(self.folder / "heads.db", SECRET)

    # Copies.

    @rule(at=AT)
    def a_backup_is_made(self, at: int) -> None:
        """Of the file and its keys."""
        target = self.folder / f"copy{len(self.copies)}" / "ledger.db"
        self.desks[at].ledger.backup(target)
        shutil.copy(key_path(self.path), key_path(target))
        self.copies.append(target)

    @contextlib.contextmanager
    def in_place_of_the_books(self, copy: Path) -> Iterator[None]:
        """Another file and its keys lie where the newest should; afterwards the newest are back."""
        aside = self.folder / "newest"
        self.path.parent.rename(aside)
        shutil.copytree(copy.parent, self.path.parent)
        try:
            yield
        finally:
            shutil.rmtree(self.path.parent)
            aside.rename(self.path.parent)

    @precondition(lambda self: self.copies)
    @rule(number=st.integers(0, 99), more=st.integers(0, 3))
    def an_older_copy_is_restored(self, number: int, more: int) -> None:
        """And goes on: whoever noted a later head finds it, then and ever after."""
        copy = self.copies[number % len(self.copies)]
        self.stop(0, 1)
        with self.in_place_of_the_books(copy):
            end = read_ledger(self.path).links[-1].seq
            if any(head.seq > end for head in self.shadow.heads):
                older = self.ledger_kind(self.path, secret=SECRET)
                for round_ in range(more + 1):
                    self.assert_found(older)
                    with contextlib.suppress(Refused):
                        older.charge(charge_of(9 + round_, kind="catalogue", event=NOTHING), POLICIES["high"].limits)
                older.close()
        self.reopen(0, 1)

    def assert_found(self, ledger: Ledger) -> None:
        """By an auditor with the coordinator's heads, by the coordinator, and by the ledger that gets its receipt."""
        newest = self.shadow.heads[-1]
        found = {finding.rule for finding in self.shadow.read().findings}
        hold(bool(found & TAMPERED), "older copy", f"an auditor finds {found}")
        head = ledger.head()
        if head.seq <= newest.seq:  # later on, only the lines themselves tell
            with pytest_refused("the coordinator notes an older copy"):
                self.log.note(self.reply(ledger), domain="books")
        with pytest_refused("a receipt of lines that are gone is kept"):
            ledger.keep_receipt(self.receipts[-1])

    @rule(lines=st.integers(1, 4))
    def the_tail_is_cut(self, lines: int) -> None:
        """Found by the ledger's own receipts, and by the coordinator's heads; both have just seen where it stands."""
        for desk in self.desks:
            if not self.stale(desk):
                reply = self.reply(desk.ledger)
                self.receipts.append(read_receipt(self.log.note(reply, domain="books")))
                self.shadow.heads.append(read_head(reply.head))
                desk.ledger.keep_receipt(self.receipts[-1])
        self.stop(0, 1)
        with self.in_place_of_the_books(self.path.parent.parent / "newest" / "ledger.db"):
            books = read_ledger(self.path)
            end = books.links[-1].seq - lines
            if end >= 1:
                change(self.path, "DELETE FROM chain WHERE seq > ?", parameters=(end,))
                # A head under a key that the cut end had put in force is told apart from a made-up one by the other
                # side's copy alone; a ledger opens beside it, an auditor sees it.
                had = {line.key for line in books.lines if isinstance(line, Opened | Rotated) and line.seq <= end}
                heads = [read_head(receipt.head) for receipt in books.receipts]
                shown = [head.seq for head in heads if head.key in had]
                if any(head.seq > end for head in self.shadow.heads):
                    found = {finding.rule for finding in self.shadow.read().findings}
                    hold(bool(found & TAMPERED), "older copy", f"an auditor finds {found}")
                if max(shown, default=0) > end:
                    with pytest_refused("a ledger without its tail is opened"):
                        self.ledger_kind(self.path, secret=SECRET).close()
        self.reopen(0, 1)

    @rule(question=QUESTIONS, there=st.booleans())
    def the_file_goes_away_under_a_process(self, question: tuple[str, int, str], there: bool) -> None:
        """Replaced by a copy, or deleted: what that process would write is in no book, so nothing leaves."""
        self.desks[0].ledger.backup(self.folder / "swapped" / "ledger.db")
        shutil.copy(key_path(self.path), self.folder / "swapped" / "ledger.key")
        self.stop(1)
        with self.in_place_of_the_books(self.folder / "swapped" / "ledger.db"):
            if not there:
                self.path.unlink()
            charge = self.charge_at(0, question)
            known = self.shadow.payment(charge) is not None  # what was answered before costs nothing, and may be again
            expected = contextlib.suppress(Refused, RunError) if known else pytest_refused("its ledger is gone")
            with expected:
                self.desks[0].gate.release(charge, lambda: payload_of(math.nan if known else 0.5))
            self.stop(0)
        shutil.rmtree(self.folder / "swapped")
        self.reopen(0, 1)

    # Processes of their own.

    def answered_elsewhere(self, orders: list[Order], *, dies: int | None) -> None:
        """Let each order be answered by a process of its own, all at once; write down what came out and is kept."""
        self.stop(0, 1)
        line = FORK.Barrier(len(orders))
        pipes = [os.pipe() for _ in orders]
        children = [
            FORK.Process(target=answer, args=(type(self), self.path, order, line, sent, dies))
            for order, (_, sent) in zip(orders, pipes, strict=True)
        ]
        for child in children:
            child.start()
        for child, (_, sent) in zip(children, pipes, strict=True):
            os.close(sent)
            child.join()
            assert child.exitcode == (0 if dies is None else -signal.SIGKILL)
        received = []
        for receiving, _ in pipes:
            with os.fdopen(receiving, "rb") as pipe:
                received.append([number for (number,) in ANSWER.iter_unpack(pipe.read())])
        self.adopt(orders)
        for order, numbers in zip(orders, received, strict=True):
            for number in numbers:
                self.shadow.leave(order.charge, number)
        self.reopen(0, 1)

    def adopt(self, orders: list[Order]) -> None:
        """Take from the books which of the orders were accepted and kept; they can only be among these."""
        books = self.shadow.read()
        for entry in books.entries[len(self.shadow.paid) :]:
            question = (entry.run, entry.round, entry.kind)
            fitting = [o for o in orders if (question_of(o.charge), o.charge.event) == (question, entry.event)]
            hold(bool(fitting), "cost", f"nobody asked for {entry}")
            policy = POLICIES[fitting[0].policy]
            self.shadow.accept(fitting[0].charge, policy.limits, policy.text())
        entries = {entry.seq: entry for entry in books.entries}
        for line in books.lines:
            if isinstance(line, Released):
                entry = entries[line.charge]
                for order in orders:
                    if (entry.run, entry.round, entry.kind) == question_of(order.charge) and line.payload == digest_of(
                        order.number
                    ):
                        self.shadow.keep(order.charge, order.number)

    @rule(at=AT, question=QUESTIONS, statements=st.integers(0, 25))
    def a_process_is_killed(self, at: int, question: tuple[str, int, str], statements: int) -> None:
        """Kill -9 before any statement of SQL that an answer takes, or after it was sent."""
        order = Order(self.charge_at(at, question), self.desks[at].policy, next(self.numbers))
        self.answered_elsewhere([order], dies=statements)

    @rule(one=QUESTIONS, other=QUESTIONS)
    def two_processes_race(self, one: tuple[str, int, str], other: tuple[str, int, str]) -> None:
        """For the same question, or for the last of a budget, each under its policy."""
        orders = [
            Order(self.charge_at(at, question), self.desks[at].policy, next(self.numbers))
            for at, question in ((0, one), (1, other))
        ]
        self.answered_elsewhere(orders, dies=None)

    @invariant()
    def the_books_say_what_happened(self) -> None:
        """All of it and nothing else, to a stranger and to every process."""
        self.shadow.check()
        for desk in self.desks:
            self.shadow.check_epsilon(desk.ledger.epsilon(DELTA))


@contextlib.contextmanager
def pytest_refused(otherwise: str) -> Iterator[None]:
    """Something that the product must say no to, in words."""
    try:
        yield
    except (Refused, RunError):
        return
    hold(False, "older copy", otherwise)


def answer(  # noqa: PLR0917 - what a process is given
    kinds: type[Domain], path: Path, order: Order, line: Barrier, sent: int, dies: int | None
) -> None:
    """What a process of its own does: open the ledger, wait for the others, answer, and send the answer."""
    opened = kinds.ledger_kind(path, secret=SECRET)
    policy = POLICIES[order.policy]
    line.wait()
    if dies is not None:
        opened.chain.db.set_trace_callback(Dies(dies))
    with contextlib.suppress(IsthmusError):
        opened.follow(policy.text())
        release = kinds.gate_kind(ledger=opened, limits=policy.limits).release(
            order.charge, lambda: payload_of(order.number)
        )
        os.write(sent, ANSWER.pack(release.payload.values["number"]))
    if dies is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    opened.close()


SETTINGS = settings(
    max_examples=40,
    stateful_step_count=30,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)


def test_the_invariants_hold_whatever_happens() -> None:
    """The real ledger, gate and log of heads."""
    run_state_machine_as_test(Domain, settings=SETTINGS)


# One mistake each.


class ComputesFirst(Gate):
    """Mutant: computes, and pays afterwards."""

    def release(self, charge: Charge, compute: Callable[[], Payload]) -> Release:
        """The other way round."""
        payload = compute()
        return super().release(charge, lambda: payload)


class ComputesAgain(Gate):
    """Mutant: a repeated question gets fresh noise under the charge that was paid."""

    def release(self, charge: Charge, compute: Callable[[], Payload]) -> Release:
        """Never look at what was kept."""
        entry = self.ledger.charge(charge, self.limits)
        payload = compute()
        self.ledger.keep_release(entry, _pack(payload))
        return Release(payload, entry, made_by=_GATE_ONLY)


class LetsAnythingOut(Gate):
    """Mutant: what is not finite leaves."""

    def release(self, charge: Charge, compute: Callable[[], Payload]) -> Release:
        """Do not look at it."""
        entry = self.ledger.charge(charge, self.limits)
        return Release(compute(), entry, made_by=_GATE_ONLY)


class KeepsNothing(Gate):
    """Mutant: the answer leaves, and the books do not say so."""

    def release(self, charge: Charge, compute: Callable[[], Payload]) -> Release:
        """Charge, compute, hand out."""
        entry = self.ledger.charge(charge, self.limits)
        payload = compute()
        _pack(payload)
        return Release(payload, entry, made_by=_GATE_ONLY)


class CountsOneRun(Ledger):
    """Mutant: what other runs spent does not count."""

    def _require_room(self, asked: Sequence[DpEvent], limits: Limits, *, run: str, what: str) -> None:
        """Look at this run alone."""
        self._catch_up()
        everything, self._spent = self._spent, self._spent_by_run.get(run, Spending())
        try:
            super()._require_room(asked, limits, run=run, what=what)
        finally:
            self._spent = everything

    def _catch_up(self) -> None:
        """As it is, but for the sum that is set aside."""
        if self._seen is None or self._seen != self.chain.last():
            super()._catch_up()


class Forgetful(Ledger):
    """Mutant: a process that starts again begins at nothing."""

    def _catch_up(self) -> None:
        """Everything before the first look is history."""
        self._seen = self._seen or self.chain.last()
        super()._catch_up()


class TakesAnyCost(Ledger):
    """Mutant: an open charge may be worked on under another plan or seed."""

    def charge(self, charge: Charge, limits: Limits) -> LedgerEntry:
        """Whatever was paid will do."""
        with self.chain.transaction():
            known = self._find(charge.run, charge.round, charge.kind)
        if known is not None and known.request == charge.request:
            return known
        return super().charge(charge, limits)


class AnswersAnything(Ledger):
    """Mutant: a round that was asked otherwise before is worked on all the same."""

    def charge(self, charge: Charge, limits: Limits) -> LedgerEntry:
        """Under the charge of the first question."""
        with self.chain.transaction():
            known = self._find(charge.run, charge.round, charge.kind)
        return super().charge(charge, limits) if known is None else known


class WithholdsNothing(Ledger):
    """Mutant: that a result may not leave is forgotten at once."""

    def withhold(self, entry: LedgerEntry, reason: str) -> None:
        """Write nothing."""


class OpensAnything(Ledger):
    """Mutant: a ledger is opened without a look at its receipts."""

    def __init__(self, path: Path, *, secret: Secret | None = None) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ledger, "require_sound", lambda chain: None)
            super().__init__(path, secret=secret)


class WritesAnywhere(Ledger):
    """Mutant: a process goes on with a file that nobody finds any more."""

    def __init__(self, path: Path, *, secret: Secret | None = None) -> None:
        super().__init__(path, secret=secret)
        self.chain._require_place = lambda: None  # type: ignore[method-assign]


class NotesAnything(HeadLog):
    """Mutant: a coordinator that has forgotten where a ledger stood."""

    def note(self, reply: RoundReply, *, domain: str) -> str:
        """As if it were the first time."""
        self._latest.pop(domain, None)
        return super().note(reply, domain=domain)


MUTANTS: dict[type[Ledger] | type[Gate] | type[HeadLog], str] = {
    ComputesFirst: "paid first",
    ComputesAgain: "one answer|recorded|withheld",
    LetsAnythingOut: "withheld|recorded",
    KeepsNothing: "recorded|one answer",
    CountsOneRun: "budget",
    Forgetful: "epsilon|budget",
    TakesAnyCost: "cost",
    AnswersAnything: "one answer",
    WithholdsNothing: "withheld",
    OpensAnything: "older copy",
    WritesAnywhere: "older copy",
    NotesAnything: "older copy",
}
"""And the invariant by which it must be found; where it breaks several, whichever comes first."""


@pytest.mark.parametrize("mutant", list(MUTANTS), ids=lambda mutant: mutant.__name__)
def test_a_mutant_breaks_an_invariant_within_the_same_settings(mutant: type) -> None:
    """The very machine that finds nothing in the product finds this, and by its name."""
    seats = {Ledger: "ledger_kind", Gate: "gate_kind", HeadLog: "log_kind"}
    seat = next(name for kind, name in seats.items() if issubclass(mutant, kind))
    machine = type(f"With{mutant.__name__}", (Domain,), {seat: mutant})
    with pytest.raises(BrokenError, match=f"^({MUTANTS[mutant]}): "):
        run_state_machine_as_test(machine, settings=SETTINGS)
