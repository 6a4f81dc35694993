"""Randomness that a guarantee rests on: noise, and who is in a batch.

    randomness = SecureRandomness()                    # production
    randomness = SeededRandomness(7, "books", 3)       # tests and repeatable simulation: not private
    released = randomness.noisy(total, stddev=noise_multiplier * clip, sensitivity=clip)
    batch = randomness.bernoulli(users, sample_rate)

`SecureRandomness` draws from AES-256-CTR under a fresh key of the operating system and cannot be
seeded. Its noise is a Gaussian rounded to a lattice of 2^22 steps per standard deviation, and so are
the values it is added to: both are whole numbers of steps and their sum is exact, so which numbers
can come out does not depend on the values, and floating-point attacks find nothing to look at. To round
a Gaussian is to round its sum with a whole number, so this is post-processing of the Gaussian mechanism.
`docs/adr/0011-lattice-noise.md` has the argument, the error budget and the limits.

`SeededRandomness` can be repeated by anyone who knows the seed, so whoever uses it must say so:
`private` travels into the ledger, the result and the report. It adds plain floating-point noise.

References: Mironov, "On significance of the least significant bits for differential privacy", CCS
2012; Jin, McMurtry, Rubinstein and Ohrimenko, "Are we there yet? Timing and floating-point attacks on
differential privacy systems", S&P 2022; Marsaglia, MacLaren and Bray, "A fast procedure for generating
normal random variables", CACM 7(1), 1964 (rectangles, wedges and tails); NIST SP 800-38A (CTR).
"""

import hashlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

from isthmus.errors import ConfigError

Floats = TypeVar("Floats", np.float32, np.float64)

STEPS = 2**22
"""Lattice steps of one standard deviation."""
LIMIT = 2**44
"""Most steps that a value may be away from zero, so that sums are exact in double precision."""

_BAR = 2**16
"""Lattice steps under one bar of the histogram: 1/64 of a standard deviation."""
_BARS = 640
"""Bars on each side of zero: 10 standard deviations."""
_COLUMNS = 2**16
"""Entries of the histogram; as many as a bar is high lead to it."""
_OUTSIDE = -(2**15)
"""Entry that leads to no bar but to what lies between the histogram and the density."""
_BLOCK = 2**16
"""Draws at once: what is worked on stays in the processor's cache."""
_KEY_BYTES = 2**36
"""Key stream drawn from one key, in bytes: 2^32 blocks tell AES from random with advantage 2^-65."""


_ZEROS = memoryview(bytes(2**18))
"""Plaintext whose encryption is the key stream."""


class Randomness(Protocol):
    """A source of the random draws that a privacy guarantee depends on."""

    @property
    def private(self) -> bool:
        """Whether nobody can repeat the draws."""
        ...

    def noisy(self, values: NDArray[Floats], *, stddev: float, sensitivity: float) -> NDArray[Floats]:
        """`values` with independent Gaussian noise of `stddev` on each; see `SecureRandomness.noisy`."""
        ...

    def bernoulli(self, count: int, probability: float) -> NDArray[np.bool_]:
        """`count` independent coins, each true with `probability`."""
        ...

    def uniform(self, count: int) -> NDArray[np.float64]:
        """`count` independent draws from [0, 1)."""
        ...


