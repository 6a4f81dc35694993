"""One round of user-level DP-SGD on one domain, through Opacus.

    update = train_round(backbone, users, training=training, policy=policy, plan=plan, proximal_mu=0.0,
                         randomness=randomness)

One record per user: a user's whole training history is one row, so clipping a row's gradient is
clipping a user's. A step draws a Poisson batch of users, computes each user's gradient (Opacus
hooks, `wrap_model=False`), clips it to C, sums, adds noise of standard deviation
`noise_multiplier * C`, and divides by a public constant. The trainer knows nothing about Flower,
the ledger or the head.

References: Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, algorithm 1; McMahan
et al., "Learning Differentially Private Recurrent Language Models", ICLR 2018 (user level).
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.grad_sample import GradSampleHooks, register_grad_sampler
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.nn import functional

from isthmus.backbone import Backbone, Positions, shared_parameters
from isthmus.clients.data import Histories
from isthmus.clients.rival_loss import rival_loss
from isthmus.clients.rivals import Rivals, find_rivals
from isthmus.config import PrivacyPolicy, TrainingConfig
from isthmus.encoding import Arrays
from isthmus.privacy.noise import Randomness
from isthmus.privacy.plan import DpSgdPlan
from isthmus.records import Recipe

_MICRO_BATCH = 256
"""Users whose gradients are in memory at once; changes nothing but memory."""


@register_grad_sampler(Positions)  # type: ignore[untyped-decorator]
def _positions_gradient(layer: Positions, activations: list[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
    """Each user's gradient of the position table: the gradient of its positions, zero beyond its history."""
    del activations
    missing = layer.weight.shape[0] - backprops.shape[1]
    return {layer.weight: functional.pad(backprops, (0, 0, 0, missing))}


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """One domain as the trainer sees it.

    Attributes:
        histories: Training events; row i is everything that user i contributes.
        features: (items, features) whitened text features of the catalogue.
        rivals: What each event is told from.
    """

    histories: Histories
    features: Tensor
    rivals: Rivals


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Some users' histories, padded at the end.

    Attributes:
        history: (users, positions) item at each position; 0 where there is none.
        event: (users, positions) row in `Histories.items` of the item after it; 0 where there is none.
        weight: (users, positions) share of each position in its user's loss; sums to 1 per user, or to 0 for a
            user with nothing to learn from.
    """

    history: Tensor
    event: Tensor
    weight: Tensor


class PrivateOptimizer(DPOptimizer):  # type: ignore[misc]
    """Opacus' optimizer with our noise, our divisor, and users without a usable gradient left out.

    Guarantees:
        - Each user adds a vector of L2 norm at most C to the sum; a user whose gradient holds a NaN or an
          infinity adds zero.
        - Noise is drawn from the given source, for every coordinate, once per step.
        - The divisor is the given public constant, whatever the batch held.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, *, plan: DpSgdPlan, policy: PrivacyPolicy, randomness: Randomness
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=plan.noise_multiplier,
            max_grad_norm=policy.clip,
            expected_batch_size=policy.expected_batch,
            loss_reduction="mean",
        )
        self._randomness = randomness

    def clip_and_accumulate(self) -> None:
        """Clip each user's gradient and add it to the sum."""
        # A sum is finite only if every term is, and much cheaper to look at than the terms.
        finite = torch.stack([sample.flatten(1).sum(dim=1) for sample in self.grad_samples]).isfinite().all(dim=0)
        if not finite.all():
            for parameter in self.params:
                parameter.grad_sample[~finite] = 0.0
        super().clip_and_accumulate()

    def add_noise(self) -> None:
        """Add Gaussian noise of standard deviation `noise_multiplier * C` to every coordinate of the sum.

        All tensors are one vector to the noise, because C bounds what a user adds to all of them together.
        """
        sums = np.concatenate([parameter.summed_grad.numpy().ravel() for parameter in self.params])
        stddev = self.noise_multiplier * self.max_grad_norm
        noisy = torch.from_numpy(self._randomness.noisy(sums, stddev=stddev, sensitivity=self.max_grad_norm))
        parts = torch.split(noisy, [parameter.numel() for parameter in self.params])
        for parameter, part in zip(self.params, parts, strict=True):
            parameter.grad = part.view(parameter.shape)


def make_training_set(histories: Histories, features: NDArray[np.float32], recipe: Recipe) -> TrainingSet:
    """What a domain trains on under a recipe.

    Args:
        histories: Training events, one row per user.
        features: (items, features) whitened text features.
        recipe: Shared settings.
    """
    tensor = torch.from_numpy(features)
    rivals = find_rivals(
        histories,
        tensor,
        recipe.backbone,
        count=recipe.training.rivals,
        positions=min(recipe.training.positions, recipe.backbone.positions),
    )
    return TrainingSet(histories=histories, features=tensor, rivals=rivals)


