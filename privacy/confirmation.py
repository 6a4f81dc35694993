"""Confirm an epsilon by other means than those that computed it; a contradiction is a finding.

    confirmation = confirm(spending, delta=1e-5)
    confirmation.agrees, confirmation.why

The number is the PLD accountant's on the fine grid (`accounting.epsilon`). It is held against four others:

1. **Renyi DP**, dp_accounting's `RdpAccountant`: another theory, and an upper bound of the truth. PLD may exceed it by
   its own grid error only. RDP far above is a contradiction too: one of the two then counts something else.
2. **Closed form** of the Gaussian mechanism: exact for what is not sampled. PLD may not be below the unsampled
   releases alone, nor above all releases as if none was sampled, which is also a bound of the truth.
3. **The library's own PLD**, `from_gaussian_mechanism` composed step by step, which shares no code with `losses`; on
   the quick grid, where it takes milliseconds. There both must say the same, to the rounding of the transform.
4. **The grids against each other**: the quick one must lie above the fine one, by its documented error at most.

Documented errors. PLD: never below the truth, above it by `losses.grid_error` at most, at a delta a
thousandth smaller (`losses.truth_delta`). RDP: never below
the truth; its order grid (1.1 to 1024) makes it loose at very large and very small epsilon; an order that the library
cannot compute is left out, which only loosens it. Opacus' PRV accountant, which tests compare with, promises
epsilon within 0.01 (`eps_error`) at delta within delta / 1000 (`delta_error`).

References: Mironov, Talwar and Zhang, "Renyi Differential Privacy of the Sampled Gaussian Mechanism", 2019; Balle and
Wang, "Improving the Gaussian Mechanism for Differential Privacy", ICML 2018, theorem 8; Gopi, Lee and Wutschitz,
"Numerical Composition of Differential Privacy", NeurIPS 2021 (PRV).
"""

import functools
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from dp_accounting import get_epsilon_gaussian
from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution, from_gaussian_mechanism
from dp_accounting.rdp import RdpAccountant

from isthmus.privacy.accounting import COARSE, FINE, LEAST_NOISE, Spending, epsilon
from isthmus.privacy.losses import LADDER, Part, affordable, grid_error, lost_mass, truth_delta

MOST_ON_COARSE = 64
"""Distinct mechanisms up to which the library composes on the coarse grid; above, on the next coarser one."""
ABSURD = (10.0, 5.0)
"""RDP above 10 x PLD + 5 is not looseness: in 470 random ledgers it stayed below 10 x PLD + 2.8."""
UNDERFLOW = 700.0
"""Above this epsilon the library's query is an upper bound only, because exp(-745) is 0 there."""
_ROUNDING = 1e-6
"""Relative difference of two computations of the same epsilon."""


class Accountant(Protocol):
    """`accounting.epsilon`, or one on trial."""

    def __call__(self, spent: Spending, delta: float, *, interval: float = FINE) -> float:
        """Epsilon of a spending."""
        ...


@dataclass(frozen=True, kw_only=True)
class Confirmation:
    """What independent computations say about one spending.

    Attributes:
        delta: All epsilons are at this delta.
        pld: The number: PLD on the fine grid.
        error: How much `pld` may exceed the truth by, by its grid.
        rdp: By Renyi DP.
        floor: Closed form of the releases without sampling; 0 if there are none.
        ceiling: Closed form of all releases as if none was sampled.
        quick: PLD on the quick grid.
        library: The same by the library's own composition.
        agrees: Whether nothing contradicts `pld`.
        why: In words: the contradictions, or what was compared.
    """

    delta: float
    pld: float
    error: float
    rdp: float
    floor: float
    ceiling: float
    quick: float
    library: float
    agrees: bool
    why: str


def confirm(spending: Spending, delta: float, *, accountant: Accountant = epsilon) -> Confirmation:
    """Hold an epsilon against independent computations.

    Args:
        spending: What was released.
        delta: In (0, 1).
        accountant: The one on trial.

    Raises:
        ValueError: If delta is outside its range.

    Guarantees:
        - A correct accountant is never contradicted by a bound that is sound: each comparison allows for the
          documented error of both sides.
        - An accountant that is off on the quick grid by more than rounding, in either direction, is contradicted.
        - Where nothing can be proven (an infinite epsilon), nothing is confirmed.
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta must be in (0, 1), got {delta}")
    pld = accountant(spending, delta)
    if not spending.parts:
        return Confirmation(
            delta=delta, pld=pld, error=0.0, rdp=0.0, floor=0.0, ceiling=0.0, quick=pld, library=0.0,
            agrees=pld == 0, why="Nothing private was released." if pld == 0 else f"Nothing costs epsilon {pld:.4f}.",
        )  # fmt: skip
    grid = affordable(spending.parts, FINE)
    if grid is None or min(noise for _, noise, _ in spending.parts) < LEAST_NOISE:
        return Confirmation(
            delta=delta, pld=pld, error=math.inf, rdp=math.inf, floor=0.0, ceiling=math.inf, quick=pld,
            library=math.inf, agrees=False, why="With so little noise no epsilon can be proven.",
        )  # fmt: skip
    quick_grid = max(grid, COARSE if len(spending.parts) <= MOST_ON_COARSE else LADDER[3])
    quick = accountant(spending, delta, interval=quick_grid)
    error = grid_error(spending.parts, delta, grid)
    found = Confirmation(
        delta=delta,
        pld=pld,
        error=error,
        rdp=float(renyi(spending).get_epsilon(delta)),
        floor=_closed_form([part for part in spending.parts if part[0] == 1], delta),
        ceiling=_closed_form(spending.parts, delta),
        quick=quick,
        library=_by_library(spending.parts, delta, quick_grid),
        agrees=True,
        why="",
    )
    return _judged(found, spending, quick_grid)


def renyi(spending: Spending) -> RdpAccountant:
    """dp_accounting's RDP accountant with everything composed; to be read, not composed further."""
    return _renyi(spending.parts)


