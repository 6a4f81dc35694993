"""Noise that was added is what the accounting assumes: the lattice, attacks on it, and what leaves a round.

The attacks are those of Mironov (CCS 2012) and of Jin et al. (S&P 2022): which numbers can come out depends on what
was added to. A textbook sum of floating-point noise is kept as the mutant that they must catch.
"""

import copy
import dataclasses
import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from flwr.app import Message
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from tests.clients.sensitivity import DIVISOR, PLAN, SIGMA, Case, Silent, make_case, policy_of
from tests.strategies.test_guarded import ROUND, asked, start

from isthmus.backbone import Backbone
from isthmus.clients import private_optimizer
from isthmus.clients.private_optimizer import PrivateOptimizer
from isthmus.clients.trainer import train_round
from isthmus.config import BackboneConfig, Trained, TrainingConfig
from isthmus.errors import ConfigError
from isthmus.packing import from_array_record
from isthmus.privacy import noise
from isthmus.privacy.noise import LIMIT, STEPS, Floats, SecureRandomness, SeededRandomness, lattice_step
from isthmus.records import Arrays, RoundReply

UNLIKELY = 1e-7
"""A sound source fails a check about once in ten million runs."""

Mechanism = Callable[[NDArray[np.float64]], NDArray[np.float64]]


class Replayed(SecureRandomness):
    """A key that is known, so that two sums get the same noise."""

    def _rekey(self) -> None:
        super()._rekey()
        self._cipher = noise.Cipher(noise.AES(bytes(32)), noise.CTR(bytes(16))).encryptor()


# The lattice.


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("stddev", "sensitivity"), [(1.0, 1.0), (0.37, 0.1), (1e-9, 2e-9), (12345.678, 99.0)])
def test_every_released_value_is_a_whole_number_of_steps(dtype: type, stddev: float, sensitivity: float) -> None:
    """Bit for bit what a whole number times the step is, in the precision of the values."""
    values = (np.random.default_rng(1).normal(size=70_000) * 10 * sensitivity).astype(dtype)
    step = lattice_step(values.size, stddev=stddev, sensitivity=sensitivity)
    exact = Replayed().noisy(values.astype(np.float64), stddev=stddev, sensitivity=sensitivity)
    np.testing.assert_array_equal(np.rint(exact / step) * step, exact)
    released = Replayed().noisy(values, stddev=stddev, sensitivity=sensitivity)
    assert released.dtype == dtype
    np.testing.assert_array_equal(released, exact.astype(dtype))


@given(value=st.floats(-1e6, 1e6), other=st.floats(-1e6, 1e6), stddev=st.floats(1e-6, 1e6))
def test_what_is_released_is_a_function_of_two_whole_numbers(value: float, other: float, stddev: float) -> None:
    """With the same noise, two sums come out whole steps apart, as many as they are apart to within 1.01."""
    step = lattice_step(1, stddev=stddev, sensitivity=1.0)
    values = [value * stddev, other * stddev]
    one, two = (Replayed().noisy(np.array([v]), stddev=stddev, sensitivity=1.0)[0] for v in values)
    apart = round(Fraction(float(one)) / Fraction(step)) - round(Fraction(float(two)) / Fraction(step))
    exact = (Fraction(values[0]) - Fraction(values[1])) / Fraction(step)
    assert abs(apart - exact) <= Fraction(101, 100)


def test_values_beyond_the_limit_are_moved_to_it() -> None:
    """The largest floats come out as the limit plus noise, on either side; nothing overflows and nothing is refused."""
    step = lattice_step(4, stddev=1.0, sensitivity=1.0)
    huge = np.array([3e38, -3e38, 2.0 * LIMIT * step, 0.0])
    released = SecureRandomness().noisy(huge, stddev=1.0, sensitivity=1.0)
    np.testing.assert_allclose(released, [LIMIT * step, -LIMIT * step, LIMIT * step, 0.0], atol=10.1)
    assert SecureRandomness().noisy(huge.astype(np.float32), stddev=1.0, sensitivity=1.0).dtype == np.float32


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_gets_no_noise(value: float) -> None:
    """There is no bound on what one user adds to it."""
    with pytest.raises(ValueError, match="finite"):
        SecureRandomness().noisy(np.array([1.0, value]), stddev=1.0, sensitivity=1.0)


