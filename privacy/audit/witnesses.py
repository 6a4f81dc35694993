"""What one side says of a ledger, held against what the other side keeps.

    findings = contradictions(sources, trusted=frozenset({public_key}))

A chain that was cut, replaced by an older copy or begun anew is consistent in itself. It contradicts the heads in a
coordinator's log, the receipts beside it, or the key that its reader knows from elsewhere.
"""

import hashlib
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from isthmus.privacy.audit.sources import Sources, is_beginning, noted_heads
from isthmus.privacy.examination import Finding, compare_heads
from isthmus.privacy.heads import Head, read_head
from isthmus.privacy.lines import Charged, Opened, Released, Rotated
from isthmus.privacy.links import open_copy
from isthmus.privacy.reading import Books
from isthmus.report.numbers import plural


def contradictions(
    sources: Sources, *, trusted: frozenset[bytes] = frozenset(), coordinators: frozenset[bytes] = frozenset()
) -> dict[Path, list[Finding]]:
    """Findings by the file, a ledger or log, that they are about.

    Args:
        sources: Ledgers and logs.
        trusted: Public keys of domains, known from elsewhere; every ledger must be signed under one of them. None
            given: each ledger's own word is taken.
        coordinators: The same for coordinators: every log, and every receipt beside a ledger, must be signed under one
            of them, or under a key that such a log was rotated from or to.

    Guarantees:
        - A ledger that lacks what a log of heads says of it, or says otherwise, is found; heads under a key that the
          ledger never had prove nothing, and are found as such (`compare_heads`).
        - Another ledger of the same domain, in a log or among the files, is found.
        - Two copies of one ledger that went different ways are found.
        - A ledger signed under none of the trusted keys is found, and so is a log under none of the coordinators'.
          Trusted is a key that opened it, or one that it was rotated to: the new key signs that it follows the old one.
        - A receipt under a key that is no coordinator's is found.
        - A release that is kept beside a chain and is not the one that was released is found.
        - A coordinator whose log lacks a head for which it gave a receipt is found.
    """
    found: dict[Path, list[Finding]] = defaultdict(list)
    for books in sources.ledgers:
        found[books.path] += compare_heads(books.links, heads_of(books, sources.logs))
        found[books.path] += changed_releases(books)
        found[books.path] += _stranger(books, trusted)
        found[books.path] += _strange_receipts(books, sources.logs, coordinators)
        for other in sources.ledgers:
            if other is not books and other.name == books.name and other.ledger != books.ledger:
                text = (
                    f"{other.path} is another ledger of {other.name!r} ({other.ledger[:8]}, this is {books.ledger[:8]})"
                )
                found[books.path].append(Finding(line=0, rule="second-ledger", text=text))
    for kept, left_out in sources.copies:
        if not is_beginning(left_out, kept):
            text = f"{left_out.path} is a copy that went another way; one of the two was changed"
            found[kept.path].append(Finding(line=0, rule="fork", text=text))
    for log in sources.logs:
        found[log.path] += _denied(log, sources.ledgers)
        found[log.path] += _stranger(log, coordinators)
    return found


def heads_of(books: Books, logs: Iterable[Books]) -> list[Head]:
    """What logs say of a ledger: everything under its id, or under its owner's name."""
    found = []
    for log in logs:
        for line in noted_heads(log):
            if line.domain != books.name and f'"{books.ledger}"' not in line.head:
                continue
            try:
                found.append(read_head(line.head))
            except ValueError:
                continue  # `broken_heads` says so
    return found


def broken_heads(log: Books) -> list[Finding]:
    """Statements in a log that nobody has signed."""
    findings = []
    for line in noted_heads(log):
        try:
            read_head(line.head)
        except ValueError as error:
            findings.append(Finding(line=line.seq, rule="head", text=str(error)[:300]))
    return findings


def changed_releases(books: Books) -> list[Finding]:
    """Releases that are kept beside a chain and are not the ones that it says were released.

    Guarantees:
        - A kept release whose bytes, run, round or kind are not those of its line is found; so is one without a line.
    """
    charged = {line.seq: line for line in books.lines if isinstance(line, Charged)}
    released = {line.charge: line.payload for line in books.lines if isinstance(line, Released)}
    findings = []
    with open_copy(books.path) as db:
        try:
            rows = db.execute("SELECT seq, run, kind, round, payload FROM releases ORDER BY seq").fetchall()
        except sqlite3.OperationalError:
            return []  # the reading found that there is no such table
    for seq, run, kind, round_, payload in rows:
        line = charged.get(seq)
        known = line is not None and (line.run, line.kind, line.round) == (run, kind, round_)
        if not known or hashlib.sha256(payload).hexdigest() != released.get(seq):
            text = "the release that is kept for this line is not the one that it says was released"
            findings.append(Finding(line=seq, rule="payload", text=text))
    return findings


def keys_of(books: Books) -> list[bytes]:
    """The keys under which a chain is signed, oldest first; without those that did not agree to follow."""
    refused = {finding.line for finding in books.findings if finding.rule == "rotation"}
    return [
        bytes.fromhex(line.key)
        for line in books.lines
        if (isinstance(line, Opened) and line.seq == 1) or (isinstance(line, Rotated) and line.seq not in refused)
    ]


def _stranger(books: Books, trusted: frozenset[bytes]) -> list[Finding]:
    """That a chain is signed under none of the trusted keys, if there are any."""
    keys = keys_of(books)
    if not trusted or trusted & set(keys):
        return []
    mine = ", ".join(key.hex()[:16] for key in keys) or "none"
    return [Finding(line=1, rule="key", text=f"signed under key {mine}; trusted is {_shown(trusted)}")]


def _strange_receipts(books: Books, logs: Iterable[Books], coordinators: frozenset[bytes]) -> list[Finding]:
    """Receipts under a key that no trusted coordinator has or had, a finding for each such key."""
    if not coordinators:
        return []
    rotated = [keys_of(log) for log in logs if not _stranger(log, coordinators)]
    known = {key.hex() for key in coordinators.union(*rotated)}
    strange = Counter(receipt.key for receipt in books.receipts if receipt.key not in known)
    trusted = f"trusted coordinator is {_shown(coordinators)}"
    return [
        Finding(line=0, rule="key", text=f"{plural(count, 'receipt')} signed under key {key[:16]}; {trusted}")
        for key, count in strange.items()
    ]


def _shown(keys: frozenset[bytes]) -> str:
    return ", ".join(sorted(key.hex()[:16] for key in keys))


def _denied(log: Books, ledgers: Iterable[Books]) -> list[Finding]:
    """Receipts of this log's coordinator for heads that the log does not hold."""
    keys = {key.hex() for key in keys_of(log)}
    noted = {line.head for line in noted_heads(log)}
    findings = []
    for books in ledgers:
        for receipt in books.receipts:
            if receipt.key in keys and receipt.head not in noted:
                line = read_head(receipt.head).seq
                text = f"it gave {books.name!r} a receipt for line {line} on {receipt.time}, and does not mention it"
                findings.append(Finding(line=0, rule="denied", text=text))
    return findings
