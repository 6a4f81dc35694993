"""A round is what the plan says: Poisson batches, a public divisor, a fixed number of noisy steps, noise everywhere.

Sampling and noise are judged from outside, by what a round returns, with mutants that the judges must catch; the
clipped sum itself is judged in `test_sensitivity.py`.
"""

import copy
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from tests.clients.sensitivity import (
    DIVISOR,
    PLAN,
    RATE,
    SHAPE,
    SIGMA,
    TRAINING,
    Case,
    Silent,
    brute_force,
    make_case,
    policy_of,
    user_gradient,
)

from isthmus.backbone import Backbone, shared_parameters
from isthmus.clients import private_optimizer, trainer
from isthmus.clients.private_optimizer import PrivateOptimizer
from isthmus.clients.trainer import TrainingSet, make_batch, train_round, user_losses
from isthmus.config import Trained, TrainingConfig
from isthmus.privacy.noise import Floats, Randomness, SeededRandomness
from isthmus.records import Arrays

PLAIN = TrainingConfig(train=Trained.ALL, learning_rate=0.5, rivals=10, positions=3)


@dataclass
class Drawn:
    """A given batch, seeded noise, and a note of everything that was asked for."""

    chosen: tuple[bool, ...]
    source: SeededRandomness
    coins: list[tuple[int, float]] = field(default_factory=list)
    noises: list[tuple[int, float, float]] = field(default_factory=list)
    private = False

    def noisy(self, values: NDArray[Floats], *, stddev: float, sensitivity: float) -> NDArray[Floats]:
        """From the seeded source."""
        self.noises.append((values.size, stddev, sensitivity))
        return self.source.noisy(values, stddev=stddev, sensitivity=sensitivity)

    def bernoulli(self, count: int, probability: float) -> NDArray[np.bool_]:
        """The given batch."""
        self.coins.append((count, probability))
        return np.array(self.chosen, dtype=bool)


@dataclass(frozen=True)
class Coins:
    """Real coins without noise, so that a round shows who was in its batch."""

    source: SeededRandomness
    private = False

    def noisy(self, values: NDArray[Floats], *, stddev: float, sensitivity: float) -> NDArray[Floats]:
        """The values."""
        return values

    def bernoulli(self, count: int, probability: float) -> NDArray[np.bool_]:
        """From the seeded source."""
        return self.source.bernoulli(count, probability)


def run_round(
    case: Case,
    randomness: Randomness,
    *,
    training: TrainingConfig = TRAINING,
    steps: int = 1,
    divisor: float = DIVISOR,
    mu: float = 0.0,
    optimizer: type[PrivateOptimizer] = PrivateOptimizer,
    users: TrainingSet | None = None,
) -> Arrays:
    """One round on a copy of the case's model."""
    policy = policy_of(case).model_copy(update={"steps_per_round": steps, "expected_batch": divisor})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(private_optimizer, "PrivateOptimizer", optimizer)
        return train_round(
            copy.deepcopy(case.backbone),
            users or case.users(),
            training=training,
            policy=policy,
            plan=PLAN,
            proximal_mu=mu,
            randomness=randomness,
        )


def flat(update: Arrays) -> NDArray[np.float64]:
    """(parameters,) in the model's order."""
    return np.concatenate([tensor.ravel() for tensor in update.values()]).astype(np.float64)


def nobody(case: Case) -> Case:
    """The same users, none of them in the batch."""
    return dataclasses.replace(case, chosen=(False,) * len(case.rows))


def learners(count: int, *, seed: int) -> Case:
    """Users who all have something to learn from."""
    case = make_case([6] * (3 * count), seed=seed)
    rows = tuple(row for row in case.rows if float(user_gradient(case, row).norm()) > 0)[:count]
    return dataclasses.replace(case, rows=rows, chosen=(True,) * count)


# Who is in a batch.


def batches_of_rounds(draws: int) -> NDArray[np.bool_]:
    """(draws, users) who was in the batch of each round, read off what the rounds returned."""
    case = learners(10, seed=11)
    users = case.users()
    alone = [dataclasses.replace(case, rows=(row,), chosen=(True,)) for row in case.rows]
    each = np.stack([brute_force(one).numpy() for one in alone], axis=1)  # (parameters, users)
    batches = []
    for draw in range(draws):
        update = run_round(case, Coins(SeededRandomness(5, draw)), users=users)
        total = flat(update) * (-DIVISOR / TRAINING.learning_rate)
        there, *_ = np.linalg.lstsq(each, total, rcond=None)
        assert np.abs(there - there.round()).max() < 1e-6, "a user is in the batch once or not at all"
        batches.append(there.round() == 1)
    return np.stack(batches)