def test_only_one_vector_of_floats_gets_noise() -> None:
    """A matrix would be noised in part, whole numbers would lose theirs; nothing at all is fine."""
    for wrong in (np.zeros((2, 3)), np.zeros(3, np.int64)):
        with pytest.raises(ValueError, match="one vector of floats"):
            SecureRandomness().noisy(wrong, stddev=1.0, sensitivity=1.0)
    assert SecureRandomness().noisy(np.zeros(0), stddev=1.0, sensitivity=1.0).shape == (0,)


# Sensitivity.


@pytest.mark.parametrize(("count", "ratio"), [(1, 0.5), (2, 10.0), (100_000, 1.2), (1_000_000, 1.0), (10**8, 100.0)])
def test_noise_is_wider_by_what_rounding_adds(count: int, ratio: float) -> None:
    """Ratio of noise to rounded sensitivity, in exact arithmetic, is what was asked for: not less, hardly more."""
    sensitivity = 0.3
    stddev = ratio * sensitivity
    step = Fraction(lattice_step(count, stddev=stddev, sensitivity=sensitivity))
    root = Fraction(math.isqrt(count * 10**12) + 1, 10**6)  # above the square root
    rounded = Fraction(sensitivity) + Fraction(101, 100) * root * step
    asked_for = Fraction(stddev) / Fraction(sensitivity)
    got = step * STEPS / rounded
    assert asked_for * (1 - Fraction(1, 10**9)) <= got <= asked_for * (1 + Fraction(1, 10**5))


def test_the_widest_rounding_is_met_by_some_vector() -> None:
    """Neighbours whose every coordinate lies on the other side of a half step: rounding adds sqrt(count) steps."""
    count = 400
    step = lattice_step(count, stddev=1.0, sensitivity=1.0)
    low, high = np.full(count, 0.499 * step), np.full(count, 0.501 * step)
    one, two = (Replayed().noisy(values, stddev=1.0, sensitivity=1.0) for values in (low, high))
    moved = float(np.linalg.norm(two - one))
    assert moved == pytest.approx(math.sqrt(count) * step, rel=1e-6)
    assert moved > 100 * float(np.linalg.norm(high - low))


@pytest.mark.parametrize("source", [SecureRandomness(), SeededRandomness(1)], ids=["secure", "seeded"])
@pytest.mark.parametrize(
    ("count", "stddev", "sensitivity"),
    [(4, 0.0, 1.0), (4, -1.0, 1.0), (4, math.nan, 1.0), (4, 1.0, 0.0), (4, math.inf, 1.0), (10**6, 3000.0, 1.0)],
)
def test_noise_that_cannot_be_added_safely_is_refused(
    source: noise.Randomness, count: int, stddev: float, sensitivity: float
) -> None:
    """No noise, no sensitivity, or so much of it on so many values that rounding would count: a clear sentence."""
    with pytest.raises(ConfigError, match=r"must be in|must be at most"):
        source.noisy(np.zeros(count), stddev=stddev, sensitivity=sensitivity)


# Attacks on floating-point arithmetic.


