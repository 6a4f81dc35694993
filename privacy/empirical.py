"""What an attack's success proves about epsilon: lower bounds with confidence, to print beside the claim.

    canary, gaussian = audit_scores(scores, included, delta=1e-6, confidence=0.95, share=0.1)
    canary.epsilon, gaussian.epsilon           # "epsilon is at least this", jointly with 95 % confidence

A claim is an upper bound and is proven; an attack gives a lower bound and is measured. A lower bound above the claim
means that the code does not do what was accounted for. One below it proves nothing: the attack may be weak.

One run is enough: each of m *canaries* is included or left out by its own fair coin, the attack scores them all, and
guesses on the r it is surest of (r is fixed before the scores are looked at). Two bounds on how many guesses v can be
right:

- `one_run_epsilon`: for any (epsilon, delta)-DP mechanism. Steinke, Nasr and Jagielski, "Privacy Auditing with One (1)
  Training Run", NeurIPS 2023 (arXiv:2305.08846v1), theorem 5.2 and corollary 5.4; pseudo-code in its appendix D.
- `gaussian_one_run_epsilon`: for mechanisms whose trade-off curve is a Gaussian's, and much tighter there. Mahloujifar,
  Melis and Chaudhuri, "Auditing f-Differential Privacy in One Run", 2024 (arXiv:2410.22235), the recursion with
  abstentions. **Assumption**: the whole run is no more private at one error rate than a Gaussian mechanism that is
  as private at another (mu-GDP). Exact for steps on the full batch; for Poisson batches it holds in the limit of many.

Statistics only: nothing here imports torch or touches data.
"""

import enum
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

_HALVINGS = 40
"""Bisection steps: far below the fourth digit."""
_LARGEST = 1000.0
"""No bound is searched above this epsilon, or this mu."""


class Form(enum.StrEnum):
    """What a lower bound takes for granted about the mechanism."""

    APPROXIMATE = "(epsilon, delta)"
    GAUSSIAN = "f-DP, Gaussian"
    ERROR_RATES = "error rates"

    @property
    def assumption(self) -> str:
        """In words."""
        return _ASSUMPTIONS[self]


_ASSUMPTIONS = {
    Form.APPROXIMATE: "nothing beyond independent, fair coins",
    Form.GAUSSIAN: "the trade-off curve of the whole run is a Gaussian mechanism's (exact for full batches)",
    Form.ERROR_RATES: "whether one is a member has no influence on how another is scored",
}


