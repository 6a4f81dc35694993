"""One case of the engine benchmark in this process: CPU-seconds of a step, and peak memory, as JSON on stdout.

    python benchmarks/engine/step.py --model tied --loss catalogue --how bookkeeping --steps 5

The model is d = 128, 2 layers, 50 positions, 384 features, 5,000 items, 256 users with full histories; `--loss short`
draws histories with a median of 6. `tied` reads the item side through the adaptor too (`h . (E W' + b)`), `backbone` is
Isthmus' own (a head to the features' dimensions). Who computes:

- `plain`: what everybody writes first: a table of all scores, `cross_entropy`, autograd, Adam. Not private.
- `fused`: the best non-private step that we know: chunked loss, gradients from it, autograd for the rest, Adam.
- `bookkeeping`, `opacus`: our optimizer (clipping, noise from the system's entropy, divisor) over either engine.
- `ghost`: Opacus' ghost clipping, two backward passes, with Opacus' noise.
"""

import argparse
import functools
import json
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleHooksFastGradientClipping
from torch import Tensor, nn
from torch.nn import functional

from isthmus.backbone import Backbone
from isthmus.clients.bookkeeping import BookKeeping
from isthmus.clients.catalogue_softmax import CatalogueSoftmax
from isthmus.clients.gradients import Engine, OpacusHooks
from isthmus.clients.private_optimizer import PrivateOptimizer
from isthmus.clients.rival_loss import rival_loss
from isthmus.clients.trainer import micro_batches
from isthmus.config import BackboneConfig, PrivacyPolicy
from isthmus.privacy.noise import SecureRandomness
from isthmus.privacy.plan import plan_for

USERS, POSITIONS, ITEMS, FEATURES, WIDTH, RIVALS = 256, 50, 5000, 384, 128, 50
POLICY = PrivacyPolicy(
    epsilon=8.0,
    delta=1e-6,
    clip=1.0,
    sample_rate=0.01,
    expected_batch=float(USERS),
    steps_per_round=10,
    rounds=10,
    evaluations=0,
    metric_noise_multiplier=1.0,
)
LEARNING_RATE = 1e-3

Piece = tuple[Tensor, Tensor, Tensor]
"""(users, positions) items, next items, weights."""


class Batch:
    """Users of a step."""

    def __init__(self, loss: str) -> None:
        generator = np.random.default_rng(0)
        full = np.full(USERS, POSITIONS)
        # Geometric, median 6, cut at 50: what the data sets look like.
        self.lengths = np.minimum(generator.geometric(0.11, USERS), POSITIONS) if loss == "short" else full
        self.items, self.target = (torch.from_numpy(generator.integers(0, ITEMS, (USERS, POSITIONS))) for _ in range(2))
        weight = (np.arange(POSITIONS)[None] < self.lengths[:, None]) / self.lengths[:, None]
        if loss == "last":
            weight = np.eye(POSITIONS)[self.lengths - 1]
        self.weight = torch.from_numpy(weight).float()

    def pieces(self) -> list[Piece]:
        """As the trainer cuts a batch: histories of like length together; full ones are one piece."""
        if (self.lengths == POSITIONS).all():
            return [(self.items, self.target, self.weight)]
        return [
            (self.items[some, :width], self.target[some, :width], self.weight[some, :width])
            for some in micro_batches(self.lengths)
            for width in [int(self.lengths[some].max())]
        ]


