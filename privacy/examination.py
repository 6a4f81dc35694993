"""Is a chain what its owner wrote, whole and in order? Nothing about it is believed before it was checked.

    findings = examine(read_links(path), trusted=public_key)
    findings += compare_heads(links, heads)        # the other side's copy: what the chain must contain

A finding names the line and what is wrong with it. No finding means: every line was signed by the key in
force when it was written, follows the one before it, and is in the form that this version writes. Whether the end
was cut off only the other side's heads can tell.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from isthmus.privacy.entries import read_event
from isthmus.privacy.heads import Head, Receipt, read_receipt
from isthmus.privacy.keys import SignatureError, check_signature
from isthmus.privacy.lines import (
    AnyLine,
    Charged,
    Opened,
    PolicyInForce,
    Released,
    Revoked,
    Rotated,
    Withheld,
    from_text,
    one_line,
)
from isthmus.privacy.links import START, Link, link_digest, link_message, rotation_message


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        line: Its position in the chain; 0 if it is about the chain as a whole.
        rule: Which check, in one word, stable.
        text: What was seen.
    """

    line: int
    rule: str
    text: str


@dataclass(kw_only=True)
class _Reading:
    """What is known while reading from the first line to the last."""

    findings: list[Finding] = field(default_factory=list)
    lines: list[AnyLine] = field(default_factory=list)
    ledger: str = ""
    key: bytes = b""
    signers: dict[int, str] = field(default_factory=dict)
    charges: dict[int, bool] = field(default_factory=dict)
    """Lines that charge, and whether it is known what became of them."""
    questions: set[tuple[str, int, str]] = field(default_factory=set)

    def find(self, line: int, rule: str, text: str) -> None:
        self.findings.append(Finding(line=line, rule=rule, text=one_line(text)))


def examine(links: Sequence[Link], *, trusted: bytes | None = None) -> list[Finding]:
    """What is wrong with a chain; see `examined`."""
    return examined(links, trusted=trusted)[1]


def examined(links: Sequence[Link], *, trusted: bytes | None = None) -> tuple[list[AnyLine], list[Finding]]:
    """Check a whole chain.

    Args:
        links: As they lie in the file.
        trusted: The public key that its first line must name, known from elsewhere; None to take its word.

    Returns:
        The lines that can be read, in order, and what is wrong; empty if nothing is.

    Guarantees:
        - An edited, inserted, deleted or reordered line is found, wherever it is (at the end: by `compare_heads`).
        - A chain that was signed anew with another key is found, given the trusted one.
        - A text with a control character or line break is found.
    """
    reading = _Reading()
    if not links:
        reading.find(0, "empty", "the file holds no line")
    before = START
    for position, link in enumerate(links, start=1):
        _check_place(reading, link, position=position, before=before)
        before = link.digest
        try:
            line = from_text(link.body)
        except ValueError as error:
            reading.find(link.seq, "form", str(error)[:300])
            _check_signature(reading, link)
            continue
        reading.lines.append(line)
        if line.seq != link.seq:
            reading.find(link.seq, "order", f"the line says that it is line {line.seq}")
        if position == 1:
            _check_first(reading, link, line, trusted)
        _check_signature(reading, link)
        _read(reading, link, line)
    return reading.lines, reading.findings


def compare_heads(links: Sequence[Link], heads: Iterable[Head]) -> list[Finding]:
    """Check that a chain contains what it once said to others.

    Args:
        links: Of one chain, examined already.
        heads: Of the same owner, their signatures checked (`read_head`).

    Guarantees:
        - A cut tail, a restored older copy and a rewritten past are found if a head was sent after them.
        - A second ledger of the same owner is found.
    """
    reading = _Reading()
    digests = {link.seq: link.digest.hex() for link in links}
    opened = _opened(links)
    for head in heads:
        if opened is None or head.ledger != opened.ledger:
            mine = opened.ledger if opened else "none"
            reading.find(0, "second-ledger", f"a head of ledger {head.ledger} is known, this is {mine}")
        elif head.seq not in digests:
            end = max(digests, default=0)
            reading.find(0, "truncated", f"line {head.seq} was shown to others, this copy ends at {end}")
        elif digests[head.seq] != head.digest:
            reading.find(
                head.seq, "rewritten", f"others were shown {head.digest[:16]}, here is {digests[head.seq][:16]}"
            )
    return reading.findings


