"""Put our validation and declared public weights in front of any of Flower's strategies.

    class GuardedFedAdam(Guarded, FedAdam): ...

Flower's `FedAvg` family averages what clients send, weighted by a count that clients send
(`num-examples`), fails as a whole when one reply is malformed, and averages every metric. `Guarded`
judges each reply first, replaces the client's weight by the one that was declared publicly, and
hands Flower's own aggregation only what was accepted, in domain order (so that the floating-point
sum does not depend on which reply came first).
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from isthmus.errors import BudgetExhausted, ReplyRefused
from isthmus.privacy.keys import Keys
from isthmus.privacy.requests import sign_request
from isthmus.records import (
    ARRAYS,
    CONFIG,
    WHITENING,
    Arrays,
    Kind,
    RoundReply,
    RoundRequest,
    from_array_record,
    to_array_record,
)
from isthmus.strategies.validation import ReplyJudge

OK, REFUSED, EXHAUSTED, FAILED = "ok", "refused", "budget exhausted", "error"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one domain's reply.

    Attributes:
        status: `ok`, `refused`, `budget exhausted` or `error`.
        reason: Why, unless ok.
        epsilon: What the domain says it has spent; for progress only.
    """

    status: str
    reason: str = ""
    epsilon: float | None = None


class Guarded(FedAvg):
    """Mix-in that goes before one of Flower's strategies.

    Attributes:
        run: Of the federation.
        roster: Name of the domain behind each node.
        weights: Declared public weight of each domain; 1 where absent.
        max_update_norm: Largest L2 norm of an accepted update.
        whitening: Sent along to every node whose last answer was not accepted: it may not have it.
        informed: Nodes whose last answer was accepted.
        keys: The coordinator's; sign every request.
        receipts: For the head of each node's last reply; sent along with its next request.
        outcomes: Of the last round's replies, by domain.
    """

    run: str
    roster: Mapping[int, str]
    weights: Mapping[str, float]
    max_update_norm: float
    whitening: ArrayRecord
    informed: set[int]
    keys: Keys
    receipts: dict[int, str]
    outcomes: dict[str, Outcome]

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask every domain for an update of the shared parameters."""
        self._shared = from_array_record(arrays)
        return self._addressed(super().configure_train(server_round, arrays, config, grid), Kind.UPDATE)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask every domain for a noisy evaluation."""
        self._shared = from_array_record(arrays)
        return self._addressed(super().configure_evaluate(server_round, arrays, config, grid), Kind.METRIC)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the accepted updates with the declared weights; (None, None) if there is none with a weight."""
        accepted = self._judge(server_round, replies, is_train=True)
        for message, reply in accepted:
            moved = {name: self._shared[name] + update for name, update in reply.arrays.items()}
            message.content = RecordDict(
                {
                    ARRAYS: to_array_record(moved),
                    "metrics": MetricRecord({self.weighted_by_key: self._weight(reply.domain)}),
                }
            )
        if not any(self._weight(reply.domain) for _, reply in accepted):
            return None, None
        return super().aggregate_train(server_round, [message for message, _ in accepted])

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Weighted mean of the domains' mean gains, and the standard deviation that their noise gives it.

        A domain whose noisy user count is within three standard deviations of zero has too few users to say
        anything and is left out; None if that leaves nobody.
        """
        terms = []  # (weight, mean gain, stddev of the mean)
        for _, reply in self._judge(server_round, replies, is_train=False):
            users, stddev = reply.values["users"], reply.values["noise_stddev"]
            if users > 3 * stddev:
                terms.append((self._weight(reply.domain), reply.values["gain"] / users, stddev / users))
        total = sum(weight for weight, _, _ in terms)
        if total == 0:
            return None
        return MetricRecord(
            {
                "gain": sum(weight * gain for weight, gain, _ in terms) / total,
                "gain-stddev": math.sqrt(sum((weight * stddev) ** 2 for weight, _, stddev in terms)) / total,
            }
        )

    def _judge(
        self, server_round: int, replies: Iterable[Message], *, is_train: bool
    ) -> list[tuple[Message, RoundReply]]:
        """Accepted replies, in domain order; what became of each goes to `outcomes`."""
        judge = ReplyJudge(
            run=self.run,
            round=server_round,
            shapes={name: array.shape for name, array in self._shared.items()},
            max_norm=self.max_update_norm,
        )
        self.outcomes = {}
        accepted: dict[str, tuple[Message, RoundReply]] = {}
        for message in replies:
            domain = self.roster.get(message.metadata.src_node_id)
            if domain is None:
                continue  # a node that never introduced itself was not asked
            if domain in accepted:
                continue  # the first answer of a round counts
            if message.has_error():
                reason = _readable(message.error.reason or "no reason given")
                self.outcomes[domain] = Outcome(status=FAILED, reason=reason)
                continue
            check = judge.update if is_train else judge.metric
            try:
                reply = check(message.content, domain=domain)
            except BudgetExhausted as error:
                self.outcomes[domain] = Outcome(status=EXHAUSTED, reason=_readable(str(error)))
            except ReplyRefused as error:
                self.outcomes[domain] = Outcome(status=REFUSED, reason=_readable(str(error)))
            else:
                self.outcomes[domain] = Outcome(status=OK, epsilon=reply.epsilon)
                accepted[domain] = (message, reply)
        self.informed = {message.metadata.src_node_id for message, _ in accepted.values()}
        self.outcomes = dict(sorted(self.outcomes.items()))  # not in the order of arrival: that is chance
        return [accepted[domain] for domain in sorted(accepted)]

    def _addressed(self, messages: Iterable[Message], kind: Kind) -> list[Message]:
        """The same question to every domain, signed; each with the receipt for its last reply."""
        messages = [message for message in messages if message.metadata.dst_node_id in self.roster]
        if not messages:
            return []
        asked = messages[0].content  # Flower sends one record to all
        signature = sign_request(RoundRequest.from_records(asked).digest(kind), self.keys)
        for message in messages:
            config = ConfigRecord(dict(asked.config_records[CONFIG]))
            config["coordinator"], config["signature"] = self.keys.public.hex(), signature
            config["receipt"] = self.receipts.get(message.metadata.dst_node_id, "")
            message.content = RecordDict({ARRAYS: asked.array_records[ARRAYS], CONFIG: config})
            if message.metadata.dst_node_id not in self.informed:
                message.content[WHITENING] = self.whitening
        return messages

    def _weight(self, domain: str) -> float:
        return float(self.weights.get(domain, 1.0))


def _readable(reason: str) -> str:
    """A reason in one line of at most 500 characters: others wrote it, and it goes to terminals and checkpoints."""
    line = "".join(letter if letter.isprintable() else " " for letter in reason[:500])
    return line if len(reason) <= 500 else line[:-1] + "…"


def mean_update(before: Arrays, after: Arrays) -> float:
    """L2 norm of the step that a round took."""
    return math.sqrt(math.fsum(float(np.square(after[name] - before[name], dtype=np.float64).sum()) for name in before))
