"""Noise is what the accounting assumes: its law, its independence, its keys, and its honesty about seeds."""

import os
import struct
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from isthmus.privacy import noise
from isthmus.privacy.noise import Randomness, SecureRandomness, SeededRandomness

# A fork is what is tested; newer Pythons warn of one beside the threads of a numerical library.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

DRAWS = 200_000
UNLIKELY = 1e-7
"""A sound source fails a check about once in ten million runs."""

SOURCES: dict[str, Callable[[], Randomness]] = {
    "secure": SecureRandomness,
    "seeded": lambda: SeededRandomness(3, "books", 1),
}


class ConstantKey(SecureRandomness):
    """Mutant: the key is always the same."""

    def _rekey(self) -> None:
        super()._rekey()
        self._cipher = noise.Cipher(noise.ChaCha20(bytes(32), bytes(16)), mode=None).encryptor()


class KeyOfTheParent(SecureRandomness):
    """Mutant: a forked child goes on with the parent's key."""

    def _uniform(self, count: int) -> NDArray[np.float64]:
        self._owner = os.getpid()
        return super()._uniform(count)


class Unscaled(SecureRandomness):
    """Mutant: noise of 98 % of the standard deviation."""

    def gaussian(self, count: int) -> NDArray[np.float64]:
        """Draws of the wrong law."""
        return 0.98 * super().gaussian(count)


class SumOfSix(SecureRandomness):
    """Mutant: six uniforms, scaled; looks normal, has no tails beyond 4.3 and too few beyond 3."""

    def gaussian(self, count: int) -> NDArray[np.float64]:
        """Draws of the wrong law."""
        return (self._uniform(6 * count).reshape(count, 6).sum(axis=1) - 3.0) * 2**0.5