@dataclass(frozen=True, kw_only=True)
class LowerBound:
    """What so many right guesses prove.

    Attributes:
        form: Under which assumption.
        epsilon: The true one is at least this, with the confidence, at the delta that was asked for.
        confidence: Of this bound alone, in (0, 1).
        canaries: Fair coins that were tossed.
        guesses: Canaries that were guessed on.
        correct: Right guesses.
    """

    form: Form
    epsilon: float
    confidence: float
    canaries: int
    guesses: int
    correct: int


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A share of independent trials, with its Clopper-Pearson interval.

    Attributes:
        successes: Of the trials.
        trials: How many.
        low: Lower end.
        high: Upper end.
    """

    successes: int
    trials: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """The share itself; 0 without trials."""
        return self.successes / self.trials if self.trials else 0.0


@dataclass(frozen=True, kw_only=True)
class RocPoint:
    """An operating point of an attack.

    Attributes:
        false_positives: Non-members that are called members, of all non-members.
        true_positives: Members that are called members, of all members.
    """

    false_positives: Rate
    true_positives: Rate


def audit_scores(
    scores: NDArray[np.float64], included: NDArray[np.bool_], *, delta: float, confidence: float, share: float
) -> tuple[LowerBound, LowerBound]:
    """Both one-run bounds, each at half of the allowed error, so that they hold together with `confidence`.

    Args:
        scores: (canaries,) higher means more likely included.
        included: (canaries,) the fair coins.
        delta: Of the claim, in [0, 1).
        confidence: In (0, 1).
        share: Of the canaries that are guessed on, in (0, 1]; half of them as included, half as left out. Must be
            chosen without looking at the scores.

    Returns:
        The (epsilon, delta) form, then the Gaussian form.

    Guarantees:
        - If the mechanism is (epsilon, delta)-DP, the first is at most epsilon, and if its curve is Gaussian the
          second is too, both together with probability `confidence` over coins and noise.
    """
    guesses = 2 * max(1, round(len(scores) * share / 2))
    correct = right_guesses(scores, included, guesses=guesses)
    each = 1.0 - (1.0 - confidence) / 2.0
    count = len(scores)
    epsilons = {
        Form.APPROXIMATE: one_run_epsilon(
            canaries=count, guesses=guesses, correct=correct, delta=delta, confidence=each
        ),
        Form.GAUSSIAN: gaussian_one_run_epsilon(
            canaries=count, guesses=guesses, correct=correct, delta=delta, confidence=each
        ),
    }
    first, second = (
        LowerBound(form=form, epsilon=value, confidence=each, canaries=count, guesses=guesses, correct=correct)
        for form, value in epsilons.items()
    )
    return first, second


def right_guesses(scores: NDArray[np.float64], included: NDArray[np.bool_], *, guesses: int) -> int:
    """How many guesses are right: the highest `guesses / 2` scores as included, the lowest as left out.

    Raises:
        ValueError: If shapes differ, a score is NaN, or the guesses are odd or more than the canaries.

    >>> right_guesses(np.array([3.0, 1.0, 2.0, 0.0]), np.array([True, True, False, False]), guesses=2)
    2
    """
    if scores.shape != included.shape or scores.ndim != 1 or np.isnan(scores).any():
        raise ValueError(f"scores must be numbers, one per canary, got shapes {scores.shape} and {included.shape}")
    if guesses % 2 or not 0 < guesses <= len(scores):
        raise ValueError(f"guesses must be even and from 2 to {len(scores)}, got {guesses}")
    order = np.argsort(scores, kind="stable")
    half = guesses // 2
    return int(included[order[-half:]].sum() + (~included[order[:half]]).sum())


def one_run_p_value(*, canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Largest chance of so many right guesses or more against any (epsilon, delta)-DP mechanism.

    With W ~ Binomial(guesses, e^epsilon / (e^epsilon + 1)) it is P[W >= v] + 2 m delta max_i P[v > W >= v - i] / i
    (Steinke, Nasr and Jagielski, corollary 5.4).

    Raises:
        ValueError: Unless 0 <= correct <= guesses <= canaries.
    """
    _check_counts(canaries, guesses, correct)
    right = special.expit(epsilon)
    tail = float(stats.binom.sf(correct - 1, guesses, right))
    if delta == 0 or correct == 0:
        return tail
    fewer = np.arange(1, correct + 1)
    below = stats.binom.sf(correct - 1 - fewer, guesses, right) - tail  # P[v > W >= v - i]
    return min(1.0, tail + 2 * canaries * delta * max(0.0, float((below / fewer).max())))


def one_run_epsilon(*, canaries: int, guesses: int, correct: int, delta: float, confidence: float) -> float:
    """Largest epsilon that so many right guesses rule out, whatever the mechanism.

    Guarantees:
        - An (epsilon, delta)-DP mechanism gets a larger value with probability at most 1 - confidence.

    >>> round(one_run_epsilon(canaries=1000, guesses=100, correct=75, delta=1e-4, confidence=0.95), 3)  # appendix D
    0.673
    """
    significance = 1.0 - confidence
    if one_run_p_value(canaries=canaries, guesses=guesses, correct=correct, epsilon=0.0, delta=delta) > significance:
        return 0.0
    low, high = 0.0, _LARGEST
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        chance = one_run_p_value(canaries=canaries, guesses=guesses, correct=correct, epsilon=middle, delta=delta)
        low, high = (middle, high) if chance <= significance else (low, middle)
    return low


