"""Compose what was done into an epsilon, and write events down in an encoding that lasts.

    event = decode_event('{"count":5,"kind":"poisson-gaussian","noise":1.9,"rate":0.05,"v":1}')
    spending = Spending.of([event, event]).plus(gaussian(20.0))
    spent = epsilon(spending, delta=1e-6)

Events are `dp_accounting.DpEvent` objects, taken as they are. The number is the tight
privacy-loss-distribution accountant's (PLD), pessimistic by construction. Equal events are
merged before they are composed: composition commutes, so this changes nothing but speed, and
it makes a plan and the sum of its rounds the *same* computation, to the last bit.

Encoding, version 1 (docs/event-encoding.md): one JSON object, keys sorted. Kinds are never removed and never
change meaning.

| kind               | fields        | meaning                                                     |
|--------------------|---------------|-------------------------------------------------------------|
| `none`             |               | a function of public data only                              |
| `gaussian`         | noise, count  | noise stddev / L2 sensitivity, `count` times                |
| `poisson-gaussian` | rate, ...     | the same on a batch in which each user is with chance `rate` |
"""

import functools
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

import dp_accounting
from dp_accounting import DpEvent

from isthmus.privacy.budget import PrivacyBudget
from isthmus.privacy.losses import LADDER, Part, affordable, compose, epsilon_of, lost_mass

FINE = LADDER[0]
"""Discretisation interval of every epsilon that is reported or enforced: 0.0001."""
COARSE = LADDER[2]
"""Discretisation interval for a quick bound that is never below the fine one: 0.005."""

LEAST_NOISE = 0.02
"""Below this noise multiplier nothing is proven: epsilon would be in the thousands, and its grid fills a memory."""

NOTHING: DpEvent = dp_accounting.NoOpDpEvent()
"""The event of a release that depends on public data only."""


def gaussian(noise_multiplier: float, count: int = 1) -> DpEvent:
    """`count` Gaussian releases with noise stddev / L2 sensitivity = `noise_multiplier`.

    Raises:
        ValueError: If the noise is not a finite number above 0, or the count is not at least 1.
    """
    _check(noise_multiplier, count)
    return dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(noise_multiplier), count)


def poisson_gaussian(sample_rate: float, noise_multiplier: float, count: int) -> DpEvent:
    """`count` Gaussian releases, each on a fresh Poisson sample of the users.

    Args:
        sample_rate: Probability that a user is in a batch, in (0, 1].
        noise_multiplier: Noise stddev / clipping norm.
        count: Steps.

    Raises:
        ValueError: If one of them is outside its range; noise must be finite and above 0, a count at least 1.
    """
    _check(noise_multiplier, count)
    if not 0 < sample_rate <= 1:
        raise ValueError(f"sample rate must be in (0, 1], got {sample_rate}")
    return dp_accounting.SelfComposedDpEvent(
        dp_accounting.PoissonSampledDpEvent(sample_rate, dp_accounting.GaussianDpEvent(noise_multiplier)),
        count,
    )


