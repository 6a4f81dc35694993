"""The law of noise is the normal one to 2^-46, by 45-digit arithmetic on the tables that draws are made from."""

import dataclasses
from decimal import Decimal, getcontext
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from isthmus.privacy import noise
from isthmus.privacy.noise import STEPS, SecureRandomness

getcontext().prec = 45
UNLIKELY = 1e-7
"""A sound source fails a check about once in ten million runs."""


class Scripted(SecureRandomness):
    """A key stream that is one byte, again and again."""

    byte = b"\x00"

    def _stream(self, count: int) -> bytes:
        return self.byte * count


def exact_density(deviate: Fraction) -> Decimal:
    """Of the standard normal law, 40 digits."""
    x = Decimal(deviate.numerator) / Decimal(deviate.denominator)
    pi = Decimal("3.14159265358979323846264338327950288419716939937510")
    return (-x * x / 2).exp() / (2 * pi).sqrt()


def law_error(law: noise._Law) -> float:
    """Largest |probability drawn / probability wanted - 1| over lattice points of all bars, from the tables alone.

    A point of bar i comes from the histogram with density `floor`, and from the corners with density proportional to
    the height of rung i times the chance to be kept there. Both are summed in 45 digits; the chance uses the same
    floating-point function as the draw.
    """
    bars = len(law.edge)
    width = Fraction(noise._BAR, STEPS)
    counts = np.bincount(law.histogram[law.histogram >= 0], minlength=bars)[::-1]
    mirrored = np.bincount(-1 - law.histogram[(law.histogram < 0) & (law.histogram != noise._OUTSIDE)], minlength=bars)
    assert np.array_equal(counts, mirrored[::-1]), "both sides alike"
    kept, heights, below, places = Decimal(0), [], Decimal(0), []
    for i in range(bars):
        edge = Fraction(float(law.edge[i]))
        floor = Decimal(int(counts[i])) / Decimal(noise._COLUMNS) / Decimal(float(width))
        assert Decimal(float(law.floor[i])) == floor, "the histogram's density is exact"
        points = [edge + width * j / 4 for j in range(5)]
        wanted = [exact_density(point) for point in points]
        # Boole's rule: an error of 10^-19 on bars this narrow
        mass = sum(weight * value for weight, value in zip((7, 32, 12, 32, 7), wanted, strict=True)) / 90
        height = Decimal(float(law.ladder[i])) - below
        below = Decimal(float(law.ladder[i]))
        kept += height * (mass - floor) / Decimal(float(law.corner[i]))
        heights.append((height, floor))
        places.append((points, wanted))
    outside = (1 - Decimal(int(counts.sum()) * 2) / noise._COLUMNS) / 2
    scale = outside / (kept * Decimal(float(width)))  # so that the corners get what the histogram leaves
    worst = Decimal(0)
    for i, ((height, floor), (points, wanted)) in enumerate(zip(heights, places, strict=True)):
        drawn = noise._density(np.array([float(point) for point in points[:-1]])) - law.floor[i]
        chance = np.clip(drawn / law.corner[i], 0.0, 1.0)
        for value, target in zip(chance, wanted[:-1], strict=True):
            probability = floor + scale * height * Decimal(float(value))
            worst = max(worst, abs(probability / target - 1))
    return float(worst)


def test_the_law_is_exact_to_2_to_the_minus_46() -> None:
    """Every lattice point of every bar out to ten deviations, the tail included, by 45-digit arithmetic."""
    assert law_error(noise._LAW) < 2.0**-46


@pytest.mark.parametrize(("field", "bar"), [("corner", 100), ("ladder", 3)])
def test_a_wrong_table_is_caught(field: str, bar: int) -> None:
    """One corner or one rung off by a billionth."""
    table = getattr(noise._LAW, field).copy()
    table[bar] *= 1 + 1e-9
    assert law_error(dataclasses.replace(noise._LAW, **{field: table})) > 2.0**-46


def test_the_guide_leads_where_the_ladder_does() -> None:
    """First, last and random words of every 16 bits: the short way and the exact way agree."""
    low = np.random.default_rng(2).integers(0, 2**48, 65_536, dtype=np.uint64)
    for rest in (low * np.uint64(0), low, low * np.uint64(0) + np.uint64(2**48 - 1)):
        words = (np.arange(65_536, dtype=np.uint64) << np.uint64(48)) | rest
        sure = noise._LAW.guide >= 0
        exact = np.searchsorted(noise._LAW.ladder, words * 2.0**-64 * noise._LAW.ladder[-1])
        assert np.array_equal(exact[sure], noise._LAW.guide[sure])
    assert 0.9 < sure.mean() < 1


def test_the_tail_is_there() -> None:
    """Conditioned on the corners, where a tail of one in a million is one in ten thousand: to 5.5 deviations."""
    draws = SecureRandomness()._outside(2_000_000) / STEPS
    for edge in (3.5, 4.0, 4.5, 5.0, 5.5):
        for side in (draws, -draws):
            chance = stats.norm.sf(edge) / noise._LAW.outside
            assert stats.binomtest(int((side > edge).sum()), draws.size, chance).pvalue > UNLIKELY, edge


def test_the_rarest_words_lead_to_the_end_of_the_tail() -> None:
    """All zero bits in a corner: ten deviations less one bar; in the histogram: the bar at zero."""
    assert (Scripted()._outside(4) == (noise._BARS - 1) * noise._BAR).all()
    assert (Scripted().gaussian(4) == 0.0).all()


def test_pieces_join_without_a_seam() -> None:
    """More draws than fit in a piece, a last short one, and too few spare ones: all filled, all of the law."""
    count = 2 * noise._BLOCK + 12_345
    draws = SecureRandomness().gaussian(count)
    for part in np.split(draws, [noise._BLOCK, 2 * noise._BLOCK]):
        assert stats.kstest(part, "norm").pvalue > UNLIKELY
        assert np.unique(part[:1000]).size > 990
