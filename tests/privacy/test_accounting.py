"""Epsilon is never too small: against dp_accounting's accountants, a closed form and a lower bound, with mutants."""

import functools
import math
import warnings
from collections.abc import Callable, Sequence

import dp_accounting
import numpy as np
import pytest
from dp_accounting import DpEvent, NeighboringRelation
from dp_accounting.pld import PLDAccountant
from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution, from_gaussian_mechanism
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import GaussianAccountant, PRVAccountant, RDPAccountant
from opacus.accountants.accountant import IAccountant
from scipy.optimize import brentq
from scipy.stats import norm

from isthmus.privacy import accounting, losses
from isthmus.privacy.accounting import (
    COARSE,
    FINE,
    NOTHING,
    Spending,
    encode_event,
    epsilon,
    fits,
    gaussian,
    poisson_gaussian,
)
from isthmus.privacy.budget import PrivacyBudget

Accountant = Callable[[Sequence[DpEvent], float], float]

CASES: tuple[tuple[DpEvent, ...], ...] = (
    (poisson_gaussian(0.01, 1.0, 1000),),
    (poisson_gaussian(0.05, 1.8868, 1000),),
    (gaussian(3.0, 4),),
    (poisson_gaussian(0.05, 2.0, 300), gaussian(20.0, 5), NOTHING),
    (poisson_gaussian(0.2, 1.5, 40), poisson_gaussian(0.02, 0.9, 10), gaussian(6.0)),
)
DELTA = 1e-5

EVENTS = st.one_of(
    st.just(NOTHING),
    st.builds(gaussian, st.sampled_from([1.0, 2.5, 6.0]), st.integers(1, 6)),
    st.builds(
        poisson_gaussian, st.sampled_from([0.01, 0.1, 1.0]), st.sampled_from([0.8, 1.5, 4.0]), st.integers(1, 200)
    ),
)


def closed_form(noise_multiplier: float, delta: float) -> float:
    """Exact epsilon of one Gaussian release (Balle and Wang, ICML 2018, theorem 8)."""
    return float(brentq(functools.partial(_excess, noise_multiplier, delta), 0, 100))


def closed_form_large(noise_multiplier: float) -> float:
    """The same, by the library, in logarithms."""
    return float(dp_accounting.get_epsilon_gaussian(noise_multiplier, DELTA))


def _excess(noise: float, delta: float, eps: float) -> float:
    half = 1 / (2 * noise)
    return float(norm.cdf(half - eps * noise) - math.exp(eps) * norm.cdf(-half - eps * noise)) - delta


@functools.cache
def optimistic(events: tuple[DpEvent, ...], delta: float) -> float:
    """A lower bound of the true epsilon: the same composition with every loss rounded down, by up to 5e-5 a step."""
    losses = []
    for event in events:
        if isinstance(event, dp_accounting.SelfComposedDpEvent):
            inner, rate = event.event, 1.0
            if isinstance(inner, dp_accounting.PoissonSampledDpEvent):
                inner, rate = inner.event, inner.sampling_probability
            one = from_gaussian_mechanism(
                inner.noise_multiplier,
                value_discretization_interval=5e-5,
                sampling_prob=rate,
                pessimistic_estimate=False,
                use_connect_dots=False,
            )
            losses.append(one.self_compose(event.count))
    return float(functools.reduce(PrivacyLossDistribution.compose, losses).get_epsilon_for_delta(delta))


def renyi(events: Sequence[DpEvent], delta: float) -> float:
    """An upper bound of the true epsilon, from another theory."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of orders that it cannot use
        return float(RdpAccountant().compose(dp_accounting.ComposedDpEvent(list(events))).get_epsilon(delta))


def understated(accountant: Accountant) -> list[int]:
    """The cases for which an accountant says less than the truth can be."""
    return [case for case, events in enumerate(CASES) if accountant(events, DELTA) < optimistic(events, DELTA)]


def central_limit(events: Sequence[DpEvent], delta: float) -> float:
    """Mutant: the GDP accountant, which rule 10 forbids (Bu et al., 2020, corollary 1)."""
    mu = math.sqrt(
        sum(
            rate**2 * count * (math.exp(noise**-2) - 1)
            for _, rate, noise, count in map(accounting._parts, events)
            if noise
        )
    )
    return closed_form(1 / mu, delta)


def averaged(events: Sequence[DpEvent], delta: float) -> float:
    """Mutant: the mean of what each event costs."""
    costs = [epsilon([event], delta, interval=COARSE) for event in events]
    return sum(costs) / len(costs)


def single(events: Sequence[DpEvent], delta: float) -> float:
    """Mutant: the count of an event is forgotten."""
    once = [
        e if e is NOTHING else gaussian(noise) if rate == 1 else poisson_gaussian(rate, noise, 1)
        for e in events
        for _, rate, noise, _ in [accounting._parts(e)]
    ]
    return epsilon(once, delta, interval=COARSE)


def test_epsilon_is_the_figure_that_dp_accounting_gives() -> None:
    """The library's own PLD accountant, on the same grid, says the same for one kind of event."""
    for events in CASES[:2]:
        spent = PLDAccountant(value_discretization_interval=FINE).compose(events[0]).get_epsilon(DELTA)
        assert epsilon(events, DELTA) == pytest.approx(float(spent), abs=1e-7)  # a rounding allowance of ours