class Model(nn.Module):
    """Encoder and loss.

    Args:
        tied: Whether items go through the adaptor.
        loss: `catalogue`, `last`, `short` (all over the catalogue) or `rivals`.
    """

    def __init__(self, *, tied: bool, loss: str) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        features = functional.normalize(torch.randn(ITEMS, FEATURES, generator=generator), dim=1)
        shape = BackboneConfig(width=WIDTH, heads=4, layers=2, feedforward=4 * WIDTH, positions=POSITIONS)
        self.backbone = Backbone(FEATURES, shape)
        if tied:
            self.backbone.head = nn.Identity()  # type: ignore[assignment]
        self.softmax = CatalogueSoftmax(features, adaptor=self.backbone.adaptor if tied else None, temperature=0.1)
        self.kind = loss
        self.rivals = torch.from_numpy(np.random.default_rng(2).integers(0, ITEMS, (USERS, POSITIONS, RIVALS)))

    def hidden(self, items: Tensor) -> Tensor:
        """(users, positions, width or features)."""
        history = self.softmax.features[items]
        residual = self.backbone.residual(history)
        return residual if self.softmax.adaptor is not None else residual + self.backbone.prior(history)

    def forward(self, items: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """(users,) losses, fused."""
        hidden = self.hidden(items)
        if self.kind != "rivals":
            losses: Tensor = self.softmax(hidden, target, weight)
            return losses
        valid = weight > 0
        rivals, place = self.rivals[: len(items), : items.shape[1]][valid], torch.zeros(int(valid.sum()))
        loss = rival_loss(hidden[valid], self.softmax.features, rivals, place, 0.1) * weight[valid]
        return loss.new_zeros(weight.shape).masked_scatter(valid, loss).sum(dim=1)

    def naive(self, items: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """(users,) losses, from a table of all scores."""
        hidden, features = self.hidden(items), self.softmax.features
        if self.kind == "rivals":
            rivals = features[self.rivals[: len(items), : items.shape[1]]]
            scores = torch.einsum("utf,utrf->utr", hidden, rivals) / 0.1
            return (-torch.log_softmax(scores, dim=2)[:, :, 0] * weight).sum(dim=1)
        if self.kind == "last":
            hidden, target, weight = hidden[:, -1:], target[:, -1:], weight[:, -1:]
        table = features if self.softmax.adaptor is None else self.softmax.adaptor(features)
        scores = (hidden @ table.T).flatten(0, 1) / 0.1
        loss = functional.cross_entropy(scores, target.flatten(), reduction="none")
        return (loss.view(weight.shape) * weight).sum(dim=1)


class ClassicTied(torch.autograd.Function):
    """The cheapest non-private tied loss: three products with d-dimensional items, none with features."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, table: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """Weighted sum of losses."""
        state, right, share = hidden.flatten(0, 1), target.flatten(), weight.flatten()
        to_state, to_table, loss = torch.empty_like(state), torch.zeros_like(table), torch.empty_like(share)
        for start in range(0, len(state), 512):
            part = slice(start, start + 512)
            scores = (state[part] @ table.T).div_(0.1)
            own = scores.gather(1, right[part, None])
            top = scores.amax(dim=1, keepdim=True)
            shares = scores.sub_(top).exp_()
            total = shares.sum(dim=1, keepdim=True)
            loss[part] = (total.log() + top - own).squeeze(1)
            shares.div_(total)
            shares.scatter_add_(1, right[part, None], torch.full_like(own, -1.0)).mul_(share[part, None] / 0.1)
            torch.mm(shares, table, out=to_state[part])
            to_table.addmm_(shares.T, state[part])
        ctx.save_for_backward(to_state.view_as(hidden), to_table)
        return (loss * share).sum()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Found on the way forward."""
        to_hidden, to_table = ctx.saved_tensors
        return to_hidden * upstream[0], to_table * upstream[0], None, None


def stepper(model: Model, batch: Batch, how: str) -> Callable[[], None]:
    """A function that takes one step."""
    adam = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    if how == "plain":
        return functools.partial(_plain, model, batch, adam)
    if how == "fused":
        return functools.partial(_fused, model, batch, adam)
    optimizer = PrivateOptimizer(adam, plan=plan_for(POLICY), policy=POLICY, randomness=SecureRandomness())
    if how == "ghost":
        hooks = GradSampleHooksFastGradientClipping(model, loss_reduction="sum", max_grad_norm=POLICY.clip)
        return functools.partial(_ghost, model, batch, optimizer, hooks)
    engine = {"bookkeeping": BookKeeping, "opacus": OpacusHooks}[how](model).__enter__()
    return functools.partial(_private, model, batch, optimizer, engine)


def _plain(model: Model, batch: Batch, adam: torch.optim.Adam) -> None:
    adam.zero_grad(set_to_none=True)
    (model.naive(batch.items, batch.target, batch.weight).sum() / USERS).backward()  # type: ignore[no-untyped-call]
    adam.step()


def _fused(model: Model, batch: Batch, adam: torch.optim.Adam) -> None:
    adam.zero_grad(set_to_none=True)
    for items, target, weight in batch.pieces():
        if model.softmax.adaptor is not None and model.kind == "catalogue":
            table = model.softmax.adaptor(model.softmax.features)
            loss = ClassicTied.apply(model.hidden(items), table, target, weight)  # type: ignore[no-untyped-call]
        else:
            loss = model(items, target, weight).sum()
        (loss / USERS).backward()
    adam.step()


def _ghost(model: Model, batch: Batch, optimizer: PrivateOptimizer, hooks: GradSampleHooksFastGradientClipping) -> None:
    hooks.enable_hooks()
    losses = model(batch.items, batch.target, batch.weight)
    losses.sum().backward(retain_graph=True)
    factor = hooks.get_clipping_coef().detach()
    hooks.disable_hooks()
    optimizer.original_optimizer.zero_grad(set_to_none=True)
    (factor * losses).sum().backward()
    for parameter in model.parameters():
        parameter.summed_grad = parameter.grad  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _private(model: Model, batch: Batch, optimizer: PrivateOptimizer, engine: Engine) -> None:
    for piece in batch.pieces():
        optimizer.accumulate(engine.gradients(functools.partial(model, *piece)))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def main() -> None:
    """Parse, warm up, measure, print."""
    parser = argparse.ArgumentParser(description="One case of the engine benchmark.")
    parser.add_argument("--model", choices=["tied", "backbone"], required=True)
    parser.add_argument("--loss", choices=["catalogue", "last", "rivals", "short"], required=True)
    parser.add_argument("--how", choices=["plain", "fused", "bookkeeping", "opacus", "ghost"], required=True)
    parser.add_argument("--steps", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    batch, model = Batch(arguments.loss), Model(tied=arguments.model == "tied", loss=arguments.loss)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step = stepper(model, batch, arguments.how)
    step()
    spent = []
    for _ in range(arguments.steps):
        began = time.process_time()
        step()
        spent.append(time.process_time() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"cpu": statistics.median(spent), "peak": (peak - before) * 1024, "resident": peak * 1024}))


if __name__ == "__main__":
    main()
