"""From ledgers and coordinators' logs to an `Audit`.

    audit = make_audit(read_sources([Path("run")]), trusted=frozenset(), delta=None)
    audit.findings                                     # empty: everything was as it should be

Each ledger's chain, rules, accounting and witnesses; then what one person in several domains adds up to. An audit
reads ledgers and nothing else: no data, no model, no configuration.
"""

from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

import isthmus
from isthmus.privacy.audit.data_set import data_set_of, finite, share_of
from isthmus.privacy.audit.rules import broken_rules
from isthmus.privacy.audit.sources import Sources, noted_heads
from isthmus.privacy.audit.witnesses import broken_heads, contradictions, keys_of
from isthmus.privacy.chain import now
from isthmus.privacy.examination import Finding
from isthmus.privacy.people import PersonEpsilon, Share, person_epsilon
from isthmus.privacy.program import code_hash
from isthmus.privacy.reading import Books
from isthmus.privacy.starts import starts_in_words
from isthmus.report.audit import (
    Audit,
    AuditFinding,
    CoordinatorLog,
    DataSet,
    Empirical,
    Method,
    Person,
    PersonBound,
)

_ASSUMPTIONS = (
    "Each step's batch was drawn by Poisson sampling, afresh, at the rate that its entry says.",
    "Each user has one record in a data set; what it adds to a step was clipped to the norm that the noise refers to.",
    "Noise came from a cryptographic generator, independent between steps and domains; other entries say so.",
    "Whoever looks sees every release, and knows everything about everybody else.",
    "A ledger says what was charged. That programs did what they charged for is shown by tests, and by attacking them.",
    "How many rounds to run, and with how much noise, was decided before looking at results.",
)


def make_audit(
    sources: Sources,
    *,
    trusted: frozenset[bytes] = frozenset(),
    coordinators: frozenset[bytes] = frozenset(),
    delta: float | None = None,
    empirical: Sequence[Empirical] = (),
) -> Audit:
    """Audit ledgers.

    Args:
        sources: Ledgers and logs, as they were read.
        trusted: Public keys of domains known from elsewhere, of which every ledger must be signed under one.
        coordinators: The same for coordinators' logs and receipts.
        delta: At which epsilons are stated; each policy's own where absent.
        empirical: Results of attacks on the real code, to stand beside the claims.

    Raises:
        ConfigError: If the delta is impossible.
        RunError: If there is no ledger among the sources.

    Guarantees:
        - Everything that `examine` and `compare_heads` find is a finding of the audit.
        - A number that other accountants contradict is a finding.
        - A failed check of an attack is a finding.
    """
    sources.require_ledgers()
    against = contradictions(sources, trusted=trusted, coordinators=coordinators)
    findings: list[AuditFinding] = []
    data_sets = []
    for books in sources.ledgers:
        record = data_set_of(books, sources.logs, delta=delta)
        mine = [*books.findings, *against.get(books.path, ()), *broken_rules(books)]
        if not record.opinion.agrees:
            mine.append(Finding(line=0, rule="accountant", text=record.opinion.why))
        findings += _findings(books.name, mine)
        copies = [left_out for kept, left_out in sources.copies if kept is books]
        remarks = (*record.remarks, *starts_in_words(books), *_copies(copies))
        data_sets.append(record.model_copy(update={"remarks": remarks}))
    for log in sources.logs:
        mine = [*log.findings, *broken_heads(log), *against.get(log.path, ())]
        findings += _findings(f"coordinator's log {log.path.name}", mine)
    for attack in empirical:
        findings += [
            AuditFinding(data_set="", line=0, rule="empirical", text=f"{attack.name}: {check.name}: {check.detail}")
            for check in attack.checks
            if not check.passed
        ]
    return Audit(
        schema_version=1,
        isthmus_version=isthmus.__version__,
        program=code_hash(),
        made=now(),
        method=_method(),
        data_sets=tuple(data_sets),
        person=person_of(data_sets),
        logs=tuple(_log(log) for log in sources.logs),
        empirical=tuple(empirical),
        findings=tuple(findings),
    )


def person_of(data_sets: Sequence[DataSet]) -> Person:
    """What all data sets together may reveal of one person, as declared and in the worst case."""
    names = [data_set.name for data_set in data_sets]
    shares = {
        data_set.name if names.count(data_set.name) == 1 else f"{data_set.name} ({data_set.path})": share_of(data_set)
        for data_set in data_sets
    }
    delta = min(data_set.delta for data_set in data_sets)
    anybody = {name: Share(spending=share.spending) for name, share in shares.items()}
    return Person(
        delta=delta,
        declared=all(share.overlap is not None for share in shares.values()),
        bound=_bound(shares, delta),
        cautious=_bound(anybody, delta),
    )


def _bound(shares: Mapping[str, Share], delta: float) -> PersonBound:
    found: PersonEpsilon = person_epsilon(shares, delta)
    return PersonBound(epsilon=finite(found.epsilon), domains=found.domains, exact=found.exact, rule=found.rule)


def _findings(name: str, found: Iterable[Finding]) -> list[AuditFinding]:
    """Of one file, each once, in the order of its lines."""
    unique = dict.fromkeys(found)
    return [
        AuditFinding(data_set=name, line=finding.line, rule=finding.rule, text=finding.text)
        for finding in sorted(unique, key=lambda finding: finding.line)
    ]


def _copies(copies: Iterable[Books]) -> list[str]:
    return [
        f"{Path(copy.path)} is another copy of this ledger ({len(copy.links)} lines); the longer one was audited."
        for copy in copies
    ]


def _log(log: Books) -> CoordinatorLog:
    keys = keys_of(log)
    return CoordinatorLog(path=str(log.path), key=keys[-1].hex() if keys else "", heads=len(noted_heads(log)))


def _method() -> Method:
    return Method(
        unit="One user's whole history in one domain",
        adjacency="Add or remove one user",
        accountant="Privacy-loss distributions (PLD), rounded up on a grid of 0.0001",
        second="Renyi DP, closed forms of the Gaussian mechanism, and the library's own composition",
        library=f"dp-accounting {metadata.version('dp-accounting')}",
        assumptions=_ASSUMPTIONS,
    )