@functools.lru_cache(maxsize=256)
def _renyi(parts: tuple[Part, ...]) -> RdpAccountant:
    accountant = RdpAccountant()
    with _quiet():
        for event in Spending(parts).events:
            accountant.compose(event)
    return accountant


def _judged(found: Confirmation, spending: Spending, quick_grid: float) -> Confirmation:
    """With a verdict."""
    nearly = truth_delta(spending.parts, found.delta, affordable(spending.parts, FINE) or FINE)
    bounds = {}
    if nearly > 0:
        bounds = {
            "Renyi DP": float(renyi(spending).get_epsilon(nearly)),
            "the closed form without sampling": _closed_form(spending.parts, nearly),
        }
    against = [
        f"PLD {found.pld:.4f} is above {name}, {bound:.4f}, by more than its grid error {found.error:.4f}"
        for name, bound in bounds.items()
        if found.pld > bound + found.error + _ROUNDING
    ]
    if found.pld < found.floor * (1 - _ROUNDING) - _ROUNDING:
        against.append(f"PLD {found.pld:.4f} is below the closed form of the unsampled releases, {found.floor:.4f}")
    if found.rdp > ABSURD[0] * found.pld + ABSURD[1]:
        against.append(f"Renyi DP says {found.rdp:.4f}, absurdly above PLD {found.pld:.4f}")
    lost = 2 * (1 + len(LADDER)) * lost_mass(spending.parts)  # what rounding may take from either's delta
    low = _by_library(spending.parts, min(found.delta + lost, 1 - 1e-9), quick_grid)
    high = _by_library(spending.parts, found.delta - lost, quick_grid) if found.delta > lost else math.inf
    if low > UNDERFLOW:
        low = 0.0
    if not low - _ROUNDING * (1 + low) <= found.quick <= high + _ROUNDING * (1 + high):
        against.append(f"on the grid of {quick_grid:g} PLD says {found.quick:.6f}, the library {found.library:.6f}")
    if found.quick < found.pld - _ROUNDING:
        against.append(f"the grid of {quick_grid:g} says {found.quick:.4f}, less than the fine one, {found.pld:.4f}")
    if _falls_short(found, spending, quick_grid):
        against.append(
            f"the grid of {quick_grid:g} says {found.quick:.4f}, too far above the fine one's {found.pld:.4f}"
        )
    why = (
        f"Contradicted: {'; '.join(against)}."
        if against
        else f"PLD {found.pld:.4f} is confirmed: Renyi DP says {found.rdp:.4f}, an upper bound; the library's own "
        f"composition says {found.library:.4f} on a coarser grid, PLD there {found.quick:.4f}; the closed form puts "
        f"it between {found.floor:.4f} and {found.ceiling:.4f}. Grid error at most {found.error:.4f}."
    )
    return replace(found, agrees=not against, why=why)


def _falls_short(found: Confirmation, spending: Spending, quick_grid: float) -> bool:
    """Whether the fine epsilon is below the truth, of which the quick grid less its error is a lower bound."""
    parts = spending.parts
    delta = found.delta + 2 * (found.delta - truth_delta(parts, found.delta, quick_grid))  # whose truth_delta is above
    if truth_delta(parts, delta, quick_grid) < found.delta or delta >= 1:
        return False
    lower = _by_library(parts, delta, quick_grid)
    return lower <= UNDERFLOW and found.pld < lower - grid_error(parts, delta, quick_grid) - _ROUNDING


def _closed_form(parts: list[Part] | tuple[Part, ...], delta: float) -> float:
    """Exact epsilon of Gaussian releases without sampling: they compose to one Gaussian."""
    if not parts:
        return 0.0
    return float(get_epsilon_gaussian(1 / math.sqrt(math.fsum(count / noise**2 for _, noise, count in parts)), delta))


def _by_library(parts: tuple[Part, ...], delta: float, interval: float) -> float:
    return float(_library(parts, interval).get_epsilon_for_delta(delta))


@functools.lru_cache(maxsize=4)
def _library(parts: tuple[Part, ...], interval: float) -> PrivacyLossDistribution:
    """Discretised and composed by dp_accounting alone, one mechanism after the other."""
    first, *others = (
        from_gaussian_mechanism(noise, value_discretization_interval=interval, sampling_prob=rate).self_compose(count)
        for rate, noise, count in parts
    )
    return functools.reduce(PrivacyLossDistribution.compose, others, first)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's warnings of orders that it leaves out."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