def naive(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mutant: what textbooks do."""
    return values + np.random.default_rng().normal(size=values.size)


def naive_single(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mutant: what deep-learning frameworks do."""
    total = torch.from_numpy(values.astype(np.float32))
    return (total + torch.normal(0.0, 1.0, total.shape)).double().numpy()


def ours(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mechanism in double precision."""
    return SecureRandomness().noisy(values, stddev=1.0, sensitivity=1.0)


def ours_single(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mechanism as the trainer uses it."""
    return SecureRandomness().noisy(values.astype(np.float32), stddev=1.0, sensitivity=1.0).astype(np.float64)


def distinguished(mechanism: Mechanism) -> float:
    """Least p-value of "small results are as often whole multiples of 2^-b for a sum of 0 as for one of 1".

    Small results keep the fine grid of a sum of 0, and show the coarse one of a sum near 1. The windows are narrow
    beside the noise, so what the densities themselves tell (they curve by 0.2 % within) is far below what
    is seen here.
    """
    least = 1.0
    for width in (2.0**-4, 2.0**-6):
        grids = []
        for value in (0.0, 1.0):
            results = mechanism(np.full(400_000, value))
            small = results[np.abs(results) < width]
            grids.append(np.array([[np.sum(np.rint(small * 2.0**b) == small * 2.0**b), small.size] for b in range(62)]))
        for (zero, zeros), (one, ones) in zip(*grids, strict=True):
            if 0 < zero + one < zeros + ones:
                table = [[zero, zeros - zero], [one, ones - one]]
                least = min(least, float(stats.fisher_exact(table).pvalue))
    return least * 124  # as many grids were looked at


@pytest.mark.parametrize("mechanism", [ours, ours_single])
def test_the_grid_of_results_does_not_tell_neighbours_apart(mechanism: Mechanism) -> None:
    """The attack on low-order bits finds nothing."""
    assert distinguished(mechanism) > UNLIKELY


@pytest.mark.parametrize("mutant", [naive, naive_single])
def test_the_attack_works_on_floating_point_noise(mutant: Mechanism) -> None:
    """It tells a sum of 0 from a sum of 1 beyond doubt, in double and in single precision."""
    assert distinguished(mutant) < 1e-100


def reachable(source: SecureRandomness, value: float) -> set[float]:
    """Results of many draws for a noise of so few steps that all of them occur."""
    step = lattice_step(1, stddev=1.0, sensitivity=1.0)
    drawn = np.concatenate([part.copy() for _, part in source._noise(400_000)]) >> 20  # a lattice of 4 per deviation
    work = np.empty(drawn.size)
    return set(noise._sum_of_steps(np.full(drawn.size, value * step), drawn, step, out=work) / step)


def test_neighbours_reach_the_same_results() -> None:
    """On a coarse lattice whose every point is drawn: both sums reach all of the middle, and nothing between."""
    middle = set(np.arange(-11.0, 13.0))
    for value in (0.0, 0.3, 1.0, 1.49):
        found = reachable(SecureRandomness(), value)
        assert middle <= found
        assert all(result == round(result) for result in found)


# What leaves a round.

SHAPE = BackboneConfig(width=64, heads=2, layers=3, feedforward=128, positions=8)
TRAINING = TrainingConfig(train=Trained.ALL, learning_rate=0.25, rivals=10, positions=3)


class GivenBatch(SecureRandomness):
    """Production noise on a batch that is known."""

    def __init__(self, chosen: tuple[bool, ...]) -> None:
        super().__init__()
        self.chosen = chosen

    def bernoulli(self, count: int, probability: float) -> NDArray[np.bool_]:
        """The batch."""
        return np.array(self.chosen, dtype=bool)


class HalfNoise(PrivateOptimizer):
    """Mutant: half of what was planned."""

    def add_noise(self) -> None:
        """Too little."""
        self.noise_multiplier /= 2
        super().add_noise()


class BareLayer(PrivateOptimizer):
    """Mutant: one tensor goes without."""

    def add_noise(self) -> None:
        """One tensor too few."""
        super().add_noise()
        self.params[3].grad = self.params[3].summed_grad.clone()


class LateNoise(PrivateOptimizer):
    """Mutant: noise for an average, added to the sum."""

    def add_noise(self) -> None:
        """Divided twice."""
        self.noise_multiplier /= self.expected_batch_size
        super().add_noise()


def big_case() -> tuple[Case, Backbone]:
    """Real users on a model of about 100,000 parameters in single precision."""
    case = make_case([6, 5, 9, 7], seed=31)
    torch.manual_seed(5)
    backbone = Backbone(case.features.shape[1], SHAPE)
    return dataclasses.replace(case, clip=0.4, backbone=backbone), backbone


def update_of(case: Case, randomness: noise.Randomness, optimizer: type[PrivateOptimizer]) -> Arrays:
    """One step of the real trainer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(private_optimizer, "PrivateOptimizer", optimizer)
        return train_round(
            copy.deepcopy(case.backbone),
            case.users(),
            training=TRAINING,
            policy=policy_of(case),
            plan=PLAN,
            proximal_mu=0.0,
            randomness=randomness,
        )


def wrong_release(optimizer: type[PrivateOptimizer]) -> list[str]:
    """What is wrong with the noise on the aggregate of two domains, weighted 1 to 3, as the server makes it."""
    case, _ = big_case()
    silent = update_of(case, Silent(case.chosen), optimizer=PrivateOptimizer)
    strategy, _ = start(weights={"books": 1.0, "games": 3.0}, roster={2: "books", 3: "games"})
    strategy.trained = tuple(silent)
    shared = {name: np.zeros_like(array) for name, array in silent.items()}
    replies = []
    for domain, message in asked(strategy, shared).items():
        update = update_of(case, GivenBatch(case.chosen), optimizer=optimizer)
        reply = RoundReply(domain=domain, run="r1", round=ROUND, arrays=update, epsilon=1.0)
        replies.append(Message(reply.to_records(), reply_to=message))
    arrays, _ = strategy.aggregate_train(ROUND, replies)
    assert arrays is not None
    released = from_array_record(arrays)
    accounted = TRAINING.learning_rate * SIGMA * case.clip / DIVISOR * math.hypot(0.25, 0.75)
    limit, wrong, parts = stats.norm.isf(UNLIKELY / 2), [], []
    for name, array in released.items():
        parts.append((array.astype(np.float64) - silent[name]).ravel() / accounted)
        if abs(parts[-1].var() - 1) > limit * math.sqrt(2 / parts[-1].size) + 0.02:  # + 0.02: tails of few values
            wrong.append(f"{name}: {parts[-1].std():.3f} of its noise")
    everything = np.concatenate(parts)
    assert everything.size > 80_000
    if abs(everything.std() - 1) * math.sqrt(2 * everything.size) > limit:
        wrong.append(f"all: {everything.std():.4f} of the noise")
    if stats.kstest(everything, "norm", method="asymp").pvalue < UNLIKELY:
        wrong.append("law")
    return wrong


def test_the_released_aggregate_has_the_accounted_noise() -> None:
    """Clipped, summed, noised, divided, rounded to single precision, weighted by the server: as accounted."""
    assert wrong_release(PrivateOptimizer) == []


@pytest.mark.parametrize("mutant", [HalfNoise, BareLayer, LateNoise])
def test_other_noise_on_the_aggregate_is_caught(mutant: type[PrivateOptimizer]) -> None:
    """Half of it, a tensor without, noise scaled twice: the same check says so."""
    assert wrong_release(mutant) != []


def test_seeded_noise_is_plain_and_says_so() -> None:
    """The sum of value and deviate, to the last bit, as in every run with that seed."""
    values = np.random.default_rng(3).normal(size=1000).astype(np.float32)
    released = SeededRandomness(4).noisy(values, stddev=0.7, sensitivity=0.1)
    expected: NDArray[Floats] = (values + 0.7 * SeededRandomness(4).gaussian(1000)).astype(np.float32)
    np.testing.assert_array_equal(released, expected)
    assert SeededRandomness(4).private is False
