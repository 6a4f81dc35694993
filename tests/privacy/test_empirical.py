"""Lower bounds hold as often as they say: against published values, closed forms, exact sums, simulated mechanisms."""

import itertools
import math

import dp_accounting
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import integrate, stats

from isthmus.privacy.empirical import (
    Form,
    RocPoint,
    area_under_curve,
    attack_epsilon,
    audit_scores,
    chance_of_so_little_noise,
    clopper_pearson,
    gaussian_area,
    gaussian_epsilon,
    gaussian_one_run_epsilon,
    gaussian_ruled_out,
    one_run_epsilon,
    one_run_p_value,
    operating_point,
    rates_at,
    right_guesses,
    threshold_for,
)

DELTA = 1e-5


@pytest.mark.parametrize(
    ("canaries", "guesses", "correct", "delta", "published"),
    [(1000, 100, 75, 1e-4, 0.673), (100_000, 1510, 1439, 1e-5, 2.675)],
    ids=["appendix D", "figure 11"],
)
def test_one_run_bound_is_the_papers(canaries: int, guesses: int, correct: int, delta: float, published: float) -> None:
    """The two values that Steinke, Nasr and Jagielski print (the second is cut off, not rounded)."""
    found = one_run_epsilon(canaries=canaries, guesses=guesses, correct=correct, delta=delta, confidence=0.95)
    assert found == pytest.approx(published, abs=1e-3)


def binomial_tail(least: int, trials: int, chance: float) -> float:
    """P[Binomial >= least], term by term."""
    return math.fsum(
        math.comb(trials, k) * chance**k * (1 - chance) ** (trials - k) for k in range(max(least, 0), trials + 1)
    )


@pytest.mark.parametrize("delta", [0.0, 1e-4, 0.01])
def test_one_run_p_value_is_corollary_5_4_term_by_term(delta: float) -> None:
    """Against sums of exact binomial coefficients, for all counts of a small audit."""
    for guesses, epsilon in itertools.product((1, 7, 20), (0.0, 0.5, 2.0)):
        chance = math.exp(epsilon) / (1 + math.exp(epsilon))
        for correct in range(guesses + 1):
            tail = binomial_tail(correct, guesses, chance)
            slopes = [(binomial_tail(correct - i, guesses, chance) - tail) / i for i in range(1, correct + 1)]
            expected = min(1.0, tail + 2 * 30 * delta * max(slopes, default=0.0))
            found = one_run_p_value(canaries=30, guesses=guesses, correct=correct, epsilon=epsilon, delta=delta)
            assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("epsilon", [0.2, 1.0, 3.0])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_one_run_bound_covers_randomized_response_and_is_tight_there(epsilon: float, confidence: float) -> None:
    """Right guesses about randomized response are binomial: the chance of a bound above epsilon is an exact sum."""
    canaries, chance = 120, 1 / (1 + math.exp(-epsilon))
    exceeding = [
        correct
        for correct in range(canaries + 1)
        if one_run_epsilon(canaries=canaries, guesses=canaries, correct=correct, delta=0.0, confidence=confidence)
        > epsilon + 1e-9
    ]
    wrong = math.fsum(stats.binom.pmf(exceeding, canaries, chance))
    assert wrong <= 1 - confidence
    assert wrong > (1 - confidence) / 3, "no looser than whole numbers of guesses make it"


@pytest.mark.parametrize("delta", [1e-3, 0.02])
def test_one_run_bound_covers_a_mechanism_that_fails_with_chance_delta(delta: float) -> None:
    """Randomized response that shows the truth with chance delta is (epsilon, delta)-DP; an exact sum again."""
    epsilon, canaries = 1.0, 100
    chance = delta + (1 - delta) / (1 + math.exp(-epsilon))
    exceeding = [
        correct
        for correct in range(canaries + 1)
        if one_run_epsilon(canaries=canaries, guesses=canaries, correct=correct, delta=delta, confidence=0.95) > epsilon
    ]
    assert math.fsum(stats.binom.pmf(exceeding, canaries, chance)) <= 0.05