def assert_poisson(batches: NDArray[np.bool_], rate: float) -> None:
    """Each user is in each batch with chance `rate`, whoever else is there and whatever was before (5 deviations)."""
    draws, users = batches.shape
    variance = rate * (1 - rate)
    assert np.abs(batches.mean(axis=0) - rate).max() < 5 * math.sqrt(variance / draws), "users are not alike"
    low, high = stats.binom.interval(0.98, users, rate)
    seen = np.bincount(np.clip(batches.sum(axis=1), low, high).astype(int) - int(low), minlength=int(high - low) + 1)
    size = np.arange(low, high + 1)
    expected = stats.binom.pmf(size, users, rate)
    expected[0], expected[-1] = stats.binom.cdf(low, users, rate), stats.binom.sf(high - 1, users, rate)
    assert stats.chisquare(seen, expected * draws).pvalue > 1e-6, "sizes of batches are not binomial"
    centred = batches - rate
    pairs = (centred.T @ centred / draws)[~np.eye(users, dtype=bool)]
    assert np.abs(pairs).max() < 5 * variance / math.sqrt(draws), "users depend on each other"
    after = float((centred[1:] * centred[:-1]).mean())
    assert abs(after) < 5 * variance / math.sqrt((draws - 1) * users), "a batch depends on the one before"


def fixed_size_batches(draws: int) -> NDArray[np.bool_]:
    """Exactly half of the users, drawn anew."""
    rng = np.random.default_rng(0)
    return np.stack([rng.permutation(10) < 5 for _ in range(draws)])


