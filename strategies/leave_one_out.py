"""Let a domain count less where the others are better off without its updates.

    strategy.aggregate_train(...)                    # FedAvg, each update by its declared weight times its factor
    comparison = strategy.comparison(shared)         # with and without one domain: parameters to evaluate
    strategy.heed("games", {"books": (-3.1, 1.4)})   # what the other domains said of it: noisy sums, and their noise

Beside the shared parameters the server keeps what they would be without each domain's updates, and what they would
be if that domain counted as declared, since they were last compared. Every so often the *other* domains evaluate the
one against the other, with noise, one domain after the other in turn.

What each of them said so far of a domain is a normal deviate z, by the known noise of it, if the domain changes
nothing for it. Each has a say within bounds: z, but at most `ALARM` either way (Huber's psi), times its declared weight
w. Where the sum of w psi(z) is at most -ALARM times the root of the sum of w^2, the domain's factor is halved, down to
`LEAST`; else it is doubled, up to 1. So a domain that changes nothing for the others is halved in at most Phi(-ALARM)
of its comparisons, 2.3 %, and one that some lose by and as many gain by is left alone. The comparison is always with
the domain's *declared* weight, so that one that counts for little is seen as clearly as before and can come back.

Everything in here is post-processing of released updates and of noisy evaluations, each of which is charged as any
other is. An evaluation is believed, within these bounds.

References: Song, Tong and Wei, "Profit Allocation for Federated Learning", IEEE Big Data 2019 (models without a
participant, rebuilt from the updates of one training, and its contribution by them); Xie, Koyejo and Gupta, "Zeno:
Distributed Stochastic Gradient Descent with Suspicion-based Fault-tolerance", ICML 2019 (updates weighed by what they
do to a validation score); Huber, "Robust Estimation of a Location Parameter", 1964 (psi).
"""

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord
from numpy.typing import NDArray

from isthmus.encoding import Arrays
from isthmus.packing import from_array_record
from isthmus.records import ARRAYS
from isthmus.strategies.beginning import FromBeginning

_LOG = logging.getLogger(__name__)

ALARM = 2.0
"""Standard deviations of the noise, below 0: what raises an alarm, and all that one domain's word is worth."""
LEAST = 1 / 16
"""Smallest factor of a declared weight."""


