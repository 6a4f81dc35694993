"""One ledger as an auditor sees it: what was spent, on what, for whom, under which rules.

record = data_set_of(books, logs, delta=None)
share = share_of(record)                          # for what one person in several domains adds up to

Every number comes from the entries; nothing that a ledger says about itself is copied.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from isthmus.errors import ConfigError
from isthmus.privacy.accounting import COARSE, Spending, decode_event, epsilon
from isthmus.privacy.audit.rules import read_policy
from isthmus.privacy.audit.witnesses import heads_of
from isthmus.privacy.budget import PrivacyBudget
from isthmus.privacy.confirmation import confirm
from isthmus.privacy.examination import fitting_heads
from isthmus.privacy.heads import read_head
from isthmus.privacy.lines import AnyLine, Charged, Ebbed, Flooded, Layers, Opened, Released, Revoked, Rotated, Withheld
from isthmus.privacy.odometer import left, more_rounds
from isthmus.privacy.people import Share
from isthmus.privacy.reading import Books
from isthmus.report.audit import (
    DataSet,
    Entry,
    Flood,
    KeyRecord,
    LayersRecord,
    Point,
    PolicyRecord,
    Program,
    Refusal,
    Run,
    SecondOpinion,
    Witnesses,
)
from isthmus.report.numbers import epsilon as epsilon_text

MOST_POINTS = 150
"""Of a timeline, besides the ends of runs."""
DELTA = 1e-6
"""At which epsilon is stated where neither a policy nor the reader says."""
_FREE = '{"kind":"none","v":1}'
_IMPLIED = "nobody: implied by domain.toml"


@dataclass(frozen=True, kw_only=True)
class Totals:
    """What a ledger comes to.

    Attributes:
        spending: Everything in it.
        delta: At which epsilon is stated.
        chosen: Whether that delta was asked for, or is a policy's; else it is `DELTA`.
        epsilon: Spent.
        policies: That were in force.
        budget: Of the last policy that can be read.
        like: Event of the last round; empty if there was none.
    """

    spending: Spending
    delta: float
    chosen: bool
    epsilon: float
    policies: tuple[PolicyRecord, ...]
    budget: PrivacyBudget | None
    like: str

    @property
    def spent(self) -> float | None:
        """At the budget's delta; None without a budget, or where nothing is proven."""
        return finite(epsilon(self.spending, self.budget.delta)) if self.budget else None

    @property
    def left(self) -> float | None:
        """Budget less spent, at the budget's delta; None without a budget."""
        return left(self.spending, self.budget) if self.budget else None

    @property
    def more_rounds(self) -> int | None:
        """Rounds like the last that still fit; None where that has no meaning."""
        if self.budget is None or not self.like:
            return None
        return more_rounds(self.spending, self.budget, decode_event(self.like))


def data_set_of(books: Books, logs: Iterable[Books] = (), *, delta: float | None = None) -> DataSet:
    """Everything that an audit says of one ledger, its findings apart.

    Args:
        books: The ledger.
        logs: Coordinators', to count what others have seen of it.
        delta: At which epsilons are stated; the policy's in force where absent.

    Raises:
        ConfigError: If the delta is impossible.
    """
    entries = _entries(books)
    totals = totals_from(entries, _policies(books), delta=delta)
    return DataSet(
        name=books.name,
        path=str(books.path),
        ledger=books.ledger,
        private=all(entry.private for entry in entries),
        epsilon=finite(totals.epsilon),
        delta=totals.delta,
        budget=totals.budget.epsilon if totals.budget else None,
        budget_delta=totals.budget.delta if totals.budget else None,
        spent=totals.spent,
        left=totals.left,
        more_rounds=totals.more_rounds,
        like=totals.like,
        opinion=_opinion(totals.spending, totals.delta),
        runs=runs_of(entries, totals.delta),
        timeline=_timeline(entries, totals.delta, most=totals.epsilon),
        entries=entries,
        refusals=tuple(
            Refusal(
                line=line.seq,
                time=line.time,
                run=line.run,
                round=line.round,
                kind=line.kind,
                rule=line.rule,
                asked=line.asked,
                limit=line.limit,
                coordinator=line.coordinator,
            )
            for line in books.refusals
        ),
        floods=floods_of(books),
        layers=tuple(
            LayersRecord(line=line.seq, digest=line.digest, names=line.names)
            for line in books.lines
            if isinstance(line, Layers)
        ),
        policies=totals.policies,
        keys=keys_of_lines(books.lines),
        programs=tuple(
            Program(version=version, code=code, entries=count)
            for (version, code), count in Counter((entry.version, entry.code) for entry in entries).items()
        ),
        witnesses=_witnesses(books, logs),
        remarks=_remarks(entries, totals, seen=bool(books.receipts)),
    )


