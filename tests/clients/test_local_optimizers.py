"""What moves parameters by noisy gradients is what its paper says, and remembers nothing from round to round."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.clients.sensitivity import DIVISOR, SIGMA, TRAINING, make_case, policy_of
from tests.clients.test_trainer import Drawn, flat, nobody, run_round
from torch import nn

from isthmus.clients.local_optimizers import AdamBC, PerFedAvg, require_whole_pairs
from isthmus.config import OptimizerName
from isthmus.errors import Refused
from isthmus.privacy.noise import SeededRandomness

ADAM_BC = TRAINING.model_copy(update={"optimizer": OptimizerName.ADAM_BC, "learning_rate": 0.02})
PER_FEDAVG = TRAINING.model_copy(
    update={"optimizer": OptimizerName.PER_FEDAVG, "learning_rate": 0.02, "inner_learning_rate": 0.3}
)
STEPS, SIZE, RATE = 12, 50, 0.01

Floats = NDArray[np.float64]


def steps_of(make: type[torch.optim.Optimizer], gradients: Floats, **settings: float) -> Floats:
    """Where a parameter that starts at zero ends."""
    parameter = nn.Parameter(torch.zeros(gradients.shape[1], dtype=torch.float64))
    optimizer = make([parameter], lr=RATE, **settings)
    for gradient in gradients:
        parameter.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
    return parameter.detach().numpy()


def by_the_paper(gradients: Floats, *, rate: float, stddev: float, subtract: bool = True) -> Floats:
    """Algorithm 1 of Tang et al. (AAAI 2024) in numpy, with the floor gamma' = stddev^2."""
    first, second, place = np.zeros(gradients.shape[1]), np.zeros(gradients.shape[1]), np.zeros(gradients.shape[1])
    for step, gradient in enumerate(gradients, start=1):
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        mean, square = first / (1 - 0.9**step), second / (1 - 0.999**step)
        own = np.maximum(square - stddev**2, stddev**2) if subtract else square
        place -= rate * mean / (np.sqrt(own) + 1e-8)
    return place


def noisy_gradients(stddev: float) -> Floats:
    """(steps, size) some coordinates with a signal above the noise, some without any."""
    generator = np.random.default_rng(0)
    signal = np.where(np.arange(SIZE) % 2, 3.0, 0.0) * stddev
    return signal + stddev * generator.normal(size=(STEPS, SIZE))


def test_a_step_is_that_of_the_paper() -> None:
    """Against an independent computation; the correction is there, and the floor is met by some coordinates only."""
    gradients = noisy_gradients(0.02)
    ours = steps_of(AdamBC, gradients, noise_stddev=0.02)
    np.testing.assert_allclose(ours, by_the_paper(gradients, rate=RATE, stddev=0.02), rtol=1e-12)
    uncorrected = by_the_paper(gradients, rate=RATE, stddev=0.02, subtract=False)
    assert np.abs(ours - uncorrected).max() > 0.02 * np.abs(ours).max(), "Adam itself would have passed"


def test_without_noise_it_is_adam() -> None:
    """Torch's Adam, with its own defaults, coordinates without any gradient included."""
    gradients = np.random.default_rng(1).normal(size=(STEPS, SIZE))
    gradients[:, 0] = 0.0
    np.testing.assert_allclose(
        steps_of(AdamBC, gradients, noise_stddev=0.0), steps_of(torch.optim.Adam, gradients), rtol=1e-10, atol=1e-15
    )


def test_a_small_signal_moves_as_far_as_a_large_one_as_without_noise() -> None:
    """The paper's point, on a small problem: one signal is three times another, both above the noise.

    Without noise Adam moves both coordinates as far. With it, it divides by sqrt(signal^2 + noise^2), so the small one
    lags; freed of the noise, it does not.
    """
    generator = np.random.default_rng(2)
    signal = np.repeat([1.5, 4.5], 200)
    gradients = signal + generator.normal(size=(400, 400))
    corrected = steps_of(AdamBC, gradients, noise_stddev=1.0)
    adam = steps_of(torch.optim.Adam, gradients)
    ours, adams = (float(end[200:].mean() / end[:200].mean()) for end in (corrected, adam))
    assert abs(ours - 1) < 0.05
    assert abs(adams - 1) > 0.15


