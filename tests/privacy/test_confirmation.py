"""A second accountant confirms what is right and contradicts what is not; mutants of the accountant are caught."""

import functools
import math
import warnings

import numpy as np
import pytest
from opacus.accountants import PRVAccountant, RDPAccountant

from isthmus.privacy.accounting import COARSE, FINE, NOTHING, Spending, epsilon, gaussian, poisson_gaussian
from isthmus.privacy.confirmation import Accountant, confirm
from isthmus.privacy.losses import Part

DELTA = 1e-5
CASES = (
    Spending.of([poisson_gaussian(0.01, 1.0, 1000)]),
    Spending.of([poisson_gaussian(0.05, 2.0, 300), gaussian(20.0, 5), NOTHING]),
    Spending.of([gaussian(3.0, 4), gaussian(9.0)]),
    Spending.of([poisson_gaussian(0.2, 1.5, 40), poisson_gaussian(0.02, 0.9, 10), gaussian(6.0)]),
    Spending.of([poisson_gaussian(1e-3, 0.7, 100_000)]),
    Spending.of([gaussian(0.5, 475)]),  # an epsilon above 745, where exp(-epsilon) is 0
)


def forgets_a_kind(part: Part) -> list[Part]:
    """Mutant: unsampled releases cost nothing."""
    return [] if part[0] == 1 else [part]


def forgets_sampled(part: Part) -> list[Part]:
    """Mutant: sampled releases cost nothing."""
    return [part] if part[0] == 1 else []


def halves_the_count(part: Part) -> list[Part]:
    """Mutant: every second release is forgotten."""
    rate, noise, count = part
    return [(rate, noise, math.ceil(count / 2))]


def halves_the_rate(part: Part) -> list[Part]:
    """Mutant: a sampled user is thought to be half as likely."""
    rate, noise, count = part
    return [(rate if rate == 1 else rate / 2, noise, count)]


def doubles_the_noise(part: Part) -> list[Part]:
    """Mutant: noise relative to half the clipping norm."""
    rate, noise, count = part
    return [(rate, 2 * noise, count)]


def a_tenth_too_many(part: Part) -> list[Part]:
    """Mutant in the other direction: it overstates."""
    rate, noise, count = part
    return [(rate, noise, math.ceil(1.1 * count))]


MUTANTS = (forgets_a_kind, forgets_sampled, halves_the_count, halves_the_rate, doubles_the_noise, a_tenth_too_many)


def mutated(mutant: functools.partial[list[Part]], spent: Spending, delta: float, *, interval: float = FINE) -> float:
    """Epsilon of what the mutant sees."""
    return epsilon(Spending(tuple(sorted(p for part in spent.parts for p in mutant(part)))), delta, interval=interval)


def only_fine(wrong: Accountant, spent: Spending, delta: float, *, interval: float = FINE) -> float:
    """Mutant: right on the coarse grid, where the library looks, wrong where it counts."""
    return (wrong if interval == FINE else epsilon)(spent, delta, interval=interval)


def scaled(factor: float, spent: Spending, delta: float, *, interval: float = FINE) -> float:
    """Mutant: another factor on the number."""
    return factor * epsilon(spent, delta, interval=interval)


@pytest.mark.parametrize("spending", CASES)
def test_what_is_right_is_confirmed(spending: Spending) -> None:
    """RDP above, closed forms around, the library's own composition equal: and the words say so."""
    found = confirm(spending, DELTA)
    assert found.agrees, found.why
    assert found.pld == epsilon(spending, DELTA)
    assert found.floor <= found.pld <= min(found.rdp, found.ceiling) + found.error
    assert found.quick == pytest.approx(found.library, rel=1e-5 if found.pld < 700 else 1e-2)
    for figure in (found.pld, found.rdp, found.library):
        assert f"{figure:.4f}" in found.why