def floods_of(books: Books) -> tuple[Flood, ...]:
    """The days with so many refusals that not all of them were written."""
    counted = {line.flood: line for line in books.lines if isinstance(line, Ebbed)}
    return tuple(
        Flood(
            line=line.seq,
            time=line.time,
            most=line.most,
            count=counted[line.seq].count if line.seq in counted else None,
        )
        for line in books.lines
        if isinstance(line, Flooded)
    )


def totals_of(books: Books, *, delta: float | None = None) -> Totals:
    """What a ledger comes to.

    Args:
        books: The ledger.
        delta: At which epsilon is stated; the policy's in force where absent.

    Raises:
        ConfigError: If the delta is impossible.
    """
    return totals_from(_entries(books), _policies(books), delta=delta)


def totals_from(entries: Sequence[Entry], policies: tuple[PolicyRecord, ...], *, delta: float | None = None) -> Totals:
    """The same from what was read of a ledger.

    Raises:
        ConfigError: If the delta is impossible.
        ValueError: If an entry's event cannot be read.
    """
    if delta is not None and not 0 < delta < 1:
        raise ConfigError(f"--delta must be in (0, 1), got {delta}")
    last = policies[-1] if policies else None
    budget = PrivacyBudget(last.epsilon, last.delta) if last and last.epsilon and last.delta else None
    chosen = delta or (budget.delta if budget else None)
    spending = spending_of(entries)
    return Totals(
        spending=spending,
        delta=chosen or DELTA,
        chosen=chosen is not None,
        epsilon=epsilon(spending, chosen or DELTA),
        policies=policies,
        budget=budget,
        like=_last_round(entries),
    )


def policy_record(line: int, time: str, text: str) -> PolicyRecord:
    """What a policy's text says, as far as this version can read it."""
    policy = read_policy(text)
    people = policy.people if policy else None
    return PolicyRecord(
        line=line,
        time=time,
        digest=hashlib.sha256(text.encode()).hexdigest(),
        text=text,
        approved_by=policy.approved_by if policy else "",
        approved_on=policy.approved_on.isoformat() if policy else "",
        implied=policy is not None and policy.approved_by == _IMPLIED,
        epsilon=policy.budget.epsilon if policy else None,
        delta=policy.budget.delta if policy else None,
        run_epsilon=policy.budget.run_epsilon if policy else None,
        overlap=people.overlap if people else None,
        k_max=people.k_max if people else None,
    )


def spending_of(entries: Iterable[Entry]) -> Spending:
    """Everything that entries cost.

    Raises:
        ValueError: If one of them cannot be read.
    """
    return Spending.of_texts(Counter(entry.event for entry in entries))


def runs_of(entries: Sequence[Entry], delta: float) -> tuple[Run, ...]:
    """Each run's part, in order of its first entry."""
    members: dict[str, list[Entry]] = {}
    for entry in entries:
        members.setdefault(entry.run, []).append(entry)
    return tuple(
        Run(
            run=run,
            first=mine[0].time,
            last=mine[-1].time,
            entries=len(mine),
            sent=sum(entry.outcome == "released" for entry in mine),
            private=all(entry.private for entry in mine),
            epsilon=finite(epsilon(spending_of(mine), delta)),
        )
        for run, mine in members.items()
    )


def share_of(data_set: DataSet) -> Share:
    """What a data set adds for a person in several domains, by what its policy in force declares."""
    last = data_set.policies[-1] if data_set.policies else None
    spending = spending_of(data_set.entries)
    if last is None:
        return Share(spending=spending)
    return Share(spending=spending, overlap=last.overlap, k_max=last.k_max)


def finite(value: float) -> float | None:
    """The number, or nothing where nothing is proven."""
    return value if math.isfinite(value) else None


def _entries(books: Books) -> tuple[Entry, ...]:
    """Charges that can be read; what cannot be is a finding of the examination."""
    outcomes = {line.charge: line for line in books.lines if isinstance(line, Released | Withheld)}
    readable = {entry.seq for entry in books.entries}
    return tuple(
        _entry(line, outcomes.get(line.seq))
        for line in books.lines
        if isinstance(line, Charged) and line.seq in readable
    )


def _policies(books: Books) -> tuple[PolicyRecord, ...]:
    return tuple(policy_record(line.seq, line.time, line.text) for line in books.policies)


