"""What leaves a validation: two sums that one user moves by at most sqrt(2), with noise of the declared size."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.clients.test_head import Fixed, toy_domain

from isthmus.backbone import Backbone
from isthmus.clients.backbone_scorer import BackboneScorer
from isthmus.clients.data import DomainData
from isthmus.clients.evaluation import noisy_gain, validation_ndcg
from isthmus.config import BackboneConfig, PrivacyPolicy
from isthmus.privacy.noise import Floats, SecureRandomness, SeededRandomness

POLICY = PrivacyPolicy(
    epsilon=8.0,
    delta=1e-6,
    clip=0.5,
    sample_rate=0.1,
    expected_batch=10.0,
    steps_per_round=1,
    rounds=1,
    evaluations=1,
    metric_noise_multiplier=3.0,
)


class Silence:
    """No noise: the exact pair."""

    private = False

    def noisy(self, values: NDArray[Floats], *, stddev: float, sensitivity: float) -> NDArray[Floats]:
        """The values."""
        return values

    def bernoulli(self, count: int, probability: float) -> NDArray[np.bool_]:
        """Nobody: an evaluation looks at everyone."""
        raise NotImplementedError


def exact_pair(gains: list[float]) -> NDArray[np.float64]:
    """(summed gain, users) without noise."""
    values = noisy_gain(np.array(gains), policy=POLICY, randomness=Silence()).values
    return np.array([values["gain"], values["users"]])


@given(st.lists(st.floats(width=32), min_size=1, max_size=12))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_one_user_moves_the_exact_pair_by_at_most_sqrt_2(gains: list[float]) -> None:
    """Whatever a gain is (huge, infinite, NaN), removing any one user moves the pair by at most sqrt(2)."""
    everyone = exact_pair(gains)
    assert np.isfinite(everyone).all()
    for user in range(len(gains)):
        moved = float(np.linalg.norm(everyone - exact_pair(gains[:user] + gains[user + 1 :])))
        assert moved <= math.sqrt(2) + 1e-12


@pytest.mark.parametrize("seed", range(4))
def test_one_user_moves_a_comparison_by_at_most_sqrt_2_and_no_other_users_gain(seed: int) -> None:
    """One backbone against another, over a real domain without each user in turn: the others' gains stay to the bit."""
    data, features = toy_domain(10, 64, seed=seed)
    scorers = [trained(features, seed), trained(features, seed + 100)]
    everyone = compared(scorers, data)
    assert everyone.any()
    pair = exact_pair(everyone.tolist())
    for user in range(10):
        left = np.flatnonzero(np.arange(10) != user)
        without = dataclasses.replace(data, train=data.train.take(left), validation=data.validation[left])
        gains = compared(scorers, without)
        np.testing.assert_array_equal(gains, everyone[left])
        assert np.linalg.norm(pair - exact_pair(gains.tolist())) <= math.sqrt(2) + 1e-12


def trained(features: NDArray[np.float32], seed: int) -> BackboneScorer:
    """A backbone that ranks by something learned."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = Backbone(features.shape[1], BackboneConfig(width=8, layers=1, feedforward=8, positions=6))
        torch.nn.init.normal_(backbone.head.weight)
    return BackboneScorer(backbone.eval(), torch.from_numpy(features))


def compared(scorers: list[BackboneScorer], data: DomainData) -> NDArray[np.float64]:
    """(users,) gains of the first over the second."""
    first, second = (validation_ndcg(scorer, data) for scorer in scorers)
    return first - second


def test_the_bound_is_met() -> None:
    """A user of gain 1 (or below -1, or infinite) moves the pair by sqrt(2): the bound is not larger than needed."""
    for gain in (1.0, -7.0, math.inf):
        assert np.linalg.norm(exact_pair([0.25, gain]) - exact_pair([0.25])) == pytest.approx(math.sqrt(2))


def test_sums_are_of_clipped_gains_and_nan_counts_as_zero() -> None:
    """NaN adds nothing to the gain and one to the users; others are clipped to [-1, 1]."""
    assert exact_pair([0.5, math.nan, 3.0, -0.25, -math.inf]).tolist() == [0.25, 5.0]
    assert exact_pair([]).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("source", ["seeded", "secure"])
def test_noise_has_the_deviation_that_is_released(source: str) -> None:
    """Both values, multiplier times sqrt(2), independent of each other (5 standard errors)."""
    draws = 4000
    noise = np.empty((draws, 2))
    for draw in range(draws):
        randomness = SeededRandomness(1, draw) if source == "seeded" else SecureRandomness()
        values = noisy_gain(np.array([0.5, -0.25]), policy=POLICY, randomness=randomness).values
        assert values["noise_stddev"] == pytest.approx(3.0 * math.sqrt(2))
        noise[draw] = values["gain"] - 0.25, values["users"] - 2
    declared = 3.0 * math.sqrt(2)
    assert noise.std(axis=0) == pytest.approx(declared, rel=5 / math.sqrt(2 * draws))
    assert np.abs(noise.mean(axis=0)).max() < 5 * declared / math.sqrt(draws)
    assert abs(np.corrcoef(noise.T)[0, 1]) < 5 / math.sqrt(draws)


def test_the_declared_deviation_does_not_depend_on_the_data() -> None:
    """It is released, so it must be a public constant."""
    released = {
        noisy_gain(np.array(gains), policy=POLICY, randomness=SeededRandomness(1)).values["noise_stddev"]
        for gains in ([], [1.0], [math.nan] * 9)
    }
    assert len(released) == 1


def test_validation_ndcg_is_the_loop_over_users_with_a_target() -> None:
    """Rank among unseen items, ties against; users without a validation target are left out."""
    data, _ = toy_domain(12, 80, seed=3)
    scores = np.random.default_rng(4).integers(0, 30, (12, 80)).astype(np.float32)
    data.validation[[2, 7]] = -1
    expected = []
    for user in range(12):
        target = int(data.validation[user])
        if target >= 0:
            seen = set(data.train.row(user).tolist())
            masked = set() if target in seen else seen
            rank = sum(scores[user, item] >= scores[user, target] for item in range(80) if item not in masked)
            expected.append(1 / math.log2(rank + 1) if rank <= 10 else 0.0)
    assert any(0 < value < 1 for value in expected), "the case shows something"
    np.testing.assert_allclose(validation_ndcg(Fixed(scores), data), expected)
