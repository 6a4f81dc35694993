"""Put our validation and declared public weights in front of any of Flower's strategies.

    class GuardedFedAdam(Guarded, FedAdam): ...

Flower's `FedAvg` family averages what clients send, weighted by a count that clients send
(`num-examples`), fails as a whole when one reply is malformed, and averages every metric. `Guarded`
judges each reply first, replaces the client's weight by the one that was declared publicly, and
hands Flower's own aggregation only what was accepted, in domain order (so that the floating-point
sum does not depend on which reply came first). What Flower makes of it is rounded to what can be sent
as a change in the run's format, and these are the next shared parameters: server and domains have the
same ones, to the bit.
"""

import hashlib
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from isthmus.config import UpdateFormat
from isthmus.encoding import Arrays, Encoded, change, changed
from isthmus.errors import BudgetExhausted, ReplyRefused
from isthmus.packing import arrays_digest, from_array_record, pack, to_array_record
from isthmus.privacy.keys import Keys
from isthmus.privacy.requests import sign_request
from isthmus.records import ARRAYS, CONFIG, REFERENCE, WHITENING, Kind, RoundReply, RoundRequest
from isthmus.strategies.sampling import DomainSampling
from isthmus.strategies.validation import ReplyJudge

_LOG = logging.getLogger(__name__)

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


@dataclass(frozen=True, kw_only=True)
class Step:
    """How one round changed the shared parameters.

    Attributes:
        before: Digest of those before, hex.
        after: Digest of those after, hex.
        change: What makes the one the other.
    """

    before: str
    after: str
    change: Encoded


