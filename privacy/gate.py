"""The gate: the one way out of a domain.

    gate = Gate(ledger=ledger, limits=limits)
    release = gate.release(charge, lambda: Payload(arrays={...}, values={...}))

`Gate.release` is the only code that makes a `Release`, and a `Release` is the only thing that a
client turns into a reply. It charges, then lets the caller compute, then keeps the result, then
hands it out; in that order, in one place. What computes is given as a function, so that nothing
can be computed from private data before it is paid for.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from safetensors.numpy import load, save

from isthmus.encoding import DTYPES, Tensors, finite
from isthmus.errors import Refused
from isthmus.privacy.entries import Charge, LedgerEntry, Limits
from isthmus.privacy.ledger import Ledger


@dataclass(frozen=True, kw_only=True)
class Payload:
    """What a mechanism computed, noise included, as it will cross.

    Attributes:
        arrays: Named tensors; of an update, encoded.
        values: Named numbers; of an update, the scales of its int8 tensors.
    """

    arrays: Tensors = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)


_GATE_ONLY = object()


class Release:
    """A payload that was paid for: the proof is its ledger entry. Only a `Gate` makes one.

    Attributes:
        payload: What leaves.
        entry: The line of the ledger that paid for it.
    """

    __slots__ = ("entry", "payload")

    def __init__(self, payload: Payload, entry: LedgerEntry, *, made_by: object) -> None:
        if made_by is not _GATE_ONLY:
            raise Refused("a Release is made by Gate.release and by nothing else")
        self.payload = payload
        self.entry = entry


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The way out of one domain.

    Attributes:
        ledger: Where every release is paid for.
        limits: What all of them must fit into.
    """

    ledger: Ledger
    limits: Limits

    def release(self, charge: Charge, compute: Callable[[], Payload]) -> Release:
        """Pay for a release, compute it, keep it, hand it out.

        Args:
            charge: What it costs and what it answers.
            compute: Makes the payload, noise included; only called once the charge is on disk.

        Raises:
            BudgetExhausted: If there is no room; `compute` was not called.
            Refused: If this is a replay with other content, or the payload is not finite, or holds other arrays than
                the charge names.

        Guarantees:
            - `compute` runs only after the charge is durable.
            - What is returned was kept before it was returned: asked again, the same bytes come back. What is kept is
              what crosses: an encoded update is neither kept nor rounded in any other form.
            - A payload with a NaN or an infinity is refused, and so is whoever asks again; it stays paid for.
            - So is one whose arrays are not those that the charge names, if it names any.
        """
        entry = self.ledger.charge(charge, self.limits)  # 1. pay, durably
        kept = self.ledger.kept_release(entry)
        if kept is None:
            payload = compute()  # 2. compute
            try:
                _require_named(payload, charge)
                packed = _pack(payload)
            except Refused as refusal:
                self.ledger.withhold(entry, str(refusal))
                raise
            kept = self.ledger.keep_release(entry, packed)  # 3. keep
        return Release(_unpack(kept), entry, made_by=_GATE_ONLY)  # 4. hand out


def _require_named(payload: Payload, charge: Charge) -> None:
    """Refuse a payload with other parameters than the ledger says."""
    odd = sorted(payload.arrays.keys() ^ set(charge.layers)) if charge.layers else []
    if odd:
        raise Refused(
            f"{odd[0]!r} is in the {charge.kind} or in what was charged for it, and not in both, so nothing leaves; "
            f"its cost stays charged",
            rule="layers",
            asked=f"parameter {odd[0]}",
        )


def _pack(payload: Payload) -> bytes:
    tensors: Tensors = {}
    for name, array in payload.arrays.items():
        dtype = array.dtype if array.dtype in DTYPES.values() else np.float32
        with np.errstate(over="ignore"):  # what does not fit in float32 becomes an infinity, which is refused below
            tensors[f"array/{name}"] = np.asarray(array, dtype=dtype, order="C")
    for name, value in payload.values.items():
        tensors[f"value/{name}"] = np.array([value], dtype=np.float64)
    for name, tensor in tensors.items():
        if not finite(tensor):
            what = name.partition("/")[2]
            raise Refused(f"{what!r} is not finite, so it does not leave; its cost stays charged", rule="finite")
    return bytes(save(tensors))


def _unpack(packed: bytes) -> Payload:
    tensors = load(packed)
    return Payload(
        arrays={name.removeprefix("array/"): t for name, t in tensors.items() if name.startswith("array/")},
        values={name.removeprefix("value/"): float(t[0]) for name, t in tensors.items() if name.startswith("value/")},
    )
