"""Distances between domains against closed forms, slow sums and what cannot be told apart."""

import itertools
import math

import numpy as np
import pytest

from isthmus.discrepancy import coral, mmd, proxy_a_distance


def draw(users: int, mean: float = 0.0, seed: int = 0) -> np.ndarray:
    """Normal features in 4 dimensions, moved along the first."""
    return np.random.default_rng(seed).normal(size=(users, 4)) + np.array([mean, 0, 0, 0])


@pytest.mark.parametrize("mean", [0.0, 1.0, 3.0, 12.0])
def test_a_distance_is_that_of_the_best_linear_classifier(mean: float) -> None:
    """Two normal laws at distance d: the least error is Phi(-d / 2), and no held-out user is judged by himself."""
    least = 0.5 * math.erfc(mean / 2 / math.sqrt(2))
    found = proxy_a_distance(draw(4000, seed=1), draw(3000, mean, seed=2), seed=0)
    assert found == pytest.approx(2 * (1 - 2 * least), abs=0.08)


def test_few_users_in_many_dimensions_are_not_called_different() -> None:
    """A classifier judged on what it was fitted on would say 2: 12 users a side in 50 dimensions, one law."""
    rng = np.random.default_rng(5)
    found = [proxy_a_distance(rng.normal(size=(12, 50)), rng.normal(size=(12, 50)), seed=seed) for seed in range(20)]
    assert np.mean(found) < 0.6


def test_mmd_is_the_sum_over_pairs_and_is_unbiased() -> None:
    """Against a double loop; over many draws from one law its mean is 0 within four standard errors."""
    first, second = draw(7, seed=1), draw(5, 1.0, seed=2)
    both = np.concatenate([first, second])
    width = np.median([((a - b) ** 2).sum() for a, b in itertools.combinations(both, 2)])

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return math.exp(-((a - b) ** 2).sum() / width)

    within = [np.mean([kernel(a, b) for a, b in itertools.permutations(domain, 2)]) for domain in (first, second)]
    across = np.mean([kernel(a, b) for a in first for b in second])
    assert mmd(first, second) == pytest.approx(sum(within) - 2 * across)
    same = [mmd(draw(20, seed=seed), draw(20, seed=1000 + seed)) for seed in range(200)]
    assert abs(np.mean(same)) < 4 * np.std(same) / math.sqrt(len(same))


def test_coral_sees_covariances_and_not_means() -> None:
    """A moved domain is at 0; a stretched one at the square of what its variance gained."""
    base = draw(300)
    assert coral(base, base + 5) == pytest.approx(0.0)
    stretched = base * np.array([2.0, 1, 1, 1])
    gained = np.cov(stretched, rowvar=False) - np.cov(base, rowvar=False)
    assert coral(base, stretched) == pytest.approx((gained**2).sum() / 64)


def test_what_cannot_be_compared_is_refused() -> None:
    """Other dimensions, too few users, NaN."""
    with pytest.raises(ValueError, match="equal dimensions"):
        mmd(draw(5), draw(5)[:, :2])
    with pytest.raises(ValueError, match="at least 4 users, got 3"):
        proxy_a_distance(draw(3), draw(9), seed=0)
    with pytest.raises(ValueError, match="finite"):
        coral(draw(5), np.full((5, 4), np.nan))
