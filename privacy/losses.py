"""Privacy losses of Gaussian releases on a grid, and their composition: the numbers behind every epsilon.

    composed = compose([(0.01, 1.0, 1000), (1.0, 9.0, 5)], interval=1e-4)      # (rate, noise, count)
    max(epsilon_of(loss, 1e-5, interval=1e-4) for loss in composed)

Why this is not `dp_accounting`'s own composition: the library finds each grid point's loss with a scalar
Python loop and convolves one mechanism after the other, ten CPU seconds for twenty mechanisms on
the fine grid. Here the same points are computed as arrays and all mechanisms meet in one Fourier transform, in about
one. The discretisation is the library's (Connect the Dots, pessimistic), and so is the query for
epsilon (`DensePLDPmf`). Tests compare both, mass by mass and epsilon by epsilon;
`confirmation` does so again for each ledger.

A grid is chosen so that it fits a memory (`affordable`): the one asked for, or the next coarser one of `LADDER`. Each
interval of the ladder divides the next, so the coarser grid's points are points of the finer, and what it says is
never less (Connect the Dots is the least distribution on its grid that dominates the true one).

References: Doroshenko et al., "Connect the Dots", PoPETs 2022, algorithm 1; Koskela, Jälkö and Honkela, "Computing
tight differential privacy guarantees using FFT", AISTATS 2020; Steinke, "Composition of Differential Privacy", 2022.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from dp_accounting.pld.pld_pmf import DensePLDPmf
from dp_accounting.pld.privacy_loss_mechanism import AdjacencyType, GaussianPrivacyLoss
from numpy.typing import NDArray
from scipy import fft
from scipy.special import log_ndtr, ndtr

Part = tuple[float, float, int]
"""(sampling rate, noise multiplier, count); a rate of 1 is no sampling."""

LADDER = (1e-4, 1e-3, 5e-3, 5e-2, 0.5)
"""Discretisation intervals, each a multiple of the one before."""

MOST_POINTS = 20_000_000
"""Grid points of all mechanisms together: some four CPU seconds, and half a gigabyte where there is one mechanism."""

_QUICK = LADDER[2]
"""Interval on which it is found out how large a grid must be."""
_TAIL = 1e-15
"""Mass above the window that is counted as an infinite loss."""
_ROUNDING = 2.0**-52
"""Rounding error of the transform, as a mass per composed release; counted as an infinite loss. Measured: less than
half of it, for 4 to 1,000,000 releases. So no delta below releases / 4.5e15 can be had."""
_ORDERS = np.geomspace(1e-4, 1e4, 41)
"""Chernoff orders, 1 / loss. They are fixed: a window that depends on nothing else only ever grows with the events."""


@dataclass(frozen=True, eq=False)
class Loss:
    """Discretised privacy loss of one release in one direction (a user removed, or added).

    Attributes:
        lowest: Loss of the first grid point, in intervals.
        masses: (points,) probability of each grid point.
        infinite: Probability of an infinite loss.
    """

    lowest: int
    masses: NDArray[np.float64]
    infinite: float


@dataclass(frozen=True, eq=False)
class _Moments:
    """Range of a loss, and its cumulants log E exp(t loss) / t at the Chernoff orders t above and below 0."""

    lowest: float
    highest: float
    ups: NDArray[np.float64]
    downs: NDArray[np.float64]


def affordable(parts: Sequence[Part], interval: float) -> float | None:
    """The interval asked for, or the next coarser one of the ladder whose grid is small enough; none, if none is.

    More parts, or higher counts, never give a finer grid.
    """
    window = max(highest - lowest for lowest, highest in _windows(parts, _QUICK))
    widest = max(one.highest - one.lowest for rate, noise, _ in parts for one in _moments(rate, noise, _QUICK))
    points = (len(parts) + 1) * max(window, widest)
    return next((step for step in (interval, *LADDER) if step >= interval and points / step <= MOST_POINTS), None)


def compose(parts: Sequence[Part], interval: float) -> list[Loss]:
    """Losses of all releases together, for a user who is removed and for one who is added.

    Args:
        parts: At least one, no (rate, noise) twice; the order makes no difference to the last bit if it is sorted.
        interval: Of the grid.

    Returns:
        One distribution, where both directions are the same (nothing is sampled), or two. Losses below 0 are left
        out: no epsilon of 0 or more depends on them.
    """
    return [_compose(parts, interval, direction, bounds) for direction, bounds in enumerate(_windows(parts, interval))]


def epsilon_of(loss: Loss, delta: float, *, interval: float) -> float:
    """Smallest epsilon of 0 or more whose hockey-stick divergence is at most delta; infinity if there is none.

    Losses are counted from 600 below the delta-quantile, which epsilon does not exceed, where that is above 0: the
    divergence depends on differences only, and exp(-745) would be 0.
    """
    above = loss.infinite + np.cumsum(loss.masses[::-1])  # mass at or above each point, from the top
    quantile = loss.lowest + loss.masses.size - 1 - int(np.searchsorted(above, delta))
    base = max(0, quantile - math.floor(600 / interval))
    start = max(0, base - loss.lowest)
    shifted = DensePLDPmf(interval, loss.lowest + start - base, loss.masses[start:], loss.infinite, True)
    return base * interval + float(shifted.get_epsilon_for_delta(delta))


def grid_error(parts: Sequence[Part], delta: float, interval: float) -> float:
    """How much more than the truth a grid says at most: epsilon(delta) <= true epsilon(`truth_delta`) + this.

    Connect the Dots moves a likelihood ratio to the two grid points around it and keeps its mean. So each release's
    loss moves by a variable that, given the true loss, lies in a range of `interval` h and has a mean of at most
    h^2 exp(h) / 8 (Jensen's gap of r log r). By Hoeffding, n of them exceed n h^2 exp(h) / 8 + h sqrt(n ln(1/b) / 2)
    with probability b at most; b = delta / 1000. It is a bound: what was measured is a hundredth of it for a thousand
    ordinary steps, and near it only where a step's own loss is smaller than the interval.

    >>> round(grid_error([(0.01, 1.0, 1000)], 1e-5, 1e-4), 4)
    0.0096
    """
    count = sum(part[2] for part in parts)
    drift = count * interval**2 * math.exp(interval) / 8
    return drift + interval * math.sqrt(count * math.log(1000 / delta) / 2)


def truth_delta(parts: Sequence[Part], delta: float, interval: float) -> float:
    """The slightly smaller delta at which the true epsilon, plus `grid_error`, is at least what is said at `delta`.

    0.999 of it, less what windows and rounding add: masses that rounding error makes sum to more than 1, and what is
    counted as an infinite loss. It may be 0 or less for a delta so small that it is of the size of these.
    """
    excess = sum(
        count * max(0.0, *(float(loss.masses.sum()) + loss.infinite - 1 for loss in losses(rate, noise, interval)))
        for rate, noise, count in parts
    )
    return 0.999 * delta * math.exp(-excess) - 2 * lost_mass(parts)


def losses(rate: float, noise: float, interval: float) -> tuple[Loss, ...]:
    """Losses of one Gaussian release on a Poisson sample: (removed, added), or one for both if nothing is sampled."""
    return (_few if interval < LADDER[1] else _many)(rate, noise, interval)


def _discretise(rate: float, noise: float, interval: float) -> tuple[Loss, ...]:
    directions = (AdjacencyType.REMOVE,) if rate == 1 else (AdjacencyType.REMOVE, AdjacencyType.ADD)
    found = []
    for direction in directions:
        bounds = GaussianPrivacyLoss(noise, sampling_prob=rate, adjacency_type=direction).connect_dots_bounds()
        lowest = math.floor(bounds.epsilon_lower / interval)
        points = np.arange(lowest, math.ceil(bounds.epsilon_upper / interval) + 1) * interval
        above = _remove_delta(points, rate, noise) if direction is directions[0] else _add_delta(points, rate, noise)
        found.append(_connect_dots(lowest, np.minimum.accumulate(np.clip(above, 0, 1)), interval))
    return tuple(found)


_few = functools.lru_cache(maxsize=128)(_discretise)  # about a megabyte each
_many = functools.lru_cache(maxsize=1024)(_discretise)


def _remove_delta(eps: NDArray[np.float64], rate: float, noise: float) -> NDArray[np.float64]:
    """Hockey-stick divergence of (1 - q) N(0, s^2) + q N(-1, s^2) from N(0, s^2) at each epsilon."""
    delta = -np.expm1(np.minimum(eps, 0))  # where the ratio is above exp(eps) everywhere
    inside = slice(None) if rate == 1 else eps > math.log1p(-rate)
    cut = -0.5 - _unsampled(eps[inside], rate) * noise**2
    upper = (1 - rate) * ndtr(cut / noise) + rate * ndtr((cut + 1) / noise)
    delta[inside] = upper - np.exp(eps[inside] + log_ndtr(cut / noise))
    return delta


def _add_delta(eps: NDArray[np.float64], rate: float, noise: float) -> NDArray[np.float64]:
    """Hockey-stick divergence of N(0, s^2) from (1 - q) N(0, s^2) + q N(1, s^2) at each epsilon."""
    delta = np.zeros_like(eps)  # where the ratio is below exp(eps) everywhere
    inside = eps < -math.log1p(-rate)
    cut = 0.5 + _unsampled(-eps[inside], rate) * noise**2
    lower = np.logaddexp(math.log1p(-rate) + log_ndtr(cut / noise), math.log(rate) + log_ndtr((cut - 1) / noise))
    delta[inside] = ndtr(cut / noise) - np.exp(eps[inside] + lower)
    return delta


def _unsampled(loss: NDArray[np.float64], rate: float) -> NDArray[np.float64]:
    """log(1 + (exp(loss) - 1) / q), the loss that sampling at rate q turns into `loss`, without overflow."""
    if rate == 1:
        return loss
    with np.errstate(divide="ignore"):  # -inf where a user who is not sampled explains everything
        near = np.log1p(np.maximum(np.expm1(np.minimum(loss, 1)) / rate, -1))
    far = np.maximum(loss, 1)
    return np.where(loss <= 1, near, far - math.log(rate) + np.log1p(-(1 - rate) * np.exp(-far)))


def _connect_dots(lowest: int, delta: NDArray[np.float64], interval: float) -> Loss:
    """The least distribution on the grid whose divergence is `delta` at its points (algorithm 1)."""
    steps, growth = np.diff(delta), math.expm1(interval)
    masses = np.empty_like(delta)
    masses[0] = 1 - delta[0] + steps[0] / growth
    masses[1:-1] = (steps[1:] - steps[:-1] * math.exp(interval)) / growth
    masses[-1] = steps[-1] / math.expm1(-interval)
    return Loss(lowest, np.maximum(masses, 0), float(delta[-1]))


def lost_mass(parts: Sequence[Part]) -> float:
    """Mass that is counted as an infinite loss because a window or a floating-point number ends."""
    return _TAIL + _ROUNDING * sum(part[2] for part in parts)


@functools.lru_cache(maxsize=1024)
def _moments(rate: float, noise: float, interval: float) -> tuple[_Moments, ...]:
    """Of each direction of `losses`."""
    found = []
    for loss in losses(rate, noise, interval):
        present = np.flatnonzero(loss.masses)
        grid, logs = (loss.lowest + present) * interval, np.log(loss.masses[present])
        ups, downs = (np.array([_log_sum(logs + t * grid) / t for t in sign * _ORDERS]) for sign in (1, -1))
        last = loss.lowest + loss.masses.size - 1
        found.append(_Moments(loss.lowest * interval, last * interval, ups, downs))
    return tuple(found)


def _log_sum(logs: NDArray[np.float64]) -> float:
    """Log sum exp, without overflow."""
    largest = float(logs.max())
    return largest + math.log(float(np.exp(logs - largest).sum()))


def _windows(parts: Sequence[Part], interval: float) -> list[tuple[float, float]]:
    """Per direction, (lowest, highest) total loss: `_TAIL` bounds the mass above, and about that is below (Chernoff).

    The bounds are taken from the coarse grid where that is coarser: it dominates the finer one, so its positive
    exponential moments are no smaller. Mass below the window is wrapped round to its top, which only adds to epsilon.
    """
    found = []
    for direction in range(1 if all(rate == 1 for rate, _, _ in parts) else 2):
        slack = -math.log(_TAIL) / _ORDERS
        above, below, lowest, highest = slack, -slack, 0.0, 0.0
        for rate, noise, count in parts:
            one = _moments(rate, noise, max(interval, _QUICK))[direction if rate < 1 else 0]
            above, below = above + count * one.ups, below + count * one.downs
            lowest, highest = lowest + count * one.lowest, highest + count * one.highest
        found.append((max(lowest, float(below.max())), min(highest, float(above.min()))))
    return found


def _compose(parts: Sequence[Part], interval: float, direction: int, bounds: tuple[float, float]) -> Loss:
    """One direction: all masses raised to their counts and multiplied, as Fourier transforms."""
    found = [losses(rate, noise, interval)[direction if rate < 1 else 0] for rate, noise, _ in parts]
    lowest, highest = math.floor(bounds[0] / interval), math.ceil(bounds[1] / interval)
    size = fft.next_fast_len(max(highest - lowest + 1, *(loss.masses.size for loss in found)), real=True)
    product: NDArray[np.complex128] = np.ones(size // 2 + 1, dtype=np.complex128)
    for loss, (_, _, count) in zip(found, parts, strict=True):
        spectrum = fft.rfft(loss.masses, size)
        if count > 1:
            spectrum **= count
        product *= spectrum
    # The transform wraps round: the grid point `first` of the sum stands at index 0.
    first = sum(loss.lowest * count for loss, (_, _, count) in zip(found, parts, strict=True))
    masses = np.roll(fft.irfft(product, size), (first - lowest) % size)[: highest - lowest + 1]
    start = max(0, -lowest)
    infinite = -math.expm1(sum(part[2] * math.log1p(-loss.infinite) for part, loss in zip(parts, found, strict=True)))
    infinite = min(1.0, infinite + lost_mass(parts))
    return Loss(lowest + start, np.maximum(masses[start:], 0), infinite)
