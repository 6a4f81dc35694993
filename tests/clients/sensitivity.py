"""The judge of a clipped sum: a case, the loop over users in float64, and the two checks that a mechanism must pass.

    assert_matches_brute_force(Served(), make_case([6, 3, 0], seed=1), tolerance=EXACT)
    assert_user_moves_at_most_c(Served(), make_case([6, 3, 0], seed=1), tolerance=EXACT)

A mechanism is a function from a case (users, model, clip) to the sum that leaves before noise: what `train_round`
returns, times the public divisor. `Served` is the real one; `test_sensitivity.py` shows that wrong ones fail.
"""

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.nn import functional

from isthmus.backbone import Backbone, shared_parameters, trained_parameters
from isthmus.clients import private_optimizer, trainer
from isthmus.clients.data import Histories
from isthmus.clients.private_optimizer import PrivateOptimizer
from isthmus.clients.rivals import find_rivals
from isthmus.clients.trainer import Batch, TrainingSet, make_training_set, train_round, user_losses
from isthmus.config import (
    Augment,
    BackboneConfig,
    Clipping,
    DomainCompute,
    EngineName,
    FeatureConfig,
    LossName,
    Precision,
    PrivacyPolicy,
    Trained,
    TrainingConfig,
)
from isthmus.custom_backbone import AnyBackbone
from isthmus.privacy.budget import PrivacyBudget
from isthmus.privacy.noise import Floats
from isthmus.privacy.plan import DpSgdConfig, DpSgdPlan
from isthmus.records import Recipe

ITEMS, DIM = 24, 8
SHAPE = BackboneConfig(width=8, heads=2, layers=1, feedforward=12, positions=5, prior_items=4)
TRAINING = TrainingConfig(train=Trained.ALL, learning_rate=1e4, rivals=10, positions=3)
"""A large step: what is subtracted to get the update is then nothing beside it."""
RECIPE = Recipe(features=FeatureConfig(), backbone=SHAPE, training=TRAINING, whitening="")
RATE, DIVISOR, SIGMA = 0.5, 7.0, 1.5
PLAN = DpSgdPlan(config=DpSgdConfig(budget=PrivacyBudget(8.0, 1e-6), sample_rate=RATE, steps=1), noise_multiplier=SIGMA)
EXACT, SINGLE = 1e-10, 1e-5
LABEL = 1
"""Of the domain whose users all of them are, where domains are told apart."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Some users, all of them in the batch unless `chosen` says otherwise, and what they are clipped to."""

    rows: tuple[tuple[int, ...], ...]
    chosen: tuple[bool, ...]
    features: NDArray[np.float32]
    backbone: AnyBackbone
    clip: float

    @property
    def views(self) -> NDArray[np.float64]:
        """(users, 1 + positions) draws by which histories are augmented: each user's own, whoever else is there."""
        return np.stack([np.random.default_rng([9, *row]).random(1 + SHAPE.positions) for row in self.rows])

    def without(self, user: int) -> "Case":
        """The same data set, one user fewer."""
        keep = [row for row in range(len(self.rows)) if row != user]
        return dataclasses.replace(
            self, rows=tuple(self.rows[row] for row in keep), chosen=tuple(self.chosen[row] for row in keep)
        )

    def users(self) -> TrainingSet:
        """What the trainer makes of them, in the model's precision."""
        made = make_training_set(histories_of(self.rows), self.features, RECIPE, label=LABEL)
        return dataclasses.replace(made, features=made.features.to(next(self.backbone.parameters()).dtype))

    def read(self, backbone: AnyBackbone, seen: list[int]) -> tuple[Tensor, ...]:
        """(1, positions, features) of a history by a changed text encoder; nothing where there is none."""
        del backbone, seen
        return ()


_Module = TypeVar("_Module", bound=nn.Module)

Mechanism = Callable[[Case], Tensor]
"""From a case to the (parameters,) sum that leaves, before noise."""


