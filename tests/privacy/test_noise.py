"""Noise is what the accounting assumes: its law, its independence, its keys, and its honesty about seeds."""

import os
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

DRAWS = 600_000
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
        self._cipher = noise.Cipher(noise.AES(bytes(32)), noise.CTR(bytes(16))).encryptor()


class KeyOfTheParent(SecureRandomness):
    """Mutant: a forked child goes on with the parent's key."""

    def _stream(self, count: int) -> bytes:
        self._owner = noise._process()
        return super()._stream(count)


class Unscaled(SecureRandomness):
    """Mutant: noise of 98 % of the standard deviation."""

    def gaussian(self, count: int) -> NDArray[np.float64]:
        """Draws of the wrong law."""
        return 0.98 * super().gaussian(count)


class SumOfSix(SecureRandomness):
    """Mutant: six uniforms, scaled; looks normal, has no tails beyond 4.3 and too few beyond 3."""

    def gaussian(self, count: int) -> NDArray[np.float64]:
        """Draws of the wrong law."""
        return (uniform(self, 6 * count).reshape(count, 6).sum(axis=1) - 3.0) * 2**0.5


class Twice(SecureRandomness):
    """Mutant: neighbouring draws are the same."""

    def gaussian(self, count: int) -> NDArray[np.float64]:
        """Draws of the wrong law."""
        return np.repeat(super().gaussian((count + 1) // 2), 2)[:count]


class NoCorners(SecureRandomness):
    """Mutant: what is outside of the histogram is drawn from it again, so there is nothing beyond 3.5."""

    def _outside(self, count: int) -> NDArray[np.int32]:
        inside = np.concatenate([bar.copy() for _, bar in SecureRandomness()._noise(2 * count + 10)])
        return inside[np.abs(inside) < 3.4 * noise.STEPS][:count]


class SharedNoise(SecureRandomness):
    """Mutant: all coordinates get the same noise, in part."""

    def gaussian(self, count: int) -> NDArray[np.float64]:
        """Draws of the right law that are not independent."""
        return 0.9 * super().gaussian(count) + (1 - 0.9**2) ** 0.5 * super().gaussian(1)


class Echo(SecureRandomness):
    """Mutant: every second call repeats the noise of the one before."""

    last = np.empty(0)

    def gaussian(self, count: int) -> NDArray[np.float64]:
        """Draws of the right law that are not fresh."""
        repeated, self.last = self.last, np.empty(0)
        if repeated.size != count:
            repeated = self.last = super().gaussian(count)
        return repeated


class ShuffledBatches(SecureRandomness):
    """Mutant: batches of a fixed size, accounted for as Poisson samples."""

    def bernoulli(self, count: int, probability: float) -> NDArray[np.bool_]:
        """The wrong coins."""
        return np.argsort(uniform(self, count)) < round(count * probability)


class Generous(SecureRandomness):
    """Mutant: users are in a batch a little more often than was accounted for."""

    def bernoulli(self, count: int, probability: float) -> NDArray[np.bool_]:
        """The wrong coins."""
        return super().bernoulli(count, probability * 1.05)


def uniform(source: SecureRandomness, count: int) -> NDArray[np.float64]:
    """Uniform draws of a source."""
    return noise._uniform(source._words(count))


def wrong_law(randomness: Randomness) -> list[str]:
    """What is wrong with a source's Gaussian draws: law, tails, moments, correlation of neighbours and halves."""
    draws = randomness.gaussian(DRAWS)
    wrong = []
    if stats.kstest(draws, "norm", method="asymp").pvalue < UNLIKELY:
        wrong.append("law")
    wrong += [
        f"tail at {edge}"
        for edge in (2.0, 3.0, 4.0, 4.5)
        for side in (draws, -draws)
        if stats.binomtest(int((side > edge).sum()), DRAWS, stats.norm.sf(edge)).pvalue < UNLIKELY
    ]
    limit = stats.norm.isf(UNLIKELY / 2)
    if abs(draws.mean()) * DRAWS**0.5 > limit:
        wrong.append("mean")
    if abs(draws.var() - 1) * (DRAWS / 2) ** 0.5 > limit:
        wrong.append("variance")
    half = DRAWS // 2
    pairs = {"neighbours": (draws[::2], draws[1::2]), "halves": (draws[:half], draws[half:])}
    wrong += [
        f"covariance of {name}"
        for name, (left, right) in pairs.items()
        for power in (1, 2)
        if abs(np.corrcoef(left**power, right**power)[0, 1]) * half**0.5 > limit
    ]
    return wrong


def wrong_company(randomness: Randomness) -> list[str]:
    """What draws of one call have to do with each other, and with those of the next call."""
    calls, coordinates = 4000, 40
    draws = np.stack([randomness.gaussian(coordinates) for _ in range(calls)])
    limit = stats.norm.isf(UNLIKELY / coordinates**2) / calls**0.5  # of the largest of so many correlations
    wrong = []
    for power in (1, 2):
        part = draws**power
        across = np.corrcoef(part.T)[~np.eye(coordinates, dtype=bool)]
        if np.abs(across).max() > limit:
            wrong.append("covariance across coordinates")
        after = np.corrcoef(part[:-1].T, part[1:].T)[:coordinates, coordinates:]
        if np.abs(after).max() > limit:
            wrong.append("covariance across calls")
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
    """Whether two blocks of at least 100 draws are the same somewhere: three neighbours of one among the other.

    Single values repeat by chance, for they are whole lattice steps; three in a row of blocks of 10,000 do so once in
    10^13.
    """
    runs = [np.lib.stride_tricks.sliding_window_view(block, 3) for block in (left, right)]
    return not {row.tobytes() for row in runs[0]}.isdisjoint(row.tobytes() for row in runs[1])


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
    ("mutant", "finding"),
    [
        (Unscaled, "variance"),
        (SumOfSix, "tail at 3.0"),
        (NoCorners, "tail at 4.0"),
        (Twice, "covariance of neighbours"),
    ],
)
def test_wrong_noise_is_caught(mutant: type[SecureRandomness], finding: str) -> None:
    """Two per cent too little, tails cut off in two ways, every draw used twice: the same checks say so."""
    assert finding in wrong_law(mutant())


@pytest.mark.parametrize("name", SOURCES)
def test_coordinates_and_calls_are_independent(name: str) -> None:
    """No covariance between coordinates of a call, nor with those of the next call; of squares neither."""
    assert wrong_company(SOURCES[name]()) == []


@pytest.mark.parametrize(
    ("mutant", "finding"),
    [(SharedNoise, "covariance across coordinates"), (Echo, "covariance across calls")],
)
def test_dependent_noise_is_caught(mutant: type[SecureRandomness], finding: str) -> None:
    """A fifth of the variance shared by all coordinates, noise used in two steps: the same checks say so."""
    assert finding in wrong_company(mutant())


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


def test_coins_come_up_no_more_often_than_asked() -> None:
    """The key stream's least and greatest words: a coin of 2^-54 never shows, one of 2^-53 does for the least."""
    least, greatest = Stuck(b"\x00"), Stuck(b"\xff")
    assert not least.bernoulli(4, 2.0**-54).any()
    assert least.bernoulli(4, 2.0**-53).all()
    assert not greatest.bernoulli(4, 1 - 2.0**-53).any()
    assert greatest.bernoulli(4, 1.0).all()


class Stuck(SecureRandomness):
    """A source whose key stream is one byte, again and again."""

    def __init__(self, byte: bytes) -> None:
        super().__init__()
        self.byte = byte

    def _stream(self, count: int) -> bytes:
        return self.byte * count


def test_two_instances_never_share_a_key_stream() -> None:
    """Ten instances, 100,000 words: no word twice; a constant key is caught by the same check."""
    for kind, distinct in ((SecureRandomness, 100_000), (ConstantKey, 10_000)):
        assert np.unique(np.concatenate([kind()._words(10_000) for _ in range(10)])).size == distinct


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


def test_a_child_that_got_its_parents_number_draws_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers of processes are given out again (LibreSSL's flaw of 2014): forks are counted, too."""
    monkeypatch.setattr(os, "getpid", Constant(os.getpid()))
    source = SecureRandomness()
    source.gaussian(10)
    child = draws_of_a_child(source, 1000)
    assert child.size == 1000
    assert not repeats(child, source.gaussian(1000))


class Constant:
    """A function of one value."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __call__(self) -> int:
        return self.value


def test_the_end_of_a_key_stream_is_the_start_of_another_key() -> None:
    """A source about to use up its key draws a new one: the old cipher is left where it was, and nothing repeats."""
    source = SecureRandomness()
    source._cipher = noise.Cipher(noise.AES(bytes(32)), noise.CTR(bytes(16))).encryptor()
    source._left = 8 * 16  # bytes
    known = noise.Cipher(noise.AES(bytes(32)), noise.CTR(bytes(16))).encryptor()
    old = source._words(16)
    assert old.tobytes() == known.update(bytes(8 * 16))
    new = source._words(10_000)
    assert source._left == noise._KEY_BYTES - 80_000
    assert not np.intersect1d(new, np.frombuffer(known.update(bytes(80_000)), np.uint64)).size
    assert not np.intersect1d(new, old).size


def test_the_generator_is_aes_256_in_counter_mode() -> None:
    """NIST SP 800-38A, F.5.5: the published key, counter and key stream."""
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    counter = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
    source = SecureRandomness()
    assert source._cipher.update(bytes(32))[:16] != source._cipher.update(bytes(32))[:16]
    source._cipher = noise.Cipher(noise.AES(key), noise.CTR(counter)).encryptor()
    expected = "0bdf7df1591716335e9a8b15c860c5025a6e699d536119065433863c8f657b94"
    assert source._stream(32).hex() == expected


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


@pytest.mark.parametrize("randomness", [SecureRandomness(), SeededRandomness(3)])
def test_uniform_draws_are_uniform(randomness: Randomness) -> None:
    """20,000 of them against the law, all in [0, 1); a sound source fails once in ten million runs."""
    draws = randomness.uniform(20_000)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert stats.kstest(draws, "uniform").pvalue > 1e-7
