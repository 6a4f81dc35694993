"""Plan DP-SGD for one domain: budget in, noise out.

A `DpSgdConfig` says what a domain is willing to spend. `calibrate` turns it into a `DpSgdPlan`,
the one object that training and the audit both read.

    plan = DpSgdConfig(budget=PrivacyBudget(2.0, 1e-6), sample_rate=0.01, steps=500).calibrate()

The privacy unit is one user: the data set holds exactly one record per user.

Reference: Abadi et al., "Deep Learning with Differential Privacy", CCS 2016.
"""

import functools
from dataclasses import dataclass

from dp_accounting import DpEvent

from isthmus.config import PrivacyPolicy
from isthmus.errors import ConfigError
from isthmus.privacy.accounting import COARSE, FINE, epsilon, gaussian, poisson_gaussian
from isthmus.privacy.budget import PrivacyBudget

_STEP = 1e-3
"""Noise multipliers are multiples of this, so that a plan prints as what it is."""
_LARGEST = 10_000_000
"""Grid points that are tried before giving up: a noise multiplier of 10,000."""


@dataclass(frozen=True, kw_only=True)
class DpSgdConfig:
    """What a domain may spend on one horizon of training, in plain, serialisable values.

    Attributes:
        budget: Limit for the whole horizon, not for one round.
        sample_rate: Probability that a user is in a batch, in (0, 1].
        steps: Noisy gradient steps over all rounds.
        evaluations: Noisy evaluations over all rounds.
        metric_noise_multiplier: Noise stddev of an evaluation / its L2 sensitivity; needed if there are any.
    """

    budget: PrivacyBudget
    sample_rate: float
    steps: int
    evaluations: int = 0
    metric_noise_multiplier: float | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be planned."""
        if not 0 < self.sample_rate <= 1:
            raise ValueError(f"sample_rate must be in (0, 1], got {self.sample_rate}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.evaluations < 0:
            raise ValueError(f"evaluations must not be negative, got {self.evaluations}")
        if self.evaluations and not (self.metric_noise_multiplier and self.metric_noise_multiplier > 0):
            raise ValueError(
                f"{self.evaluations} evaluations need a metric_noise_multiplier above 0, "
                f"got {self.metric_noise_multiplier}"
            )

    def calibrate(self) -> "DpSgdPlan":
        """The plan with the least noise that keeps everything within the budget.

        Returns:
            A plan whose noise multiplier is a multiple of 0.001.

        Raises:
            ConfigError: If no noise is enough, e.g. when the evaluations alone cost more than the budget.

        Guarantees:
            - The PLD accountant's epsilon of the plan's events is at most the budget's, at its delta.
            - 0.001 less noise would exceed it.
        """
        return DpSgdPlan(config=self, noise_multiplier=_least_noise(self))


@dataclass(frozen=True, kw_only=True)
class DpSgdPlan:
    """A calibrated configuration: how much noise, and the events it makes.

    Attributes:
        config: What was asked for.
        noise_multiplier: Noise stddev / clipping norm of one step.
    """

    config: DpSgdConfig
    noise_multiplier: float

    def update_event(self, steps: int) -> DpEvent:
        """The event of one round of `steps` noisy steps."""
        return poisson_gaussian(self.config.sample_rate, self.noise_multiplier, steps)

    @property
    def metric_event(self) -> DpEvent:
        """The event of one noisy evaluation.

        Raises:
            ValueError: If the plan has none.
        """
        if self.config.metric_noise_multiplier is None:
            raise ValueError("this plan has no evaluations")
        return gaussian(self.config.metric_noise_multiplier)

    @property
    def events(self) -> tuple[DpEvent, ...]:
        """Everything that the plan will ever release."""
        metrics = (self.metric_event,) * self.config.evaluations if self.config.evaluations else ()
        return (self.update_event(self.config.steps), *metrics)

    @property
    def epsilon(self) -> float:
        """Epsilon of the whole plan at the budget's delta, by the PLD accountant."""
        return epsilon(self.events, self.config.budget.delta)


def plan_for(policy: PrivacyPolicy) -> DpSgdPlan:
    """The plan of a domain's own policy.

    Raises:
        ConfigError: If no noise keeps the policy within its budget.
    """
    return DpSgdConfig(
        budget=PrivacyBudget(policy.epsilon, policy.delta),
        sample_rate=policy.sample_rate,
        steps=policy.rounds * policy.steps_per_round,
        evaluations=policy.evaluations,
        metric_noise_multiplier=policy.metric_noise_multiplier,
    ).calibrate()


@functools.lru_cache(maxsize=256)
def _least_noise(config: DpSgdConfig) -> float:
    """Smallest multiple of `_STEP` within the budget, by bisection on the grid (epsilon falls with noise)."""
    limit = config.budget.epsilon
    # 1. Bracket and bisect on the coarse grid, from plenty of noise downwards: less noise costs more to account for.
    low, high = 0, 4096
    # Evaluations that alone cost too much are not worth a search: with little noise each look would take seconds.
    impossible = _metrics_cost(config) > limit
    while impossible or _epsilon_at(config, high, COARSE) > limit:
        low, high = high, high * 2
        if impossible or high > _LARGEST:
            raise ConfigError(
                f"no noise keeps {config.steps} steps and {config.evaluations} evaluations within epsilon {limit} "
                f"at delta {config.budget.delta}; the evaluations alone cost {_metrics_cost(config):.3f}. "
                f"Raise `metric_noise_multiplier` or `epsilon`, or release fewer `evaluations`."
            )
    while low == 0 and high > 1 and _epsilon_at(config, high // 2, COARSE) <= limit:
        high //= 2
    low = max(low, high // 2)
    while high - low > 1:
        middle = (low + high) // 2
        if _epsilon_at(config, middle, COARSE) > limit:
            low = middle
        else:
            high = middle
    # 2. The fine grid never says more than the coarse one: walk down, doubling the stride, then bisect once more.
    stride = 1
    while high > stride and _epsilon_at(config, high - stride, FINE) <= limit:
        high, stride = high - stride, stride * 2
    low = max(high - stride, 0)
    while high - low > 1:
        middle = (low + high) // 2
        if _epsilon_at(config, middle, FINE) > limit:
            low = middle
        else:
            high = middle
    return _noise_at(high)


def _noise_at(point: int) -> float:
    return round(point * _STEP, 6)


def _epsilon_at(config: DpSgdConfig, point: int, interval: float) -> float:
    plan = DpSgdPlan(config=config, noise_multiplier=_noise_at(point))
    return epsilon(plan.events, config.budget.delta, interval=interval)


def _metrics_cost(config: DpSgdConfig) -> float:
    if not config.evaluations or config.metric_noise_multiplier is None:
        return 0.0
    # The coarse grid is near enough for a message, and evaluations with little noise make the fine one huge.
    events = [gaussian(config.metric_noise_multiplier, config.evaluations)]
    return epsilon(events, config.budget.delta, interval=COARSE)