@pytest.mark.parametrize("mu", [0.0, 0.3, 1.0, 2.5])
def test_gaussian_form_of_one_guess_is_the_best_test(mu: float) -> None:
    """One coin, one guess: the best test is right with chance Phi(mu / 2), and the bound says exactly that."""
    best = float(stats.norm.cdf(mu / 2))
    assert gaussian_ruled_out(canaries=1, guesses=1, correct=1, mu=mu, significance=best * 0.999) is False
    assert gaussian_ruled_out(canaries=1, guesses=1, correct=1, mu=mu, significance=min(best * 1.001, 0.9999)) is True


@pytest.mark.parametrize("mu", [0.2, 1.0, 2.0])
def test_gaussian_form_never_rules_out_what_the_best_test_reaches(mu: float) -> None:
    """For every count of up to 8 coordinates: if ruled out, the best test's exact chance is below the significance."""
    best, looks = float(stats.norm.cdf(mu / 2)), 0
    for canaries in range(1, 9):
        for correct in range(canaries + 1):
            chance = binomial_tail(correct, canaries, best)
            for significance in (0.01, 0.05, 0.3, 0.7):
                if gaussian_ruled_out(
                    canaries=canaries, guesses=canaries, correct=correct, mu=mu, significance=significance
                ):
                    looks += 1
                    assert chance <= significance
    assert looks > 0, "nothing was ruled out: the promise was not tried"