@dataclass(frozen=True)
class Silent:
    """No noise, a given batch and given draws for its users' views: the sum itself can be looked at."""

    chosen: tuple[bool, ...]
    views: NDArray[np.float64] | None = None
    private = False

    def noisy(self, values: NDArray[Floats], *, stddev: float, sensitivity: float) -> NDArray[Floats]:
        """The values."""
        return values

    def bernoulli(self, count: int, probability: float) -> NDArray[np.bool_]:
        """The given batch."""
        assert (count, probability) == (len(self.chosen), RATE), "every user takes part, at the policy's rate"
        return np.array(self.chosen, dtype=bool)

    def uniform(self, count: int) -> NDArray[np.float64]:
        """The given draws of whoever is in the batch, where it is those that are asked for; else the same each time."""
        if self.views is not None:
            views = self.views[np.array(self.chosen, dtype=bool)]
            if views.size == count:
                return views.ravel()
        return np.random.default_rng(count).random(count)


@dataclass(frozen=True, kw_only=True)
class Served:
    """The real round of training as a mechanism; a mutant replaces engine, optimizer or loss."""

    engine: EngineName = EngineName.BOOKKEEPING
    optimizer: type[DPOptimizer] = PrivateOptimizer
    losses: Callable[[AnyBackbone, TrainingSet, Batch, TrainingConfig], Tensor] = user_losses
    device: str = "cpu"
    precision: Precision = Precision.FLOAT32
    training: TrainingConfig = TRAINING
    tried: bool = True
    """Whether the round may first try whether users can be told apart; a mutant that cannot pass that goes without."""

    def __call__(self, case: Case) -> Tensor:
        """The sum that leaves."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(private_optimizer, "PrivateOptimizer", self.optimizer)
            patch.setattr(trainer, "user_losses", self.losses)
            if not self.tried:
                patch.setattr(trainer, "_require_separable", lambda *_: None)
            augments = self.training.augment is not Augment.NONE
            update = train_round(
                copy.deepcopy(case.backbone),
                case.users(),
                training=self.training,
                policy=policy_of(case),
                plan=PLAN,
                proximal_mu=0.0,
                randomness=Silent(case.chosen, case.views if augments else None),
                compute=DomainCompute(engine=self.engine, device=self.device, precision=self.precision),
            )
        flat = np.concatenate([tensor.ravel() for tensor in update.values()]).astype(np.float64)
        return torch.from_numpy(flat) * (-DIVISOR / self.training.learning_rate)


def histories_of(rows: tuple[tuple[int, ...], ...]) -> Histories:
    """Rows of items as the trainer reads them."""
    return Histories(
        offsets=np.cumsum([0, *map(len, rows)], dtype=np.int64),
        items=np.array([item for row in rows for item in row], dtype=np.int32),
    )


def policy_of(case: Case) -> PrivacyPolicy:
    """One step a round, clipped to the case's norm."""
    return PrivacyPolicy(
        epsilon=8.0,
        delta=1e-6,
        clip=case.clip,
        sample_rate=RATE,
        expected_batch=DIVISOR,
        steps_per_round=1,
        rounds=1,
        evaluations=0,
        metric_noise_multiplier=1.0,
    )


def make_case(lengths: list[int], *, seed: int, clip: float = 0.0, single: bool = False, domains: int = 0) -> Case:
    """Random histories of given lengths under a random model; by default C is the median norm, so half are clipped.

    With `domains` the model has a classifier of so many.
    """
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(ITEMS, DIM))
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    rows = tuple(tuple(int(item) for item in rng.integers(0, ITEMS, length)) for length in lengths)
    backbone = randomise(Backbone(DIM, SHAPE, domains=domains), seed)
    case = Case(rows=rows, chosen=(True,) * len(rows), features=features, backbone=backbone, clip=clip or 1.0)
    if not clip:
        norms = [norm for row in rows if (norm := float(user_gradient(case, row).norm())) > 0]
        case = dataclasses.replace(case, clip=float(np.median(norms)) if norms else 1.0)
    return dataclasses.replace(case, backbone=copy.deepcopy(backbone).float()) if single else case