def test_mixed_events_cost_what_dp_accounting_says() -> None:
    """Merged another way (it adds Gaussians up as one), the library agrees to within the grid."""
    for events in CASES[2:]:
        accountant = PLDAccountant(value_discretization_interval=1e-3)
        spent = accountant.compose(dp_accounting.ComposedDpEvent(list(events))).get_epsilon(DELTA)
        assert epsilon(events, DELTA, interval=1e-3) == pytest.approx(float(spent), abs=1e-3)


def opacus(kind: type[IAccountant], rate: float, noise: float, steps: int) -> float:
    """Epsilon of DP-SGD by one of Opacus' accountants."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # orders that it cannot use; that GDP may underestimate, which is the point
        accountant = kind()
        accountant.history = [(noise, rate, steps)]
        return float(accountant.get_epsilon(DELTA))


def test_the_measured_figures_of_the_design_hold() -> None:
    """1,000 steps, q .01, noise 1: PLD 1.8282 (ours), RDP 2.1014 (two libraries), PRV 1.8384, GDP 1.6177 (too low)."""
    spent = epsilon(CASES[0], DELTA)
    assert spent == pytest.approx(1.8282, abs=1e-4)
    assert renyi(CASES[0], DELTA) == pytest.approx(2.1014, abs=1e-3)
    assert opacus(RDPAccountant, 0.01, 1.0, 1000) == pytest.approx(2.1014, abs=1e-3)
    prv = opacus(PRVAccountant, 0.01, 1.0, 1000)
    assert prv == pytest.approx(1.8384, abs=1e-3)
    assert spent - 0.01 <= prv <= spent + 2 * 0.01 + 1e-3  # PRV promises 0.01 either way and reports its upper end
    gdp = opacus(GaussianAccountant, 0.01, 1.0, 1000)
    assert gdp == pytest.approx(1.6177, abs=1e-3)
    assert gdp < optimistic(CASES[0], DELTA)


def test_epsilon_4_takes_less_noise_by_pld_than_by_renyi() -> None:
    """1,000 steps at q .05: noise 1.8868 by PLD, 2.0092 by RDP, found by bisection with either."""
    noises = [
        brentq(
            lambda noise, accountant=by: accountant([poisson_gaussian(0.05, noise, 1000)], DELTA) - 4,
            1.8,
            2.1,
            xtol=1e-5,
        )
        for by in (epsilon, renyi)
    ]
    assert noises == [pytest.approx(1.8868, abs=2e-4), pytest.approx(2.0092, abs=2e-4)]
    assert (
        epsilon([poisson_gaussian(0.05, 1.887, 1000)], DELTA)
        <= 4.0
        < epsilon([poisson_gaussian(0.05, 1.886, 1000)], DELTA)
    )


def test_replacing_a_user_is_dearer_than_adding_one() -> None:
    """2.84 against 1.83, by the library: the adjacency that the documents name is the one that is counted."""
    replaced = PLDAccountant(NeighboringRelation.REPLACE_ONE, value_discretization_interval=1e-3)
    assert float(replaced.compose(CASES[0][0]).get_epsilon(DELTA)) == pytest.approx(2.84, abs=5e-3)
    assert epsilon(CASES[0], DELTA) == pytest.approx(1.83, abs=5e-3)


def loss_by_sampling(rate: float, noise: float, count: int, *, eps: float, removed: bool) -> tuple[float, float]:
    """Delta at an epsilon and its standard error, from 50,000 sampled sums of losses: no grid, no transform."""
    rng = np.random.default_rng(7)
    total = np.zeros(50_000)
    for _ in range(count):
        present = (rng.random(total.size) < rate) if removed else np.zeros(total.size, dtype=bool)
        seen = rng.normal(present * 1.0, noise)
        ratio = np.log1p(rate * np.expm1((2 * seen - 1) / (2 * noise**2)))  # with the user / without
        total += ratio if removed else -ratio
    over = np.maximum(-np.expm1(np.minimum(eps - total, 0)), 0)
    return float(over.mean()), float(over.std() / math.sqrt(over.size))


@pytest.mark.parametrize(("rate", "noise", "count"), [(0.1, 1.0, 30), (0.3, 2.0, 20)])
def test_sampled_losses_confirm_the_number(rate: float, noise: float, count: int) -> None:
    """At the epsilon for delta .01 the sampled delta is .01 (4 standard errors); half the rate or count is caught."""
    spent = epsilon([poisson_gaussian(rate, noise, count)], 0.01)
    sampled = [loss_by_sampling(rate, noise, count, eps=spent, removed=removed) for removed in (True, False)]
    delta, error = max(sampled)
    assert abs(delta - 0.01) < 4 * error
    for mutant in (poisson_gaussian(rate / 2, noise, count), poisson_gaussian(rate, noise, count // 2)):
        low = epsilon([mutant], 0.01)
        delta, error = max(loss_by_sampling(rate, noise, count, eps=low, removed=removed) for removed in (True, False))
        assert delta > 0.01 + 8 * error


@pytest.mark.parametrize("events", CASES)
def test_epsilon_lies_between_a_lower_and_an_upper_bound(events: tuple[DpEvent, ...]) -> None:
    """Renyi accounting confirms it from above, a composition that rounds down bounds it from below."""
    assert optimistic(events, DELTA) <= epsilon(events, DELTA) <= renyi(events, DELTA)


def test_epsilon_is_never_below_the_truth_at_either_interval() -> None:
    """No case is understated; for a single Gaussian the closed form is met to four digits."""
    assert understated(epsilon) == []
    assert understated(functools.partial(epsilon, interval=COARSE)) == []
    for noise in (1.0, 4.0, 20.0):
        exact = closed_form(noise, DELTA)
        assert exact <= epsilon([gaussian(noise)], DELTA) <= exact * (1 + 1e-4) + 1e-6
        assert exact <= epsilon([gaussian(noise)], DELTA, interval=COARSE)
        assert exact <= epsilon([gaussian(4 * noise, 16)], DELTA) <= exact + 3e-3  # 16 releases at 4 times the noise


@pytest.mark.parametrize("mutant", [central_limit, averaged, single])
def test_an_accountant_that_understates_is_caught(mutant: Accountant) -> None:
    """The same check finds the GDP figure, an average and a forgotten count too low."""
    assert understated(mutant)


def test_the_gdp_figure_is_the_one_that_the_design_warns_of() -> None:
    """1.6177, below every bound: what the mutant stands for."""
    assert central_limit(CASES[0], DELTA) == pytest.approx(1.6177, abs=2e-2)


@settings(max_examples=25, deadline=None)
@given(events=st.lists(EVENTS, min_size=1, max_size=5), data=st.data())
def test_order_and_grouping_do_not_matter_to_the_last_bit(events: list[DpEvent], data: st.DataObject) -> None:
    """Equal events cut into pieces and shuffled give the very same float."""
    pieces: list[DpEvent] = []
    for event in events:
        kind, rate, noise, count = accounting._parts(event)
        if kind == "none":
            pieces.append(event)
            continue
        first = data.draw(st.integers(1, count))
        parts = [part for part in (first, count - first) if part]
        make = gaussian if kind == "gaussian" else functools.partial(poisson_gaussian, rate)
        pieces.extend(make(noise, part) for part in parts)
    shuffled = data.draw(st.permutations(pieces))
    assert epsilon(shuffled, DELTA, interval=COARSE) == epsilon(events, DELTA, interval=COARSE)


def test_a_plan_and_the_sum_of_its_rounds_are_one_number() -> None:
    """500 steps at once, or 50 rounds of 10, on the fine grid: equal, not close."""
    whole = epsilon([poisson_gaussian(0.02, 1.3, 500), gaussian(9.0, 5)], 1e-6)
    rounds = [event for _ in range(5) for event in [poisson_gaussian(0.02, 1.3, 10)] * 10 + [gaussian(9.0)]]
    assert epsilon(rounds, 1e-6) == whole


def test_one_gaussian_is_a_poisson_sample_of_everybody() -> None:
    """A rate of 1 is no sampling, so both events are merged."""
    assert epsilon([poisson_gaussian(1.0, 2.0, 3), gaussian(2.0, 4)], DELTA) == epsilon([gaussian(2.0, 7)], DELTA)


@settings(max_examples=25, deadline=None)
@given(events=st.lists(EVENTS, max_size=4), more=EVENTS)
def test_more_events_never_give_less(events: list[DpEvent], more: DpEvent) -> None:
    """Adding an event never lowers epsilon."""
    before, after = (epsilon(e, DELTA, interval=COARSE) for e in (events, [*events, more]))
    assert after >= before * (1 - 1e-9)


@settings(max_examples=8, deadline=None)
@given(events=st.lists(EVENTS, max_size=3), delta=st.sampled_from([1e-9, 1e-6, 1e-3]))
def test_the_coarse_grid_never_says_less_than_the_fine_one(events: list[DpEvent], delta: float) -> None:
    """The quick bound may only err on the safe side (to the rounding of a double)."""
    assert epsilon(events, delta, interval=COARSE) >= epsilon(events, delta) - 1e-9


@pytest.mark.parametrize("events", CASES)
def test_fits_says_what_the_fine_epsilon_says(events: tuple[DpEvent, ...]) -> None:
    """Just enough is enough, a millionth less is not, though the coarse grid alone would refuse both."""
    spent = epsilon(events, DELTA)
    assert epsilon(events, DELTA, interval=COARSE) > spent
    assert fits(iter(events), PrivacyBudget(spent, DELTA))
    assert not fits(events, PrivacyBudget(spent * (1 - 1e-6), DELTA))


def test_nothing_costs_nothing() -> None:
    """No events, and releases of public data, are free."""
    assert epsilon([], DELTA) == epsilon([NOTHING, NOTHING], DELTA) == 0.0


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-9, math.nan])
def test_a_delta_outside_its_range_is_refused(delta: float) -> None:
    """An epsilon at delta 0 or 1 is not one."""
    with pytest.raises(ValueError, match="delta must be in"):
        epsilon(CASES[0], delta)


@pytest.mark.slow
def test_hundreds_of_mechanisms_get_a_coarser_grid_that_never_says_less() -> None:
    """250 mechanisms do not fit on the fine grid; 1,000 more releases never make the epsilon fall back to it."""
    many = [poisson_gaussian(0.005 + 1e-4 * i, 1.0 + 0.013 * i, 40) for i in range(250)]
    spending = Spending.of(many)
    assert losses.affordable(spending.parts, FINE) == 1e-3
    before = Spending.of(many[:100])
    assert losses.affordable(before.parts, FINE) == FINE
    spent = epsilon(spending, 1e-6)
    assert epsilon(before, 1e-6, interval=1e-3) < spent <= epsilon(spending, 1e-6, interval=COARSE)
    assert spent <= epsilon(spending.plus(gaussian(50.0, 1000)), 1e-6)


def test_hardly_any_noise_is_infinitely_dear() -> None:
    """Below the least noise nothing is proven: an infinity at once, in place of a grid that fills the memory."""
    for noise in (1e-9, 0.0199):
        assert epsilon([gaussian(noise)], DELTA) == math.inf
        assert not fits([poisson_gaussian(0.01, noise, 1), gaussian(20.0)], PrivacyBudget(1e6, DELTA))
    exact = closed_form_large(accounting.LEAST_NOISE * 2)
    assert exact <= epsilon([gaussian(accounting.LEAST_NOISE * 2)], DELTA, interval=COARSE) <= exact + 1e-3
    assert epsilon([gaussian(0.05, 10**9)], DELTA) == math.inf  # no grid is coarse enough


@pytest.mark.parametrize(
    "event",
    [
        dp_accounting.LaplaceDpEvent(1.0),
        dp_accounting.NonPrivateDpEvent(),
        dp_accounting.UnsupportedDpEvent(),
        dp_accounting.ComposedDpEvent([gaussian(1.0)]),
        dp_accounting.SelfComposedDpEvent(gaussian(1.0, 2), 2),
        dp_accounting.PoissonSampledDpEvent(0.1, dp_accounting.LaplaceDpEvent(1.0)),
        dp_accounting.SampledWithoutReplacementDpEvent(100, 10, dp_accounting.GaussianDpEvent(1.0)),
    ],
)
def test_an_event_that_cannot_be_accounted_for_is_refused(event: DpEvent) -> None:
    """Shuffled batches and unknown mechanisms are not taken for Poisson samples: neither written nor summed."""
    for use in (encode_event, _cost):
        with pytest.raises(ValueError, match="cannot be accounted for"):
            use(event)


def _cost(event: DpEvent) -> float:
    return epsilon([event], DELTA)


@pytest.mark.parametrize("noise", [0.0, -1.0, math.nan, math.inf])
def test_an_event_needs_noise(noise: float) -> None:
    """No event is made of noise that is none."""
    with pytest.raises(ValueError, match="noise multiplier must be a finite number above 0"):
        gaussian(noise)
    with pytest.raises(ValueError, match="noise multiplier must be a finite number above 0"):
        poisson_gaussian(0.1, noise, 1)