def gaussian_ruled_out(*, canaries: int, guesses: int, correct: int, mu: float, significance: float) -> bool:
    """Whether so many right guesses have a chance of at most `significance` against every mu-GDP mechanism.

    Suppose they had a larger one. Then the chances that a canary is guessed right (`right`) and wrong (`wrong`), with
    at least so many right in all, are bounded below, from the most right guesses down to none (Mahloujifar, Melis
    and Chaudhuri, the algorithm with a cap on guesses); with none left, they add up to more than all guesses there are.

    Args:
        canaries: m.
        guesses: Those that were guessed on.
        correct: Right ones.
        mu: Of the Gaussian trade-off curve: mean over standard deviation; at least 0.
        significance: In (0, 1).

    Raises:
        ValueError: Unless 0 <= correct <= guesses <= canaries.
    """
    _check_counts(canaries, guesses, correct)
    right = significance * correct / canaries
    wrong = significance * (guesses - correct) / canaries
    for i in range(correct - 1, -1, -1):
        # An event of chance `right` if the canary is there has at least this one if it is not.
        least = max(wrong, float(special.ndtr(special.ndtri(right) - mu)))
        if least == wrong:
            break  # then neither changes any more
        right, wrong = min(1.0, right + i / (guesses - i) * (least - wrong)), least
    return right + wrong > guesses / canaries


def gaussian_one_run_epsilon(*, canaries: int, guesses: int, correct: int, delta: float, confidence: float) -> float:
    """Largest epsilon that so many right guesses rule out, if the trade-off curve is a Gaussian's.

    Guarantees:
        - A mu-GDP mechanism gets more than its own epsilon at `delta` with probability at most 1 - confidence.
    """
    low, high = 0.0, _LARGEST
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        ruled_out = gaussian_ruled_out(
            canaries=canaries, guesses=guesses, correct=correct, mu=middle, significance=1.0 - confidence
        )
        low, high = (middle, high) if ruled_out else (low, middle)
    return gaussian_epsilon(low, delta)


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Epsilon at `delta` of a Gaussian mechanism with mean shift over standard deviation `mu`.

    Balle and Wang, "Improving the Gaussian Mechanism for Differential Privacy", ICML 2018, theorem 5.

    Args:
        mu: At least 0.
        delta: In (0, 1).

    >>> round(gaussian_epsilon(1.0, 1e-5), 3)
    4.377
    """
    low, high = 0.0, 1.0
    if _gaussian_delta(mu, low) <= delta:
        return 0.0
    while _gaussian_delta(mu, high) > delta:
        low, high = high, 2 * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _gaussian_delta(mu, middle) > delta else (low, middle)
    return low


def gaussian_area(epsilon: float, delta: float) -> float:
    """Largest area under the ROC of any attack on a Gaussian mechanism with this epsilon at `delta`.

    Phi(mu / sqrt(2)) for the mu that has it; pooling many members' scores does not raise it, the curve being concave.
    """
    low, high = 0.0, _LARGEST
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_epsilon(middle, delta) <= epsilon else (low, middle)
    return float(special.ndtr(high / math.sqrt(2)))


def clopper_pearson(successes: int, trials: int, *, confidence: float) -> Rate:
    """A share with its exact two-sided interval (Clopper and Pearson, 1934).

    Guarantees:
        - The interval holds the chance of a success with probability at least `confidence`, if trials are independent.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"successes must be from 0 to {trials} trials, got {successes}")
    tail = (1.0 - confidence) / 2
    low = float(stats.beta.ppf(tail, successes, trials - successes + 1)) if successes else 0.0
    high = float(stats.beta.ppf(1 - tail, successes + 1, trials - successes)) if successes < trials else 1.0
    return Rate(successes=successes, trials=trials, low=low, high=high)