def test_a_round_corrects_for_the_noise_that_it_adds() -> None:
    """With an empty batch a round's update is what the paper makes of noise of sigma C / divisor."""
    case = nobody(make_case([5], seed=19))
    update = flat(run_round(case, Drawn(case.chosen, SeededRandomness(7)), training=ADAM_BC, steps=4))
    source, stddev = SeededRandomness(7), SIGMA * case.clip / DIVISOR
    noises = np.stack([stddev * source.gaussian(update.size) for _ in range(4)])
    np.testing.assert_allclose(update, by_the_paper(noises, rate=0.02, stddev=stddev), rtol=1e-8, atol=1e-12)
    with pytest.raises(AssertionError):  # a correction for other noise would have been seen
        np.testing.assert_allclose(update, by_the_paper(noises, rate=0.02, stddev=math.sqrt(2) * stddev), rtol=1e-3)


def test_a_round_starts_without_memory() -> None:
    """The same request gives the same update, whatever rounds came before it."""
    case = make_case([5, 6], seed=20)
    first, again = (
        flat(run_round(case, Drawn(case.chosen, SeededRandomness(8)), training=ADAM_BC, steps=2)) for _ in range(2)
    )
    np.testing.assert_array_equal(first, again)


STEEP, FLAT, INNER = 4.0, 0.5, 0.2
"""Curvatures of two domains' losses, whose best parameters are 0 and 1, and how far a domain adapts."""


def after_adapting(place: float) -> float:
    """Sum of both domains' losses c (w - best)^2 / 2, each after one exact step of its own."""
    return sum(c * ((1 - INNER * c) * (place - best)) ** 2 / 2 for c, best in ((STEEP, 0.0), (FLAT, 1.0)))


def test_per_fedavg_finds_the_start_from_which_one_step_leads_further() -> None:
    """The paper's point, on two quadratic losses: not where the sum is least, but where it is after a step of each.

    A domain with a steep loss corrects itself by its own step, so the start leans to the other. The first-order rule
    ends where the sum of c (1 - inner c) (w - best) is zero, which is better after adapting than the joint minimum.
    """
    place = 0.5
    for _ in range(2000):
        ends = []
        for curvature, best in ((STEEP, 0.0), (FLAT, 1.0)):
            parameter = nn.Parameter(torch.tensor([place], dtype=torch.float64))
            optimizer = PerFedAvg([parameter], lr=RATE, inner=INNER)
            for _ in range(2):
                parameter.grad = curvature * (parameter.detach() - best)
                optimizer.step()
            ends.append(parameter.item())
        place = float(np.mean(ends))
    steep, flat_ = STEEP * (1 - INNER * STEEP), FLAT * (1 - INNER * FLAT)
    joint = FLAT / (STEEP + FLAT)
    assert place == pytest.approx(flat_ / (steep + flat_), abs=1e-5)
    assert after_adapting(place) < 0.6 * after_adapting(joint)


def test_a_round_of_pairs_takes_the_first_step_of_each_back() -> None:
    """With empty batches an update is the second noise of each pair; the first of each left nothing but its draw."""
    case = nobody(make_case([5], seed=19))
    update = flat(run_round(case, Drawn(case.chosen, SeededRandomness(7)), training=PER_FEDAVG, steps=4))
    source, stddev = SeededRandomness(7), SIGMA * case.clip / DIVISOR
    noises = np.stack([stddev * source.gaussian(update.size) for _ in range(4)])
    np.testing.assert_allclose(update, -0.02 * (noises[1] + noises[3]), rtol=1e-5, atol=1e-7)


def test_the_second_gradient_of_a_pair_is_that_of_the_adapted_parameters() -> None:
    """With users: an inner step of nothing is SGD of half as many steps, and a real one is not."""
    case = make_case([5, 6], seed=21)
    found = [
        flat(
            run_round(
                case,
                Drawn(case.chosen, SeededRandomness(7)),
                training=PER_FEDAVG.model_copy(update={"inner_learning_rate": inner}),
                steps=2,
            )
        )
        for inner in (1e-12, 1e3)
    ]
    assert np.linalg.norm(found[0] - found[1]) > 1e-3 * np.linalg.norm(found[0])


@pytest.mark.parametrize("steps", [1, 3])
def test_an_odd_number_of_steps_is_refused(steps: int) -> None:
    """A first step without its second would stay in the parameters."""
    policy = policy_of(make_case([5], seed=1)).model_copy(update={"steps_per_round": steps})
    with pytest.raises(Refused, match=f"in pairs, and this domain takes {steps} a round"):
        require_whole_pairs(PER_FEDAVG, policy)
    require_whole_pairs(TRAINING, policy)
    require_whole_pairs(PER_FEDAVG, policy.model_copy(update={"steps_per_round": steps + 1}))
