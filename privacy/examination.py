"""Is a chain what its owner wrote, whole and in order? Nothing about it is believed before it was checked.

    findings = examine(read_links(path), trusted=public_key)
    findings += compare_heads(links, heads)        # the other side's copy: what the chain must contain

A finding names the line and what is wrong with it. No finding means: every line was signed by the key in
force when it was written, follows the one before it, and is in the form that this version writes. Whether the end
was cut off only the other side's heads can tell.
"""

import bisect
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from isthmus.privacy.entries import read_event
from isthmus.privacy.heads import Head, Receipt, read_receipt
from isthmus.privacy.keys import SignatureError, check_signature
from isthmus.privacy.lines import (
    AnyLine,
    Charged,
    Ebbed,
    Flooded,
    Layers,
    Opened,
    PolicyInForce,
    RefusedLine,
    Released,
    Revoked,
    Rotated,
    Withheld,
    from_text,
    names_digest,
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
    layers: set[str] = field(default_factory=set)
    flood: int = 0
    """Line from which on refusals are counted and not written; 0 while they are written."""

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

    A head is signed by the key that it names, and anybody can name a key of their own. So a head is the owner's word
    only if this chain says that its key was in force after the line it shows, or is in force at the chain's end.

    Args:
        links: Of one chain, examined already.
        heads: What others keep as this owner's, their signatures checked (`read_head`).

    Guarantees:
        - A cut tail, a restored older copy and a rewritten past are found (`truncated`, `rewritten`) if a head was sent
          after them, under a key that what is left of the chain still names.
        - Nobody without a key of the chain can make it look cut or rewritten: a head under any other key is a
          `foreign-head`, one finding for each such key.
        - A head that contradicts the chain, under a key of the chain that was replaced before that line or is revoked
          from it, is a `retired-head`; one that agrees with the chain is nothing.
        - A head of another ledger is a `second-ledger`.

    What cannot be told apart by these files alone:
        - A `foreign-head` that somebody made up, and one of a lost end or rewritten past in which the key was rotated:
          the rotation that would tie the key to the chain is gone. The copy that holds it can show it.
        - A `retired-head` of lines that were replaced by an older copy whose key was rotated afterwards, and one by
          whoever kept or stole the old key.
        - A `second-ledger` that the domain began, and one that somebody made up: its key is another one either way. It
          rests on the name under which it is kept.
        - What the thief of the key in force signs, and what its owner does, until it is revoked.
    """
    reading, keys = _Reading(), _KeyTerms.of(links)
    foreign: dict[str, set[int]] = {}
    digests = {link.seq: link.digest.hex() for link in links}
    end = max(digests, default=0)
    for head in heads:
        if head.ledger != keys.ledger:
            text = (
                f"a head of ledger {head.ledger} is known, under key {head.key[:16]}; this is {keys.ledger or 'none'}"
            )
            reading.find(0, "second-ledger", text)
        elif head.key not in keys.since:
            foreign.setdefault(head.key, set()).add(head.seq)
        elif digests.get(head.seq) == head.digest:
            continue
        elif not keys.speaks(head):
            text = (
                f"others were shown line {head.seq} as {head.digest[:16]}, under key {head.key[:16]}, {keys.end(head)}"
            )
            reading.find(head.seq if head.seq in digests else 0, "retired-head", text)
        elif head.seq not in digests:
            reading.find(0, "truncated", f"line {head.seq} was shown to others, this copy ends at {end}")
        else:
            reading.find(
                head.seq, "rewritten", f"others were shown {head.digest[:16]}, here is {digests[head.seq][:16]}"
            )
    for key, lines in foreign.items():
        reading.find(0, "foreign-head", _foreign(key, sorted(lines), end))
    return reading.findings


def fitting_heads(links: Sequence[Link], heads: Iterable[Head]) -> list[Head]:
    """Those heads that are the owner's word about a line as it stands in a chain: somebody else has seen it so."""
    keys, digests = _KeyTerms.of(links), {link.seq: link.digest.hex() for link in links}
    return [
        head
        for head in heads
        if head.ledger == keys.ledger and keys.speaks(head) and digests.get(head.seq) == head.digest
    ]


def read_receipts(texts: Iterable[str]) -> tuple[list[Receipt], list[Finding]]:
    """The receipts among texts that somebody kept, and a finding for each of the others."""
    receipts, reading = [], _Reading()
    for text in texts:
        try:
            receipts.append(read_receipt(text))
        except ValueError as error:
            reading.find(0, "receipt", str(error)[:300])
    return receipts, reading.findings


@dataclass(frozen=True, kw_only=True)
class _KeyTerms:
    """Which key spoke for a chain when, by its own lines.

    Attributes:
        ledger: Id of the chain; empty if its first line cannot be read.
        lines: That put a key in force, in order.
        keys: Hex, in the same order.
        since: The line from which on each key signs heads.
        revoked: Lines from which on keys are not believed.
    """

    ledger: str
    lines: tuple[int, ...]
    keys: tuple[str, ...]
    since: dict[str, int]
    revoked: dict[str, int]

    @classmethod
    def of(cls, links: Sequence[Link]) -> "_KeyTerms":
        """From the lines that open, rotate and revoke."""
        said = [_key_line(link) for link in links]
        opened = said[0] if said and isinstance(said[0], Opened) else None
        named = [line for line in said if line is opened or isinstance(line, Rotated)] if opened else []
        return cls(
            ledger=opened.ledger if opened else "",
            lines=tuple(line.seq for line in named),
            keys=tuple(line.key for line in named),
            since={line.key: line.seq for line in reversed(named)},
            revoked={line.key: line.since for line in said if isinstance(line, Revoked)},
        )

    def speaks(self, head: Head) -> bool:
        """Whether a head's key was in force after the line that it shows (beyond the end: is so), and is believed."""
        at = bisect.bisect_right(self.lines, head.seq) - 1
        in_force = at >= 0 and self.keys[at] == head.key
        return in_force and not head.seq >= self.revoked.get(head.key, head.seq + 1)

    def end(self, head: Head) -> str:
        """Why a key of the chain does not speak for a line, in words."""
        if head.seq >= self.revoked.get(head.key, head.seq + 1):
            return f"which is revoked from line {self.revoked[head.key]} on"
        if head.seq < self.since[head.key]:
            return f"which was not in force before line {self.since[head.key]}"
        return f"which line {self.lines[self.keys.index(head.key) + 1]} replaced"


def _key_line(link: Link) -> Opened | Rotated | Revoked | None:
    """What a link says of keys, if it does; canonical text holds no such words anywhere else."""
    if not any(f'"type":"{kind}"' in link.body for kind in ("opened", "rotated", "revoked")):
        return None
    try:
        line = from_text(link.body)
    except ValueError:
        return None
    return line if isinstance(line, Opened | Rotated | Revoked) else None


def _foreign(key: str, lines: Sequence[int], end: int) -> str:
    """What heads under a key that a chain never had say of it, for an auditor."""
    if lines[-1] > end:
        otherwise = f"an end was lost in which the key was replaced (this copy ends at line {end})"
    else:
        otherwise = "lines were rewritten so that a replacement of the key is gone"
    which = f"line {lines[0]}" if len(lines) == 1 else f"{len(lines)} lines from {lines[0]} to {lines[-1]}"
    return (
        f"a statement about {which} names this ledger and is signed by key {key[:16]}, which this ledger never had: by "
        f"itself no evidence against it. Either somebody made it up, or {otherwise}; who says so must show the "
        f"rotation to that key"
    )


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
    if isinstance(line, Opened | Rotated | Revoked):
        _read_keys(reading, link, line)
    elif isinstance(line, Charged):
        _read_charge(reading, line)
    elif isinstance(line, Released | Withheld):
        if reading.charges.get(line.charge) is not False:
            reading.find(link.seq, "outcome", f"line {line.charge} is no open charge")
        reading.charges[line.charge] = True
    elif isinstance(line, PolicyInForce):
        if hashlib.sha256(line.text.encode()).hexdigest() != line.digest:
            reading.find(link.seq, "policy", "its digest is not that of its text")
    elif isinstance(line, Layers):
        reading.layers.add(line.digest)
        if names_digest(line.names) != line.digest:
            reading.find(link.seq, "names", "its digest is not that of its names")
    elif isinstance(line, RefusedLine | Flooded | Ebbed):
        _read_refusal(reading, line)


def _read_keys(reading: _Reading, link: Link, line: Opened | Rotated | Revoked) -> None:
    """Which key is in force from the next line on, and which is not believed any more."""
    if isinstance(line, Opened):
        if link.seq != 1:
            reading.find(link.seq, "opening", "a chain is opened once")
    elif isinstance(line, Rotated):
        new = bytes.fromhex(line.key)
        try:
            check_signature(new, rotation_message(reading.ledger, reading.key), bytes.fromhex(line.proof))
        except SignatureError as error:
            reading.find(link.seq, "rotation", f"the new key did not agree: {error}")
        reading.key = new
    else:
        _read_revocation(reading, line)


def _read_charge(reading: _Reading, line: Charged) -> None:
    question = (line.run, line.round, line.kind)
    if question in reading.questions:
        reading.find(line.seq, "twice", f"the {line.kind} of round {line.round} of run {line.run!r} was charged before")
    reading.questions.add(question)
    reading.charges[line.seq] = False
    if line.layers and line.layers not in reading.layers:
        reading.find(line.seq, "names", f"no line before it names the parameters {line.layers[:16]}")
    try:
        read_event(line.event)
    except ValueError as error:
        reading.find(line.seq, "event", str(error)[:300])


def _read_refusal(reading: _Reading, line: RefusedLine | Flooded | Ebbed) -> None:
    """Refusals are written, or counted; a count belongs to the flood before it and ends it."""
    if isinstance(line, Ebbed):
        if line.flood != reading.flood or not reading.flood:
            reading.find(line.seq, "flood", f"it counts refusals from line {line.flood} on, where no open flood is")
        reading.flood = 0
    elif reading.flood:
        reading.find(line.seq, "flood", f"the refusals from line {reading.flood} on were not counted before it")
    if isinstance(line, Flooded):
        reading.flood = line.seq


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
