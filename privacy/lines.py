"""What a line of a ledger can say: one closed set of records, written as canonical JSON.

    text = to_text(Charged(seq=2, time=..., run="r1", ...))     # ASCII, keys sorted, one line
    line = from_text(text)                                      # ValueError if it is not exactly such a text

Every field is checked when a line is written and again when one is read. A text holds no control
character and no line break, so that nothing a coordinator names itself can forge a line in a log or on a
terminal. Kinds of line are never removed and never change meaning; new ones may come.

| `type`      | written when                                                                            |
|-------------|-----------------------------------------------------------------------------------------|
| `opened`    | the ledger is made: its id, its owner's name, the first signing key                       |
| `policy`    | the policy in force is another one than before: its text                                  |
| `layers`    | before the first charge for a release of these parameters: their names                    |
| `started`   | before the first charge of a run that began with what was trained in the open: on what     |
| `charged`   | before a release is computed: what it is, what it costs, for whom, under which policy      |
| `released`  | the finished release was kept and may leave: hash of its bytes                            |
| `withheld`  | what was computed may not leave; it stays paid for                                        |
| `refused`   | a rule said no: the rule, what was asked, the limit                                       |
| `flooded`   | too many refusals in a day: from here on they are counted and not written singly          |
| `ebbed`     | the day is over: how many were not written                                                |
| `rotated`   | another signing key is in force from the next line on                                     |
| `revoked`   | a key was lost: nothing it signed from a line on is believed                              |
| `noted`     | the coordinator's log only: a domain said where its ledger stands                         |
"""

import datetime as dt
import hashlib
import json
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

FORMAT: Literal[1] = 1
"""Version of the lines."""

_LONGEST = 2000
LONGEST_DOCUMENT = 100_000
"""Characters of a policy."""


def one_line(text: str, longest: int = _LONGEST) -> str:
    """Any text as one that a line can hold: visible characters only, not too long."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text[:longest])
    return shown if len(text) <= longest else shown[:-1] + "…"


def names_digest(names: Iterable[str]) -> str:
    """(64 hex digits) SHA-256 of names, sorted, each ended by a line break, which no name holds."""
    return hashlib.sha256("".join(f"{name}\n" for name in sorted(names)).encode()).hexdigest()


def _printable(text: str) -> str:
    """A text that prints as one line of visible characters."""
    if not text.isprintable():
        raise ValueError(f"a control character or line break in {text!r:.80}")
    return text


def _moment(text: str) -> str:
    """A time that exists."""
    dt.datetime.fromisoformat(text)
    return text


def _in_order(names: tuple[str, ...]) -> tuple[str, ...]:
    """Names that come sorted, each once."""
    if list(names) != sorted(set(names)):
        raise ValueError("names must be sorted, each once")
    return names


Text = Annotated[str, Field(max_length=_LONGEST), AfterValidator(_printable)]
Document = Annotated[str, Field(max_length=LONGEST_DOCUMENT), AfterValidator(_printable)]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
MaybeHash = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
Hex = Annotated[str, Field(pattern=r"^([0-9a-f]{2}){0,512}$")]
Time = Annotated[
    str,
    Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}\+00:00$"),
    AfterValidator(_moment),
]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Norm = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Line(BaseModel):
    """One line.

    Attributes:
        v: Format.
        seq: Position in the chain, from 1.
        time: UTC, ISO 8601.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    v: Literal[1] = 1
    seq: Annotated[int, Field(ge=1, lt=2**53)]
    time: Time


class Opened(Line):
    """The first line: `ledger` is its random id, `owner` what keeps it, `key` signs from here on."""

    type: Literal["opened"] = "opened"
    owner: Literal["domain", "coordinator"]
    ledger: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    name: Text
    key: Hash


class PolicyInForce(Line):
    """From here on: `digest` is the SHA-256 of `text`, canonical JSON."""

    type: Literal["policy"] = "policy"
    digest: Hash
    text: Document


