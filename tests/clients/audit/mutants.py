"""Deliberately broken variants of our optimizer, which every audit has to tell from the real one.

    with served(HalvedNoise):
        evidence = audit_canaries(...)      # what it runs is the mutant

Each is one mistake that has been made in real code. They replace `private_optimizer.PrivateOptimizer`, the name under
which both the trainer and the audits find it.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from isthmus.clients import private_optimizer
from isthmus.clients.gradients import UserGradients
from isthmus.clients.private_optimizer import PrivateOptimizer
from isthmus.privacy.noise import SeededRandomness


class HalvedNoise(PrivateOptimizer):
    """Half of the planned noise."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As planned, then halved."""
        super().__init__(*args, **kwargs)
        self.noise_multiplier /= 2


class Noiseless(PrivateOptimizer):
    """No noise at all."""

    def add_noise(self) -> None:
        """None."""
        for parameter in self.params:
            parameter.grad = parameter.summed_grad.clone()


class SilentTensor(PrivateOptimizer):
    """One parameter tensor, the last unless another is named, gets no noise."""

    silent = -1

    def add_noise(self) -> None:
        """Noise, except in one."""
        super().add_noise()
        parameter = self.params[self.silent]
        parameter.grad = parameter.summed_grad.clone()


class HalvedTensor(PrivateOptimizer):
    """One parameter tensor, the last unless another is named, gets half of the noise."""

    quiet = -1

    def add_noise(self) -> None:
        """Noise, half of it in one."""
        super().add_noise()
        parameter = self.params[self.quiet]
        parameter.grad = (parameter.grad + parameter.summed_grad) / 2


class Unclipped(PrivateOptimizer):
    """Sums what it gets; the noise is still for C."""

    def clipped(self, norms: Tensor) -> Tensor:
        """As long as they are."""
        return torch.ones_like(norms)


class LateClipping(PrivateOptimizer):
    """Clips the mean of the batch, not the user."""

    def accumulate(self, gradients: UserGradients) -> None:
        """Average first."""
        users = len(gradients.norms())
        total = gradients.weighted_sum(torch.ones(users))
        norm = torch.cat([part.flatten() for part in total]).norm() / max(users, 1)
        factor = (self.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
        for parameter, part in zip(self.params, total, strict=True):
            parameter.summed_grad += part * factor


class StaleNoise(PrivateOptimizer):
    """Draws the same noise in each step."""

    def add_noise(self) -> None:
        """The first step's randomness, again."""
        self._randomness = SeededRandomness(1, "stale")
        super().add_noise()


class Bursting(PrivateOptimizer):
    """Overflows in the third step of all; `counter` counts them over rounds, so each test makes a class of its own."""

    counter: Iterator[int]

    def add_noise(self) -> None:
        """Infinite, once."""
        super().add_noise()
        if next(self.counter) == 2:
            for parameter in self.params:
                parameter.grad.fill_(math.inf)


@contextmanager
def served(optimizer: type[PrivateOptimizer]) -> Iterator[None]:
    """Train with another optimizer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(private_optimizer, "PrivateOptimizer", optimizer)
        yield
