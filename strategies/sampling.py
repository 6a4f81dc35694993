"""Which domains a round asks: some of them, drawn in public by their declared weights and a temperature.

    sampling = DomainSampling(count=8, temperature=2.0, weights={"books": 9.0})
    sampling.draw({"books", "games", "music"}, run="r1", round_=3)

Domains are drawn one after the other without replacement, each time with probability proportional to
weight^(1/temperature): temperature 1 is proportional to the weights, and from there towards infinity all domains become
alike, so that large ones do not drown the others. Of whom is drawn the update counts as much as any other's: the draw
has weighed it already.

The draw is a hash of the run, the round and the names, so everybody can repeat it, and a coordinator that lost a
round draws the same again. It is no secret, so it amplifies no domain's privacy: whoever is drawn is charged as ever.

References: Arivazhagan et al., "Massively Multilingual Neural Machine Translation in the Wild", 2019, section 4
(temperature based sampling); McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized
Data", AISTATS 2017, algorithm 1 (a fraction of the clients); Efraimidis and Spirakis, "Weighted random sampling with a
reservoir", Information Processing Letters 2006 (keys of which the smallest are such a draw).
"""

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DomainSampling:
    """How a round's domains are drawn.

    Attributes:
        count: Domains in a round, at least 1.
        temperature: Above 0.
        weights: Declared public weight of each domain, from 0 on; 1 where absent. With 0 a domain is never drawn.
    """

    count: int
    temperature: float
    weights: Mapping[str, float]

    def draw(self, names: Iterable[str], *, run: str, round_: int) -> frozenset[str]:
        """The domains that a round asks, of those that could be; all of them where there are no more than `count`.

        Guarantees:
            - A function of its arguments; the order of the names does not matter.
            - One name less among those that were not drawn, or one more that would not be, changes nothing.
            - Over runs and rounds, the first of them is a name with probability proportional to
              weight^(1/temperature).
        """
        keys = {name: self._key(name, run, round_) for name in names if self.weights.get(name, 1.0) > 0}
        return frozenset(sorted(keys, key=lambda name: (keys[name], name))[: self.count])

    def _key(self, name: str, run: str, round_: int) -> float:
        """Logarithm of an exponential deviate of rate weight^(1/temperature): the smallest of some is each in turn."""
        digest = hashlib.sha256(f"{run}\n{round_}\n{name}\ndraw".encode()).digest()
        coin = ((int.from_bytes(digest[:8]) >> 12) + 0.5) / 2**52  # in (0, 1), both ends excluded
        return math.log(-math.log(coin)) - math.log(self.weights.get(name, 1.0)) / self.temperature