class SecureRandomness:
    """Draws from a cryptographic generator that nobody can seed.

    Guarantees:
        - Two instances never share a key stream.
        - Draws of a child process after a fork differ from the parent's: the key is drawn anew.
        - A key is left after 64 GiB of key stream, so no number of draws repeats one or fails.
    """

    private = True

    def __init__(self) -> None:
        self._rekey()

    def noisy(self, values: NDArray[Floats], *, stddev: float, sensitivity: float) -> NDArray[Floats]:
        """`values` rounded to the lattice, plus rounded Gaussian noise.

        Args:
            values: (coordinates,) what must not be seen exactly, as *one* vector: `sensitivity` is of all of it.
            stddev: Of the noise on each coordinate, above 0.
            sensitivity: L2 norm by which one user can move `values`.

        Returns:
            (coordinates,) whole multiples of `lattice_step`, rounded to the precision of `values`.

        Raises:
            ValueError: If values are not one vector of finite floats.
            ConfigError: If `lattice_step` has none for them.

        Guarantees:
            - A function of the sum of two whole numbers alone, the values in steps and the noise in steps, and the
              noise knows nothing of the values: which numbers can come out does not depend on the values.
            - At least as private as the exact Gaussian mechanism of multiplier stddev / sensitivity, but for the
              generator's error: the noise is larger by what rounding adds to the sensitivity.
            - The probability of any sum of steps is within a factor 1 +- 2^-46 of the exact one for noise of up to
              10 standard deviations; there is none beyond (the exact law has 2^-75 there).
            - Values further than 2^22 standard deviations from zero are moved there; no user moves them by more.
        """
        step = lattice_step(values.size, stddev=stddev, sensitivity=sensitivity)
        within = _within(values, LIMIT * step)
        released, work = np.empty_like(values), np.empty(min(values.size, _BLOCK))
        for part, noise in self._noise(values.size):
            released[part] = _sum_of_steps(within[part], noise, step, out=work[: len(noise)])
        return released

    def gaussian(self, count: int) -> NDArray[np.float64]:
        """`count` independent standard normal deviates, each rounded down to a lattice step; release `noisy` ones."""
        deviates = np.empty(count)
        for part, noise in self._noise(count):
            np.multiply(noise, 1 / STEPS, out=deviates[part])
        return deviates

    def bernoulli(self, count: int, probability: float) -> NDArray[np.bool_]:
        """`count` independent coins, each true with `probability` (to within 2^-53, never more often)."""
        return _uniform(self._words(count)) + 2.0**-53 <= probability

    def uniform(self, count: int) -> NDArray[np.float64]:
        """`count` independent multiples of 2^-53 in [0, 1), each equally likely."""
        return _uniform(self._words(count))

    def _noise(self, count: int) -> Iterator[tuple[slice, NDArray[np.int32]]]:
        """`count` deviates in whole steps, rounded down: pieces with their places, each until the next is asked for."""
        # Drawn together, because few at a time cost as much as many; six deviations more than are expected.
        expected = count * _LAW.outside
        spare = self._outside(math.ceil(expected + 6 * math.sqrt(expected))) if count else np.empty(0, np.int32)
        size = min(count, _BLOCK)
        all_index, all_bar, all_noise = np.empty(size, np.intp), np.empty(size, np.int16), np.empty(size, np.int32)
        for start in range(0, count, _BLOCK):
            length = min(size, count - start)
            index, bar, noise = all_index[:length], all_bar[:length], all_noise[:length]
            choice, place = np.frombuffer(self._stream(4 * length), dtype=np.uint16).reshape(2, length)
            # 1. Half of the bits choose a bar, the others a place under it.
            index[:] = choice
            np.take(_LAW.histogram, index, mode="clip", out=bar)
            np.left_shift(bar, 16, out=noise, dtype=np.int32)
            noise |= place
            # 2. About one in a hundred is outside of the histogram.
            outside = np.flatnonzero(bar == _OUTSIDE)
            if len(outside) > len(spare):
                spare = np.concatenate([spare, self._outside(len(outside))])
            noise[outside], spare = spare[: len(outside)], spare[len(outside) :]
            yield slice(start, start + length), noise

    def _outside(self, count: int) -> NDArray[np.int32]:
        """`count` deviates in whole steps, rounded down, from what lies between histogram and density."""
        drawn: list[NDArray[np.int32]] = []
        while (missing := count - sum(map(len, drawn))) > 0:
            rung, place, height = self._words(3 * (missing * 5 // 3 + 16)).reshape(3, -1)
            # 1. A bar, as often as its corner above the histogram is high.
            bar = self._climbed(rung)
            # 2. A place in that corner, to 2^-46, kept if it is under the density.
            deviate = _LAW.edge[bar] + (place >> 24).view(np.int64) * (_BAR / STEPS * 2.0**-40)
            kept = np.flatnonzero(_uniform(height) * _LAW.corner[bar] < _density(deviate) - _LAW.floor[bar])
            # 3. In whole steps, on either side of zero.
            steps = (deviate[kept] * STEPS).astype(np.int32)
            drawn.append(np.where(place[kept] & 1, ~steps, steps))
        return np.concatenate(drawn)[:count] if drawn else np.empty(0, np.int32)

    def _climbed(self, words: NDArray[np.uint64]) -> NDArray[np.int16]:
        """The rung of the ladder that each word leads to, every rung as often as it is high."""
        rung = _LAW.guide[(words >> 48).view(np.int64)]
        # Where 16 bits do not tell, two words make a number that is exact to 53 bits however small it is; the
        # smallest numbers lead to the tail, which is at the foot of the ladder.
        unsure = np.flatnonzero(rung < 0)
        exact = words[unsure] * 2.0**-64 + self._words(len(unsure)) * 2.0**-128
        rung[unsure] = np.searchsorted(_LAW.ladder, exact * _LAW.ladder[-1])
        return rung

    def _words(self, count: int) -> NDArray[np.uint64]:
        """Uniform words of 64 bits."""
        return np.frombuffer(self._stream(8 * count), dtype=np.uint64)

    def _stream(self, count: int) -> bytes:
        """The next bytes of the key stream."""
        if self._owner != _process() or self._left < count:
            self._rekey()
        self._left -= count
        return self._cipher.update(_ZEROS[:count] if count <= len(_ZEROS) else bytes(count))

    def _rekey(self) -> None:
        self._owner = _process()
        self._left = _KEY_BYTES
        self._cipher = Cipher(AES(os.urandom(32)), CTR(bytes(16))).encryptor()


class SeededRandomness:
    """Repeatable draws for tests and simulation; **not private**.

    Args:
        seed: Of the run.
        context: What the draws are for (domain, round, purpose); other words give independent draws.
    """

    private = False

    def __init__(self, seed: int, *context: str | int) -> None:
        words = "\x1f".join(str(word) for word in (seed, *context))
        self._generator = np.random.Generator(np.random.PCG64(int.from_bytes(hashlib.sha256(words.encode()).digest())))

    def noisy(self, values: NDArray[Floats], *, stddev: float, sensitivity: float) -> NDArray[Floats]:
        """`values` with floating-point noise of `stddev`; what cannot be rounded safely is refused here, too."""
        lattice_step(values.size, stddev=stddev, sensitivity=sensitivity)
        return (values + stddev * self.gaussian(values.size)).astype(values.dtype)

    def gaussian(self, count: int) -> NDArray[np.float64]:
        """`count` independent standard normal deviates."""
        return self._generator.standard_normal(count)

    def bernoulli(self, count: int, probability: float) -> NDArray[np.bool_]:
        """`count` independent coins, each true with `probability`."""
        return self._generator.random(count) < probability

    def uniform(self, count: int) -> NDArray[np.float64]:
        """`count` independent draws from [0, 1)."""
        return self._generator.random(count)


def lattice_step(count: int, *, stddev: float, sensitivity: float) -> float:
    """Width of a lattice step for `count` values, a public constant; 2^22 steps are the noise's deviation.

    Rounding moves each coordinate of the difference of two vectors by at most 1.01 steps (1, and 0.01 for the
    arithmetic), so it adds 1.01 sqrt(count) steps to the sensitivity. With ratio = stddev / sensitivity, noise of
    stddev / (1 - 1.01 sqrt(count) ratio / 2^22) keeps the ratio of noise to sensitivity: that many parts wider.

    Args:
        count: Coordinates of the vector.
        stddev: Of the noise, in [1e-200, 1e200].
        sensitivity: L2 norm by which one user can move the vector, in [1e-200, 1e200].

    Raises:
        ConfigError: If one is outside its range, or the noise would have to be more than doubled.

    >>> lattice_step(1_000_000, stddev=2.0, sensitivity=1.0) * STEPS
    2.00096...
    """
    if not (1e-200 <= stddev <= 1e200 and 1e-200 <= sensitivity <= 1e200):
        raise ConfigError(f"noise and sensitivity must be in [1e-200, 1e200], got {stddev} and {sensitivity}")
    added = 1.01 * math.sqrt(count) * (stddev / sensitivity) / STEPS
    if added > 0.5:
        raise ConfigError(
            f"noise of {stddev / sensitivity:g} times the sensitivity cannot be added to {count} values safely: the "
            f"multiplier must be at most {STEPS / 2.02 / math.sqrt(count):.0f} there. Lower the noise or `width`."
        )
    return stddev / STEPS / (1 - added) * (1 + 2**-50)  # the last factor outweighs the rounding of this line


def _within(values: NDArray[Floats], limit: float) -> NDArray[Floats]:
    """Values moved to the nearest within +-limit; ValueError if they are not one vector of finite floats."""
    if values.ndim != 1 or values.dtype.kind != "f":
        raise ValueError(
            f"values must be one vector of floats to get noise, got {values.dtype} of shape {values.shape}"
        )
    least, most = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if not (math.isfinite(least) and math.isfinite(most)):
        raise ValueError("values must be finite to get noise: no bound on what one user adds holds for others")
    if max(-least, most) <= limit:
        return values
    return np.minimum(np.maximum(values, -limit), limit)


def _sum_of_steps(
    values: NDArray[Floats], noise: NDArray[np.int32], step: float, *, out: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Values in whole steps plus noise in whole steps, times the step; whole numbers below 2^53 add exactly."""
    out[:] = values
    out *= 1 / step
    np.rint(out, out=out)
    out += noise
    out *= step
    return out


def _uniform(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Multiples of 2^-53 in [0, 1)."""
    return (words >> 11).view(np.int64).astype(np.float64) * 2.0**-53


def _density(deviate: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the standard normal law."""
    density: NDArray[np.float64] = np.exp(-0.5 * deviate * deviate) * (1 / math.sqrt(2 * math.pi))
    return density


@dataclass(frozen=True)
class _Law:
    """The normal density: a histogram below it, drawn exactly from a table, and the corners that it leaves.

    Bars are counted from zero outwards in the histogram, and from the tail inwards elsewhere.

    Attributes:
        histogram: (65,536,) bar of each entry, -1 - bar for the mirrored one, or `_OUTSIDE`.
        outside: Probability of `_OUTSIDE`.
        edge: (bars,) where the bar begins, in standard deviations from zero.
        floor: (bars,) density of the histogram.
        corner: (bars,) height of the density above the histogram, at the bar's edge.
        ladder: (bars,) sums of corners from the outermost bar inwards.
        guide: (65,536,) rung of the ladder for each 16 bits, or -1 where they leave a choice.
    """

    histogram: NDArray[np.int16]
    outside: float
    edge: NDArray[np.float64]
    floor: NDArray[np.float64]
    corner: NDArray[np.float64]
    ladder: NDArray[np.float64]
    guide: NDArray[np.int16]


def _make_law() -> _Law:
    edges = np.arange(_BARS + 1) * _BAR / STEPS
    entries = (_COLUMNS * _BAR / STEPS * _density(edges[1:])).astype(np.int64)
    bars = np.arange(_BARS, dtype=np.int16)
    inside = np.repeat(np.concatenate([bars, ~bars]), np.tile(entries, 2))
    histogram = np.full(_COLUMNS, _OUTSIDE, dtype=np.int16)
    histogram[: len(inside)] = inside
    edge, floor = edges[-2::-1].copy(), entries[::-1] / (_COLUMNS * _BAR / STEPS)
    corner = _density(edge) - floor
    ladder = np.cumsum(corner)
    rung = np.searchsorted(ladder, np.arange(_COLUMNS + 1) / _COLUMNS * ladder[-1])
    return _Law(
        histogram=histogram,
        outside=1 - len(inside) / _COLUMNS,
        edge=edge,
        floor=floor,
        corner=corner,
        ladder=ladder,
        guide=np.where(rung[:-1] == rung[1:], rung[:-1], -1).astype(np.int16),
    )


_LAW = _make_law()


class _Forks:
    """How often this process is a fork; with its number it tells processes apart, for numbers are given out again."""

    count = 0


def _count_fork() -> None:
    _Forks.count += 1


def _process() -> tuple[int, int]:
    return os.getpid(), _Forks.count


os.register_at_fork(after_in_child=_count_fork)
