"""Read a ledger, or a copy of one, without its keys and without writing to it.

    books = read_ledger(Path("run/ledgers/books.db"))
    books.findings            # what is wrong with the chain; empty if nothing is
    books.entries             # the charges, and what became of each
    heads = read_heads(Path("run/heads.db"))         # the coordinator's log: heads by domain, and its own findings

What cannot be read is a finding, and the rest is read all the same.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from isthmus.privacy.accounting import Spending
from isthmus.privacy.entries import LedgerEntry, entry_of
from isthmus.privacy.examination import Finding, compare_heads, examined, read_receipts
from isthmus.privacy.heads import Head, Receipt, read_head
from isthmus.privacy.lines import (
    AnyLine,
    Charged,
    Layers,
    Noted,
    Opened,
    PolicyInForce,
    RefusedLine,
    Released,
    Withheld,
    one_line,
)
from isthmus.privacy.links import LEDGER_TABLES, Link, file_problem, links_of, open_copy


@dataclass(frozen=True, kw_only=True)
class Books:
    """A ledger as somebody else reads it.

    Attributes:
        path: Of the file.
        ledger: Its id, hex; empty if the first line cannot be read.
        owner: `domain`, or `coordinator` for a log of heads.
        name: Of the domain.
        links: Of the chain.
        lines: What the readable ones say, in order.
        entries: The charges among them.
        receipts: The coordinator's, kept beside the chain.
        findings: What is wrong.
    """

    path: Path
    ledger: str
    owner: str
    name: str
    links: tuple[Link, ...]
    lines: tuple[AnyLine, ...]
    entries: tuple[LedgerEntry, ...]
    receipts: tuple[Receipt, ...]
    findings: tuple[Finding, ...]

    @property
    def spending(self) -> Spending:
        """Everything that was charged."""
        return Spending.of(entry.event for entry in self.entries)

    @property
    def policies(self) -> tuple[PolicyInForce, ...]:
        """The policies that were in force, oldest first."""
        return tuple(line for line in self.lines if isinstance(line, PolicyInForce))

    @property
    def layers(self) -> dict[str, tuple[str, ...]]:
        """Names of the parameters that releases hold, by the digest that charges give."""
        return {line.digest: line.names for line in self.lines if isinstance(line, Layers)}

    @property
    def refusals(self) -> tuple[RefusedLine, ...]:
        """What was refused."""
        return tuple(line for line in self.lines if isinstance(line, RefusedLine))


@dataclass(frozen=True, kw_only=True)
class NotedHeads:
    """A coordinator's log as somebody else reads it.

    Attributes:
        path: Of the file.
        heads: What each domain's ledger was said to be, by domain, oldest first.
        findings: What is wrong with the log itself.
    """

    path: Path
    heads: dict[str, tuple[Head, ...]]
    findings: tuple[Finding, ...]


def read_ledger(path: Path, *, trusted: bytes | None = None, heads: Iterable[Head] = ()) -> Books:
    """Read and check a ledger.

    Args:
        path: Of the file.
        trusted: Public key that its first line must name; None to take its word.
        heads: Of the same domain, from the coordinator's log.

    Raises:
        RunError: If the file is no ledger at all.
    """
    with open_copy(path) as db:
        links = links_of(db)
        lines, found = examined(links, trusted=trusted)
        opened = lines[0] if lines and isinstance(lines[0], Opened) else None
        tables = () if opened is not None and opened.owner == "coordinator" else LEDGER_TABLES
        findings = _problem(db, links, tables)
        receipts, broken = read_receipts(_kept_texts(db) if tables else [])
    findings += [*found, *broken]
    findings += compare_heads(links, [*heads, *(read_head(receipt.head) for receipt in receipts)])
    outcomes = {line.charge: line for line in lines if isinstance(line, Released | Withheld)}
    entries = []
    for line in lines:
        if isinstance(line, Charged):
            try:
                entries.append(entry_of(line, outcomes.get(line.seq)))
            except ValueError:
                continue  # the examination found it
    return Books(
        path=path,
        ledger=opened.ledger if opened else "",
        owner=opened.owner if opened else "domain",
        name=opened.name if opened else path.stem,
        links=tuple(links),
        lines=tuple(lines),
        entries=tuple(entries),
        receipts=tuple(receipts),
        findings=tuple(findings),
    )


def read_heads(path: Path, *, trusted: bytes | None = None) -> NotedHeads:
    """Read and check a coordinator's log.

    Raises:
        RunError: If the file is no such log at all.
    """
    with open_copy(path) as db:
        links = links_of(db)
        findings = _problem(db, links, ())
    lines, found = examined(links, trusted=trusted)
    findings += found
    heads: dict[str, list[Head]] = {}
    for line in lines:
        if isinstance(line, Noted):
            try:
                heads.setdefault(line.domain, []).append(read_head(line.head))
            except ValueError as error:
                findings.append(Finding(line=line.seq, rule="head", text=one_line(str(error)[:300])))
    return NotedHeads(path=path, heads={name: tuple(found) for name, found in heads.items()}, findings=tuple(findings))


def _kept_texts(db: sqlite3.Connection) -> list[str]:
    """The texts of the receipts beside a chain; none where there is no such table, which is found anyway."""
    try:
        return [text for (text,) in db.execute("SELECT text FROM receipts ORDER BY rowid")]
    except sqlite3.OperationalError:
        return []


def _problem(db: sqlite3.Connection, links: Sequence[Link], tables: tuple[str, ...]) -> list[Finding]:
    """What is wrong with the file apart from its lines; nothing if it is an empty one, which is found anyway."""
    problem = file_problem(db, tables) if links else ""
    return [Finding(line=0, rule="file", text=problem)] if problem else []
