"""Check files that somebody sent: is each of them what it claims to be?

    verified = verify_files([Path("ledger.db"), Path("audit.json")], heads=[Path("heads.db")], trusted=frozenset())
    verified[0].sound, verified[0].checks

From the files, the public keys and dp-accounting alone. A signed audit is sound if its signature and its arithmetic
are; whether it found something wrong is another question, and is said beside it.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from isthmus.errors import RunError
from isthmus.privacy.audit.data_set import finite, floods_of, totals_of
from isthmus.privacy.audit.rules import broken_rules
from isthmus.privacy.audit.signed import check_signed
from isthmus.privacy.audit.sources import Sources, ledger_files, noted_heads, read_sources
from isthmus.privacy.audit.witnesses import broken_heads, contradictions, heads_of, keys_of
from isthmus.privacy.confirmation import confirm
from isthmus.privacy.examination import Finding, fitting_heads
from isthmus.privacy.heads import read_head
from isthmus.privacy.reading import Books
from isthmus.report.audit import read_text
from isthmus.report.numbers import plural

_DATABASE = b"SQLite format 3\x00"
_CHECKS = {
    "chain": ("file", "empty", "form", "order", "link", "digest", "opening"),
    "signatures": ("key", "signature", "rotation", "revoked"),
    "entries": ("outcome", "twice", "event", "policy", "payload", "names", "flood"),
    "receipts": ("receipt", "denied", "head"),
    "witnesses": ("truncated", "rewritten", "second-ledger", "fork", "foreign-head", "retired-head"),
    "epsilon": ("accountant", "recomputed"),
}
"""Names of checks and the rules of their findings; every other rule is one of a policy."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: In a word, stable.
        passed: Whether nothing was found.
        detail: What was looked at, or how much was found.
    """

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What became of one file.

    Attributes:
        path: Of the file.
        kind: `ledger`, `coordinator's log` or `signed audit`.
        epsilon: Computed from the entries; None for a log, an audit of several ledgers, or where nothing is proven.
        delta: At which; None for none.
        checks: In order.
        findings: All of them.
        notes: What else a reader should know.
    """

    path: str
    kind: str
    epsilon: float | None
    delta: float | None
    checks: tuple[Check, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()

    @property
    def sound(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "sound": self.sound}


def verify_files(
    files: Iterable[Path],
    *,
    heads: Iterable[Path] = (),
    trusted: frozenset[bytes] = frozenset(),
    coordinators: frozenset[bytes] = frozenset(),
    delta: float | None = None,
) -> list[Verified]:
    """Check ledgers, coordinators' logs and signed audits.

    Args:
        files: Files, or folders that hold ledgers.
        heads: Coordinators' logs, to hold ledgers against.
        trusted: Public keys of domains and auditors, known from elsewhere; none given: each file's own word is taken
            for who signed.
        coordinators: The same for coordinators' logs and receipts.
        delta: At which epsilon is computed; the policy's where absent.

    Raises:
        RunError: If a file is absent, or none of these.
        ConfigError: If the delta is impossible.
    """
    found = [each for file in files for each in ([file] if file.is_file() else ledger_files(file, logs=True))]
    databases = [file for file in found if _is_database(file)]
    documents = [file for file in found if file not in databases]
    sources = read_sources(databases, heads=heads)
    against = contradictions(sources, trusted=trusted, coordinators=coordinators)
    verified = [_ledger(books, sources, against.get(books.path, ()), delta) for books in sources.ledgers]
    for log in sources.logs:
        findings = [*log.findings, *broken_heads(log), *against.get(log.path, ())]
        details = {
            "chain": plural(len(log.links), "line"),
            "signatures": plural(len(keys_of(log)), "key"),
            "receipts": plural(len(noted_heads(log)), "head"),
        }
        verified.append(_verified(log.path, "coordinator's log", findings, details))
    return [*verified, *(_document(file, trusted) for file in documents)]


def _ledger(books: Books, sources: Sources, against: Sequence[Finding], delta: float | None) -> Verified:
    totals = totals_of(books, delta=delta)
    findings = [*books.findings, *against, *broken_rules(books)]
    opinion = confirm(totals.spending, totals.delta)
    if not opinion.agrees:
        findings.append(Finding(line=0, rule="accountant", text=opinion.why))
    heads, spent = heads_of(books, sources.logs), f"epsilon {totals.epsilon:.4f} at delta {totals.delta:g}"
    details = {
        "chain": plural(len(books.links), "line"),
        "signatures": f"key in force {keys_of(books)[-1].hex()[:16] if keys_of(books) else 'unknown'}",
        "entries": f"{plural(len(books.entries), 'release')}, {plural(len(books.refusals), 'refusal')}{_more(books)}",
        "receipts": f"{plural(len(books.receipts), 'receipt')} of coordinators",
        "witnesses": f"{plural(len(heads), 'head')} in {plural(len(sources.logs), 'log')}",
        "policy": f"{len(books.policies)} were in force, one after the other",
        "epsilon": f"{spent}, Renyi DP {opinion.rdp:.4f}" if math.isfinite(totals.epsilon) else "cannot be proven",
    }
    words = [*heads, *(read_head(receipt.head) for receipt in books.receipts)]
    notes = []
    if not fitting_heads(books.links, words):
        notes.append("Nobody else's word about this ledger: a cut tail would not show.")
    if any(not entry.private for entry in books.entries):
        notes.append("NOT PRIVATE: it holds entries whose noise can be repeated; epsilon is nominal.")
    found = _verified(books.path, "ledger", findings, details, notes=notes)
    return replace(found, epsilon=finite(totals.epsilon), delta=totals.delta)


def _more(books: Books) -> str:
    """Refusals that were counted and not written, if there were any."""
    floods = floods_of(books)
    count = sum(flood.count or 0 for flood in floods)
    still = any(flood.count is None for flood in floods)
    return f" and {count:,} that were only counted{', others not counted yet' if still else ''}" if floods else ""


def _document(file: Path, trusted: frozenset[bytes]) -> Verified:
    try:
        signed = read_text(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        if not _looks_like_an_audit(file):
            raise RunError(f"{file}: neither a ledger nor a signed audit") from None
        return _verified(file, "signed audit", [Finding(line=0, rule="form", text=str(error)[:300])], {"chain": "form"})
    found = signed.audit.findings
    details = {
        "chain": f"layout {signed.audit.schema_version}, made {signed.audit.made}",
        "signatures": f"auditor's key {signed.key[:16]}",
        "epsilon": "computed again: "
        + ", ".join(
            f"{one.name} {one.epsilon:.4f}" if one.epsilon is not None else one.name for one in signed.audit.data_sets
        ),
    }
    notes = [
        f"The audit itself has {plural(len(found), 'finding')}." if found else "The audit itself found nothing wrong."
    ]
    return _verified(file, "signed audit", check_signed(signed, trusted=trusted), details, notes=notes)


def _verified(
    path: Path, kind: str, findings: Sequence[Finding], details: dict[str, str], *, notes: Sequence[str] = ()
) -> Verified:
    """With a verdict on each check: those in `details`, and every other one that found something."""
    unique = tuple(sorted(dict.fromkeys(findings), key=lambda finding: finding.line))
    counts = dict.fromkeys(details, 0)
    for finding in unique:
        name = next((check for check, rules in _CHECKS.items() if finding.rule in rules), "policy")
        counts[name] = counts.get(name, 0) + 1
    checks = tuple(
        Check(name=name, passed=not count, detail=details.get(name, "") or f"{count} found")
        for name, count in counts.items()
    )
    return Verified(
        path=str(path), kind=kind, epsilon=None, delta=None, checks=checks, findings=unique, notes=tuple(notes)
    )


def _is_database(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            return stream.read(len(_DATABASE)) == _DATABASE
    except OSError as error:
        raise RunError(f"{file}: cannot be read: {error.strerror}") from None


def _looks_like_an_audit(file: Path) -> bool:
    try:
        return b'"audit"' in file.read_bytes()
    except OSError:
        return False
