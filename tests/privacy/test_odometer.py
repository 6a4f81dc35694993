"""What is left of a budget, and how many more rounds: counted by composing, never by dividing."""

import math

import pytest
from dp_accounting import DpEvent
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.privacy.accounting import COARSE, NOTHING, Spending, epsilon, gaussian, poisson_gaussian
from isthmus.privacy.budget import PrivacyBudget
from isthmus.privacy.odometer import MOST_ROUNDS, NOT_LINEAR, left, more_rounds

DELTA = 1e-5
STEP = poisson_gaussian(0.05, 2.0, 10)
SPENT = Spending.of([STEP] * 20 + [gaussian(20.0)])


def test_left_is_the_budget_less_what_is_spent() -> None:
    """And 0, not less, when it is overspent."""
    spent = epsilon(SPENT, DELTA)
    assert left(SPENT, PrivacyBudget(spent + 1.5, DELTA)) == pytest.approx(1.5)
    assert left(SPENT, PrivacyBudget(spent / 2, DELTA)) == 0.0
    assert left(Spending(), PrivacyBudget(3.0, DELTA)) == 3.0


def test_epsilons_do_not_subtract_and_the_reports_words_for_it_are_true() -> None:
    """One more round costs far less than alone after many; at the same delta two can cost more than twice one."""
    alone = epsilon([STEP], DELTA)
    assert epsilon(SPENT.plus(STEP), DELTA) - epsilon(SPENT, DELTA) < alone / 4
    faint = gaussian(1000.0)
    assert epsilon([faint] * 2, 4e-4) > 2 * epsilon([faint], 4e-4)
    assert "do not subtract" in NOT_LINEAR


@pytest.mark.parametrize("rounds", [0, 1, 2, 37])
def test_exactly_the_rounds_that_were_budgeted_fit(rounds: int) -> None:
    """A budget made for so many more rounds holds so many, on the fine grid, and not one more."""
    for spent in (SPENT, Spending.of([gaussian(9.0, 3)])):
        budget = PrivacyBudget(epsilon(spent.and_also(Spending.of([STEP] * rounds)), DELTA), DELTA)
        assert more_rounds(spent, budget, STEP) == rounds
        assert more_rounds(spent, PrivacyBudget(budget.epsilon * (1 - 1e-9), DELTA), STEP) == max(0, rounds - 1)


def test_nothing_fits_into_an_overspent_budget() -> None:
    """0 more rounds, even of an event that costs nothing or next to nothing."""
    budget = PrivacyBudget(epsilon(SPENT, DELTA) / 2, DELTA)
    for event in (STEP, NOTHING, gaussian(1e5)):
        assert more_rounds(SPENT, budget, event) == 0


@pytest.mark.parametrize("event", [NOTHING, gaussian(1e5)])
def test_counting_ends_somewhere(event: DpEvent) -> None:
    """An event that costs (next to) nothing fits as often as is counted."""
    assert more_rounds(Spending(), PrivacyBudget(60.0, DELTA), event) == MOST_ROUNDS


def test_next_to_no_noise_never_fits() -> None:
    """An infinite epsilon fits into no budget, before or after."""
    bare = gaussian(0.01)
    assert more_rounds(Spending(), PrivacyBudget(1e6, DELTA), bare) == 0
    assert more_rounds(Spending.of([bare]), PrivacyBudget(1e6, DELTA), STEP) == 0
    assert left(Spending.of([bare]), PrivacyBudget(1e6, DELTA)) == 0.0


@settings(max_examples=15, deadline=None)
@given(
    spent=st.integers(0, 50),
    limit=st.floats(0.05, 4.0),
    event=st.sampled_from([STEP, gaussian(20.0), poisson_gaussian(0.2, 3.0, 1)]),
)
def test_the_count_is_what_a_loop_counts(spent: int, limit: float, event: DpEvent) -> None:
    """Rounds added one by one until the budget is exceeded, on the coarse grid, to at most 60."""
    before, budget, counted = Spending.of([STEP] * spent), PrivacyBudget(limit, DELTA), 0
    found = more_rounds(before, budget, event, interval=COARSE)
    then = before.plus(event)
    while counted < 60 and epsilon(then, DELTA, interval=COARSE) <= limit:
        counted, then = counted + 1, then.plus(event)
    assert min(found, 60) == counted
    assert not math.isnan(found)


def test_the_coarse_grid_never_promises_more() -> None:
    """Quick answers err on the safe side."""
    budget = PrivacyBudget(4.0, DELTA)
    assert 0 < more_rounds(SPENT, budget, STEP, interval=COARSE) <= more_rounds(SPENT, budget, STEP)
