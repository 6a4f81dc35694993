"""The paired test against every assignment of signs, and Holm against his own definition."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus.significance import holm, paired_p_value


def exact_p(difference: list[float]) -> float:
    """Over all 2^n assignments of signs."""
    seen = abs(sum(difference)) - 1e-9
    signs = itertools.product((-1, 1), repeat=len(difference))
    return float(np.mean([abs(sum(s * d for s, d in zip(row, difference, strict=True))) >= seen for row in signs]))


@pytest.mark.parametrize(
    "difference", [[0.5, 0.2, -0.1, 0.4, 0.3, 0.0], [1.0, 1.0, 1.0, 1.0, -1.0], [0.1, -0.1, 0.2, -0.3, 0.6, 0.2, 0.1]]
)
def test_p_is_that_of_every_assignment_of_signs(difference: list[float]) -> None:
    """Within four standard errors of the exact test."""
    exact, resamples = exact_p(difference), 20_000
    p = paired_p_value(np.array(difference), np.zeros(len(difference)), resamples=resamples, seed=1)
    assert p == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / resamples) + 1e-4)


def test_p_of_equal_methods_is_one_and_the_order_of_users_does_not_matter() -> None:
    """No difference is no evidence; a permutation of the users gives the same figure."""
    first, second = np.random.default_rng(0).random((2, 30))
    assert paired_p_value(first, first, resamples=100, seed=0) == 1.0
    order = np.random.default_rng(1).permutation(30)
    ours = paired_p_value(first, second, resamples=500, seed=0)
    assert ours == paired_p_value(first[order], second[order], resamples=500, seed=0)
    assert ours == paired_p_value(second, first, resamples=500, seed=0)


def test_a_true_null_is_rejected_as_often_as_promised() -> None:
    """At 10 % over 400 draws: within four standard errors."""
    rng = np.random.default_rng(3)
    rejected = [paired_p_value(*rng.normal(size=(2, 25)), resamples=199, seed=seed) <= 0.1 for seed in range(400)]
    assert np.mean(rejected) == pytest.approx(0.1, abs=4 * np.sqrt(0.09 / 400))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values: list[float]) -> None:
    """At several levels, against the procedure as Holm states it."""
    adjusted = holm(p_values)
    for level in (0.01, 0.05, 0.2):
        rejected: set[int] = set()
        for done, at in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
            if (len(p_values) - done) * p_values[at] > level:
                break
            rejected.add(at)
        assert {at for at, p in enumerate(adjusted) if p <= level} == rejected


@pytest.mark.parametrize(
    ("first", "second", "resamples"),
    [
        (np.ones(2), np.ones(3), 10),
        (np.ones(0), np.ones(0), 10),
        (np.array([np.nan]), np.ones(1), 10),
        (np.ones(1), np.ones(1), 0),
    ],
)
def test_what_cannot_be_tested_is_refused(first: np.ndarray, second: np.ndarray, resamples: int) -> None:
    """Shapes, emptiness, NaN and no resamples."""
    with pytest.raises(ValueError, match="must be"):
        paired_p_value(first, second, resamples=resamples, seed=0)