def shuffled_batches(draws: int) -> NDArray[np.bool_]:
    """Epochs: everybody once in two batches, sizes by chance."""
    rng = np.random.default_rng(0)
    first = rng.random((draws // 2, 10)) < 0.5
    return np.stack([first, ~first], axis=1).reshape(-1, 10)


def active_batches(draws: int) -> NDArray[np.bool_]:
    """Independent, but a user with a longer history comes more often."""
    return np.random.default_rng(0).random((draws, 10)) < np.linspace(0.3, 0.7, 10)


def test_batches_are_poisson() -> None:
    """Each user is in a batch independently of everybody and everything, with the policy's rate."""
    assert_poisson(batches_of_rounds(200), RATE)


@pytest.mark.parametrize("sample", [fixed_size_batches, shuffled_batches, active_batches])
def test_the_check_catches_other_sampling(sample: Callable[[int], NDArray[np.bool_]]) -> None:
    """Fixed sizes, shuffled epochs and sampling by activity are not what the accountant accounts for."""
    with pytest.raises(AssertionError, match=r"binomial|before|alike"):
        assert_poisson(sample(200), RATE)


def test_every_user_is_drawn_at_the_policys_rate_whoever_can_learn() -> None:
    """A user with nothing to predict takes part in the draw like everybody; one draw a step."""
    case = make_case([0, 1, 6, 3, 1], seed=12)
    drawn = Drawn(case.chosen, SeededRandomness(1))
    run_round(case, drawn, steps=3)
    assert drawn.coins == [(5, RATE)] * 3


# Steps and divisor.


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("lengths", [[], [5, 6], [1, 0, 1]], ids=["no users", "users", "nothing to predict"])
@pytest.mark.parametrize("absent", [False, True], ids=["all in the batch", "empty batches"])
def test_a_round_has_exactly_the_policys_noisy_steps(steps: int, lengths: list[int], absent: bool) -> None:
    """Each step noises all coordinates as one vector that a user moves by C, whatever the batches held."""
    case = make_case(lengths, seed=13)
    drawn = Drawn((nobody(case) if absent else case).chosen, SeededRandomness(2))
    run_round(case, drawn, steps=steps)
    assert drawn.noises == steps * [(sum(p.numel() for p in case.backbone.parameters()), SIGMA * case.clip, case.clip)]


@pytest.mark.parametrize("steps", [1, 9])
def test_steps_without_users_are_a_random_walk_of_the_declared_size(steps: int) -> None:
    """With empty batches an update is the sum of `steps` independent noises of sigma C / divisor."""
    case = nobody(make_case([5, 6], seed=14))
    update = flat(run_round(case, Drawn(case.chosen, SeededRandomness(3)), steps=steps))
    expected = TRAINING.learning_rate * SIGMA * case.clip * math.sqrt(steps) / DIVISOR
    assert update.std() == pytest.approx(expected, rel=5 / math.sqrt(2 * update.size))
    assert abs(update.mean()) < 5 * expected / math.sqrt(update.size)


@pytest.mark.parametrize("absent", [False, True], ids=["all in the batch", "empty batch"])
def test_the_divisor_is_the_policys_constant(absent: bool) -> None:
    """Twice the constant gives half the update, whoever is in the batch: no count enters."""
    case = make_case([5, 6, 7], seed=15)
    chosen = (nobody(case) if absent else case).chosen
    one, two = (flat(run_round(case, Drawn(chosen, SeededRandomness(4)), divisor=divisor)) for divisor in (3.0, 6.0))
    np.testing.assert_allclose(two, one / 2, rtol=1e-9, atol=1e-9)


def test_who_is_not_drawn_does_not_matter() -> None:
    """With nobody in the batch two data sets give the same bytes: data enter through the sum alone."""
    first, second = (nobody(make_case([6, 5, 7], seed=seed)) for seed in (16, 17))
    second = dataclasses.replace(second, backbone=first.backbone, clip=first.clip)
    one, two = (run_round(case, Drawn(case.chosen, SeededRandomness(5)), steps=2) for case in (first, second))
    assert all(np.array_equal(one[name], two[name]) for name in one)


# Noise.


class HalfNoise(PrivateOptimizer):
    """Half of what was planned."""

    def add_noise(self) -> None:
        """Too little."""
        self.noise_multiplier /= 2
        super().add_noise()


class UnscaledNoise(PrivateOptimizer):
    """Forgets the clipping norm."""

    def add_noise(self) -> None:
        """As if C were 1."""
        self.noise_multiplier /= self.max_grad_norm
        super().add_noise()


class BareLayer(PrivateOptimizer):
    """Leaves the positions without noise."""

    def add_noise(self) -> None:
        """One tensor too few."""
        super().add_noise()
        self.params[2].grad = self.params[2].summed_grad.clone()


def assert_noise_as_declared(optimizer: type[PrivateOptimizer]) -> None:
    """What a round adds to the clipped sum has deviation sigma C in every tensor, and is not shared between them."""
    case = make_case([6, 5, 9], seed=18)
    case = dataclasses.replace(case, clip=case.clip / 3)
    users, total, draws = case.users(), brute_force(case).numpy(), 60
    rounds = np.stack(
        [
            flat(run_round(case, Drawn(case.chosen, SeededRandomness(6, draw)), optimizer=optimizer, users=users))
            for draw in range(draws)
        ]
    )
    noise = rounds * (-DIVISOR / TRAINING.learning_rate) - total  # (draws, parameters)
    start = 0
    for name, parameter in shared_parameters(case.backbone).items():
        part = noise[:, start : start + parameter.numel()]
        start += parameter.numel()
        spread = float(part.std()) / (SIGMA * case.clip)
        assert abs(spread - 1) < 5 / math.sqrt(2 * part.size), f"{name} has {spread:.2f} of its noise"
        assert abs(float(part.mean())) < 5 * SIGMA * case.clip / math.sqrt(part.size), f"{name} is moved by its noise"
    alike = np.corrcoef(noise[:, ::29].T)[~np.eye(len(noise[0, ::29]), dtype=bool)]
    assert np.abs(alike).max() < 0.75, "coordinates share their noise"


def test_every_tensor_gets_noise_of_the_declared_deviation() -> None:
    """Sigma times C in each tensor, mean 0, independent between coordinates."""
    assert_noise_as_declared(PrivateOptimizer)


@pytest.mark.parametrize("mutant", [HalfNoise, UnscaledNoise, BareLayer])
def test_the_check_catches_other_noise(mutant: type[PrivateOptimizer]) -> None:
    """Half the noise, noise that ignores C, and one layer without noise."""
    with pytest.raises(AssertionError, match="of its noise"):
        assert_noise_as_declared(mutant)


# What needs no data.


def test_momentum_and_the_proximal_pull_follow_the_noise() -> None:
    """Two steps with known gradients end where the textbook's recursion does."""
    case = nobody(make_case([5], seed=19))
    training = PLAIN.model_copy(update={"momentum": 0.9})
    update = flat(run_round(case, Drawn(case.chosen, SeededRandomness(7)), training=training, steps=3, mu=0.3))
    source, moved, velocity = SeededRandomness(7), np.zeros(update.size), np.zeros(update.size)
    for _ in range(3):
        noise = np.concatenate([source.gaussian(parameter.numel()) for parameter in case.backbone.parameters()])
        gradient = SIGMA * case.clip * noise / DIVISOR + 0.3 * moved
        velocity = 0.9 * velocity + gradient
        moved = moved - 0.5 * velocity
    np.testing.assert_allclose(update, moved, rtol=1e-9, atol=1e-12)


def test_an_update_is_new_minus_shared_for_every_shared_parameter() -> None:
    """The backbone ends at shared plus update, and its hooks are gone."""
    case = make_case([5, 6], seed=20)
    backbone = copy.deepcopy(case.backbone)
    update = train_round(
        backbone,
        case.users(),
        training=PLAIN,
        policy=policy_of(case),
        plan=PLAN,
        proximal_mu=0.0,
        randomness=SeededRandomness(8),
    )
    before, after = shared_parameters(case.backbone), shared_parameters(backbone)
    assert update.keys() == after.keys()
    for name, change in update.items():
        assert change.any()
        np.testing.assert_array_equal((after[name] - before[name]).detach().numpy(), change)
    assert not any(module._forward_hooks or module._backward_hooks for module in backbone.modules())


def test_a_round_that_fails_leaves_no_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next round starts clean."""
    case = make_case([5, 6], seed=21)
    backbone, users = copy.deepcopy(case.backbone), case.users()
    monkeypatch.setattr(trainer, "rival_loss", broken)
    with pytest.raises(ZeroDivisionError):
        train_round(
            backbone,
            users,
            training=PLAIN,
            policy=policy_of(case),
            plan=PLAN,
            proximal_mu=0.0,
            randomness=Silent(case.chosen),
        )
    assert not any(module._forward_hooks or module._backward_hooks for module in backbone.modules())


def broken(*_: object) -> None:
    """A loss that cannot be computed."""
    raise ZeroDivisionError


# Batches and losses.


def test_a_batch_holds_the_latest_positions_and_only_learnable_ones() -> None:
    """Histories are cut to the model's window; weights are equal over positions with a loss and sum to 1, or 0."""
    lengths = [9, 4, 1, 0, 2]
    users = make_case(lengths, seed=22).users()
    batch = make_batch(users, np.array([0, 1, 2, 3, 4]), positions=SHAPE.positions, losses=3)
    assert batch.history.shape == (5, SHAPE.positions)
    for user, length in enumerate(lengths):
        stop, count = int(users.histories.offsets[user + 1]), min(max(length - 1, 0), SHAPE.positions)
        rows = list(range(stop - count, stop))
        assert batch.history[user, :count].tolist() == [int(users.histories.items[row - 1]) for row in rows]
        own = users.rivals.of(np.array([user]))
        first = stop - len(own.place)  # row of the first event that is looked at
        events = batch.event[user, :count].tolist()
        for row, event in zip(rows, events, strict=True):
            if row >= first:
                assert torch.equal(batch.rivals.items[event], own.items[row - first])
        learnable = [row >= stop - 3 and int(own.place[row - first]) >= 0 for row in rows]
        learnable += [False] * (SHAPE.positions - count)
        expected = np.array(learnable) / max(sum(learnable), 1)
        np.testing.assert_allclose(batch.weight[user].numpy(), expected)


def test_a_users_loss_depends_on_no_other_user() -> None:
    """Alone, in company, in another order and with more padding: the same number, and 0 with nothing to learn."""
    case = make_case([9, 3, 1, 0, 6], seed=23)
    users, backbone = case.users(), case.backbone
    together = losses_of(backbone, users, [4, 0, 2, 3, 1])
    for place, user in enumerate([4, 0, 2, 3, 1]):
        assert float(losses_of(backbone, users, [user])[0]) == pytest.approx(float(together[place]), abs=1e-12)
    assert together[2] == together[3] == 0
    assert together[1] > 0


def losses_of(backbone: Backbone, users: TrainingSet, chosen: list[int]) -> torch.Tensor:
    """Losses of some users in one batch."""
    batch = make_batch(users, np.array(chosen), positions=SHAPE.positions, losses=TRAINING.positions)
    with torch.no_grad():
        return user_losses(backbone, users, batch, TRAINING)
