"""The judge of engines: one user after the other, by plain autograd, in float64.

expected = loop.gradients(model, seed=0)            # (users, parameters)
loop.clipped(expected, clip)                        # (parameters,) what the clipped sum must be
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from isthmus.clients.bookkeeping import BookKeeping
from isthmus.clients.gradients import UserGradients


@dataclass(frozen=True)
class Loop:
    """Some users.

    Attributes:
        items: (users, positions).
        target: (users, positions).
        weight: (users, positions).
    """

    items: Tensor
    target: Tensor
    weight: Tensor

    def single(self) -> "Loop":
        """In float32."""
        return Loop(self.items, self.target, self.weight.float())

    def only(self, places: Sequence[int]) -> "Loop":
        """Some of them."""
        rows = list(places)
        return Loop(self.items[rows], self.target[rows], self.weight[rows])

    def losses(self, model: nn.Module) -> Tensor:
        """(users,), all together."""
        found: Tensor = model(self.items, self.target, self.weight)
        return found

    def gradients(self, model: nn.Module, *, seed: int) -> Tensor:
        """(users, parameters) of each user's loss, with what dropout draws after this seed.

        Dropout draws for the whole batch, so the batch is computed for each user and one loss is differentiated: the
        losses are separable, which `test_users_that_cannot_be_told_apart_are_refused` is about.
        """
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        rows = []
        for user in range(len(self.items)):
            torch.manual_seed(seed)
            found = torch.autograd.grad(self.losses(model)[user], parameters, allow_unused=True)
            rows.append(
                torch.cat(
                    [
                        torch.zeros(parameter.numel(), dtype=parameter.dtype) if part is None else part.flatten()
                        for parameter, part in zip(parameters, found, strict=True)
                    ]
                )
            )
        return torch.stack(rows)

    def clipped(self, gradients: Tensor, clip: float) -> Tensor:
        """(parameters,) sum of rows, each at most `clip` long."""
        factors = (clip / (gradients.norm(dim=1) + 1e-6)).clamp(max=1.0)
        return factors @ gradients


def clipped_sum(found: UserGradients, clip: float) -> Tensor:
    """(parameters,) what an engine makes of it."""
    factors = (clip / (found.norms() + 1e-6)).clamp(max=1.0)
    return torch.cat([part.flatten() for part in found.weighted_sum(factors)])


def norms_of(engine: type[BookKeeping], model: nn.Module, loop: Loop) -> Tensor:
    """(users,) by an engine."""
    with engine(model) as attached:
        return attached.gradients(lambda: loop.losses(model)).norms()


def naive_losses(hidden: Tensor, items: Tensor, loop: Loop, temperature: float) -> Tensor:
    """(users,) cross-entropy over a catalogue, from a table of all scores."""
    scores = hidden @ items.T / temperature
    loss = functional.cross_entropy(scores.flatten(0, 1), loop.target.flatten(), reduction="none")
    return (loss.view(loop.weight.shape) * loop.weight).sum(dim=1)