def operating_point(
    scores: NDArray[np.float64], included: NDArray[np.bool_], *, false_positives: float, confidence: float
) -> RocPoint:
    """The most members that are found while at most a share `false_positives` of non-members is called one.

    With fewer than 1 / `false_positives` non-members that is at no false positive at all.
    """
    threshold = threshold_for(scores[~included], false_positives)
    return rates_at(scores, included, threshold=threshold, confidence=confidence)


def threshold_for(outside: NDArray[np.float64], false_positives: float) -> float:
    """The lowest score above which at most a share `false_positives` of these non-members lies."""
    allowed = math.floor(false_positives * len(outside) + 1e-9)
    return float(np.sort(outside)[::-1][allowed]) if allowed < len(outside) else -math.inf


def rates_at(
    scores: NDArray[np.float64], included: NDArray[np.bool_], *, threshold: float, confidence: float
) -> RocPoint:
    """Who is called a member above a threshold; each interval has the confidence."""
    found, called = scores[included] > threshold, scores[~included] > threshold  # a tie with a non-member is no find
    return RocPoint(
        false_positives=clopper_pearson(int(called.sum()), len(called), confidence=confidence),
        true_positives=clopper_pearson(int(found.sum()), len(found), confidence=confidence),
    )


def area_under_curve(scores: NDArray[np.float64], included: NDArray[np.bool_]) -> float:
    """Chance that a member scores above a non-member, ties counting half; 0.5 is guessing."""
    inside, outside = scores[included], np.sort(scores[~included])
    if not len(inside) or not len(outside):
        return 0.5
    below = np.searchsorted(outside, inside, side="left")
    upto = np.searchsorted(outside, inside, side="right")
    return float((below + upto).mean() / 2 / len(outside))


def attack_epsilon(point: RocPoint, *, delta: float) -> float:
    """Epsilon that an attack's error rates rule out.

    Jagielski, Ullman and Oprea, "Auditing Differentially Private Machine Learning", NeurIPS 2020; Zanella-Beguelin
    et al., "Bayesian Estimation of Differential Privacy", ICML 2023.

    Args:
        point: Rates with intervals. Trials must be independent (many runs, or users who do not influence each other's
            score) and the threshold fixed beforehand.
        delta: Of the claim.

    Returns:
        max(log((TPR - delta) / FPR), log((1 - FPR - delta) / (1 - TPR))) at the ends of the intervals that say least,
        at least 0. With intervals of confidence 1 - a it holds with confidence 1 - a.
    """
    found, called = point.true_positives.low, point.false_positives.high
    ratios = ((found - delta, called), (1 - called - delta, 1 - found))
    return max(0.0, *(math.log(above / below) for above, below in ratios if above > 0 and below > 0))


def chance_of_so_little_noise(noise: NDArray[np.float64], stddev: float) -> float:
    """Chance that independent Gaussian noise of `stddev` looks as quiet as this: lower tail of chi-square.

    Args:
        noise: Any shape; what was measured where nothing but noise should be.
        stddev: That was accounted for.
    """
    return float(stats.chi2.cdf(float(np.square(noise).sum()) / stddev**2, noise.size))


def _gaussian_delta(mu: float, epsilon: float) -> float:
    """Delta of a Gaussian mechanism at an epsilon."""
    if mu == 0:
        return 0.0
    second = math.exp(epsilon + float(special.log_ndtr(-mu / 2 - epsilon / mu)))
    return float(special.ndtr(mu / 2 - epsilon / mu)) - second


def _check_counts(canaries: int, guesses: int, correct: int) -> None:
    """Refuse impossible counts."""
    if not 0 <= correct <= guesses <= canaries or not canaries:
        raise ValueError(
            f"correct guesses, guesses and canaries must not decrease, got {correct}, {guesses}, {canaries}"
        )
