"""What is asked of a ledger, and what it answers with.

charge = Charge(dataset=..., run="r1", round=3, kind="update", request=..., event=..., private=True)
limits = Limits(lifetime=PrivacyBudget(8.0, 1e-6), run=PrivacyBudget(4.0, 1e-6))
"""

from dataclasses import dataclass

from dp_accounting import DpEvent

from isthmus.errors import Refused
from isthmus.privacy.accounting import decode_event, encode_event
from isthmus.privacy.budget import PrivacyBudget
from isthmus.privacy.lines import Charged, Released, Withheld


@dataclass(frozen=True, kw_only=True)
class Charge:
    """One release that somebody asks for.

    Attributes:
        dataset: Content hash of the data it is computed from; only a keyed hash of it is written.
        run: Of the federation.
        round: Of the run, from 0.
        kind: `update`, `metric` or `catalogue`.
        request: Digest of everything the release will depend on besides the data.
        event: What it costs.
        private: False if its noise can be repeated.
        coordinator: Public key of who signed the request, hex; empty if nobody did.
        clip: Norm to which one user's contribution is clipped; None where the release has no such norm of its own.
        layers: Names of the parameters that the release holds, and of no other; empty where it holds none.
    """

    dataset: bytes
    run: str
    round: int
    kind: str
    request: bytes
    event: DpEvent
    private: bool
    coordinator: str = ""
    clip: float | None = None
    layers: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a charge must fit into.

    Attributes:
        lifetime: Everything in the ledger together.
        run: Everything of one run together; None for no limit of its own.
    """

    lifetime: PrivacyBudget
    run: PrivacyBudget | None = None


@dataclass(frozen=True, kw_only=True)
class LedgerEntry:
    """One charge, and what became of it.

    Attributes:
        seq: Position in the chain.
        time: When it was written, UTC, ISO 8601.
        dataset: Keyed hash of the data.
        run: Of the federation.
        round: Of the run.
        kind: What was released.
        request: Digest of the request.
        event: What it cost.
        private: False if its noise can be repeated.
        coordinator: Public key of who asked, hex.
        clip: Norm to which one user's contribution was clipped, if there was one.
        version: Of Isthmus that wrote it.
        released: Whether the finished release was kept, i.e. may have left.
        withheld: Why what was computed may never leave; empty if nothing stands against it.
    """

    seq: int
    time: str
    dataset: bytes
    run: str
    round: int
    kind: str
    request: bytes
    event: DpEvent
    private: bool
    coordinator: str
    clip: float | None
    version: str
    released: bool
    withheld: str = ""


def require_same(existing: LedgerEntry, charge: Charge) -> None:
    """Refuse a replay with other content, and work under another cost than was paid."""
    if existing.request != charge.request:
        raise Refused(
            f"round {charge.round} of run {charge.run!r} already asked for another {charge.kind}: "
            f"request {existing.request.hex()[:12]}, now {charge.request.hex()[:12]}. "
            f"A round is answered once; start a new run to ask something else.",
            rule="replay",
        )
    paid = (encode_event(existing.event), existing.private, existing.clip)
    asked = (encode_event(charge.event), charge.private, charge.clip)
    if not existing.released and paid != asked:
        raise Refused(
            f"the {charge.kind} of round {charge.round} of run {charge.run!r} was charged as {paid[0]} "
            f"(private: {paid[1]}, clip: {paid[2]}) and would now be {asked[0]} (private: {asked[1]}, "
            f"clip: {asked[2]}). Go back to the policy and seed it was charged under, or start a new run.",
            rule="cost",
        )


def read_event(text: str) -> DpEvent:
    """The event that a line names, whatever its text is.

    Raises:
        ValueError: If it is none that this version knows.
    """
    try:
        return decode_event(text)
    except (OverflowError, RecursionError) as error:
        raise ValueError(f"not an event: {text!r:.80} ({error})") from None


def entry_of(line: Charged, outcome: Released | Withheld | None) -> LedgerEntry:
    """A charge with what became of it; no outcome means that nothing has left yet."""
    return LedgerEntry(
        seq=line.seq,
        time=line.time,
        dataset=bytes.fromhex(line.dataset),
        run=line.run,
        round=line.round,
        kind=line.kind,
        request=bytes.fromhex(line.request),
        event=read_event(line.event),
        private=line.private,
        coordinator=line.coordinator,
        clip=line.clip,
        version=line.version,
        released=isinstance(outcome, Released),
        withheld=outcome.reason if isinstance(outcome, Withheld) else "",
    )
