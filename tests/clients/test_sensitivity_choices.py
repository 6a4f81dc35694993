"""Whatever a recipe chooses, one user moves the clipped sum by at most C; with mutants that the check must catch."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.clients.sensitivity import (
    EXACT,
    SINGLE,
    TRAINING,
    Case,
    Served,
    assert_matches_brute_force,
    assert_user_moves_at_most_c,
    make_case,
)
from tests.clients.test_sensitivity import Forgetful
from torch import Tensor

from isthmus.clients import trainer
from isthmus.clients.gradients import Samples, UserGradients
from isthmus.clients.private_optimizer import PrivateOptimizer
from isthmus.config import Align, Augment, Clipping, EngineName, LossName, OptimizerName, Trained, TrainingConfig
from isthmus.privacy.noise import Randomness

LENGTHS = [6, 3, 0, 9, 1, 5]
LONG = [6, 5, 9, 5, 7, 6]
"""Long enough that a view is another history."""


def choosing(**choices: object) -> TrainingConfig:
    """The recipe of the other tests, with some choices made."""
    return TrainingConfig.model_validate({**TRAINING.model_dump(), **choices})


AUTOMATIC = choosing(clipping=Clipping.AUTOMATIC)
ENDS = choosing(train=Trained.ENDS)
RECENCY, NDCG = choosing(train=Trained.RECENCY, loss=LossName.NDCG), choosing(loss=LossName.NDCG)
DANN = choosing(align=Align.DANN, align_weight=3.0, align_domains=("books", "games", "music"))
DANN_ENDS = choosing(**DANN.model_dump(include={"align", "align_weight", "align_domains"}), train=Trained.ENDS)
CROP, MASK, REORDER = (choosing(augment=each) for each in (Augment.CROP, Augment.MASK, Augment.REORDER))
CHOICES = {
    "automatic": AUTOMATIC,
    "recency": RECENCY,
    "ndcg": NDCG,
    "adam_bc": choosing(optimizer=OptimizerName.ADAM_BC),
    "crop": CROP,
    "mask": MASK,
    "reorder": REORDER,
    "ends": ENDS,
    "head": choosing(train=Trained.HEAD),
    "lora": choosing(train=Trained.LORA, rank=2),
    "dann": DANN,
    "dann, ends": DANN_ENDS,
    "everything at once": choosing(
        clipping=Clipping.AUTOMATIC,
        optimizer=OptimizerName.ADAM_BC,
        augment=Augment.REORDER,
        train=Trained.LORA,
        rank=2,
        align=Align.DANN,
        align_weight=3.0,
        align_domains=("books", "games"),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Inside:
    """The sum as it is when noise is added to it, whatever becomes of it afterwards."""

    training: TrainingConfig
    engine: EngineName = EngineName.BOOKKEEPING
    optimizer: type[PrivateOptimizer] = PrivateOptimizer

    def __call__(self, case: Case) -> Tensor:
        """The sum."""
        sums: list[Tensor] = []

        class Watched(self.optimizer):  # type: ignore[name-defined,misc]
            """Shows its sum."""

            def add_noise(self) -> None:
                """Note it first."""
                sums.append(torch.cat([parameter.summed_grad.flatten().double() for parameter in self.params]))
                super().add_noise()

        Served(engine=self.engine, optimizer=Watched, training=self.training)(case)
        (only,) = sums
        return only


@pytest.mark.parametrize("training", CHOICES.values(), ids=CHOICES.keys())
def test_one_user_moves_the_sum_by_at_most_c_under_every_choice(training: TrainingConfig) -> None:
    """Every user is removed once; C is well below the users' norms, so that most of them are clipped."""
    case = make_case(LENGTHS, seed=1, domains=training.classes)
    few = training.train is Trained.RECENCY  # parameters: shorter gradients
    case = dataclasses.replace(case, clip=case.clip / (40 if few else 4))
    mechanism = Inside(training=training)
    assert_user_moves_at_most_c(mechanism, case, tolerance=EXACT)
    assert float(mechanism(case).norm()) > 0.5 * case.clip, "nobody adds anything: the bound was not tried"


@pytest.mark.parametrize("training", [AUTOMATIC, ENDS, choosing(train=Trained.HEAD), RECENCY, NDCG, DANN, DANN_ENDS])
@pytest.mark.parametrize("engine", EngineName)
def test_the_sum_is_the_loop_over_users_under_a_choice(training: TrainingConfig, engine: EngineName) -> None:
    """Against plain autograd, user by user: norms are those of the trained part, factors those of the paper."""
    case = make_case(LENGTHS, seed=2, domains=training.classes)
    made = Served(training=training, engine=engine)
    assert_matches_brute_force(made, case, tolerance=EXACT, training=training)


