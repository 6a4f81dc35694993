"""Statements that one side makes and the other side keeps: where a ledger stood, and who has seen it.

    head = make_head(ledger_id, seq, digest, keys)      # the domain's; goes along with every reply
    head = read_head(text)                              # ValueError unless it is signed by the key it names
    receipt = make_receipt(head, run=..., round=..., time=..., keys=keys)   # the coordinator's; goes back

A ledger whose tail was cut off, or that was replaced by an older copy, is consistent in itself. It does not
contain what its own earlier heads say, though, and those lie with the coordinator; and a coordinator that
denies having got a head is contradicted by its receipt.

Reference: Laurie, Langley and Kasper, "Certificate Transparency", RFC 6962, 2013 (signed tree heads).
"""

import json
import re
from dataclasses import asdict, dataclass
from typing import Any

from isthmus.privacy.keys import Keys, check_signature
from isthmus.privacy.lines import one_line

_FORMS = {
    "ledger": re.compile(r"[0-9a-f]{32}"),
    "digest": re.compile(r"[0-9a-f]{64}"),
    "key": re.compile(r"[0-9a-f]{64}"),
    "signature": re.compile(r"[0-9a-f]{128}"),
    "time": re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}\+00:00"),
}
"""What a field must look like, whoever signed it; the others are text that prints as one line."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """Where a chain stood: a statement by its owner.

    Attributes:
        ledger: Id of the chain, hex.
        seq: Its last line.
        digest: Of that line's link, hex.
        key: Public key that signed this, hex.
        signature: Hex.
    """

    ledger: str
    seq: int
    digest: str
    key: str
    signature: str

    def text(self) -> str:
        """One line of JSON."""
        return _text(asdict(self))


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """The coordinator's word that it has received a head.

    Attributes:
        head: Its text.
        run: Of the federation.
        round: Of the run.
        time: When, by the coordinator's clock; UTC, ISO 8601.
        key: The coordinator's public key, hex.
        signature: Hex.
    """

    head: str
    run: str
    round: int
    time: str
    key: str
    signature: str

    def text(self) -> str:
        """One line of JSON."""
        return _text(asdict(self))


def make_head(ledger: str, seq: int, digest: bytes, keys: Keys) -> Head:
    """A signed statement that a chain stands at this link."""
    said = {"ledger": ledger, "seq": seq, "digest": digest.hex(), "key": keys.public.hex()}
    return Head(ledger=ledger, seq=seq, digest=digest.hex(), key=keys.public.hex(), signature=_signed(said, keys))


def read_head(text: str) -> Head:
    """A head from its text.

    Raises:
        ValueError: If it is none, or is not signed by the key it names.
    """
    fields = _fields(text, {"ledger": str, "seq": int, "digest": str, "key": str, "signature": str})
    return Head(**fields)


def make_receipt(head: Head, *, run: str, round: int, time: str, keys: Keys) -> Receipt:  # noqa: A002 - of a run
    """A signed statement that a head was received."""
    said = {"head": head.text(), "run": run, "round": round, "time": time, "key": keys.public.hex()}
    return Receipt(
        head=head.text(), run=run, round=round, time=time, key=keys.public.hex(), signature=_signed(said, keys)
    )


def read_receipt(text: str) -> Receipt:
    """A receipt from its text; the head in it is checked as well.

    Raises:
        ValueError: If it is none, or is not signed by the key it names.
    """
    fields = _fields(text, {"head": str, "run": str, "round": int, "time": str, "key": str, "signature": str})
    read_head(str(fields["head"]))
    return Receipt(**fields)


def _fields(text: str, kinds: dict[str, type]) -> dict[str, Any]:
    """The fields of a signed statement in canonical form."""
    try:
        fields = json.loads(text)
        if not isinstance(fields, dict) or {name: type(value) for name, value in fields.items()} != kinds:
            raise ValueError("its fields are not those of one")
        if _text(fields) != text:
            raise ValueError("not in canonical form")
        for name, value in fields.items():
            form = _FORMS.get(name)
            if isinstance(value, int) and not 0 <= value < 2**53:
                raise ValueError(f"{name} is {value}"[:80])
            if isinstance(value, str) and not (form.fullmatch(value) if form else value.isprintable()):
                raise ValueError(f"{name} is {value!r:.80}")
        said = {name: value for name, value in fields.items() if name != "signature"}
        check_signature(bytes.fromhex(fields["key"]), _message(said), bytes.fromhex(fields["signature"]))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"not a signed statement about a ledger: {one_line(str(error)):.200}") from None
    return fields


def _signed(said: dict[str, Any], keys: Keys) -> str:
    return keys.sign(_message(said)).hex()


def _message(said: dict[str, Any]) -> bytes:
    return b"isthmus statement 1\n" + _text(said).encode()


def _text(fields: dict[str, Any]) -> str:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