@dataclass(frozen=True)
class Spending:
    """Everything that was ever released, with equal events merged: what an epsilon is computed from.

        spending = Spending.of(events).plus(event)

    A value: two of them are equal, and cost the same to the last bit, however their events were ordered and grouped.
    Adding an event takes time in the number of *distinct* mechanisms, not of events.

    Attributes:
        parts: Sorted (sampling rate, noise multiplier, count), no two with the same rate and noise; a rate of 1 is
            no sampling. Public releases are not in it.

    >>> Spending().plus(gaussian(20.0)).plus(NOTHING).plus(gaussian(20.0, 4)).parts
    ((1.0, 20.0, 5),)
    """

    parts: tuple[Part, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what is not merged: it would be a second value for the same events.

        Raises:
            ValueError: If parts are unsorted, repeated or impossible.
        """
        keys = [part[:2] for part in self.parts]
        if keys != sorted(set(keys)):
            raise ValueError(f"parts must be sorted by rate and noise, each once, got {self.parts}")
        for rate, noise, count in self.parts:
            _check(noise, count)
            if not 0 < rate <= 1:
                raise ValueError(f"sample rate must be in (0, 1], got {rate}")

    @classmethod
    def of(cls, events: Iterable[DpEvent]) -> Self:
        """Merge events.

        Raises:
            ValueError: If one of them cannot be accounted for.
        """
        return cls._merged((event, 1) for event in events)

    @classmethod
    def of_texts(cls, counted: Mapping[str, int]) -> Self:
        """Merge encoded events, each with how often it occurs: what a database's GROUP BY gives.

        Raises:
            ValueError: If a text is not a version 1 event, or a number of times is not at least 1.
        """
        for text, times in counted.items():
            if times < 1:
                raise ValueError(f"an event must occur at least once, got {times} times {text!r}")
        return cls._merged((decode_event(text), times) for text, times in counted.items())

    @classmethod
    def _merged(cls, events: Iterable[tuple[DpEvent, int]]) -> Self:
        counted: Counter[tuple[float, float]] = Counter()
        for event, times in events:
            kind, rate, noise, count = _parts(event)
            if kind != "none":
                counted[rate, noise] += count * times
        return cls(tuple(sorted((*key, count) for key, count in counted.items())))

    def plus(self, event: DpEvent) -> "Spending":
        """With one event more.

        Raises:
            ValueError: If it cannot be accounted for.
        """
        return self.and_also(Spending.of([event]))

    def and_also(self, other: "Spending") -> "Spending":
        """Both together: all that is known to whoever saw both."""
        counted: Counter[tuple[float, float]] = Counter()
        for rate, noise, count in (*self.parts, *other.parts):
            counted[rate, noise] += count
        return Spending(tuple(sorted((*key, count) for key, count in counted.items())))

    def times(self, number: int) -> "Spending":
        """All of it so many times.

        Raises:
            ValueError: If the number is not at least 1.
        """
        return Spending(tuple((rate, noise, count * number) for rate, noise, count in self.parts))

    @property
    def count(self) -> int:
        """Releases in it, each step of an update for itself."""
        return sum(part[2] for part in self.parts)

    @property
    def events(self) -> tuple[DpEvent, ...]:
        """One merged event for each mechanism, for another accountant."""
        return tuple(
            gaussian(noise, count) if rate == 1 else poisson_gaussian(rate, noise, count)
            for rate, noise, count in self.parts
        )


def epsilon(spent: Spending | Iterable[DpEvent], delta: float, *, interval: float = FINE) -> float:
    """Smallest epsilon that the PLD accountant proves for all events together.

    Args:
        spent: A spending, or events made by this module.
        delta: In (0, 1).
        interval: Grid of the discretised privacy loss. `COARSE` is much faster and never says less. Where the grid
            asked for would not fit (`losses.MOST_POINTS`: hundreds of mechanisms, or an epsilon in the hundreds),
            the next coarser one is used.

    Returns:
        Epsilon; 0 for no events, infinity where nothing can be proven (as for noise below `LEAST_NOISE`).

    Raises:
        ValueError: If delta is outside its range, or an event cannot be accounted for.

    Guarantees:
        - Never below the true epsilon of the composition (discretisation rounds up), at any interval; above it by
          `losses.grid_error` at most.
        - Order and grouping of equal events do not matter, to the last bit.
        - More events never give less.
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta must be in (0, 1), got {delta}")
    return _epsilon(_spending(spent).parts, delta, interval)


def fits(spent: Spending | Iterable[DpEvent], budget: PrivacyBudget) -> bool:
    """Whether all events together stay within a budget.

    The coarse grid answers when there is clearly room (it never says less than the fine one), the fine
    grid decides the rest.
    """
    spent = _spending(spent)
    return (
        epsilon(spent, budget.delta, interval=COARSE) <= budget.epsilon
        or epsilon(spent, budget.delta) <= budget.epsilon
    )


def _spending(spent: Spending | Iterable[DpEvent]) -> Spending:
    return spent if isinstance(spent, Spending) else Spending.of(spent)


@functools.lru_cache(maxsize=4096)
def _epsilon(parts: tuple[Part, ...], delta: float, interval: float) -> float:
    if not parts:
        return 0.0
    if min(noise for _, noise, _ in parts) < LEAST_NOISE:
        return math.inf
    grid = affordable(parts, interval)
    if grid is None:
        return math.inf
    # Rounding errors of the transform may differ from grid to grid. Each coarser one gives up that much of delta.
    delta -= 2 * lost_mass(parts) * sum(finer < grid for finer in LADDER)
    return max(epsilon_of(loss, delta, interval=grid) for loss in compose(parts, grid)) if delta > 0 else math.inf


def encode_event(event: DpEvent) -> str:
    """The lasting text form of an event.

    Raises:
        ValueError: If the event is of a kind this version cannot write down.

    >>> encode_event(gaussian(20.0))
    '{"count":1,"kind":"gaussian","noise":20.0,"v":1}'
    """
    kind, rate, noise, count = _parts(event)
    fields: dict[str, object] = {"v": 1, "kind": kind}
    if kind != "none":
        fields |= {"noise": noise, "count": count}
    if kind == "poisson-gaussian":
        fields["rate"] = rate
    return json.dumps(fields, sort_keys=True, separators=(",", ":"))


def decode_event(text: str) -> DpEvent:
    """The event that `encode_event` wrote.

    Raises:
        ValueError: If the text is not a version 1 event.
    """
    try:
        fields = json.loads(text)
        kind = fields["kind"]
        if fields["v"] != 1:
            raise ValueError(f"version {fields['v']} is not known")
        if kind == "none":
            return NOTHING
        if kind == "gaussian":
            return gaussian(float(fields["noise"]), _whole(fields["count"]))
        if kind == "poisson-gaussian":
            return poisson_gaussian(float(fields["rate"]), float(fields["noise"]), _whole(fields["count"]))
        raise ValueError(f"kind {kind!r} is not known")
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not an event of encoding version 1: {text!r} ({error})") from None


def _check(noise_multiplier: float, count: int) -> None:
    """Refuse what is not `count` releases with some noise."""
    if not (math.isfinite(noise_multiplier) and noise_multiplier > 0):
        raise ValueError(f"noise multiplier must be a finite number above 0, got {noise_multiplier}")
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")


def _whole(value: object) -> int:
    """A count as it was written; cutting off a fraction would count too little."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"count must be a whole number, got {value!r}")
    return value


def _parts(event: DpEvent) -> tuple[str, float, float, int]:
    """(kind, rate, noise multiplier, count) of an event made by this module."""
    count = 1
    if isinstance(event, dp_accounting.NoOpDpEvent):
        return "none", 0.0, 0.0, 0
    if isinstance(event, dp_accounting.SelfComposedDpEvent):
        event, count = event.event, event.count
    if isinstance(event, dp_accounting.GaussianDpEvent):
        return "gaussian", 1.0, float(event.noise_multiplier), int(count)
    if isinstance(event, dp_accounting.PoissonSampledDpEvent) and isinstance(
        event.event, dp_accounting.GaussianDpEvent
    ):
        return (
            "poisson-gaussian",
            float(event.sampling_probability),
            float(event.event.noise_multiplier),
            int(count),
        )
    raise ValueError(f"an event of this kind cannot be accounted for: {event!r}")
