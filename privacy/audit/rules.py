"""Did a ledger keep to its own rules? What its chain alone does not show.

    findings = broken_rules(books)

Every entry is held against the policy that was in force when it was written: the limits of epsilon, the noise, the
clip, the parameters, who asked, which program answered. The vault refuses all of this beforehand; here nobody's word
is taken for it.
"""

import functools
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from pydantic import ValidationError

from isthmus.privacy.accounting import Spending, epsilon, fits
from isthmus.privacy.examination import Finding
from isthmus.privacy.lines import Charged, PolicyInForce
from isthmus.privacy.policy import Policy
from isthmus.privacy.reading import Books


@dataclass(kw_only=True)
class _Term:
    """One policy's time in force.

    Attributes:
        line: That put it in force; 0 before there is one.
        digest: Of its text.
        policy: None before there is one, or where its text cannot be read.
        charged: Entries in that time.
        spent: Over all runs, at its end.
        runs: Spent of each run that has an entry in it, at its end.
    """

    line: int
    digest: str
    policy: Policy | None
    charged: list[Charged] = field(default_factory=list)
    spent: Spending = field(default_factory=Spending)
    runs: dict[str, Spending] = field(default_factory=dict)

    def end(self, spent: Counter[str], runs: dict[str, Counter[str]]) -> "_Term":
        """With what was spent by now; events by their text and how often."""
        self.spent = Spending.of_texts(spent)
        self.runs = {line.run: Spending() for line in self.charged}
        self.runs |= {run: Spending.of_texts(runs[run]) for run in self.runs if run in runs}
        return self


def read_policy(text: str) -> Policy | None:
    """The policy that a ledger's text says; None if this version cannot read it."""
    try:
        return Policy.model_validate_json(text)
    except ValidationError:
        return None


def broken_rules(books: Books) -> list[Finding]:
    """What is in a ledger and should never have got there.

    Guarantees:
        - Epsilon above the limit of the policy in force, over all runs or in one, is found.
        - An entry that names another policy than the one in force, or none, is found.
        - Less noise than the floor, a kind, coordinator or program that the policy does not allow, is found.
        - A larger clipping norm, or another parameter, than the policy allows is found; so is an update that does not
          say what it was clipped to, or which parameters it holds, where the policy has a rule about that.
        - Entries whose noise can be repeated are found where the policy forbids them, and where the ledger also
          holds private ones: then the epsilon of those says nothing.
    """
    findings = []
    seen: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for term in _terms(books):
        if term.line and term.policy is None:
            findings.append(_finding(term.line, "policy", "its text is not a policy that this version can read"))
        findings += _overspent(term)
        for line in term.charged:
            if line.policy != term.digest or not term.digest:
                said = f"names policy {line.policy[:16]}" if line.policy else "names no policy"
                there = f"in force was {term.digest[:16]}" if term.digest else "none was in force"
                seen["no-policy", f"{said}; {there}"].append(line.seq)
            if term.policy is not None:
                for rule, text in (*_against(line, term.policy), *_beyond(line, term.policy, books.layers)):
                    seen[rule, text].append(line.seq)
    seeded = [line.seq for line in books.lines if isinstance(line, Charged) and not line.private]
    if seeded and any(isinstance(line, Charged) and line.private for line in books.lines):
        seen["not-private", "noise that can be repeated, in a ledger that also claims privacy for others"] = seeded
    for (rule, text), lines in seen.items():
        more = f" ({len(lines)} entries, the last in line {lines[-1]})" if len(lines) > 1 else ""
        findings.append(_finding(lines[0], rule, f"{text}{more}"))
    return findings


def _terms(books: Books) -> Iterator[_Term]:
    """The times of the policies, one after the other, each when it is complete."""
    term = _Term(line=0, digest="", policy=None)
    spent: Counter[str] = Counter()
    runs: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for line in books.lines:
        if isinstance(line, PolicyInForce):
            yield term.end(spent, runs)
            term = _Term(line=line.seq, digest=line.digest, policy=read_policy(line.text))
        elif isinstance(line, Charged):
            term.charged.append(line)
            if _parts(line.event) is not None:
                spent[line.event] += 1
                runs[line.run][line.event] += 1
    yield term.end(spent, runs)


def _overspent(term: _Term) -> Iterator[Finding]:
    if term.policy is None or not term.charged:
        return
    limits, last = term.policy.limits, term.charged[-1].seq
    runs = [(spent, limits.run, f"in run {run!r}") for run, spent in term.runs.items()]
    for spent, budget, scope in [(term.spent, limits.lifetime, "over all runs"), *runs]:
        if budget is not None and not fits(spent, budget):
            yield _finding(
                last,
                "overspent",
                f"epsilon {epsilon(spent, budget.delta):.4f} is spent {scope} at delta {budget.delta:g}; the policy of "
                f"line {term.line} allows {budget.epsilon:g}",
            )


def _against(line: Charged, policy: Policy) -> Iterator[tuple[str, str]]:
    """(rule, what was seen) for each rule of a policy that an entry breaks."""
    allow = policy.allow
    if line.kind not in allow.kinds:
        yield "kinds", f"a release of kind {line.kind}, which the policy does not allow"
    if not line.private and not allow.seeded:
        yield "seeded", "noise that can be repeated, which the policy does not allow"
    if allow.coordinators is not None and line.coordinator not in allow.coordinators:
        yield "coordinators", f"asked by {line.coordinator[:16] or 'nobody who signed'}, whom the policy does not name"
    if allow.programs is not None and line.code not in allow.programs:
        yield "programs", f"answered by program {line.code[:16] or 'unknown'}, which the policy does not name"
    floor = allow.least_metric_noise if line.kind == "metric" else allow.least_noise
    for _, noise, _ in _parts(line.event) or ():
        if noise < floor:
            rule = "least_metric_noise" if line.kind == "metric" else "least_noise"
            yield rule, f"noise multiplier {noise:g}, and the policy asks for {floor:g}"


def _beyond(line: Charged, policy: Policy, layers: Mapping[str, tuple[str, ...]]) -> Iterator[tuple[str, str]]:
    """The same for what a release holds: how much of one user, and of which parameters."""
    allow, update = policy.allow, line.kind == "update"
    largest = allow.largest_clip
    if largest is not None and line.clip is None and update:
        yield "largest_clip", f"an update that does not say its clip, and the policy allows {largest:g}"
    elif largest is not None and line.clip is not None and line.clip > largest:
        yield "largest_clip", f"clip {line.clip:g}, and the policy allows {largest:g}"
    names = layers.get(line.layers, ())
    if update and not names and "*" not in allow.layers:
        yield "layers", "an update that does not say which parameters it holds, and the policy allows some only"
    odd = allow.forbidden(names)
    if odd:
        yield "layers", f"{len(odd)} parameters that the policy does not allow, {odd[0]} the first of them"


@functools.lru_cache(maxsize=4096)
def _parts(event: str) -> tuple[tuple[float, float, int], ...] | None:
    """(rate, noise, count) of the mechanisms of an event; None if it cannot be read, which the examination finds."""
    try:
        return Spending.of_texts({event: 1}).parts
    except ValueError:
        return None


def _finding(line: int, rule: str, text: str) -> Finding:
    return Finding(line=line, rule=rule, text=text)
