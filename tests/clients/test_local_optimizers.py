"""DP-AdamBC takes the noise's variance off the second moment, is Adam without noise, and remembers nothing."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.clients.sensitivity import DIVISOR, SIGMA, TRAINING, make_case
from tests.clients.test_trainer import Drawn, flat, nobody, run_round
from torch import nn

from isthmus.clients.local_optimizers import AdamBC
from isthmus.config import OptimizerName
from isthmus.privacy.noise import SeededRandomness

ADAM_BC = TRAINING.model_copy(update={"optimizer": OptimizerName.ADAM_BC, "learning_rate": 0.02})
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
