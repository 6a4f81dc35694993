"""The named checks: they fail as seldom as they promise, and say what they measured."""

import math

import numpy as np
import pytest
from scipy import stats

from isthmus.clients.audit.evidence import (
    FALSE_ALARM,
    bound_check,
    contribution_check,
    freshness_check,
    measure_noise,
    noise_checks,
    release_check,
)
from isthmus.privacy.empirical import Form, LowerBound


def bound(epsilon: float, form: Form) -> LowerBound:
    """A bound of some size."""
    return LowerBound(form=form, epsilon=epsilon, confidence=0.975, canaries=100, guesses=20, correct=15)


def test_a_bound_above_the_claim_is_a_finding_whatever_its_form() -> None:
    """The larger of two bounds counts; at the claim itself nothing is wrong."""
    for epsilons, passed in (((1.0, 2.0), True), ((2.1, 1.0), False), ((1.0, 2.1), False)):
        bounds = (bound(epsilons[0], Form.APPROXIMATE), bound(epsilons[1], Form.GAUSSIAN))
        check = bound_check(bounds, claimed=2.0, confidence=0.95)
        assert (check.name, check.passed) == ("bound", passed)
        assert f"{max(epsilons):.3f}" in check.detail
        assert "95% confidence" in check.detail


@pytest.mark.parametrize("side", [-1, 1])
def test_contribution_is_two_sided_at_the_promised_chance(side: int) -> None:
    """Just inside the two-sided Gaussian quantile passes, just outside fails; more and less alike."""
    edge = float(stats.norm.isf(FALSE_ALARM / 2)) * 0.1
    assert contribution_check(1.0 + side * edge * 0.999, deviation=0.1).passed
    assert not contribution_check(1.0 + side * edge * 1.001, deviation=0.1).passed


def test_fresh_noise_passes_and_repeated_or_mirrored_noise_does_not() -> None:
    """The statistic is standard normal for fresh noise (KS over 500 draws); the same noise or its mirror fails."""
    generator, surprises = np.random.default_rng(0), []
    for _ in range(500):
        check = freshness_check(2.0 * generator.standard_normal((4, 100)), 2.0)
        assert check.passed
        surprises.append(float(check.detail.split()[3]))
    assert stats.kstest(surprises, "norm").pvalue > 1e-3
    once = 2.0 * generator.standard_normal((1, 100))
    assert not freshness_check(np.repeat(once, 4, axis=0), 2.0).passed
    assert not freshness_check(np.concatenate([once, -once]), 2.0).passed


def test_noise_is_judged_together_and_tensor_by_tensor() -> None:
    """One quiet tensor among many is named; a little too little everywhere shows only in the sum."""
    generator = np.random.default_rng(1)
    draw = generator.standard_normal
    right = tuple(measure_noise(f"t{i}", 3.0 * draw(200), 3.0) for i in range(20))
    assert [check.passed for check in noise_checks(right)] == [True, True]
    one = (*right[:7], measure_noise("quiet", 1.5 * draw(200), 3.0), *right[7:])
    together, each = noise_checks(one)
    assert (together.passed, each.passed) == (True, False)
    assert "quiet" in each.detail
    everywhere = tuple(measure_noise(f"t{i}", 2.7 * draw(200), 3.0) for i in range(20))
    assert [check.passed for check in noise_checks(everywhere)] == [False, True]
    assert everywhere[0].ratio == pytest.approx(0.9, abs=4 / math.sqrt(400))


def test_a_refusal_is_a_finding() -> None:
    """With its words."""
    assert release_check("").passed
    assert not release_check("not finite").passed
    assert "not finite" in release_check("not finite").detail
