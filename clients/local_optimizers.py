"""What moves a domain's parameters by noisy gradients; a round starts it anew and forgets it.

    optimizer = local_optimizer(parameters, training, noise_stddev=sigma * clip / divisor)

| name         | step                                                     | reference                                |
|--------------|----------------------------------------------------------|------------------------------------------|
| `sgd`        | rate * gradient, with momentum                           | Abadi et al., CCS 2016                   |
| `adam_bc`    | Adam's, the noise's variance taken off its second moment | Tang, Shpilevskiy and Lecuyer, AAAI 2024 |
| `per_fedavg` | of two steps the first is tried and taken back           | Fallah et al., NeurIPS 2020              |

All of it comes after the noise, so none of it changes a guarantee. State lives within one round: what a domain knew
of earlier rounds would be sent neither up nor down, and a domain that missed a round would be a different one.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from isthmus.config import OptimizerName, PrivacyPolicy, TrainingConfig
from isthmus.errors import Refused

_BETAS = (0.9, 0.999)
_EPS = 1e-8


class AdamBC(torch.optim.Optimizer):
    """DP-AdamBC: Adam whose second moment is freed of what the noise is known to add to it.

    Each coordinate of a noisy gradient has the noise's variance in its square. Adam divides by the root of that, and
    so is SGD with another rate. Here the variance is subtracted; what is left is the gradient's own second moment,
    and where too little is left to tell it from noise, a floor takes its place.

    Args:
        parameters: That are moved.
        lr: Step size.
        noise_stddev: Of the noise in each coordinate of a gradient: sigma C / divisor, a public constant.

    Guarantees:
        - With m and v the bias-corrected moments and s the noise's standard deviation, a step is
          `lr m / (sqrt(max(v - s^2, s^2)) + 1e-8)`: the paper's algorithm 1 with the floor gamma' = s^2.
        - Without noise it is Adam.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, lr: float, noise_stddev: float) -> None:
        super().__init__(parameters, {"lr": lr})
        self._variance = noise_stddev**2

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        del closure
        first, second = _BETAS
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state: dict[str, Any] = self.state[parameter]
                if not state:
                    state |= {"steps": 0, "m": torch.zeros_like(parameter), "v": torch.zeros_like(parameter)}
                state["steps"] += 1
                state["m"].lerp_(parameter.grad, 1 - first)
                state["v"].lerp_(parameter.grad.square(), 1 - second)
                mean: Tensor = state["m"] / (1 - first ** state["steps"])
                square: Tensor = state["v"] / (1 - second ** state["steps"])
                own = (square - self._variance).clamp(min=self._variance)
                parameter.sub_(group["lr"] * mean / (own.sqrt() + _EPS))


class PerFedAvg(torch.optim.Optimizer):
    """First-order Per-FedAvg: a start from which one step of a domain's own leads far, and no compromise of domains.

    Steps come in pairs. The first adapts the parameters as the domain would; the second's gradient is that of the
    adapted ones, and is applied where the pair began. Each of the two has its own batch and its own noise.

    Args:
        parameters: That are moved.
        lr: Of the second step.
        inner: Learning rate of the first.

    Guarantees:
        - After an even number of steps, with g2 the gradient at `w - inner g1`, a pair has moved w to `w - lr g2`:
          the paper's algorithm 1 with its Hessian term left out.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, lr: float, inner: float) -> None:
        super().__init__(parameters, {"lr": lr, "inner": inner})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        del closure
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state: dict[str, Any] = self.state[parameter]
                if "before" in state:
                    parameter.copy_(state.pop("before")).sub_(parameter.grad, alpha=group["lr"])
                else:
                    state["before"] = parameter.clone()
                    parameter.sub_(parameter.grad, alpha=group["inner"])


def require_whole_pairs(training: TrainingConfig, policy: PrivacyPolicy) -> None:
    """Refuse a recipe whose steps come in pairs where a domain takes an odd number of them a round.

    Raises:
        Refused: Before anything is charged.
    """
    if training.optimizer is OptimizerName.PER_FEDAVG and policy.steps_per_round % 2:
        raise Refused(
            f'`optimizer = "per_fedavg"` takes steps in pairs, and this domain takes {policy.steps_per_round} a round '
            "(`privacy.steps_per_round` in domain.toml); ask for another one, or let it take an even number"
        )


def local_optimizer(
    parameters: Iterable[nn.Parameter], training: TrainingConfig, *, noise_stddev: float
) -> torch.optim.Optimizer:
    """The optimizer that a recipe names, without memory.

    Args:
        parameters: That are trained.
        training: Names it.
        noise_stddev: Of each coordinate of the gradients that it will get.
    """
    if training.optimizer is OptimizerName.ADAM_BC:
        return AdamBC(parameters, lr=training.learning_rate, noise_stddev=noise_stddev)
    if training.inner_learning_rate is not None:
        return PerFedAvg(parameters, lr=training.learning_rate, inner=training.inner_learning_rate)
    return torch.optim.SGD(parameters, lr=training.learning_rate, momentum=training.momentum)