def gaussian_scores(
    generator: np.random.Generator, *, canaries: int, mu: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """A mechanism of known epsilon: each canary moves its own coordinate by mu standard deviations."""
    included = generator.random(canaries) < 0.5
    return included * mu + generator.standard_normal(canaries), included


@pytest.mark.parametrize(("mu", "share"), [(0.5, 0.1), (1.0, 0.1), (1.0, 1.0), (2.0, 0.3)])
def test_both_bounds_cover_a_gaussian_mechanism(mu: float, share: float) -> None:
    """In 1500 simulated runs at most 5 % of the bounds exceed the true epsilon (told by ruling out the truth)."""
    generator, canaries, runs = np.random.default_rng(1), 300, 1500
    truth = gaussian_epsilon(mu, DELTA)
    above = dict.fromkeys(Form, 0)
    for _ in range(runs):
        scores, included = gaussian_scores(generator, canaries=canaries, mu=mu)
        guesses = 2 * round(canaries * share / 2)
        correct = right_guesses(scores, included, guesses=guesses)
        counts = {"canaries": canaries, "guesses": guesses, "correct": correct}
        above[Form.APPROXIMATE] += one_run_p_value(**counts, epsilon=truth, delta=DELTA) <= 0.05
        above[Form.GAUSSIAN] += gaussian_ruled_out(**counts, mu=mu, significance=0.05)
    assert max(above.values()) <= 0.05 * runs


def test_the_bounds_are_what_is_ruled_out() -> None:
    """At a bound the mechanism is ruled out, a little above it is not; both forms."""
    counts = {"canaries": 400, "guesses": 100, "correct": 80}
    canary = one_run_epsilon(**counts, delta=DELTA, confidence=0.95)
    assert one_run_p_value(**counts, epsilon=canary, delta=DELTA) <= 0.05
    assert one_run_p_value(**counts, epsilon=canary * 1.001, delta=DELTA) > 0.05
    grid = np.linspace(0, 3, 3001)
    ruled_out = [gaussian_ruled_out(**counts, mu=float(mu), significance=0.05) for mu in grid]
    assert ruled_out == sorted(ruled_out, reverse=True)
    edge = float(grid[sum(ruled_out)])
    found = gaussian_one_run_epsilon(**counts, delta=DELTA, confidence=0.95)
    assert gaussian_epsilon(edge - 0.001, DELTA) <= found <= gaussian_epsilon(edge, DELTA)


def test_audit_scores_splits_its_error_between_two_forms() -> None:
    """Each form is taken at half of the allowed error, so that both hold together; the Gaussian one is tighter."""
    scores, included = gaussian_scores(np.random.default_rng(2), canaries=2000, mu=1.0)
    first, second = audit_scores(scores, included, delta=DELTA, confidence=0.9, share=0.1)
    assert (first.form, second.form) == (Form.APPROXIMATE, Form.GAUSSIAN)
    assert first.confidence == second.confidence == pytest.approx(0.95)
    assert (first.canaries, first.guesses) == (2000, 200)
    counts = {"canaries": 2000, "guesses": 200, "correct": first.correct}
    assert first.epsilon == one_run_epsilon(**counts, delta=DELTA, confidence=first.confidence)
    assert second.epsilon == gaussian_one_run_epsilon(**counts, delta=DELTA, confidence=second.confidence)
    assert 0.5 < first.epsilon < second.epsilon < gaussian_epsilon(1.0, DELTA)
    assert all(form.assumption for form in Form)


def test_guessing_proves_nothing() -> None:
    """Scores that know nothing give a bound of 0."""
    generator = np.random.default_rng(3)
    bounds = audit_scores(
        generator.standard_normal(1000), generator.random(1000) < 0.5, delta=DELTA, confidence=0.95, share=0.2
    )
    assert [bound.epsilon for bound in bounds] == [0.0, 0.0]


@pytest.mark.parametrize("mu", [0.1, 0.7, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("delta", [1e-8, 1e-5, 0.01])
def test_epsilon_of_a_gaussian_is_dp_accountings(mu: float, delta: float) -> None:
    """Against another library's closed form."""
    expected = dp_accounting.get_epsilon_gaussian(1 / mu, delta)
    assert gaussian_epsilon(mu, delta) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert gaussian_epsilon(0.0, delta) == 0.0


@pytest.mark.parametrize("mu", [0.3, 1.0, 3.0])
def test_area_of_a_gaussian_is_the_integral_of_its_roc(mu: float) -> None:
    """TPR = Phi(Phi^-1(FPR) + mu), integrated numerically."""
    area, _ = integrate.quad(lambda rate: stats.norm.cdf(stats.norm.ppf(rate) + mu), 0, 1)
    assert gaussian_area(gaussian_epsilon(mu, DELTA), DELTA) == pytest.approx(area, abs=1e-6)


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (3, 10), (10, 10), (1, 2000)])
def test_intervals_are_clopper_and_pearsons(successes: int, trials: int) -> None:
    """Against scipy's own."""
    rate = clopper_pearson(successes, trials, confidence=0.95)
    expected = stats.binomtest(successes, trials).proportion_ci(0.95, method="exact")
    assert (rate.low, rate.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert rate.value == successes / trials


def test_an_interval_without_trials_says_nothing() -> None:
    """From 0 to 1."""
    rate = clopper_pearson(0, 0, confidence=0.95)
    assert (rate.low, rate.high, rate.value) == (0.0, 1.0, 0.0)


@pytest.mark.parametrize("rate", [0.0, 0.001, 0.01, 0.2, 1.0])
@pytest.mark.parametrize("ties", [False, True])
def test_operating_point_is_the_best_threshold_within_the_rate(rate: float, ties: bool) -> None:
    """Against a look at every threshold; members that tie with the first excluded non-member are not found."""
    scores, included = gaussian_scores(np.random.default_rng(4), canaries=600, mu=1.0)
    scores = scores.round(1) if ties else scores
    point = operating_point(scores, included, false_positives=rate, confidence=0.95)
    best = 0
    for threshold in [-np.inf, *scores]:
        if (scores[~included] > threshold).sum() <= rate * (~included).sum():
            best = max(best, int((scores[included] > threshold).sum()))
    assert point.true_positives.successes == best
    assert point.false_positives.successes <= rate * (~included).sum()
    assert (point.true_positives.trials, point.false_positives.trials) == (included.sum(), (~included).sum())


def test_a_threshold_of_one_set_is_applied_to_another() -> None:
    """`rates_at` counts strictly above the threshold that `threshold_for` took elsewhere."""
    threshold = threshold_for(np.array([0.0, 1.0, 2.0, 3.0]), 0.25)
    assert threshold == 2.0
    point = rates_at(
        np.array([2.0, 2.5, 5.0, 1.0]), np.array([True, True, False, False]), threshold=2.0, confidence=0.9
    )
    assert (point.true_positives.successes, point.false_positives.successes) == (1, 1)


def test_area_is_mann_whitneys() -> None:
    """Against scipy's U statistic, ties included; 0.5 where one side is empty."""
    scores, included = gaussian_scores(np.random.default_rng(5), canaries=400, mu=0.8)
    scores = scores.round(1)
    statistic = stats.mannwhitneyu(scores[included], scores[~included]).statistic
    expected = statistic / included.sum() / (~included).sum()
    assert area_under_curve(scores, included) == pytest.approx(expected, abs=1e-12)
    assert area_under_curve(scores, np.ones(400, dtype=bool)) == 0.5


def test_error_rates_of_randomized_response_give_its_epsilon() -> None:
    """With many trials the bound comes near to log(TPR / FPR) = epsilon from below, in 95 % of simulated audits."""
    epsilon, trials = 1.5, 20_000
    chance = 1 / (1 + math.exp(-epsilon))
    generator, found = np.random.default_rng(6), []
    for _ in range(400):
        point = RocPoint(
            true_positives=clopper_pearson(int(generator.binomial(trials, chance)), trials, confidence=0.95),
            false_positives=clopper_pearson(int(generator.binomial(trials, 1 - chance)), trials, confidence=0.95),
        )
        found.append(attack_epsilon(point, delta=0.0))
    assert np.mean(np.array(found) > epsilon) <= 0.05
    assert np.mean(found) == pytest.approx(epsilon, abs=0.06)


def test_error_rates_count_both_kinds_of_error_and_delta() -> None:
    """The two ratios of Zanella-Beguelin et al. at the cautious ends; a useless attack gives 0."""
    point = RocPoint(
        true_positives=clopper_pearson(999, 1000, confidence=0.95),
        false_positives=clopper_pearson(500, 1000, confidence=0.95),
    )
    found, called = point.true_positives.low, point.false_positives.high
    by_hand = math.log((1 - called - 0.01) / (1 - found))
    assert by_hand > math.log((found - 0.01) / called)
    assert attack_epsilon(point, delta=0.01) == pytest.approx(by_hand)
    nothing = clopper_pearson(0, 10, confidence=0.95)
    assert attack_epsilon(RocPoint(true_positives=nothing, false_positives=nothing), delta=0.01) == 0.0


def test_quiet_noise_is_unlikely_and_the_right_noise_is_not() -> None:
    """The chance is uniform for the accounted noise (KS), and tiny for half of it."""
    generator = np.random.default_rng(7)
    chances = [chance_of_so_little_noise(3.0 * generator.standard_normal((4, 25)), 3.0) for _ in range(1000)]
    assert stats.kstest(chances, "uniform").pvalue > 1e-3
    assert chance_of_so_little_noise(1.5 * generator.standard_normal((4, 25)), 3.0) < 1e-9


@pytest.mark.parametrize(
    ("guesses", "scores"), [(3, [1.0, 2.0, 3.0, 4.0]), (6, [1.0, 2.0, 3.0, 4.0]), (2, [1.0, np.nan])]
)
def test_impossible_guesses_are_refused(guesses: int, scores: list[float]) -> None:
    """Odd, more than there are canaries, or about a score that is no number."""
    with pytest.raises(ValueError, match=r"guesses must be even|scores must be numbers"):
        right_guesses(np.array(scores), np.ones(len(scores), dtype=bool), guesses=guesses)


@pytest.mark.parametrize(("canaries", "guesses", "correct"), [(0, 0, 0), (5, 6, 1), (5, 4, 5), (5, 4, -1)])
def test_impossible_counts_are_refused(canaries: int, guesses: int, correct: int) -> None:
    """More right than guessed, or more guessed than there are."""
    counts = {"canaries": canaries, "guesses": guesses, "correct": correct}
    with pytest.raises(ValueError, match="must not decrease"):
        one_run_p_value(**counts, epsilon=1.0, delta=0.0)
    with pytest.raises(ValueError, match="must not decrease"):
        gaussian_ruled_out(**counts, mu=1.0, significance=0.05)
    with pytest.raises(ValueError, match="successes must be"):
        clopper_pearson(correct if correct > guesses else guesses + 1, guesses, confidence=0.95)
