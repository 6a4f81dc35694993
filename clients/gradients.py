"""Every user's gradient, however it is computed: how long each is, and a sum in which each has a factor.

    engine = BookKeeping(backbone)                          # or OpacusHooks(backbone)
    with engine:
        gradients = engine.gradients(losses_of_some_users)
        total = gradients.weighted_sum(factors(gradients.norms()))

That is all that clipping needs to know, so a gradient need not exist to be clipped. Which engine a domain uses changes
what a round costs and nothing else; Opacus is the reference, and the default must equal it.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol, Self

import torch
from opacus.grad_sample import GradSampleHooks, register_grad_sampler
from torch import Tensor, nn
from torch.nn import functional

from isthmus.backbone import Positions, Recency
from isthmus.errors import EngineError

Losses = Callable[[], Tensor]
"""Computes (users,) losses of some users; user i's depends on no other user."""

_ROUNDING = 1e-3
"""Relative difference between two ways of computing one norm that is put down to rounding; a tenth of it, absolute:
what is left of a short gradient in float32 may be rounding altogether."""


class UserGradients(Protocol):
    """The gradients of some users' losses, in the order of the losses."""

    def norms(self) -> Tensor:
        """(users,) L2 norm of each user's gradient, over all trained parameters together; NaN or infinite if it is."""

    def weighted_sum(self, factors: Tensor) -> list[Tensor]:
        """For each trained parameter the sum of users' gradients, each times its factor.

        Args:
            factors: (users,) finite. A user whose factor is 0 adds nothing, whatever its gradient holds.
        """


class Engine(Protocol):
    """Computes users' gradients of one module; what it attaches to the module is gone after the `with` block."""

    def __enter__(self) -> Self:
        """Attach."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Detach."""

    def gradients(self, losses: Losses) -> UserGradients:
        """Run forward and backward for some users; the module's parameters and their `.grad` are left as they were."""


class Samples:
    """Gradients that exist: one tensor per parameter, one row per user.

    Args:
        samples: For each parameter (users, *shape).
    """

    def __init__(self, samples: Sequence[Tensor]) -> None:
        self.samples = list(samples)

    def norms(self) -> Tensor:
        """(users,) of the rows."""
        if not self.samples:
            return torch.zeros(0)
        norms: Tensor = torch.stack([sample.flatten(1).norm(dim=1) for sample in self.samples], dim=1).norm(dim=1)
        return norms

    def weighted_sum(self, factors: Tensor) -> list[Tensor]:
        """The rows, each times its factor, added up."""
        absent = factors == 0
        if absent.any():
            self.samples = [sample.clone() for sample in self.samples]
            for sample in self.samples:
                sample[absent] = 0.0
        return [torch.einsum("i,i...", factors.to(sample.dtype), sample) for sample in self.samples]


class OpacusHooks:
    """The reference: Opacus computes and keeps every user's gradient (`wrap_model=False`, so no name changes).

    Args:
        module: Its trainable parameters are those that are trained, in order.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]

    def __enter__(self) -> Self:
        self._hooks = GradSampleHooks(self._module, loss_reduction="sum")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.cleanup()

    def gradients(self, losses: Losses) -> Samples:
        """One forward and one backward pass; Opacus' hooks leave the gradients beside the parameters."""
        with warnings.catch_warnings():  # item features are frozen: no gradient of the adaptor's input is right
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            value = losses()
            value.sum().backward()  # type: ignore[no-untyped-call]
        samples = [getattr(parameter, "grad_sample", None) for parameter in self._parameters]
        for parameter in self._parameters:
            parameter.grad_sample = parameter.grad = None  # type: ignore[attr-defined]
        found = [
            torch.zeros((len(value), *parameter.shape), dtype=parameter.dtype) if sample is None else sample
            for parameter, sample in zip(self._parameters, samples, strict=True)
        ]
        if not all(isinstance(sample, Tensor) and len(sample) == len(value) for sample in found):
            raise EngineError("a layer was given something else than one row per user; Opacus cannot tell users apart")
        return Samples(found)


def require_separable(
    make: Callable[[nn.Module], Engine], module: nn.Module, losses: Callable[[Sequence[int]], Losses], count: int
) -> None:
    """Hold an engine against plain autograd: together, users must have the gradients that each has alone.

    No inspection of a module can show that a loss tells items from other users' items, that a parameter is used behind
    its layer's back, or that a tensor whose first dimension is a catalogue happens to have one row per user. Their
    gradients show it.

    Args:
        make: The engine.
        module: Compared without dropout, so that a loss is a function of its user.
        losses: From places among some users to their losses.
        count: How many users there are.

    Raises:
        EngineError: If norms differ by more than rounding.
    """
    if not count:
        return
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    drawing = [one for one in module.modules() if isinstance(one, nn.modules.dropout._DropoutNd) and one.training]  # noqa: SLF001
    for one in drawing:
        one.eval()
    try:
        alone = [_norm(losses([place])().sum(), parameters) for place in range(count)]
        with make(module) as engine:
            together = engine.gradients(losses(range(count))).norms()
    finally:
        for one in drawing:
            one.train()
    for one, other in zip(together.tolist(), alone, strict=True):
        if math.isfinite(other) and not math.isclose(one, other, rel_tol=_ROUNDING, abs_tol=_ROUNDING / 10):
            raise EngineError(
                "users' gradients cannot be told apart: computed together they are not what each user's is alone. The "
                "loss looks at other users of the batch, or a parameter is used outside of its own layer."
            )


def _norm(loss: Tensor, parameters: list[nn.Parameter]) -> float:
    """Of a gradient, by plain autograd."""
    if not loss.requires_grad:
        return 0.0
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return float(torch.stack([part.norm() for part in found if part is not None]).norm())


@register_grad_sampler(Positions)  # type: ignore[untyped-decorator]
def _positions_gradient(layer: Positions, activations: list[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
    """Each user's gradient of the position table: the gradient of its positions, zero beyond its history."""
    del activations
    missing = layer.weight.shape[0] - backprops.shape[1]
    return {layer.weight: functional.pad(backprops, (0, 0, 0, missing))}


@register_grad_sampler(Recency)  # type: ignore[untyped-decorator]
def _recency_gradient(layer: Recency, activations: list[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
    """Each user's gradient of the weights."""
    return {layer.weight: recency_gradient(layer, activations[0], backprops)}


def recency_gradient(layer: Recency, history: Tensor, slopes: Tensor) -> Tensor:
    """(users, ages) gradients of the logarithms of the weights.

    Args:
        layer: Whose.
        history: (users, positions, features) what went in.
        slopes: (users, positions, features) the gradient of what came out.
    """
    weights, found = layer.weights().detach(), slopes.new_zeros(len(slopes), len(layer.weight))
    for age in range(min(len(weights), history.shape[1])):
        met = slopes[:, age:] * history[:, : history.shape[1] - age]
        found[:, age] = weights[age] * met.sum(dim=(1, 2))
    return found
