"""Judge one reply of one domain: accept it, or refuse it with the reason.

    judge = ReplyJudge(run="r1", round=3, shapes={"head.weight": (384, 64)}, trained=names, max_norm=9.0, form=form)
    reply = judge.update(message.content, domain="books")     # RoundReply, or ReplyRefused

Fails closed: a tensor that is missing, surplus, misshapen, of another format, with a wrong scale, not finite or too
large, a reply of another round, run or sender: each is refused, whatever the other domains sent. A refused
reply has no influence at all; the round goes on without it.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from flwr.app import RecordDict

from isthmus.config import UpdateFormat
from isthmus.encoding import DTYPES, Encoded, decode
from isthmus.errors import BudgetExhausted, Refused, ReplyRefused
from isthmus.records import RoundReply

METRIC_VALUES = ("gain", "users", "noise_stddev")
"""What a noisy evaluation consists of: summed gain, user count, and the public noise of both."""


@dataclass(frozen=True, kw_only=True)
class ReplyJudge:
    """What the replies of one round must look like.

    Attributes:
        run: Of the federation.
        round: That was asked for.
        shapes: Of every shared parameter, by name.
        trained: Those of them that an update holds.
        max_norm: Largest L2 norm of an update, once decoded.
        form: What updates are encoded as.
    """

    run: str
    round: int
    shapes: dict[str, tuple[int, ...]]
    trained: tuple[str, ...]
    max_norm: float
    form: UpdateFormat

    def update(self, content: RecordDict, *, domain: str) -> RoundReply:
        """An update that may be averaged, decoded.

        Args:
            content: Of the message.
            domain: Name that this sender answered to so far.

        Raises:
            BudgetExhausted: If the domain says that it has nothing left to spend.
            ReplyRefused: If the reply breaks a rule, or is the domain's own refusal.

        Guarantees:
            - An accepted update came with exactly the trained parameters, in their shapes and the run's format; of the
              others it is zero.
            - Decoded, it is float32 and finite.
            - Decoded, its L2 norm, computed in float64, is at most `max_norm`.
        """
        reply = self._envelope(content, domain)
        if reply.arrays.keys() != set(self.trained):
            odd = sorted(reply.arrays.keys() ^ set(self.trained))
            raise ReplyRefused(f"the update must hold exactly the trained parameters; missing or surplus: {odd[:5]}")
        for name, array in reply.arrays.items():
            if array.shape != self.shapes[name]:
                raise ReplyRefused(f"{name!r} has shape {array.shape}, expected {self.shapes[name]}")
            if array.dtype != DTYPES[self.form]:
                raise ReplyRefused(f"{name!r} came as {array.dtype}, and this run exchanges {self.form}")
        try:
            arrays = decode(Encoded(arrays=reply.arrays, scales=reply.values))
        except Refused as error:
            raise ReplyRefused(str(error)) from None
        squares = 0.0
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise ReplyRefused(f"{name!r} holds a value that is not finite")
            squares += float(np.square(array, dtype=np.float64).sum())
        if math.sqrt(squares) > self.max_norm:
            raise ReplyRefused(f"the update's norm {math.sqrt(squares):.4g} is above the limit {self.max_norm:g}")
        still = {name: np.zeros(shape, np.float32) for name, shape in self.shapes.items() if name not in arrays}
        return replace(reply, arrays={**arrays, **still}, values={})

    def metric(self, content: RecordDict, *, domain: str) -> RoundReply:
        """A noisy evaluation that may be averaged; same rules as `update`."""
        reply = self._envelope(content, domain)
        if tuple(sorted(reply.values)) != tuple(sorted(METRIC_VALUES)):
            raise ReplyRefused(f"an evaluation holds {', '.join(METRIC_VALUES)}; got {sorted(reply.values)}")
        if not all(math.isfinite(value) and abs(value) < 1e12 for value in reply.values.values()):
            raise ReplyRefused(f"the evaluation holds a value that is not a finite number below 1e12: {reply.values}")
        if reply.values["noise_stddev"] <= 0:
            raise ReplyRefused(f"the evaluation's noise must be above 0, got {reply.values['noise_stddev']}")
        return reply

    def _envelope(self, content: RecordDict, domain: str) -> RoundReply:
        try:
            reply = RoundReply.from_records(content)
        except Refused as error:
            raise ReplyRefused(str(error)) from None
        if reply.domain != domain:
            raise ReplyRefused(f"the sender is {domain!r} and the reply says it is {reply.domain!r}")
        if reply.exhausted:
            raise BudgetExhausted(reply.refusal)
        if reply.refusal:
            raise ReplyRefused(f"refused by the domain: {reply.refusal}")
        if (reply.run, reply.round) != (self.run, self.round):
            raise ReplyRefused(
                f"asked for round {self.round} of run {self.run!r}, got round {reply.round} of {reply.run!r}"
            )
        return reply
