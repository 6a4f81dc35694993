"""A privacy budget is refused at birth unless it is one."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus.privacy.budget import PrivacyBudget

NOT_EPSILON = (0.0, -1.0, math.inf, -math.inf, math.nan)
NOT_DELTA = (0.0, 1.0, -1e-6, 1.5, math.inf, math.nan)


@given(
    epsilon=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    delta=st.floats(min_value=0, max_value=1, exclude_min=True, exclude_max=True),
)
def test_a_budget_keeps_what_it_was_given(epsilon: float, delta: float) -> None:
    """Every finite epsilon above 0 and every delta between 0 and 1 is taken as it is."""
    budget = PrivacyBudget(epsilon, delta)
    assert (budget.epsilon, budget.delta) == (epsilon, delta)


@pytest.mark.parametrize("epsilon", NOT_EPSILON)
def test_an_epsilon_that_bounds_nothing_is_refused(epsilon: float) -> None:
    """Zero, negative, infinite and NaN are not limits; the message shows the value."""
    with pytest.raises(ValueError, match=f"epsilon must be a finite number above 0, got {epsilon}"):
        PrivacyBudget(epsilon, 1e-6)


@pytest.mark.parametrize("delta", NOT_DELTA)
def test_a_delta_that_is_no_probability_of_failure_is_refused(delta: float) -> None:
    """Zero cannot be met by Gaussian noise, one promises nothing; the message shows the value."""
    with pytest.raises(ValueError, match=rf"delta must be in \(0, 1\), got {delta}"):
        PrivacyBudget(1.0, delta)


def test_a_budget_cannot_be_raised_afterwards() -> None:
    """Who holds a budget cannot change it for everybody else who holds it."""
    budget = PrivacyBudget(1.0, 1e-6)
    with pytest.raises(dataclasses.FrozenInstanceError):
        budget.epsilon = 100.0  # type: ignore[misc]
