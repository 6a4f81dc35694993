"""One round of user-level DP-SGD on one domain, through Opacus.

    update = train_round(backbone, users, training=training, policy=policy, plan=plan, proximal_mu=0.0,
                         randomness=randomness)

One record per user: a user's whole training history is one row, so clipping a row's gradient is
clipping a user's. A step draws a Poisson batch of users, clips each user's gradient to C (by the
engine that the domain has chosen), sums, adds noise of standard deviation
`noise_multiplier * C`, and divides by a public constant. The trainer knows nothing about Flower,
the ledger or the head.

References: Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, algorithm 1; McMahan
et al., "Learning Differentially Private Recurrent Language Models", ICLR 2018 (user level).
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from isthmus.backbone import Backbone
from isthmus.clients import private_optimizer
from isthmus.clients.alignment import domain_losses
from isthmus.clients.augmentation import augmented, draw_views
from isthmus.clients.batches import Batch
from isthmus.clients.data import Histories
from isthmus.clients.engines import engine_for
from isthmus.clients.gradients import Engine, Losses, require_separable
from isthmus.clients.local_optimizers import local_optimizer
from isthmus.clients.part_training import TrainedPart
from isthmus.clients.rival_loss import rival_loss
from isthmus.clients.rivals import RivalFinder
from isthmus.clients.text_tower import TextTower
from isthmus.config import DomainCompute, Precision, PrivacyPolicy, TrainingConfig
from isthmus.custom_backbone import AnyBackbone
from isthmus.encoding import Arrays
from isthmus.errors import ConfigError
from isthmus.privacy.noise import Randomness
from isthmus.privacy.plan import DpSgdPlan
from isthmus.records import Recipe
from isthmus.text_changes import TextChanges

_LOOKED_AT, _TRIED = 50, 3
"""Users among whom some are found to try an engine on, and how many those are."""
_MICRO_BATCH = 2048
"""Positions, padding included, or tokens that are worked on at once; changes nothing but memory and time."""


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """One domain as the trainer sees it.

    Attributes:
        histories: Training events; row i is everything that user i contributes.
        features: (items, features) whitened text features of the catalogue.
        rivals: Finds what each event is told from.
        label: Of the domain, where domains are aligned.
        tower: Reads the items of histories, where the text encoder is trained.
    """

    histories: Histories
    features: Tensor
    rivals: RivalFinder
    label: int | None = None
    tower: TextTower | None = None


def make_training_set(
    histories: Histories,
    features: NDArray[np.float32],
    recipe: Recipe,
    *,
    label: int | None = None,
    tower: TextTower | None = None,
) -> TrainingSet:
    """What a domain trains on under a recipe.

    Args:
        histories: Training events, one row per user.
        features: (items, features) whitened text features.
        recipe: Shared settings.
        label: Of the domain, which rounds need where domains are aligned.
        tower: Of the catalogue's texts, which rounds need where the text encoder is trained.
    """
    tensor = torch.from_numpy(features)
    rivals = RivalFinder(
        histories,
        tensor,
        recipe.backbone,
        count=recipe.training.rivals,
        positions=min(recipe.training.positions, recipe.backbone.positions),
    )
    return TrainingSet(histories=histories, features=tensor, rivals=rivals, label=label, tower=tower)


def train_round(  # noqa: PLR0913 - the seam between privacy, recipe and data
    backbone: AnyBackbone,
    users: TrainingSet,
    *,
    training: TrainingConfig,
    policy: PrivacyPolicy,
    plan: DpSgdPlan,
    proximal_mu: float,
    randomness: Randomness,
    compute: DomainCompute = DomainCompute(),  # noqa: B008 - frozen
) -> Arrays:
    """Train a copy of the shared parameters for one round, privately.

    Args:
        backbone: With the shared parameters loaded; left changed.
        users: The domain's data.
        training: How gradients are used.
        policy: The domain's own limits and public constants.
        plan: How much noise.
        proximal_mu: FedProx's pull towards the shared parameters; applied after the noise.
        randomness: Batches, views of histories, and noise.
        compute: Which engine computes it; changes nothing beyond rounding.

    Returns:
        The update, new minus shared, of every parameter that the recipe trains, by name.

    Guarantees:
        - Exactly `policy.steps_per_round` noisy steps, whatever the batches held (an empty one too).
        - The update depends on the data only through the noisy, clipped sums.
    """
    place = _Place(compute)
    backbone, users = place.settle(backbone, users)
    part = TrainedPart(backbone, training, randomness)
    before = {name: parameter.detach().clone() for name, parameter in part.parameters.items()}
    noise_stddev = plan.noise_multiplier * policy.clip / policy.expected_batch
    optimizer = private_optimizer.PrivateOptimizer(
        local_optimizer(part.parameters.values(), training, noise_stddev=noise_stddev),
        plan=plan,
        policy=policy,
        randomness=randomness,
        clipping=training.clipping,
    )
    make = engine_for(backbone, compute)
    cut = functools.partial(make_batch, users, positions=backbone.config.positions, losses=training.positions)
    losses = functools.partial(_losses, place, backbone, users, training)
    _require_separable(make, backbone, users, cut, functools.partial(losses, contextlib.nullcontext))
    with make(backbone) as engine:
        for _ in range(policy.steps_per_round):
            # 1. Who is in the batch: every user alike, whether or not there is something to learn from them.
            chosen = np.flatnonzero(randomness.bernoulli(len(users.histories), policy.sample_rate))
            views = draw_views(randomness, training.augment, users=len(chosen), positions=backbone.config.positions)
            # 2. Clipped sum over the batch, some users at a time.
            for some in micro_batches(_sizes(users, chosen, positions=backbone.config.positions)):
                batch = augmented(cut(chosen[some]), training.augment, views[some])
                optimizer.accumulate(engine.gradients(functools.partial(losses, place.products, batch)))
            # 3. Noise, the public divisor, then what needs no data.
            optimizer.attach_step_hook(_Proximal(part.parameters, before, proximal_mu))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return part.finish()


def user_losses(
    backbone: AnyBackbone,
    users: TrainingSet,
    batch: Batch,
    training: TrainingConfig,
) -> Tensor:
    """Each user's loss: how far the next item is from the top of its rivals, over the user's positions.

    With a domain classifier, how well it tells the user's domain at the same positions is added, times `align_weight`.

    Args:
        backbone: Gives the query at each position.
        users: The domain's data.
        batch: Some of its users.
        training: Names the loss and its temperature.

    Returns:
        (users,); user i's entry depends on no other user.
    """
    seen = users.features[batch.history]  # (users, positions, features)
    if batch.hidden is not None:
        seen = seen.masked_fill(batch.hidden.unsqueeze(2), 0.0)
    classifier = None
    if isinstance(backbone, Backbone) and backbone.domain_classifier is not None:
        classifier = backbone.domain_classifier
        represented = backbone.represent(seen)  # (users, positions, width)
        query = backbone.prior(seen) + backbone.head(represented)
    elif isinstance(backbone, Backbone) and backbone.text is not None:
        query = backbone(seen, _read(backbone.text, len(backbone.recency.weight), users, batch))
    else:
        query = backbone(seen)  # (users, positions, features)
    valid = batch.weight > 0
    event = batch.event[valid]  # (predictions,)
    rivals, own = batch.rivals.items[event], batch.rivals.place[event]
    loss = rival_loss(query[valid], users.features, rivals, own, training.temperature, training.loss)
    weighted = loss * batch.weight[valid].to(loss.dtype)
    losses = loss.new_zeros(valid.shape).masked_scatter(valid, weighted).sum(dim=1)
    if classifier is not None:
        assert users.label is not None  # noqa: S101 - the vault refuses a domain without one
        assert training.align_weight is not None  # noqa: S101 - or there were no classifier
        losses = losses + training.align_weight * domain_losses(classifier, represented, batch.weight, users.label)
    return losses


def _read(changes: TextChanges, ages: int, users: TrainingSet, batch: Batch) -> Tensor:
    """(users, positions, features) histories by the changed text encoder, zeros where no loss looks."""
    assert users.tower is not None  # noqa: S101 - who has such a backbone has one
    needed, valid = torch.zeros_like(batch.weight, dtype=torch.bool), batch.weight > 0
    for age in range(min(ages, valid.shape[1])):
        needed[:, : valid.shape[1] - age] |= valid[:, age:]
    if batch.hidden is not None:
        needed &= ~batch.hidden
    return users.tower.read(changes, batch.history, needed)


def _sizes(users: TrainingSet, chosen: NDArray[np.int64], *, positions: int) -> NDArray[np.int64]:
    """(users,) of what is worked on at once for each: positions, or the tokens of their texts where they are more."""
    lengths = np.minimum(users.histories.lengths()[chosen], positions)
    if users.tower is None:
        return lengths
    rows = [users.histories.row(int(user))[-positions - 1 : -1] for user in chosen]
    return np.maximum(lengths, np.array([users.tower.tokens[row].sum() for row in rows], np.int64))


def make_batch(users: TrainingSet, chosen: NDArray[np.int64], *, positions: int, losses: int) -> Batch:
    """Pad some users' histories.

    Args:
        users: The domain's data.
        chosen: Rows of its histories.
        positions: Longest history, in items; older items are left out.
        losses: Last positions that may carry a loss.
    """
    offsets = users.histories.offsets
    rows = [users.histories.items[max(offsets[u], offsets[u + 1] - positions - 1) : offsets[u + 1]] for u in chosen]
    width = max(max((len(row) for row in rows), default=0) - 1, 1)
    history, event = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), np.int64)
    weight = np.zeros((len(rows), width))
    rivals = users.rivals.of(chosen)
    place = rivals.place.numpy()
    for i, row in enumerate(rows):
        length = len(row) - 1
        if length > 0:
            history[i, :length] = row[:-1]
            known = np.arange(rivals.offsets[i], rivals.offsets[i + 1])[-length:]  # of the last positions
            event[i, length - len(known) : length] = known
            learnable = np.zeros(length, np.bool_)
            learnable[length - len(known) :] = place[known] >= 0
            learnable[: max(length - losses, 0)] = False
            weight[i, :length] = learnable / max(learnable.sum(), 1)
    return Batch(
        history=torch.from_numpy(history),
        lengths=np.array([max(len(row) - 1, 0) for row in rows], np.int64),
        event=torch.from_numpy(event),
        weight=torch.from_numpy(weight),
        rivals=rivals,
    )


class _Place:
    """The one place where anything moves to the device that trains.

    Args:
        compute: Names it.

    Raises:
        ConfigError: If there is no such device.
    """

    def __init__(self, compute: DomainCompute) -> None:
        self.device = torch.device(compute.device)
        self._half = compute.precision is Precision.BFLOAT16
        there = torch.cuda.device_count() if self.device.type == "cuda" else 1
        if (self.device.index or 0) >= there:
            raise ConfigError(f"`compute.device`: there is no {compute.device} here, torch sees {there} CUDA devices")

    def settle(self, backbone: AnyBackbone, users: TrainingSet) -> tuple[AnyBackbone, TrainingSet]:
        """What stays there for a round.

        A text encoder is trained in float32, whatever was asked for: how long others' texts are shows in the last bits
        of a user's features, and half precision makes something of that.
        """
        if users.tower is not None:
            users.tower.to(self.device)
            self._half = False
        return backbone.to(self.device), dataclasses.replace(users, features=users.features.to(self.device))

    def send(self, batch: Batch) -> Batch:
        """A batch, without waiting for it to arrive."""
        if self.device.type == "cpu":
            return batch
        items, found = self._sent(batch.rivals.items), self._sent(batch.rivals.place)
        return dataclasses.replace(
            batch,
            history=self._sent(batch.history),
            event=self._sent(batch.event),
            weight=self._sent(batch.weight),
            rivals=dataclasses.replace(batch.rivals, items=items, place=found),
            hidden=None if batch.hidden is None else self._sent(batch.hidden),
        )

    def products(self) -> torch.autocast:
        """In which layers multiply as precisely as was asked for."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._half)

    def _sent(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory().to(self.device, non_blocking=True)


def _losses(  # noqa: PLR0913, PLR0917 - filled in one after the other
    place: _Place,
    backbone: AnyBackbone,
    users: TrainingSet,
    training: TrainingConfig,
    products: Callable[[], AbstractContextManager[object]],
    batch: Batch,
) -> Tensor:
    """Losses of a batch, computed where the backbone is."""
    with products():
        return user_losses(backbone, users, place.send(batch), training)


def _require_separable(
    make: Callable[[nn.Module], Engine],
    backbone: AnyBackbone,
    users: TrainingSet,
    cut: Callable[[NDArray[np.int64]], Batch],
    losses: Callable[[Batch], Tensor],
) -> None:
    """Try the engine on the first few users that have something to learn from; nothing of them is kept."""
    first = np.flatnonzero(users.histories.lengths()[:_LOOKED_AT] > 1)
    learning = first[cut(first).weight.sum(dim=1).numpy() > 0][:_TRIED]
    require_separable(make, backbone, functools.partial(_losses_of, losses, cut, learning), len(learning))


def _losses_of(
    losses: Callable[[Batch], Tensor],
    cut: Callable[[NDArray[np.int64]], Batch],
    users: NDArray[np.int64],
    places: Sequence[int],
) -> Losses:
    """Losses of those at some places among users."""
    return functools.partial(losses, cut(users[list(places)]))


def micro_batches(lengths: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Cut a batch into pieces, users with histories of like length together, so that little of a piece is padding.

    Args:
        lengths: (users,) positions, or tokens, of each user.

    Yields:
        Places among the users; each user's is in one piece.
    """
    order = np.argsort(lengths, kind="stable")
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and (stop + 1 - start) * lengths[order[stop]] <= _MICRO_BATCH:
            stop += 1
        yield order[start:stop]
        start = stop


@dataclass(frozen=True)
class _Proximal:
    """FedProx's pull, added to gradients that are already noisy."""

    trained: dict[str, nn.Parameter]
    before: dict[str, Tensor]
    mu: float

    def __call__(self, optimizer: DPOptimizer) -> None:
        del optimizer
        if self.mu:
            for name, parameter in self.trained.items():
                if parameter.grad is not None:
                    parameter.grad.add_(parameter.detach() - self.before[name], alpha=self.mu)