def _entry(line: Charged, outcome: Released | Withheld | None) -> Entry:
    return Entry(
        line=line.seq,
        time=line.time,
        run=line.run,
        round=line.round,
        kind=line.kind,
        event=line.event,
        clip=line.clip,
        layers=line.layers,
        private=line.private,
        coordinator=line.coordinator,
        outcome="not sent" if outcome is None else "released" if isinstance(outcome, Released) else "withheld",
        reason=outcome.reason if isinstance(outcome, Withheld) else "",
        data=line.dataset,
        version=line.version,
        code=line.code,
        policy=line.policy,
    )


def _opinion(spending: Spending, delta: float) -> SecondOpinion:
    found = confirm(spending, delta)
    return SecondOpinion(
        agrees=found.agrees,
        error=finite(found.error),
        renyi=finite(found.rdp),
        floor=finite(found.floor),
        ceiling=finite(found.ceiling),
        library=finite(found.library),
        why=found.why,
    )


def _timeline(entries: Sequence[Entry], delta: float, *, most: float) -> tuple[Point, ...]:
    """Epsilon after each entry, on the coarse grid, never more than it is in the end (by the fine one)."""
    ends = {entry.run: number for number, entry in enumerate(entries)}
    stride = max(1, math.ceil(len(entries) / MOST_POINTS))
    chosen = {*range(0, len(entries), stride), *sorted(ends.values())[-MOST_POINTS:]}
    spent: Counter[str] = Counter()
    points = []
    for number, entry in enumerate(entries):
        spent[entry.event] += 1
        if number in chosen:
            now = min(most, epsilon(Spending.of_texts(spent), delta, interval=COARSE))
            points.append(Point(line=entry.line, time=entry.time, run=entry.run, epsilon=finite(now)))
    return tuple(points)


def _last_round(entries: Sequence[Entry]) -> str:
    """Event of the last update, or of the last release that costs anything."""
    costly = [entry for entry in entries if entry.event != _FREE]
    updates = [entry for entry in costly if entry.kind == "update"]
    return (updates or costly)[-1].event if costly else ""


def keys_of_lines(lines: Sequence[AnyLine]) -> tuple[KeyRecord, ...]:
    """The keys that a chain names, oldest first."""
    revoked = {line.key: line.since for line in lines if isinstance(line, Revoked)}
    return tuple(
        KeyRecord(
            key=line.key,
            line=line.seq,
            reason=line.reason if isinstance(line, Rotated) else "",
            revoked_from=revoked.get(line.key),
        )
        for line in lines
        if isinstance(line, Opened | Rotated)
    )


def _witnesses(books: Books, logs: Iterable[Books]) -> Witnesses:
    heads = heads_of(books, logs)
    received = [read_head(receipt.head) for receipt in books.receipts]
    return Witnesses(
        lines=len(books.links),
        head=books.links[-1].digest.hex() if books.links else "",
        heads=len(heads),
        receipts=len(received),
        seen=max((head.seq for head in fitting_heads(books.links, [*heads, *received])), default=0),
    )


def _remarks(entries: Sequence[Entry], totals: Totals, *, seen: bool) -> tuple[str, ...]:
    """What is no finding and yet worth a sentence."""
    seeded = sum(not entry.private for entry in entries)
    unsent = [entry for entry in entries if entry.outcome == "not sent"]
    unsigned = sum(not entry.coordinator for entry in entries)
    policy = totals.policies[-1] if totals.policies else None
    found = []
    if totals.budget and totals.delta != totals.budget.delta:
        spent = "not provable" if totals.spent is None else epsilon_text(totals.spent)
        found.append(
            f"Epsilon is stated at delta {totals.delta:g}, as was asked for. The limit of {totals.budget.epsilon:g} is "
            f"one at delta {totals.budget.delta:g}, and so are what is left of it and the rounds that fit: at that "
            f"delta, epsilon spent is {spent}."
        )
    if not totals.chosen:
        found.append(f"No policy says at which delta epsilon is to be stated; here it is {DELTA:g}.")
    if seeded:
        found.append(
            f"Not private: the noise of {seeded} of {len(entries)} entries can be repeated by whoever knows its seed. "
            f"Every epsilon is nominal."
        )
    if unsent:
        found.append(
            f"{len(unsent)} {'entry was' if len(unsent) == 1 else 'entries were'} charged and never sent, the last in "
            f"line {unsent[-1].line}: a process ended in between. They count as if they had been sent."
        )
    if policy is None:
        found.append("No policy was ever in force, so nothing is known of a limit.")
    elif policy.implied:
        found.append(
            "There is no policy.toml: the limits are those of domain.toml, and nobody has signed their name to them."
        )
    if unsigned:
        found.append(f"{unsigned} of {len(entries)} requests were not signed, so who asked is not known.")
    if not seen:
        found.append("No coordinator's receipt is kept beside this ledger.")
    return tuple(found)