@dataclass(kw_only=True)
class Standing:
    """What is known of one domain's updates.

    Attributes:
        factor: Of its declared weight, in [LEAST, 1].
        said: What each other domain gains by it, summed over its users and comparisons in NDCG@10, and the variance of
            the noise in that.
        share: What it added to the shared parameters since its last comparison; empty for nothing.
        more: What it would have added besides if it had counted as declared; empty for nothing.
    """

    factor: float = 1.0
    said: dict[str, tuple[float, float]] = field(default_factory=dict)
    share: Arrays = field(default_factory=dict)
    more: Arrays = field(default_factory=dict)

    def heed(self, gains: Mapping[str, tuple[float, float]], weights: Mapping[str, float]) -> None:
        """Take in what other domains gain by this one, each with the standard deviation of its noise."""
        for other, (gain, stddev) in gains.items():
            total, variance = self.said.get(other, (0.0, 0.0))
            self.said[other] = float(np.float32(total + gain)), float(np.float32(variance + stddev**2))
        alarm = self.balance(weights) <= -ALARM
        self.factor = max(self.factor / 2, LEAST) if alarm else min(self.factor * 2, 1.0)
        self.share, self.more = {}, {}

    def balance(self, weights: Mapping[str, float]) -> float:
        """What all of them said so far, in standard deviations of what the noise alone can make of it."""
        says = [
            (weights.get(other, 1.0), max(-ALARM, min(ALARM, total / math.sqrt(variance))))
            for other, (total, variance) in self.said.items()
        ]
        noise = math.sqrt(math.fsum(weight**2 for weight, _ in says))
        return math.fsum(weight * z for weight, z in says) / noise if noise else 0.0


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What the others are asked about one domain.

    Attributes:
        domain: That it is about.
        shared: Parameters with its updates.
        reference: Those of them that are others without its updates.
    """

    domain: str
    shared: Arrays
    reference: Arrays


class LeaveOneOut(FromBeginning):
    """FedAvg by declared weights and by what the domains' updates do to the others.

    Attributes:
        roster: Name of the domain behind each node.
        weights: Declared public weight of each domain; 1 where absent.
        trained: Names of the shared parameters that move.
        standings: Of each domain whose update was accepted once.
        last: Domain of the last comparison; empty before the first.
    """

    roster: Mapping[int, str]
    weights: Mapping[str, float]
    trained: tuple[str, ...]
    standings: dict[str, Standing]
    last: str

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """FedAvg's mean, with declared weights times factors; notes what each domain adds to it."""
        replies = list(replies)
        declared: dict[str, float] = {}
        updates: dict[str, Arrays] = {}
        for message in replies:
            name, record = self.roster[message.metadata.src_node_id], message.content.metric_records["metrics"]
            ends = from_array_record(message.content.array_records[ARRAYS])
            declared[name] = float(record[self.weighted_by_key])  # type: ignore[arg-type]
            updates[name] = {each: ends[each] - self.beginning[each] for each in self.trained}
            record[self.weighted_by_key] = declared[name] * self._standing(name).factor
        self._note(updates, declared)
        return super().aggregate_train(server_round, replies)

    def comparison(self, shared: Arrays) -> Comparison | None:
        """What to ask about the next domain in turn that has added something; None if nobody has.

        Args:
            shared: The parameters that the rounds have led to.
        """
        moved = sorted(name for name, each in self.standings.items() if each.share)
        if not moved:
            return None
        self.last = next((name for name in moved if name > self.last), moved[0])
        standing = self.standings[self.last]
        with_it = {each: array + standing.more[each] for each, array in shared.items() if each in standing.more}
        reference = {each: shared[each] - array for each, array in standing.share.items()}
        return Comparison(domain=self.last, shared={**shared, **with_it}, reference=reference)

    def heed(self, domain: str, gains: Mapping[str, tuple[float, float]]) -> None:
        """Let a domain count less, or more again, after what the others said of it.

        Args:
            domain: That was compared; of itself it has no say.
            gains: By each of the others: the noisy sum over its users of what they gain by the domain, in NDCG@10, and
                the standard deviation of the noise in it, above 0. With nobody's, everything stays as it was.
        """
        others = {name: each for name, each in gains.items() if name != domain}
        if not others:
            return
        standing = self._standing(domain)
        before = standing.factor
        standing.heed(others, self.weights)
        said = "what the others gain by %s: %+.1f standard deviations of the noise; its updates count %g of its weight"
        level = logging.WARNING if standing.factor < before else logging.INFO
        _LOG.log(level, said, domain, standing.balance(self.weights), standing.factor)

    def remembered(self) -> Arrays:
        """Everything that is known of the domains, as named tensors."""
        kept: Arrays = {f"last/{self.last}": np.zeros(0, np.float32)}
        for name, each in self.standings.items():
            kept[f"factor/{name}"] = np.array([each.factor], np.float32)
            kept |= {f"said/{name}/{other}": np.array(figures, np.float32) for other, figures in each.said.items()}
            for what, arrays in (("share", each.share), ("more", each.more)):
                kept |= {f"{what}/{name}/{tensor}": array for tensor, array in arrays.items()}
        return kept

    def remember(self, kept: Arrays) -> None:
        """Know again what `remembered` gave."""
        self.standings, self.last = {}, ""
        for key, array in sorted(kept.items()):  # factors come before what else is known of their domains
            what, _, name = key.partition("/")
            if what == "last":
                self.last = name
            elif what == "factor":
                self.standings[name] = Standing(factor=float(array[0]))
            else:
                name, _, of = name.partition("/")
                standing = self.standings[name]
                if what == "said":
                    standing.said[of] = float(array[0]), float(array[1])
                else:
                    (standing.share if what == "share" else standing.more)[of] = array

    def _note(self, updates: dict[str, Arrays], declared: dict[str, float]) -> None:
        """Add up what each domain's update makes of this round's mean."""
        counts = {name: weight * self._standing(name).factor for name, weight in declared.items() if weight}
        all_of_them = math.fsum(counts.values())
        for each in self.trained:
            whole = sum(count * updates[name][each].astype(np.float64) for name, count in counts.items())
            for name, count in counts.items():
                standing, update = self.standings[name], updates[name][each].astype(np.float64)
                others = all_of_them - count if len(counts) > 1 else 0.0
                mean, without = whole / all_of_them, (whole - count * update) / others if others else 0.0 * update
                _add(standing.share, each, mean - without)
                if standing.factor < 1:  # it counts less than declared: what it would have added besides
                    more = declared[name] - count
                    _add(standing.more, each, (whole + more * update) / (all_of_them + more) - mean)

    def _standing(self, name: str) -> Standing:
        return self.standings.setdefault(name, Standing())


def factors_in(kept: Arrays) -> dict[str, float]:
    """What each domain's declared weight is multiplied by, from what `LeaveOneOut.remembered` gave; 1 where absent."""
    factors = {}
    for key, array in kept.items():
        what, _, name = key.partition("/")
        if what == "factor":
            factors[name] = float(array[0])
    return factors


def _add(sums: Arrays, name: str, term: NDArray[np.float64]) -> None:
    """Add to a named tensor, zero where it is absent, and make a new one: the old may be on its way to a checkpoint."""
    sums[name] = (sums.get(name, 0) + term).astype(np.float32)
