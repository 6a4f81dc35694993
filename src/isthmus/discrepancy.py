"""How far apart two domains are in feature space: what transfer has to bridge.

    proxy_a_distance(books, films, seed=0)     # 0: cannot be told apart; 2: always
    mmd(books, films)
    coral(books, films)

Each row is what a backbone makes of one user. All three are computed from private data without noise, and say
something about every user: they stay in a simulation.

References: Ben-David et al., "Analysis of Representations for Domain Adaptation", NIPS 2006 (proxy A-distance);
Gretton et al., "A Kernel Two-Sample Test", JMLR 2012 (MMD); Sun and Saenko, "Deep CORAL", ECCV workshops 2016.
"""

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float64]
"""(users, dimensions), finite."""

_RIDGE = 1e-2
"""Ridge of the classifier, relative to the mean variance: keeps it solvable with few users."""


def proxy_a_distance(first: Features, second: Features, *, seed: int) -> float:
    """2 (1 - 2 error) of a linear classifier that tells the domains apart, on users that it was not fitted on.

    Fitted by ridge regression on half of each domain's users, judged on the other half, and the other way round.
    Both domains weigh alike in the error, whatever their sizes.

    Args:
        first: Users of one domain.
        second: Users of another.
        seed: Of the halves.

    Returns:
        A value in [0, 2]; an error above one half counts as one half.

    Raises:
        ValueError: If the dimensions differ, a domain has fewer than 4 users, or a value is not finite.
    """
    _check(first, second, least=4)
    rng = np.random.default_rng(seed)
    halves = [np.array_split(domain[rng.permutation(len(domain))], 2) for domain in (first, second)]
    errors = []
    for fitted, judged in ((0, 1), (1, 0)):
        weights, bias = _classifier(halves[0][fitted], halves[1][fitted])
        wrong = [np.mean(halves[0][judged] @ weights <= bias), np.mean(halves[1][judged] @ weights > bias)]
        errors.append(float(np.mean(wrong)))
    return 2.0 * (1.0 - 2.0 * min(0.5, float(np.mean(errors))))


def mmd(first: Features, second: Features) -> float:
    """Squared maximum mean discrepancy with a Gaussian kernel, unbiased: about 0, and perhaps below, for one law.

    The kernel's width is the median distance between users of both domains together.

    Raises:
        ValueError: If the dimensions differ, a domain has fewer than 2 users, or a value is not finite.
    """
    _check(first, second, least=2)
    both = np.concatenate([first, second])
    squared = (both**2).sum(axis=1)
    distances = np.maximum(squared[:, None] + squared[None, :] - 2.0 * both @ both.T, 0.0)
    median = float(np.median(distances[np.triu_indices(len(both), 1)]))
    kernel = np.exp(-distances / (median or 1.0))
    n, m = len(first), len(second)
    within = (kernel[:n, :n].sum() - n) / (n * (n - 1)) + (kernel[n:, n:].sum() - m) / (m * (m - 1))
    return float(within - 2.0 * kernel[:n, n:].mean())


def coral(first: Features, second: Features) -> float:
    """Squared Frobenius distance of the covariances / (4 dimensions squared).

    Raises:
        ValueError: If the dimensions differ, a domain has fewer than 2 users, or a value is not finite.

    >>> coral(np.array([[1.0], [-1.0]]), np.array([[3.0], [-3.0]]))
    64.0
    """
    _check(first, second, least=2)
    difference = np.atleast_2d(np.cov(first, rowvar=False)) - np.atleast_2d(np.cov(second, rowvar=False))
    return float((difference**2).sum() / (4 * first.shape[1] ** 2))


def _classifier(first: Features, second: Features) -> tuple[NDArray[np.float64], float]:
    """Direction and threshold: above it is `first`. Fisher's discriminant with a ridge."""
    centred = np.concatenate([first - first.mean(axis=0), second - second.mean(axis=0)])
    scatter = centred.T @ centred / len(centred)
    ridge = _RIDGE * max(float(np.trace(scatter)) / len(scatter), 1e-12)
    weights = np.linalg.solve(scatter + ridge * np.eye(len(scatter)), first.mean(axis=0) - second.mean(axis=0))
    return weights, float(weights @ (first.mean(axis=0) + second.mean(axis=0)) / 2.0)


def _check(first: Features, second: Features, *, least: int) -> None:
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(f"both must be (users, dimensions) of equal dimensions, got {first.shape} and {second.shape}")
    if min(len(first), len(second)) < least:
        raise ValueError(f"each domain needs at least {least} users, got {len(first)} and {len(second)}")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("features must be finite")
