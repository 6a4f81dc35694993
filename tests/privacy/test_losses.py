"""The vectorised losses are the library's, their composition too, and what a grid may add to the truth is bounded."""

import itertools
import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.privacy.losses import LADDER, Part, affordable, compose, epsilon_of, grid_error, losses, truth_delta

DELTA = 1e-5
PARTS = st.lists(
    st.tuples(st.sampled_from([1e-3, 0.05, 0.4, 1.0]), st.sampled_from([0.5, 1.0, 3.0, 20.0]), st.integers(1, 500)),
    min_size=1,
    max_size=4,
    unique_by=lambda part: part[:2],
).map(sorted)


def spent(parts: list[Part], delta: float, interval: float) -> float:
    """Epsilon of composed losses."""
    return max(epsilon_of(loss, delta, interval=interval) for loss in compose(parts, interval))


@pytest.mark.parametrize("interval", [1e-4, 5e-3])
@pytest.mark.parametrize(("rate", "noise"), [(0.01, 1.0), (0.3, 0.4), (1.0, 20.0), (1e-4, 0.7), (0.999, 2.0)])
def test_a_loss_is_the_library_s_mass_by_mass(rate: float, noise: float, interval: float) -> None:
    """Same grid, and masses that differ by the rounding of a double over the interval."""
    mine = losses(rate, noise, interval)
    pld = from_gaussian_mechanism(noise, value_discretization_interval=interval, sampling_prob=rate)
    theirs = [pld._pmf_remove.to_dense_pmf(), pld._pmf_add.to_dense_pmf()][: len(mine)]
    assert len(mine) == (1 if rate == 1 else 2)
    for loss, library in zip(mine, theirs, strict=True):
        assert loss.lowest == library._lower_loss
        np.testing.assert_allclose(loss.masses, library._probs, rtol=0, atol=4e-15 / interval)
        assert loss.infinite == pytest.approx(library._infinity_mass, abs=1e-16)


def test_a_small_noise_does_not_overflow() -> None:
    """Losses above 709 have no exponential; the masses still sum to 1."""
    for rate in (0.01, 1.0):
        for loss in losses(rate, 0.021, 5e-3):
            assert np.isfinite(loss.masses).all()
            assert loss.masses.sum() + loss.infinite == pytest.approx(1, abs=1e-6)


@settings(max_examples=15, deadline=None)
@given(parts=PARTS)
def test_a_finer_grid_of_the_ladder_never_says_more(parts: list[Part]) -> None:
    """Each interval divides the next, so the coarser distribution dominates (rounding aside)."""
    found = [spent(parts, DELTA, interval) for interval in LADDER[1:]]
    assert all(fine <= coarse + 1e-6 for fine, coarse in itertools.pairwise(found))


def test_an_epsilon_above_745_is_still_exact() -> None:
    """Where exp(-loss) is 0: the closed form is met on each grid, and a finer one still says no more."""
    parts = [(1.0, 0.5, 475)]
    truth = float(dp_accounting.get_epsilon_gaussian(0.5 / math.sqrt(475), DELTA))
    found = [spent(parts, DELTA, interval) for interval in LADDER[1:4]]
    assert truth > 745
    assert truth <= found[0] <= found[1] <= found[2]
    assert found[0] == pytest.approx(truth, abs=1e-3)


@settings(max_examples=25, deadline=None)
@given(parts=PARTS, more=PARTS)
def test_more_events_never_get_a_finer_grid(parts: list[Part], more: list[Part]) -> None:
    """Whatever is added, the grid that is affordable stays or gets coarser."""
    counted: dict[tuple[float, float], int] = {}
    for rate, noise, count in (*parts, *((rate, noise, 1000 * count) for rate, noise, count in more)):
        counted[rate, noise] = counted.get((rate, noise), 0) + count
    together = sorted((*key, count) for key, count in counted.items())
    before, after = (affordable(list(each), 1e-4) or math.inf for each in (parts, together))
    assert after >= before


@pytest.mark.parametrize("interval", LADDER[:3])
@pytest.mark.parametrize(("noise", "count"), [(3.0, 1), (12.0, 16), (90.0, 900), (2000.0, 40_000), (1000.0, 1_000_000)])
def test_the_truth_lies_within_the_documented_error(noise: float, count: int, interval: float) -> None:
    """Gaussians compose to one, whose epsilon is known: never less, and more by the bound at most."""
    parts = [(1.0, noise, count)]
    alone = noise / math.sqrt(count)
    found = spent(parts, DELTA, interval)
    assert float(dp_accounting.get_epsilon_gaussian(alone, DELTA)) <= found
    truth = float(dp_accounting.get_epsilon_gaussian(alone, truth_delta(parts, DELTA, interval)))
    assert found <= truth + grid_error(parts, DELTA, interval)


def test_the_error_of_the_fine_grid_is_small_for_ordinary_plans() -> None:
    """A thousand steps: the bound says a hundredth, and a grid ten times finer shows less than a thousandth."""
    parts = [(0.01, 1.0, 1000)]
    assert grid_error(parts, DELTA, 1e-4) < 0.01
    assert 0 <= spent(parts, DELTA, 1e-4) - spent(parts, DELTA, 2e-5) < 1e-4


def test_rounding_of_the_transform_is_covered() -> None:
    """At a delta of the size of rounding the closed form is not undercut; below that nothing is proven."""
    for noise, count in ((100.0, 1000), (1000.0, 100_000)):
        parts = [(1.0, noise, count)]
        rounding = count * 2.0**-52
        truth = float(dp_accounting.get_epsilon_gaussian(noise / math.sqrt(count), 3 * rounding))
        assert spent(parts, 3 * rounding, 1e-4) >= truth
        assert spent(parts, rounding / 2, 1e-4) == math.inf