def read_receipts(texts: Iterable[str]) -> tuple[list[Receipt], list[Finding]]:
    """The receipts among texts that somebody kept, and a finding for each of the others."""
    receipts, reading = [], _Reading()
    for text in texts:
        try:
            receipts.append(read_receipt(text))
        except ValueError as error:
            reading.find(0, "receipt", str(error)[:300])
    return receipts, reading.findings


def _opened(links: Sequence[Link]) -> Opened | None:
    try:
        line = from_text(links[0].body)
    except (ValueError, IndexError):
        return None
    return line if isinstance(line, Opened) else None


def _check_place(reading: _Reading, link: Link, *, position: int, before: bytes) -> None:
    if link.seq != position:
        reading.find(link.seq, "order", f"line {link.seq} stands at place {position}")
    if link.previous != before:
        reading.find(link.seq, "link", "it does not follow from the line before it")
    if link.digest != link_digest(link.previous, link.body):
        reading.find(link.seq, "digest", "its text is not the one that was hashed")


def _check_first(reading: _Reading, link: Link, line: AnyLine, trusted: bytes | None) -> None:
    if not isinstance(line, Opened):
        reading.find(link.seq, "opening", f"a chain begins with a line of type 'opened', not {line.type!r}")
        return
    reading.ledger, reading.key = line.ledger, bytes.fromhex(line.key)
    if trusted is not None and reading.key != trusted:
        reading.find(link.seq, "key", f"opened by key {line.key[:16]}, trusted is {trusted.hex()[:16]}")


def _check_signature(reading: _Reading, link: Link) -> None:
    if link.key != reading.key:
        reading.find(link.seq, "key", f"signed by {link.key.hex()[:16]}, in force is {reading.key.hex()[:16]}")
    try:
        check_signature(link.key, link_message(link.digest), link.signature)
    except SignatureError as error:
        reading.find(link.seq, "signature", str(error))
    reading.signers[link.seq] = link.key.hex()


def _read(reading: _Reading, link: Link, line: AnyLine) -> None:
    """What a well-formed line means for the ones after it."""
    if isinstance(line, Opened) and link.seq != 1:
        reading.find(link.seq, "opening", "a chain is opened once")
    elif isinstance(line, Rotated):
        new = bytes.fromhex(line.key)
        try:
            check_signature(new, rotation_message(reading.ledger, reading.key), bytes.fromhex(line.proof))
        except SignatureError as error:
            reading.find(link.seq, "rotation", f"the new key did not agree: {error}")
        reading.key = new
    elif isinstance(line, Revoked):
        _read_revocation(reading, line)
    elif isinstance(line, Charged):
        _read_charge(reading, line)
    elif isinstance(line, Released | Withheld):
        if reading.charges.get(line.charge) is not False:
            reading.find(link.seq, "outcome", f"line {line.charge} is no open charge")
        reading.charges[line.charge] = True
    elif isinstance(line, PolicyInForce) and hashlib.sha256(line.text.encode()).hexdigest() != line.digest:
        reading.find(link.seq, "policy", "its digest is not that of its text")


def _read_charge(reading: _Reading, line: Charged) -> None:
    question = (line.run, line.round, line.kind)
    if question in reading.questions:
        reading.find(line.seq, "twice", f"the {line.kind} of round {line.round} of run {line.run!r} was charged before")
    reading.questions.add(question)
    reading.charges[line.seq] = False
    try:
        read_event(line.event)
    except ValueError as error:
        reading.find(line.seq, "event", str(error)[:300])


def _read_revocation(reading: _Reading, line: Revoked) -> None:
    doubted = [seq for seq, key in reading.signers.items() if key == line.key and seq >= line.since]
    allowed = line.seq - 1  # the rotation itself was the old key's last word
    doubted = [seq for seq in doubted if seq != allowed]
    if doubted:
        reading.find(
            line.seq,
            "revoked",
            f"{len(doubted)} lines from {doubted[0]} on are signed by a key that was revoked ({line.reason})",
        )