class Twice(SecureRandomness):
    """Mutant: neighbouring draws are the same."""

    def gaussian(self, count: int) -> NDArray[np.float64]:
        """Draws of the wrong law."""
        return np.repeat(super().gaussian((count + 1) // 2), 2)[:count]


class ShuffledBatches(SecureRandomness):
    """Mutant: batches of a fixed size, accounted for as Poisson samples."""

    def bernoulli(self, count: int, probability: float) -> NDArray[np.bool_]:
        """The wrong coins."""
        return np.argsort(self._uniform(count)) < round(count * probability)


class Generous(SecureRandomness):
    """Mutant: users are in a batch a little more often than was accounted for."""

    def bernoulli(self, count: int, probability: float) -> NDArray[np.bool_]:
        """The wrong coins."""
        return super().bernoulli(count, probability * 1.05)


def wrong_law(randomness: Randomness) -> list[str]:
    """What is wrong with a source's Gaussian draws: law, tails, moments, correlation of neighbours and halves."""
    draws = randomness.gaussian(DRAWS)
    wrong = []
    if stats.kstest(draws, "norm").pvalue < UNLIKELY:
        wrong.append("law")
    wrong += [
        f"tail at {edge}"
        for edge in (2.0, 3.0, 4.0)
        for side in (draws, -draws)
        if stats.binomtest(int((side > edge).sum()), DRAWS, stats.norm.sf(edge)).pvalue < UNLIKELY
    ]
    limit = stats.norm.isf(UNLIKELY / 2)
    if abs(draws.mean()) * DRAWS**0.5 > limit:
        wrong.append("mean")
    if abs(draws.var() - 1) * (DRAWS / 2) ** 0.5 > limit:
        wrong.append("variance")
    half = DRAWS // 2
    # Box-Muller makes draw i and draw i + half from one radius and one angle: they must be uncorrelated, squares too.
    pairs = {"neighbours": (draws[::2], draws[1::2]), "halves": (draws[:half], draws[half:])}
    wrong += [
        f"covariance of {name}"
        for name, (left, right) in pairs.items()
        for power in (1, 2)
        if abs(np.corrcoef(left**power, right**power)[0, 1]) * half**0.5 > limit
    ]
    return wrong


def wrong_batches(randomness: Randomness) -> list[str]:
    """What is wrong with a source's batches: their rate, or the spread of their size."""
    users, rate, batches = 1000, 0.05, 2000
    sizes = np.array([randomness.bernoulli(users, rate).sum() for _ in range(batches)])
    wrong = []
    if stats.binomtest(int(sizes.sum()), users * batches, rate).pvalue < UNLIKELY:
        wrong.append("rate")
    # (batches - 1) x sample variance / variance is close to chi-squared for a binomial size
    spread = sizes.var(ddof=1) * (batches - 1) / (users * rate * (1 - rate))
    if not stats.chi2.ppf(UNLIKELY, batches - 1) < spread < stats.chi2.isf(UNLIKELY, batches - 1):
        wrong.append("spread")
    return wrong


def repeats(left: NDArray[np.float64], right: NDArray[np.float64]) -> bool:
    """Whether two blocks of draws have any value in common; 53-bit draws of this size do so by chance once in 10^9."""
    return bool(np.intersect1d(left, right).size)


def draws_of_a_child(randomness: Randomness, count: int) -> NDArray[np.float64]:
    """What a forked child draws next."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writer, randomness.gaussian(count).tobytes())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        received = pipe.read()
    os.waitpid(child, 0)
    return np.frombuffer(received)


@pytest.mark.parametrize("name", SOURCES)
def test_draws_are_standard_normal_and_independent(name: str) -> None:
    """Kolmogorov-Smirnov, both tails, mean, variance and covariance."""
    assert wrong_law(SOURCES[name]()) == []


@pytest.mark.parametrize(
    ("mutant", "finding"), [(Unscaled, "variance"), (SumOfSix, "tail at 3.0"), (Twice, "covariance of neighbours")]
)
def test_wrong_noise_is_caught(mutant: type[SecureRandomness], finding: str) -> None:
    """Two per cent too little, tails cut off, every draw used twice: the same checks say so."""
    assert finding in wrong_law(mutant())


@pytest.mark.parametrize("name", SOURCES)
def test_batches_are_poisson_samples(name: str) -> None:
    """Each user is in a batch with the accounted rate, alone: sizes vary as a binomial."""
    assert wrong_batches(SOURCES[name]()) == []


@pytest.mark.parametrize(("mutant", "finding"), [(ShuffledBatches, "spread"), (Generous, "rate")])
def test_wrong_batches_are_caught(mutant: type[SecureRandomness], finding: str) -> None:
    """Fixed-size batches and a rate five per cent too high: the same checks say so."""
    assert finding in wrong_batches(mutant())


@pytest.mark.parametrize("name", SOURCES)
def test_certain_coins_are_certain(name: str) -> None:
    """Probability 0 takes nobody, 1 takes everybody, and no users make an empty batch."""
    source = SOURCES[name]()
    assert not source.bernoulli(100_000, 0.0).any()
    assert source.bernoulli(100_000, 1.0).all()
    assert source.bernoulli(0, 0.5).shape == source.gaussian(0).shape == (0,)


@pytest.mark.parametrize("name", SOURCES)
@given(count=st.integers(0, 300))
def test_as_many_draws_as_asked(name: str, count: int) -> None:
    """Odd counts too, all finite, in double precision."""
    draws = SOURCES[name]().gaussian(count)
    assert draws.shape == (count,)
    assert draws.dtype == np.float64
    assert np.isfinite(draws).all()


def test_the_rarest_uniform_draws_stay_finite() -> None:
    """All zero and all one bits of the key stream: 2^-53 and 1, so the logarithm of Box and Muller is finite."""
    for byte, expected in ((b"\x00", 2.0**-53), (b"\xff", 1.0)):
        source = Stuck(byte)
        assert (source._uniform(4) == expected).all()
        assert np.isfinite(source.gaussian(4)).all()


class Stuck(SecureRandomness):
    """A source whose key stream is one byte, again and again."""

    def __init__(self, byte: bytes) -> None:
        super().__init__()
        self._cipher = StuckCipher(byte)


class StuckCipher:
    """Encrypts zeros to one byte."""

    def __init__(self, byte: bytes) -> None:
        self.byte = byte

    def update(self, data: bytes) -> bytes:
        """As many bytes as came in."""
        return self.byte * len(data)


def test_two_instances_never_share_a_key_stream() -> None:
    """Ten instances, 100,000 draws: no value twice; a constant key is caught by the same check."""
    blocks = [SecureRandomness().gaussian(10_000) for _ in range(10)]
    assert np.unique(np.concatenate(blocks)).size == 100_000
    assert repeats(ConstantKey().gaussian(100), ConstantKey().gaussian(100))


def test_an_instance_never_repeats_itself() -> None:
    """A second block is another one, for noise and for batches."""
    source = SecureRandomness()
    assert not repeats(source.gaussian(10_000), source.gaussian(10_000))
    assert not np.array_equal(source.bernoulli(1000, 0.5), source.bernoulli(1000, 0.5))


def test_a_forked_child_draws_something_else() -> None:
    """Two children and the parent, from one instance: no value in common; a shared key is caught by the same check."""
    for kind, shared in ((SecureRandomness, False), (KeyOfTheParent, True)):
        source = kind()
        source.gaussian(10)  # the key is in use before the fork
        first, second = (draws_of_a_child(source, 1000) for _ in range(2))
        parent = source.gaussian(1000)
        assert first.size == second.size == 1000
        assert repeats(first, second) is shared
        assert repeats(first, parent) is shared


def test_the_end_of_a_key_stream_is_the_start_of_another_key() -> None:
    """ChaCha20 counts 2^32 blocks; a source about to reach the end draws a new key, and neither fails nor repeats."""
    source = SecureRandomness()
    last = struct.pack("<I", 2**32 - 2) + bytes(12)
    source._cipher = noise.Cipher(noise.ChaCha20(bytes(32), last), mode=None).encryptor()
    source._left = 128  # bytes: two blocks
    old = source.gaussian(16)
    with pytest.raises(ValueError, match="overflow"):
        source._cipher.update(bytes(64))  # the old key has nothing left
    new = source.gaussian(10_000)
    assert not repeats(old, new)
    assert source._left == noise._KEY_BYTES - 80_000


def test_seeded_draws_can_be_repeated() -> None:
    """The same seed and context give the same noise and batches, bit for bit."""
    for _ in range(2):
        left, right = (SeededRandomness(7, "books", 3, "update") for _ in range(2))
        assert np.array_equal(left.gaussian(1000), right.gaussian(1000))
        assert np.array_equal(left.bernoulli(1000, 0.3), right.bernoulli(1000, 0.3))


def test_seeded_draws_of_another_context_are_others() -> None:
    """Domain, round, purpose and seed each separate; so does where one word ends and the next begins."""
    contexts: list[tuple[str | int, ...]] = [
        (),
        ("books", 3, "update"),
        ("games", 3, "update"),
        ("books", 4, "update"),
        ("books", 3, "metric"),
        ("books3", "update"),
        ("book", "s3", "update"),
    ]
    blocks = [SeededRandomness(seed, *context).gaussian(1000) for seed in (7, 8) for context in contexts]
    assert np.unique(np.concatenate(blocks)).size == len(blocks) * 1000


def test_a_source_says_whether_it_can_be_repeated() -> None:
    """Production noise is private, takes no seed and follows none; seeded noise never says that it is private."""
    assert SecureRandomness().private is True
    assert SeededRandomness(7).private is False
    with pytest.raises(TypeError):
        SecureRandomness(7)  # type: ignore[call-arg]
    blocks = []
    for _ in range(2):
        np.random.seed(1)  # noqa: NPY002 - the global generator, which must not matter
        blocks.append(SecureRandomness().gaussian(100))
    assert not repeats(*blocks)