@pytest.mark.slow
def test_random_ledgers_are_never_contradicted() -> None:
    """40 mixes over many orders of magnitude of rate, noise, count and delta: no false finding."""
    rng = np.random.default_rng(5)
    for _ in range(40):
        events = [
            poisson_gaussian(10 ** rng.uniform(-5, 0), 10 ** rng.uniform(-0.3, 2), int(10 ** rng.uniform(0, 4)))
            for _ in range(rng.integers(1, 3))
        ]
        if rng.random() < 0.4:
            events.append(gaussian(10 ** rng.uniform(0, 2), int(rng.integers(1, 21))))
        found = confirm(Spending.of(events), 10 ** rng.uniform(-10, -3))
        assert found.agrees, (events, found.why)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_an_accountant_that_miscounts_is_contradicted(mutant: functools.partial[list[Part]]) -> None:
    """Wherever a mutant sees something else than what was spent, and nowhere else."""
    caught = 0
    for spending in CASES[:4]:
        seen = tuple(sorted(p for part in spending.parts for p in mutant(part)))
        found = confirm(spending, DELTA, accountant=functools.partial(mutated, mutant))
        assert found.agrees == (seen == spending.parts), found.why
        caught += not found.agrees
    assert caught


@pytest.mark.parametrize("mutant", [forgets_a_kind, halves_the_count, doubles_the_noise])
def test_an_accountant_that_is_wrong_on_the_fine_grid_only_is_contradicted(
    mutant: functools.partial[list[Part]],
) -> None:
    """The grids are held against each other, and the fine one against the closed form."""
    wrong = functools.partial(only_fine, functools.partial(mutated, mutant))
    assert not confirm(CASES[2], DELTA, accountant=wrong).agrees


def test_a_number_above_an_upper_bound_is_contradicted() -> None:
    """Above Renyi DP by more than the grid error it cannot be right; nor with Renyi DP absurdly above."""
    found = confirm(CASES[0], DELTA, accountant=functools.partial(only_fine, functools.partial(scaled, 1.2)))
    assert not found.agrees
    assert "above Renyi DP" in found.why
    found = confirm(CASES[4], DELTA, accountant=functools.partial(scaled, 1e-6))
    assert not found.agrees


def test_the_closed_form_decides_for_unsampled_releases() -> None:
    """Nothing sampled: floor and ceiling are the exact epsilon (Balle and Wang), and PLD meets it to four digits."""
    found = confirm(CASES[2], DELTA)
    assert found.floor == found.ceiling
    assert 0 <= found.pld - found.floor < 1e-4
    low = confirm(CASES[2], DELTA, accountant=functools.partial(scaled, 0.999))
    assert "below the closed form" in low.why


def test_nothing_costs_nothing() -> None:
    """An empty ledger is confirmed; an accountant that charges for it is not."""
    assert confirm(Spending(), DELTA).agrees
    assert not confirm(Spending(), DELTA, accountant=_one).agrees


def _one(spent: Spending, delta: float, *, interval: float = FINE) -> float:
    return 1.0


def test_what_cannot_be_proven_is_not_confirmed() -> None:
    """Next to no noise, or no grid for it: an infinite epsilon is a finding, not an agreement."""
    for spending in (Spending.of([gaussian(0.01)]), Spending.of([gaussian(0.05, 10**9)])):
        found = confirm(spending, DELTA)
        assert not found.agrees
        assert found.pld == math.inf


@pytest.mark.parametrize("delta", [0.0, 1.0, math.nan])
def test_a_delta_outside_its_range_is_refused(delta: float) -> None:
    """There is nothing to confirm at it."""
    with pytest.raises(ValueError, match="delta must be in"):
        confirm(CASES[0], delta)


def test_opacus_does_not_contradict_either() -> None:
    """Its RDP says what dp_accounting's says, its PRV is never below PLD by more than the 0.01 that it documents."""
    for spending in CASES[:4]:
        history = [(noise, rate, count) for rate, noise, count in spending.parts]
        found = confirm(spending, DELTA)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # orders and domains that it tries and leaves
            renyi, prv = RDPAccountant(), PRVAccountant()
            renyi.history, prv.history = list(history), list(history)
            assert renyi.get_epsilon(DELTA) == pytest.approx(found.rdp, rel=1e-3)
            assert found.pld - 0.01 <= prv.get_epsilon(DELTA) <= found.pld + 0.03


@pytest.mark.slow
def test_many_mechanisms_are_confirmed_in_seconds() -> None:
    """100 mechanisms: the library composes on a coarser grid, where both still say the same."""
    spending = Spending.of(poisson_gaussian(0.005 + 1e-4 * i, 1.0 + 0.013 * i, 40) for i in range(100))
    found = confirm(spending, 1e-6)
    assert found.agrees, found.why
    assert found.quick > epsilon(spending, 1e-6, interval=COARSE)