class Guarded(FedAvg):
    """Mix-in that goes before one of Flower's strategies.

    Attributes:
        run: Of the federation.
        roster: Name of the domain behind each node.
        weights: Declared public weight of each domain; 1 where absent.
        max_update_norm: Largest L2 norm of an accepted update.
        trained: Names of the shared parameters that an update holds.
        needed: Accepted updates without which a round changes nothing.
        form: What updates, and changes of the shared parameters, are encoded as.
        whitening: Sent along to every node whose last answer was not accepted: it may not have it.
        holds: Digest of the shared parameters that each node whose last answer was accepted has, the latest of them
            from which others follow by a step. One that was not asked keeps what it has.
        step: How the last round changed the shared parameters; for nodes that hold those before.
        keys: The coordinator's; sign every request.
        receipts: For the head of each node's last reply; sent along with its next request.
        outcomes: Of the last round's replies, by domain.
        sampling: How a round's domains are drawn; None for all of them.
        spent: Domains that have said that their budget is spent; they are not drawn any more.
        passed_over: Domains that are connected and were not asked the last question.
    """

    run: str
    roster: Mapping[int, str]
    weights: Mapping[str, float]
    max_update_norm: float
    trained: tuple[str, ...]
    needed: int
    form: UpdateFormat
    whitening: ArrayRecord
    holds: dict[int, str]
    step: Step | None
    keys: Keys
    receipts: dict[int, str]
    outcomes: dict[str, Outcome]
    sampling: DomainSampling | None
    spent: frozenset[str]
    passed_over: frozenset[str]

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask every domain, or those that are drawn, for an update of the shared parameters."""
        self._shared = from_array_record(arrays)
        messages = self._drawn(server_round, super().configure_train(server_round, arrays, config, grid))
        return self._addressed(messages, Kind.UPDATE)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask every domain for a noisy evaluation."""
        self._shared, self.passed_over = from_array_record(arrays), frozenset()
        return self._addressed(super().configure_evaluate(server_round, arrays, config, grid), Kind.METRIC)

    def configure_comparison(  # noqa: PLR0913, PLR0917 - as Flower's, and what is compared
        self, server_round: int, shared: Arrays, reference: Arrays, but: str, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask every domain but one for a noisy evaluation of shared parameters against a reference.

        Args:
            server_round: Of the run.
            shared: What is evaluated.
            reference: What it is compared with, as far as it differs.
            but: The domain that is not asked.
            config: Of the request.
            grid: That reaches the domains.
        """
        self._shared, self.passed_over = shared, frozenset({but})
        messages = super().configure_evaluate(server_round, to_array_record(shared), config, grid)
        asked = [message for message in messages if self.roster.get(message.metadata.dst_node_id, but) != but]
        return self._addressed(asked, Kind.METRIC, reference)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the accepted updates with the declared weights; (None, None) if none has a weight, or too few came.

        Guarantees:
            - What comes out is what a domain makes of the shared parameters before and the `step`, to the bit.
            - It differs from Flower's result by less than one step of the run's format in each coordinate, and not in
              the mean over the coins.
        """
        accepted = self._judge(server_round, replies, is_train=True)
        for message, reply in accepted:
            moved = {name: before + reply.arrays[name] for name, before in self._shared.items()}
            message.content = RecordDict(
                {
                    ARRAYS: to_array_record(moved),
                    "metrics": MetricRecord({self.weighted_by_key: self._share(reply.domain)}),
                }
            )
        if not any(self._share(reply.domain) for _, reply in accepted):
            return None, None
        if len(accepted) < self.needed:
            _LOG.warning(
                "round %d changes nothing: it needs %d updates, %d came", server_round, self.needed, len(accepted)
            )
            return None, None
        average, metrics = super().aggregate_train(server_round, [message for message, _ in accepted])
        if average is None:
            return None, metrics
        # Flower averages in the dtype that numpy promotes to; what is shared stays float32.
        target = {name: packed.numpy().astype(np.float32) for name, packed in average.items()}
        for name, before in self._shared.items():
            moved_it = any(reply.arrays[name].any() for _, reply in accepted)
            if not moved_it and np.allclose(target[name], before, rtol=1e-6, atol=0):
                target[name] = before  # a mean of equal numbers is not always that number; momentum moves it further
        return to_array_record(self._rounded(server_round, target)), metrics

    def _rounded(self, server_round: int, target: Arrays) -> Arrays:
        """The next shared parameters: these, and a change that can be sent."""
        # Coins that everybody may know, and the same for a server that lost this round and gets it again: domains that
        # have evaluated what came of it answer nothing else.
        coins = hashlib.sha256(f"{self.run}\n{server_round}".encode()).digest()
        step = change(self._shared, target, self.form, np.random.default_rng(int.from_bytes(coins)).random)
        after = changed(self._shared, step)
        self.step = Step(before=self._digest, after=arrays_digest(after).hex(), change=step)
        return after

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

    def gains(self, server_round: int, replies: Iterable[Message]) -> dict[str, tuple[float, float]]:
        """Each accepted evaluation's noisy gain, summed over its users, and the standard deviation of its noise."""
        judged = self._judge(server_round, replies, is_train=False)
        return {reply.domain: (reply.values["gain"], reply.values["noise_stddev"]) for _, reply in judged}

    def _judge(
        self, server_round: int, replies: Iterable[Message], *, is_train: bool
    ) -> list[tuple[Message, RoundReply]]:
        """Accepted replies, in domain order; what became of each goes to `outcomes`."""
        judge = ReplyJudge(
            run=self.run,
            round=server_round,
            shapes={name: array.shape for name, array in self._shared.items()},
            trained=self.trained,
            max_norm=self.max_update_norm,
            form=self.form,
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
        nodes = [message.metadata.src_node_id for message, _ in accepted.values()]
        kept = {node: held for node, held in self.holds.items() if self.roster.get(node) in self.passed_over}
        if is_train or self.step is None or self._digest == self.step.after:
            self.holds = kept | dict.fromkeys(nodes, self._digest)
        else:  # an average was looked at on the way: what the next round goes on from is nearer to what came before
            self.holds = kept | {node: self.holds[node] for node in nodes if node in self.holds}
        self.outcomes = dict(sorted(self.outcomes.items()))  # not in the order of arrival: that is chance
        return [accepted[domain] for domain in sorted(accepted)]

    def _drawn(self, server_round: int, messages: Iterable[Message]) -> list[Message]:
        """The questions to those domains that the round asks."""
        messages = [message for message in messages if message.metadata.dst_node_id in self.roster]
        here = frozenset(self.roster[message.metadata.dst_node_id] for message in messages)
        drawn = here
        if self.sampling is not None:
            drawn = self.sampling.draw(here - self.spent, run=self.run, round_=server_round)
        self.passed_over = here - drawn
        return [message for message in messages if self.roster[message.metadata.dst_node_id] in drawn]

    def _addressed(self, messages: Iterable[Message], kind: Kind, reference: Arrays | None = None) -> list[Message]:
        """The same question to every domain, signed; each with the receipt for its last reply, and what it lacks."""
        messages = [message for message in messages if message.metadata.dst_node_id in self.roster]
        if not messages:
            return []
        asked = messages[0].content.config_records[CONFIG]  # Flower sends one record to all
        whole = pack(self._shared)
        beside = {REFERENCE: pack(reference)} if reference else {}
        request = RoundRequest.from_records(RecordDict({ARRAYS: whole, CONFIG: asked, **beside}))
        signature = sign_request(request.digest(kind), self.keys)
        digest = self._digest = arrays_digest(self._shared).hex()
        for message in messages:
            node = message.metadata.dst_node_id
            config = ConfigRecord(dict(asked))
            config["coordinator"], config["signature"] = self.keys.public.hex(), signature
            config["receipt"] = self.receipts.get(node, "")
            message.content = RecordDict({ARRAYS: whole, CONFIG: config, **beside})
            if node not in self.holds:
                message.content[WHITENING] = self.whitening
            elif (lacking := self._lacking(self.holds[node], digest)) is not None:
                config["base"], config["parameters"] = self.holds[node], digest
                message.content[ARRAYS] = pack(lacking.arrays, lacking.scales)
        return messages

    def _lacking(self, held: str, digest: str) -> Encoded | None:
        """What somebody who holds some parameters needs to have others; None for all of them."""
        if held == digest:
            return Encoded()
        if self.step is not None and (held, digest) == (self.step.before, self.step.after):
            return self.step.change
        return None

    def may_be_asked(self, domain: str) -> bool:
        """Whether there can be a round that asks a domain for an update."""
        return self.sampling is None or self._weight(domain) > 0

    def _share(self, domain: str) -> float:
        """How much an update counts; where domains are drawn by their weights, all alike."""
        return self._weight(domain) if self.sampling is None else 1.0

    def _weight(self, domain: str) -> float:
        return float(self.weights.get(domain, 1.0))


def _readable(reason: str) -> str:
    """A reason in one line of at most 500 characters: others wrote it, and it goes to terminals and checkpoints."""
    line = "".join(letter if letter.isprintable() else " " for letter in reason[:500])
    return line if len(reason) <= 500 else line[:-1] + "…"


def mean_update(before: Arrays, after: Arrays) -> float:
    """L2 norm of the step that a round took."""
    return math.sqrt(math.fsum(float(np.square(after[name] - before[name], dtype=np.float64).sum()) for name in before))