def randomise(backbone: _Module, seed: int) -> _Module:
    """Every parameter away from where it starts (a head of zeros lets no gradient through), in float64."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return backbone.double()


def _loss(scores: Tensor, own: int, name: LossName) -> Tensor:
    """Of one prediction, as the papers write it."""
    if name is LossName.CROSS_ENTROPY:
        return functional.cross_entropy(scores[None], torch.tensor([own]))
    rank = 1 + torch.sigmoid(scores[torch.arange(len(scores)) != own] - scores[own]).sum()
    return -1 / torch.log2(1 + rank)


def user_gradient(case: Case, row: tuple[int, ...], training: TrainingConfig = TRAINING) -> Tensor:
    """(trained parameters,) gradient of one user's loss, float64, by plain autograd, from the user's history alone."""
    backbone = copy.deepcopy(case.backbone).double()
    features = torch.from_numpy(case.features)
    rivals = find_rivals(histories_of((row,)), features, SHAPE, count=TRAINING.rivals, positions=TRAINING.positions)
    losses, domain_losses = [], []
    first = max(1, len(row) - TRAINING.positions)
    for at in range(first, len(row)):
        others = rivals.items[at - first].tolist()
        if row[at] in others:
            seen = list(row[max(0, len(row) - 1 - SHAPE.positions) : at])
            query = backbone(features[seen].double()[None], *case.read(backbone, seen))[0, -1]
            scores = features[others].double() @ query / TRAINING.temperature
            losses.append(_loss(scores, others.index(row[at]), training.loss))
            if training.align is not None:
                logits = backbone.domain_classifier(backbone.represent(features[seen].double()[None])[0, -1])
                domain_losses.append(functional.cross_entropy(logits[None], torch.tensor([LABEL])))
    shared = shared_parameters(backbone)
    trained = {name: shared[name] for name in trained_parameters(shared, training.train)}
    gradient = _gradient(losses, list(trained.values()))
    if (
        training.align is not None
    ):  # equations 13 to 15 of Ganin et al., JMLR 2016: the classifier's part is not reversed
        of_domain = _gradient(domain_losses, list(trained.values()))
        signs = [torch.full((one.numel(),), 1.0 if "classifier" in name else -1.0) for name, one in trained.items()]
        gradient += training.align_weight * torch.cat(signs) * of_domain
    return gradient


def _gradient(losses: list[Tensor], parameters: list[Tensor]) -> Tensor:
    """(parameters,) of the mean of some losses; zero if there is none."""
    if not losses:
        return torch.zeros(sum(parameter.numel() for parameter in parameters), dtype=torch.float64)
    gradients = torch.autograd.grad(torch.stack(losses).mean(), parameters, allow_unused=True)
    return torch.cat(
        [
            torch.zeros(parameter.numel()) if gradient is None else gradient.flatten()
            for parameter, gradient in zip(parameters, gradients, strict=True)
        ]
    )


def brute_force(case: Case, training: TrainingConfig = TRAINING) -> Tensor:
    """(trained parameters,) sum over the batch of each user's clipped gradient (the optimizer's 1e-6 included)."""
    total = torch.zeros_like(user_gradient(case, (), training))
    for row in np.flatnonzero(case.chosen):
        gradient = user_gradient(case, case.rows[row], training)
        norm = float(gradient.norm())
        automatic = training.clipping is Clipping.AUTOMATIC
        total += gradient * (case.clip / (norm + 0.01) if automatic else min(1.0, case.clip / (norm + 1e-6)))
    return total


def assert_matches_brute_force(
    make_sum: Mechanism, case: Case, *, tolerance: float, training: TrainingConfig = TRAINING
) -> None:
    """The mechanism's sum is the loop's."""
    expected = brute_force(case, training)
    error = float((make_sum(case) - expected).norm()) / max(float(expected.norm()), case.clip)
    assert error <= tolerance, f"the sum is off by {error:.2e} of its length"


def assert_user_moves_at_most_c(make_sum: Mechanism, case: Case, *, tolerance: float) -> None:
    """Removing any one user from the data set moves the mechanism's sum by at most C."""
    everyone = make_sum(case)
    moved = [float((everyone - make_sum(case.without(user))).norm()) / case.clip for user in range(len(case.rows))]
    assert max(moved, default=0.0) <= 1 + tolerance, f"user {int(np.argmax(moved))} moves the sum by {max(moved):.3f} C"
