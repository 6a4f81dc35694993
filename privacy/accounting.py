"""Compose what was done into an epsilon, and write events down in an encoding that lasts.

    event = decode_event('{"count":5,"kind":"poisson-gaussian","noise":1.9,"rate":0.05,"v":1}')
    spent = epsilon([event, event], delta=1e-6)

Events are `dp_accounting.DpEvent` objects, taken as they are. The number is the tight
privacy-loss-distribution accountant's (PLD), pessimistic by construction. Equal events are
merged before they are composed: composition commutes, so this changes nothing but speed, and
it makes a plan and the sum of its rounds the *same* computation, to the last bit.

Encoding, version 1: one JSON object, keys sorted. Kinds are never removed and never change
meaning.

| kind               | fields        | meaning                                                     |
|--------------------|---------------|-------------------------------------------------------------|
| `none`             |               | a function of public data only                              |
| `gaussian`         | noise, count  | noise stddev / L2 sensitivity, `count` times                |
| `poisson-gaussian` | rate, ...     | the same on a batch in which each user is with chance `rate` |

References: Koskela, Jälkö and Honkela, "Computing tight differential privacy guarantees using
FFT", AISTATS 2020; Doroshenko et al., "Connect the Dots", PoPETs 2022 (the discretisation used).
"""

import functools
import json
import math
from collections import Counter
from collections.abc import Iterable

import dp_accounting
from dp_accounting import DpEvent
from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution, from_gaussian_mechanism

from isthmus.privacy.budget import PrivacyBudget

FINE = 1e-4
"""Discretisation interval of every epsilon that is reported or enforced."""
COARSE = 5e-3
"""Discretisation interval for a quick bound that is never below the fine one."""

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


def epsilon(events: Iterable[DpEvent], delta: float, *, interval: float = FINE) -> float:
    """Smallest epsilon that the PLD accountant proves for all events together.

    Args:
        events: Made by this module.
        delta: In (0, 1).
        interval: Grid of the discretised privacy loss. `COARSE` is ten times faster and never says less.

    Returns:
        Epsilon; 0 for no events, infinity where nothing can be proven (as for noise below `LEAST_NOISE`).

    Guarantees:
        - Never below the true epsilon of the composition (discretisation rounds up), at either interval.
        - Order and grouping of equal events do not matter, to the last bit.
        - More events never give less.
    """
    counted: Counter[tuple[float, float]] = Counter()
    for event in events:
        kind, rate, noise, count = _parts(event)
        if kind != "none":
            counted[rate, noise] += count
    return _epsilon(tuple(sorted((*key, count) for key, count in counted.items())), delta, interval)


def fits(events: Iterable[DpEvent], budget: PrivacyBudget) -> bool:
    """Whether all events together stay within a budget.

    The coarse grid answers when there is clearly room (it never says less than the fine one), the fine
    grid decides the rest.
    """
    events = tuple(events)
    return (
        epsilon(events, budget.delta, interval=COARSE) <= budget.epsilon
        or epsilon(events, budget.delta) <= budget.epsilon
    )


@functools.lru_cache(maxsize=4096)
def _epsilon(parts: tuple[tuple[float, float, int], ...], delta: float, interval: float) -> float:
    if not parts:
        return 0.0
    if min(noise for _, noise, _ in parts) < LEAST_NOISE:
        return math.inf
    first, *others = (_loss(rate, noise, interval).self_compose(count) for rate, noise, count in parts)
    return float(functools.reduce(PrivacyLossDistribution.compose, others, first).get_epsilon_for_delta(delta))


@functools.lru_cache(maxsize=64)
def _loss(rate: float, noise: float, interval: float) -> PrivacyLossDistribution:
    """Privacy loss of one Gaussian release on a Poisson sample; building it is the slow part."""
    return from_gaussian_mechanism(noise, value_discretization_interval=interval, sampling_prob=rate)


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