@pytest.mark.parametrize("training", [CHOICES["everything at once"], CROP, MASK], ids=["everything", "crop", "mask"])
def test_both_engines_make_the_same_sum_under_a_choice(training: TrainingConfig) -> None:
    """Opacus' hooks are the reference; both see the same views and the same factors."""
    case = make_case(LENGTHS, seed=3, domains=training.classes)
    ours, theirs = (Inside(training=training, engine=engine)(case) for engine in EngineName)
    assert float((ours - theirs).norm()) <= EXACT * float(theirs.norm())


def test_automatic_clipping_lets_nobody_add_more_than_c_and_favours_nobody_for_length() -> None:
    """AUTO-S: a gradient of any length adds C n / (n + 0.01); zero adds zero, what is not finite adds zero."""
    norms = torch.tensor([0.0, 1e-6, 1e-3, 0.01, 0.5, 1.0, 1e3, 1e30, torch.inf, torch.nan], dtype=torch.float64)
    made = Given(norms).factors(clip=0.7, clipping=Clipping.AUTOMATIC)
    added = made[:-2] * norms[:-2]
    torch.testing.assert_close(added, 0.7 * norms[:-2] / (norms[:-2] + 0.01))
    assert float(added.max()) <= 0.7
    assert float(added[4]) > 0.68  # half as long as what flat clipping would leave alone
    assert made[-2:].tolist() == [0.0, 0.0]


@dataclass(frozen=True)
class Given:
    """Norms that an optimizer is asked about."""

    norms: Tensor

    def factors(self, *, clip: float, clipping: Clipping) -> Tensor:
        """What it makes of them."""
        optimizer = PrivateOptimizer.__new__(PrivateOptimizer)
        optimizer.max_grad_norm, optimizer._clipping = clip, clipping
        return optimizer.clipped(self.norms)


# What follows is wrong on purpose.


class LayerByLayer(PrivateOptimizer):
    """Brings each tensor's part of a gradient to C by itself."""

    def accumulate(self, gradients: UserGradients) -> None:
        """As many bounds as tensors."""
        assert isinstance(gradients, Samples)
        for parameter, sample in zip(self.params, gradients.samples, strict=True):
            part = Samples([sample])
            (total,) = part.weighted_sum(self.clipped(part.norms()))
            parameter.summed_grad += total


class ClassifierApart(PrivateOptimizer):
    """Clips the backbone's part of a gradient, and lets that of the domain classifier pass as it is."""

    def accumulate(self, gradients: UserGradients) -> None:
        """The classifier is the last two tensors."""
        assert isinstance(gradients, Samples)
        factors = self.clipped(Samples(gradients.samples[:-2]).norms())
        for place, (parameter, sample) in enumerate(zip(self.params, gradients.samples, strict=True)):
            apart = place >= len(self.params) - 2
            (total,) = Samples([sample]).weighted_sum(torch.ones_like(factors) if apart else factors)
            parameter.summed_grad += total


def twice(lengths: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Every user as two records, one for each of two views."""
    for some in trainer_micro_batches(lengths):
        yield some
        yield some


def drawn_together(randomness: Randomness, augment: Augment, *, users: int, positions: int) -> NDArray[np.float64]:
    """Views that depend on who else is in the batch."""
    return np.roll(trainer_draw_views(randomness, augment, users=users, positions=positions), users)


trainer_micro_batches, trainer_draw_views = trainer.micro_batches, trainer.draw_views

WRONG = {
    "automatic clipping, layer by layer": (
        Inside(training=AUTOMATIC, engine=EngineName.OPACUS, optimizer=LayerByLayer),
        {},
    ),
    "a norm without a part of what is trained": (
        Inside(training=ENDS, engine=EngineName.OPACUS, optimizer=Forgetful),
        {},
    ),
    "a domain classifier outside of the clip": (
        Inside(training=DANN, engine=EngineName.OPACUS, optimizer=ClassifierApart),
        {},
    ),
    "two views as two records": (Inside(training=CROP), {"micro_batches": twice}),
    "views that depend on company": (Inside(training=REORDER), {"draw_views": drawn_together}),
}


@pytest.mark.parametrize(("mutant", "replaced"), WRONG.values(), ids=WRONG.keys())
def test_the_check_catches_a_wrong_choice(
    monkeypatch: pytest.MonkeyPatch, mutant: Inside, replaced: dict[str, object]
) -> None:
    """Each lets some user move the sum by more than C; the same recipe, made right, does not."""
    case = make_case(LONG, seed=6, domains=mutant.training.classes)
    case = dataclasses.replace(case, clip=case.clip / 4)
    right = dataclasses.replace(mutant, optimizer=PrivateOptimizer)
    assert_user_moves_at_most_c(right, case, tolerance=EXACT)
    for part, wrong in replaced.items():
        monkeypatch.setattr(trainer, part, wrong)
    with pytest.raises(AssertionError, match="moves the sum by"):
        assert_user_moves_at_most_c(mutant, case, tolerance=SINGLE)
