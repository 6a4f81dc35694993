"""A plan stays within its budget under accountants that did not make it, with the least noise that does."""

import dataclasses
import time
import warnings
from collections.abc import Callable

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.config import PrivacyPolicy
from isthmus.errors import ConfigError
from isthmus.privacy.accounting import COARSE, FINE, epsilon
from isthmus.privacy.budget import PrivacyBudget
from isthmus.privacy.plan import DpSgdConfig, DpSgdPlan, plan_for

PLAIN = DpSgdConfig(budget=PrivacyBudget(2.0, 1e-6), sample_rate=0.05, steps=200)
WITH_EVALUATIONS = dataclasses.replace(PLAIN, evaluations=10, metric_noise_multiplier=12.0)
POLICY = PrivacyPolicy(
    epsilon=4.0,
    delta=1e-5,
    clip=1.0,
    sample_rate=0.05,
    expected_batch=20.0,
    steps_per_round=4,
    rounds=20,
    evaluations=4,
    metric_noise_multiplier=10.0,
)


def second_opinion(plan: DpSgdPlan) -> float:
    """Epsilon of what the plan will do, written down anew and composed by dp_accounting's own accountant."""
    config = plan.config
    step = dp_accounting.PoissonSampledDpEvent(config.sample_rate, dp_accounting.GaussianDpEvent(plan.noise_multiplier))
    accountant = PLDAccountant(value_discretization_interval=FINE).compose(step, config.steps)
    if config.evaluations:
        accountant.compose(dp_accounting.GaussianDpEvent(config.metric_noise_multiplier), config.evaluations)
    return float(accountant.get_epsilon(config.budget.delta))


def overspends(make: Callable[[DpSgdConfig], DpSgdPlan]) -> list[str]:
    """Which configurations a planner plans beyond their budget, by the second accountant."""
    cases = {"plain": PLAIN, "evaluations": WITH_EVALUATIONS}
    return [name for name, config in cases.items() if second_opinion(make(config)) > config.budget.epsilon]


def forgets_evaluations(config: DpSgdConfig) -> DpSgdPlan:
    """Mutant: noise for the steps alone."""
    return dataclasses.replace(dataclasses.replace(config, evaluations=0).calibrate(), config=config)