class Layers(Line):
    """Parameters that releases hold: `digest` is that of their `names` (`names_digest`); charges refer to it."""

    type: Literal["layers"] = "layers"
    digest: Hash
    names: Annotated[tuple[Text, ...], Field(min_length=1, max_length=10_000), AfterValidator(_in_order)]


class Started(Line):
    """What a run began with, by the coordinator's word: trained without noise on public histories.

    Attributes:
        run: Of the federation.
        start: SHA-256 of the backbone file.
        domains: Whose histories.
        users: Of all of them.
    """

    type: Literal["started"] = "started"
    run: Text
    start: Hash
    domains: Annotated[tuple[Text, ...], Field(min_length=1, max_length=100)]
    users: Count


class Charged(Line):
    """A release that is paid for.

    Attributes:
        dataset: Keyed hash of the data.
        run: Of the federation.
        round: Of the run.
        kind: What is released.
        request: Digest of everything the release depends on besides the data.
        event: What it costs, in the encoding of `isthmus.privacy.accounting`.
        clip: Norm to which one user's contribution is clipped; None where the release has no such norm of its own.
        layers: Digest of the names of the parameters that it holds; empty where it holds none.
        private: False if its noise can be repeated.
        version: Of Isthmus.
        code: Hash of the program that wrote this.
        policy: Digest of the policy in force; empty before there is one.
        coordinator: Public key of who asked; empty where the request was not signed.
    """

    type: Literal["charged"] = "charged"
    dataset: Hex
    run: Text
    round: Count
    kind: Text
    request: Hex
    event: Text
    clip: Norm | None
    layers: MaybeHash
    private: bool
    version: Text
    code: MaybeHash
    policy: MaybeHash
    coordinator: MaybeHash


class Released(Line):
    """The release of line `charge` was kept: `payload` is the SHA-256 of its bytes."""

    type: Literal["released"] = "released"
    charge: Count
    payload: Hash


class Withheld(Line):
    """What line `charge` paid for did not leave, and never will."""

    type: Literal["withheld"] = "withheld"
    charge: Count
    reason: Text


class RefusedLine(Line):
    """A rule said no. Nothing was charged for the refusal itself; for rule `finite`, the release had been paid for."""

    type: Literal["refused"] = "refused"
    run: Text
    round: Count
    kind: Text
    rule: Text
    asked: Text
    limit: Text
    coordinator: MaybeHash


class Flooded(Line):
    """The day has seen `most` refusals: further ones are counted and not written, until the next day (UTC)."""

    type: Literal["flooded"] = "flooded"
    most: Count


class Ebbed(Line):
    """`count` refusals were not written after line `flood`; those that repeat a written one are never counted."""

    type: Literal["ebbed"] = "ebbed"
    flood: Count
    count: Count


class Rotated(Line):
    """`key` is in force from the next line on; `proof` is its signature over the ledger's id and the old key."""

    type: Literal["rotated"] = "rotated"
    key: Hash
    proof: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]
    reason: Text


class Revoked(Line):
    """Nothing that `key` signed in line `since` or later is believed."""

    type: Literal["revoked"] = "revoked"
    key: Hash
    since: Count
    reason: Text


class Noted(Line):
    """A domain's head as the coordinator received it, `head` in its own signed text."""

    type: Literal["noted"] = "noted"
    domain: Text
    run: Text
    round: Count
    head: Text


AnyLine = Annotated[
    Opened
    | PolicyInForce
    | Layers
    | Started
    | Charged
    | Released
    | Withheld
    | RefusedLine
    | Flooded
    | Ebbed
    | Rotated
    | Revoked
    | Noted,
    Field(discriminator="type"),
]
_READER: TypeAdapter[AnyLine] = TypeAdapter(AnyLine)


def to_text(line: Line) -> str:
    """The line as canonical JSON: ASCII, keys sorted, no spaces."""
    return json.dumps(line.model_dump(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def from_text(text: str) -> AnyLine:
    """The line that a text says.

    Raises:
        ValueError: If it is not the canonical text of a line.
    """
    try:
        line = _READER.validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(one_line(f"not a line: {where}: {first['msg']}")) from None
    if to_text(line) != text:
        raise ValueError("not in canonical form")
    return line
