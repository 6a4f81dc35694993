"""Clip each user, add them up, add noise, divide by a public constant: the one line that every update passes.

    optimizer = PrivateOptimizer(sgd, plan=plan, policy=policy, randomness=randomness)
    optimizer.accumulate(gradients)     # as often as a batch has parts
    optimizer.step()

| clipping    | factor of a gradient of norm n | reference                                                       |
|-------------|--------------------------------|-----------------------------------------------------------------|
| `flat`      | min(1, C / n)                  | Abadi et al., CCS 2016, algorithm 1                             |
| `automatic` | C / (n + 0.01)                 | Bu, Wang, Zha and Karypis, "Automatic Clipping", NeurIPS 2023   |
"""

from collections.abc import Callable

import numpy as np
import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor

from isthmus.clients.gradients import UserGradients
from isthmus.config import Clipping, PrivacyPolicy
from isthmus.privacy.noise import Randomness
from isthmus.privacy.plan import DpSgdPlan

_STABILITY = 0.01
"""Gamma of AUTO-S: gradients much shorter than this stay short, so that who has learned stands still."""


class PrivateOptimizer(DPOptimizer):  # type: ignore[misc]
    """Opacus' optimizer with our clipping, our noise and our divisor, for users' gradients of either engine.

        optimizer.accumulate(gradients)     # as often as a batch has parts
        optimizer.step()                    # noise, divisor, step hook, step

    Guarantees:
        - Each user adds a vector of L2 norm at most C to the sum; a user whose gradient holds a NaN or an
          infinity adds zero.
        - Noise is drawn from the given source, for every coordinate, once per step.
        - The divisor is the given public constant, whatever the batch held.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        plan: DpSgdPlan,
        policy: PrivacyPolicy,
        randomness: Randomness,
        clipping: Clipping = Clipping.FLAT,
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=plan.noise_multiplier,
            max_grad_norm=policy.clip,
            expected_batch_size=policy.expected_batch,
            loss_reduction="mean",
        )
        self._randomness = randomness
        self._clipping = clipping
        self.zero_grad(set_to_none=True)

    def zero_grad(self, set_to_none: bool = False) -> None:  # noqa: FBT001, FBT002 - torch's own signature
        """Forget the sum."""
        super().zero_grad(set_to_none)
        for parameter in self.params:
            parameter.summed_grad = torch.zeros_like(parameter)

    def accumulate(self, gradients: UserGradients) -> None:
        """Clip some users' gradients and add them to the sum: what leaves was in here, or was never looked at."""
        factors = self.clipped(gradients.norms())
        for parameter, total in zip(self.params, gradients.weighted_sum(factors), strict=True):
            parameter.summed_grad += total

    def clipped(self, norms: Tensor) -> Tensor:
        """(users,) norms to the factors that make each at most C; 0 where a norm is not finite."""
        if self._clipping is Clipping.AUTOMATIC:
            factors = self.max_grad_norm / (norms + _STABILITY)
        else:
            factors = (self.max_grad_norm / (norms + 1e-6)).clamp(max=1.0)
        return torch.where(norms.isfinite(), factors, torch.zeros_like(factors))

    def pre_step(self, closure: Callable[[], float] | None = None) -> bool:
        """What has to happen to the sum before it may move a parameter."""
        del closure
        self.add_noise()
        self.scale_grad()
        if self.step_hook:
            self.step_hook(self)
        return True

    def add_noise(self) -> None:
        """Add Gaussian noise of standard deviation `noise_multiplier * C` to every coordinate of the sum.

        All tensors are one vector to the noise, because C bounds what a user adds to all of them together.
        """
        sums = np.concatenate([parameter.summed_grad.cpu().numpy().ravel() for parameter in self.params])
        stddev = self.noise_multiplier * self.max_grad_norm
        noisy = torch.from_numpy(self._randomness.noisy(sums, stddev=stddev, sensitivity=self.max_grad_norm))
        parts = torch.split(noisy, [parameter.numel() for parameter in self.params])
        for parameter, part in zip(self.params, parts, strict=True):
            parameter.grad = part.view(parameter.shape).to(parameter.device)

    def scale_grad(self) -> None:
        """Divide by the public constant."""
        for parameter in self.params:
            parameter.grad /= self.expected_batch_size
