"""What an outsider writes down about a domain's books, in plain lists, and what must hold of the real ones.

    shadow = Shadow(path, trusted=key)
    shadow.accept(charge, limits, policy)      # the mechanism was let to compute, so this must be paid for
    shadow.leave(charge, number)               # an answer came out
    shadow.check()                             # reads the file as a stranger does; `BrokenError` names the rule

It shares no code with the ledger but the readers of its file. Epsilon comes straight from `dp_accounting`.
"""

import functools
import hashlib
import math
from dataclasses import dataclass, field
from pathlib import Path

from dp_accounting import DpEvent
from dp_accounting.pld import PLDAccountant
from tests.privacy.conftest import DELTA

from isthmus.privacy.accounting import NOTHING, decode_event, encode_event
from isthmus.privacy.entries import Charge, Limits
from isthmus.privacy.gate import Payload, _pack
from isthmus.privacy.heads import Head
from isthmus.privacy.lines import Charged, Released, Withheld
from isthmus.privacy.reading import Books, read_ledger

Question = tuple[str, int, str]
TOLERANCE = 0.01
"""In epsilon: this accountant's grid is ten times coarser than the ledger's; a release here costs 0.3 or more."""


class BrokenError(AssertionError):
    """An invariant does not hold; the text begins with its name."""


def hold(truth: bool, rule: str, seen: object) -> None:
    """Say which rule is broken where it is."""
    if not truth:
        raise BrokenError(f"{rule}: {seen}")


def question_of(charge: Charge) -> Question:
    """What is answered once."""
    return charge.run, charge.round, charge.kind


def epsilon_of(events: list[DpEvent]) -> float:
    """By `dp_accounting` alone."""
    return _epsilon_of(tuple(sorted(encode_event(event) for event in events if event != NOTHING)))


@functools.cache
def _epsilon_of(texts: tuple[str, ...]) -> float:
    accountant = PLDAccountant(value_discretization_interval=1e-3)
    for text in texts:
        accountant.compose(decode_event(text))
    return float(accountant.get_epsilon(DELTA)) if texts else 0.0


@dataclass(frozen=True)
class Paid:
    """A charge that was accepted, and the text of the policy that the process followed."""

    charge: Charge
    policy: str