def train_round(  # noqa: PLR0913 - the seam between privacy, recipe and data
    backbone: Backbone,
    users: TrainingSet,
    *,
    training: TrainingConfig,
    policy: PrivacyPolicy,
    plan: DpSgdPlan,
    proximal_mu: float,
    randomness: Randomness,
) -> Arrays:
    """Train a copy of the shared parameters for one round, privately.

    Args:
        backbone: With the shared parameters loaded; left changed.
        users: The domain's data.
        training: How gradients are used.
        policy: The domain's own limits and public constants.
        plan: How much noise.
        proximal_mu: FedProx's pull towards the shared parameters; applied after the noise.
        randomness: Batches and noise.

    Returns:
        The update, new minus shared parameters, by name.

    Guarantees:
        - Exactly `policy.steps_per_round` noisy steps, whatever the batches held (an empty one too).
        - The update depends on the data only through the noisy, clipped sums.
    """
    shared = shared_parameters(backbone)
    before = {name: parameter.detach().clone() for name, parameter in shared.items()}
    sgd = torch.optim.SGD(shared.values(), lr=training.learning_rate, momentum=training.momentum)
    optimizer = PrivateOptimizer(sgd, plan=plan, policy=policy, randomness=randomness)
    hooks = GradSampleHooks(backbone, loss_reduction="sum")
    try:
        for _ in range(policy.steps_per_round):
            # 1. Who is in the batch: every user alike, whether or not there is something to learn from them.
            chosen = np.flatnonzero(randomness.bernoulli(len(users.histories), policy.sample_rate))
            # 2. Clipped sum over the batch, some users at a time.
            _accumulate(backbone, optimizer, users, chosen=chosen, training=training)
            # 3. Noise, the public divisor, then what needs no data.
            optimizer.attach_step_hook(_Proximal(shared, before, proximal_mu))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    finally:
        hooks.cleanup()
    return {name: (parameter.detach() - before[name]).numpy() for name, parameter in shared.items()}


def user_losses(backbone: Backbone, users: TrainingSet, batch: Batch, temperature: float) -> Tensor:
    """Each user's loss: cross-entropy of the next item against its rivals, over the user's positions.

    Args:
        backbone: Gives the query at each position.
        users: The domain's data.
        batch: Some of its users.
        temperature: Of the softmax.

    Returns:
        (users,); user i's entry depends on no other user.
    """
    query = backbone(users.features[batch.history])  # (users, positions, features)
    valid = batch.weight > 0
    event = batch.event[valid]  # (predictions,)
    loss = rival_loss(query[valid], users.features, users.rivals.items[event], users.rivals.place[event], temperature)
    weighted = loss * batch.weight[valid].to(loss.dtype)
    return loss.new_zeros(valid.shape).masked_scatter(valid, weighted).sum(dim=1)


def make_batch(users: TrainingSet, chosen: NDArray[np.int64], *, positions: int, losses: int) -> Batch:
    """Pad some users' histories.

    Args:
        users: The domain's data.
        chosen: Rows of its histories.
        positions: Longest history, in items; older items are left out.
        losses: Last positions that may carry a loss.
    """
    offsets = users.histories.offsets
    rows = [np.arange(max(offsets[user], offsets[user + 1] - positions - 1), offsets[user + 1]) for user in chosen]
    width = max(max((len(row) for row in rows), default=0) - 1, 1)
    history, event = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), np.int64)
    weight = np.zeros((len(rows), width))
    for i, row in enumerate(rows):
        length = len(row) - 1
        if length > 0:
            history[i, :length], event[i, :length] = users.histories.items[row[:-1]], row[1:]
            learnable = users.rivals.place.numpy()[row[1:]] >= 0
            learnable[: max(length - losses, 0)] = False
            weight[i, :length] = learnable / max(learnable.sum(), 1)
    return Batch(history=torch.from_numpy(history), event=torch.from_numpy(event), weight=torch.from_numpy(weight))


def _accumulate(
    backbone: Backbone,
    optimizer: PrivateOptimizer,
    users: TrainingSet,
    *,
    chosen: NDArray[np.int64],
    training: TrainingConfig,
) -> None:
    """Leave the optimizer with the last users' gradients computed and all earlier ones clipped and summed."""
    for micro, last in _micro_batches(chosen):
        if len(micro):
            batch = make_batch(users, micro, positions=backbone.config.positions, losses=training.positions)
            losses = user_losses(backbone, users, batch, training.temperature)
            with warnings.catch_warnings():  # item features are frozen: no gradient of the adaptor's input is right
                warnings.filterwarnings("ignore", message="Full backward hook is firing")
                losses.sum().backward()  # type: ignore[no-untyped-call]
        else:
            for parameter in optimizer.params:
                parameter.grad_sample = torch.zeros((0, *parameter.shape), dtype=parameter.dtype)
        if not last:
            optimizer.signal_skip_step(do_skip=True)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


def _micro_batches(chosen: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], bool]]:
    """Pieces of a batch, at least one, each with whether it is the last."""
    starts = range(0, max(len(chosen), 1), _MICRO_BATCH)
    for start in starts:
        yield chosen[start : start + _MICRO_BATCH], start == starts[-1]


@dataclass(frozen=True)
class _Proximal:
    """FedProx's pull, added to gradients that are already noisy."""

    shared: dict[str, nn.Parameter]
    before: dict[str, Tensor]
    mu: float

    def __call__(self, optimizer: DPOptimizer) -> None:
        del optimizer
        if self.mu:
            for name, parameter in self.shared.items():
                if parameter.grad is not None:
                    parameter.grad.add_(parameter.detach() - self.before[name], alpha=self.mu)