def plans_one_round(config: DpSgdConfig) -> DpSgdPlan:
    """Mutant: the budget of the horizon is taken for that of a tenth of it."""
    return dataclasses.replace(dataclasses.replace(config, steps=config.steps // 10).calibrate(), config=config)


def rounds_down(config: DpSgdConfig) -> DpSgdPlan:
    """Mutant: a step of 0.001 less noise."""
    plan = config.calibrate()
    return dataclasses.replace(plan, noise_multiplier=round(plan.noise_multiplier - 1e-3, 6))


def test_a_calibrated_plan_stays_within_budget_under_a_second_accountant() -> None:
    """With and without evaluations, and what the plan says of itself is what the second accountant says."""
    assert overspends(DpSgdConfig.calibrate) == []
    for config in (PLAIN, WITH_EVALUATIONS):
        plan = config.calibrate()
        assert plan.epsilon == pytest.approx(second_opinion(plan), abs=1e-6)
        assert plan.epsilon == epsilon(plan.events, config.budget.delta)


@pytest.mark.parametrize("mutant", [forgets_evaluations, plans_one_round, rounds_down])
def test_a_planner_that_overspends_is_caught(mutant: Callable[[DpSgdConfig], DpSgdPlan]) -> None:
    """The same check fails planners that forget evaluations, the horizon, or to round up."""
    assert "evaluations" in overspends(mutant)


def test_a_plan_is_confirmed_from_above_by_renyi_accounting() -> None:
    """Rule 10's second theory gives a little more for the same events, never less."""
    plan = PLAIN.calibrate()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of orders that it cannot use
        above = RdpAccountant().compose(dp_accounting.ComposedDpEvent(list(plan.events))).get_epsilon(1e-6)
    assert plan.epsilon <= above <= plan.epsilon * 1.3


@pytest.mark.slow
@settings(max_examples=4, deadline=None)
@given(
    budget=st.sampled_from([0.5, 2.0]),
    rate=st.sampled_from([0.05, 0.2, 1.0]),
    steps=st.integers(5, 300),
    evaluations=st.integers(0, 3),
)
def test_the_noise_is_the_least_on_its_grid(budget: float, rate: float, steps: int, evaluations: int) -> None:
    """A multiple of 0.001 that is within the budget, and 0.001 less would exceed it."""
    config = DpSgdConfig(
        budget=PrivacyBudget(budget, 1e-5),
        sample_rate=rate,
        steps=steps,
        evaluations=evaluations,
        metric_noise_multiplier=40.0,
    )
    plan = config.calibrate()
    thousandths = plan.noise_multiplier * 1000
    assert thousandths == pytest.approx(round(thousandths), abs=1e-9)
    less = dataclasses.replace(plan, noise_multiplier=(round(thousandths) - 1) / 1000)
    assert plan.epsilon <= budget < less.epsilon


def test_the_measured_calibration_of_the_design_holds() -> None:
    """1000 steps at q .05 for epsilon 4 at delta 1e-5: 1.8868 by bisection, so 1.887 on the grid."""
    config = DpSgdConfig(budget=PrivacyBudget(4.0, 1e-5), sample_rate=0.05, steps=1000)
    assert config.calibrate().noise_multiplier == 1.887


def test_evaluations_are_paid_from_the_same_budget() -> None:
    """Ten evaluations leave less for training, so it takes more noise; their events are in the plan."""
    plan = WITH_EVALUATIONS.calibrate()
    assert plan.noise_multiplier > PLAIN.calibrate().noise_multiplier
    assert plan.events.count(plan.metric_event) == 10
    assert len(plan.events) == 11


def test_rounds_add_up_to_the_plan() -> None:
    """What 20 rounds and their evaluations charge is the plan's epsilon, to the last bit."""
    plan = WITH_EVALUATIONS.calibrate()
    rounds = [plan.update_event(10) for _ in range(20)] + [plan.metric_event for _ in range(10)]
    assert epsilon(rounds, 1e-6) == plan.epsilon


def test_a_plan_without_evaluations_has_no_metric_event() -> None:
    """Nobody can release a metric that was not planned for."""
    with pytest.raises(ValueError, match="this plan has no evaluations"):
        _ = PLAIN.calibrate().metric_event


@pytest.mark.parametrize("metric_noise", [1.0, 0.1, 0.02, 1e-3])
def test_an_impossible_budget_is_refused_with_the_way_out(metric_noise: float) -> None:
    """Evaluations alone cost more: what they cost, and which keys to change; at once, however little their noise."""
    config = dataclasses.replace(PLAIN, evaluations=3, metric_noise_multiplier=metric_noise)
    started = time.monotonic()
    with pytest.raises(ConfigError) as refusal:
        config.calibrate()
    assert time.monotonic() - started < 20
    message = str(refusal.value)
    cost = epsilon([config_metric(config)] * 3, 1e-6, interval=COARSE)
    for part in ("200 steps", "3 evaluations", "epsilon 2.0", "1e-06", f"alone cost {cost:.3f}"):
        assert part in message
    for key in ("`metric_noise_multiplier`", "`epsilon`", "`evaluations`"):
        assert key in message
    assert cost > 2.0


def config_metric(config: DpSgdConfig) -> dp_accounting.DpEvent:
    """The event of one evaluation of a configuration."""
    return DpSgdPlan(config=config, noise_multiplier=1.0).metric_event


def test_more_steps_than_any_noise_can_hide_are_refused() -> None:
    """The budget can also be too small for the training itself."""
    with pytest.raises(ConfigError, match=r"no noise keeps 200000 steps and 0 evaluations within epsilon 0\.001"):
        DpSgdConfig(budget=PrivacyBudget(1e-3, 1e-9), sample_rate=1.0, steps=200_000).calibrate()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample_rate": 0.0}, r"sample_rate must be in \(0, 1\], got 0.0"),
        ({"sample_rate": 1.01}, r"sample_rate must be in \(0, 1\], got 1.01"),
        ({"sample_rate": float("nan")}, "sample_rate must be in"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"evaluations": -1}, "evaluations must not be negative, got -1"),
        ({"evaluations": 1}, "1 evaluations need a metric_noise_multiplier above 0, got None"),
        ({"evaluations": 1, "metric_noise_multiplier": 0.0}, "metric_noise_multiplier above 0, got 0.0"),
        ({"evaluations": 1, "metric_noise_multiplier": -2.0}, "metric_noise_multiplier above 0, got -2.0"),
    ],
)
def test_what_cannot_be_planned_is_refused_at_birth(change: dict[str, float], message: str) -> None:
    """Each rule of a configuration, with the value that broke it."""
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PLAIN, **change)


def test_a_policy_is_planned_over_its_whole_horizon() -> None:
    """Rounds times steps, all evaluations, the policy's own budget: nothing from anywhere else."""
    plan = plan_for(POLICY)
    assert plan.config == DpSgdConfig(
        budget=PrivacyBudget(4.0, 1e-5), sample_rate=0.05, steps=80, evaluations=4, metric_noise_multiplier=10.0
    )
    assert second_opinion(plan) <= 4.0


def test_speed_and_use_of_a_gradient_do_not_change_the_noise() -> None:
    """Clip and divisor scale the noise; the multiplier is a matter of rate, steps and budget alone."""
    other = POLICY.model_copy(update={"clip": 0.1, "expected_batch": 999.0})
    assert plan_for(other).noise_multiplier == plan_for(POLICY).noise_multiplier