@dataclass
class Shadow:
    """The outsider's lists.

    Attributes:
        path: Of the ledger.
        trusted: Its first public key.
        paid: What was accepted, in order.
        answers: The number that each question was answered with, once it was kept.
        left: The questions whose answer came out.
        forgotten: Those that a later round followed.
        withheld: Those whose result must never leave.
        heads: What the coordinator noted.
        doubted: Whether a key was revoked, so that lines may rightly be findings.
    """

    path: Path
    trusted: bytes
    paid: list[Paid] = field(default_factory=list)
    answers: dict[Question, float] = field(default_factory=dict)
    left: set[Question] = field(default_factory=set)
    forgotten: set[Question] = field(default_factory=set)
    withheld: set[Question] = field(default_factory=set)
    heads: list[Head] = field(default_factory=list)
    doubted: bool = False

    def payment(self, charge: Charge) -> Charge | None:
        """What was accepted for the same question."""
        return next((paid.charge for paid in self.paid if question_of(paid.charge) == question_of(charge)), None)

    def after(self, charge: Charge, *, run: str | None = None) -> float:
        """Epsilon with a charge on top, of everything or of one run."""
        return epsilon_of([paid.charge.event for paid in self.paid if run in (None, paid.charge.run)] + [charge.event])

    def overspends(self, charge: Charge, limits: Limits, *, by: float) -> bool:
        """Whether a charge on top would pass one of the limits by more than this."""
        return self.after(charge) > limits.lifetime.epsilon + by or (
            limits.run is not None and self.after(charge, run=charge.run) > limits.run.epsilon + by
        )

    def accept(self, charge: Charge, limits: Limits, policy: str) -> None:
        """The ledger took a charge, or went on with one it had taken before."""
        before = self.payment(charge)
        if before is None:
            hold(not self.overspends(charge, limits, by=TOLERANCE), "budget", f"{charge} was accepted under {limits}")
            self.paid.append(Paid(charge, policy))
            return
        hold(before.request == charge.request, "one answer", f"{charge} is worked on, {before} was paid")
        same = (before.event, before.private) == (charge.event, charge.private)
        hold(same or question_of(charge) in self.answers, "cost", f"{charge} is worked on, {before} was paid")

    def keep(self, charge: Charge, number: float) -> None:
        """An answer was finished: from now on it is the only one."""
        run, number_of_round, kind = question = question_of(charge)
        if question not in self.answers:
            self.answers[question] = number
            self.forgotten |= {q for q in self.answers if (q[0], q[2]) == (run, kind) and q[1] < number_of_round}

    def leave(self, charge: Charge, number: float) -> None:
        """An answer came out."""
        question, paid = question_of(charge), self.payment(charge)
        hold(math.isfinite(number), "withheld", f"{number} came out for {question}")
        hold(question not in self.withheld, "withheld", f"{number} came out for {question}")
        hold(paid is not None and paid.request == charge.request, "one answer", f"{charge} was answered, paid: {paid}")
        self.keep(charge, number)
        hold(self.answers[question] == number, "one answer", f"{question}: {number}, before {self.answers[question]}")
        self.left.add(question)

    def read(self) -> Books:
        """The books as a stranger reads them who has the key from elsewhere and the coordinator's heads."""
        return read_ledger(self.path, trusted=self.trusted, heads=self.heads)

    def check(self) -> None:
        """Compare everything."""
        books = self.read()
        odd = [finding for finding in books.findings if not (self.doubted and finding.rule == "revoked")]
        hold(not odd, "whole", odd)
        charged = {line.seq: line for line in books.lines if isinstance(line, Charged)}
        # 1. Every charge that was accepted, once, at its cost, in order; no other.
        seen = [(entry.run, entry.round, entry.kind, entry.request) for entry in books.entries]
        asked = [(*question_of(paid.charge), paid.charge.request) for paid in self.paid]
        hold(seen == asked, "counted", f"in the books {seen}, accepted {asked}")
        policies = [hashlib.sha256(paid.policy.encode()).hexdigest() for paid in self.paid]
        figures = [(entry.event, entry.private, charged[entry.seq].policy) for entry in books.entries]
        due = [
            (paid.charge.event, paid.charge.private, policy) for paid, policy in zip(self.paid, policies, strict=True)
        ]
        hold(figures == due, "cost", f"in the books {figures}, due {due}")
        # 2. What was kept and what was held back, by its bytes; whatever came out is among the first.
        questions = {seq: (line.run, line.round, line.kind) for seq, line in charged.items()}
        released = {questions[line.charge]: line.payload for line in books.lines if isinstance(line, Released)}
        digests = {question: digest_of(number) for question, number in self.answers.items()}
        hold(self.left <= released.keys(), "recorded", f"out without a line: {self.left - released.keys()}")
        hold(released == digests, "recorded", f"in the books {released}, kept {digests}")
        held = {questions[line.charge] for line in books.lines if isinstance(line, Withheld)}
        hold(held == self.withheld, "withheld", f"in the books {held}, not finite {self.withheld}")

    def check_epsilon(self, said: float) -> None:
        """Compare what a ledger says that it spent."""
        due = epsilon_of([paid.charge.event for paid in self.paid])
        hold(abs(said - due) < TOLERANCE, "epsilon", f"the ledger says {said}, its entries cost {due}")


def payload_of(number: float) -> Payload:
    """An answer that is told apart by a number."""
    return Payload(values={"number": number})


def digest_of(number: float) -> str:
    """Of the bytes that such an answer is kept as."""
    return hashlib.sha256(_pack(payload_of(number))).hexdigest()
