"""What is not trained keeps its value to the bit and leaves in no update; factors leave multiplied out."""

import copy

import numpy as np
import pytest
import torch
from tests.clients.sensitivity import DIM, SHAPE, SIGMA, Silent, make_case
from tests.clients.test_sensitivity_choices import choosing
from tests.clients.test_trainer import Drawn, run_round
from torch import nn

from isthmus.backbone import Backbone, shared_parameters, trained_parameters
from isthmus.clients.bookkeeping import BookKeeping
from isthmus.clients.gradients import OpacusHooks
from isthmus.clients.part_training import LowRank, TrainedPart
from isthmus.config import Trained
from isthmus.privacy.noise import SeededRandomness

LORA = choosing(train=Trained.LORA, rank=2)
PARTS = {
    Trained.ENDS: {"adaptor.weight", "adaptor.bias", "head.weight"},
    Trained.HEAD: {"head.weight"},
    Trained.LORA: {
        "adaptor.weight",
        "head.weight",
        *(f"blocks.0.{layer}.weight" for layer in ("query", "key", "value", "output")),
    },
}


def training_of(train: Trained):
    """The recipe that trains a part."""
    return choosing(train=train, rank=2 if train is Trained.LORA else None)


@pytest.mark.parametrize("train", PARTS)
def test_an_update_holds_exactly_the_trained_part(train: Trained) -> None:
    """Every tensor of it moves; all others are, to the bit, what they were, and in no update."""
    case = make_case([6, 5, 9], seed=1, single=True)
    before = copy.deepcopy(case.backbone.state_dict())
    part = TrainedPart(case.backbone, training_of(train), SeededRandomness(0))
    for parameter in part.parameters.values():
        with torch.no_grad():
            parameter.add_(0.1)
    update = part.finish()
    assert set(update) == PARTS[train] == set(trained_parameters(before, train))
    after = case.backbone.state_dict()
    assert after.keys() == before.keys(), "the backbone is whole again"
    for name, tensor in after.items():
        if name in update:
            np.testing.assert_array_equal(update[name], (tensor - before[name]).numpy())
            assert update[name].any()
        else:
            assert torch.equal(tensor, before[name])
    assert all(parameter.requires_grad for parameter in case.backbone.parameters())


@pytest.mark.parametrize("train", PARTS)
def test_only_trained_coordinates_carry_noise(train: Trained) -> None:
    """The noise that a round asks for has as many coordinates as are trained: factors count by their own size."""
    case = make_case([6, 5, 9], seed=2)
    drawn = Coins(case.chosen, SeededRandomness(1))
    update = run_round(case, drawn, training=training_of(train))
    sizes = {name: parameter.numel() for name, parameter in shared_parameters(case.backbone).items()}
    width, rank = SHAPE.width, 2
    expected = {
        Trained.ENDS: sizes["adaptor.weight"] + sizes["adaptor.bias"] + sizes["head.weight"],
        Trained.HEAD: sizes["head.weight"],
        Trained.LORA: rank * (DIM + width) + 4 * rank * 2 * width + sizes["head.weight"],
    }[train]
    assert drawn.noises == [(expected, SIGMA * case.clip, case.clip)]
    assert set(update) == PARTS[train]


class Coins(Drawn):
    """A given batch, seeded noise, and seeded draws."""

    def uniform(self, count):
        """From the seeded source."""
        return self.source.uniform(count)


def test_a_part_has_the_head_because_a_fresh_backbone_learns_by_nothing_else() -> None:
    """The head starts at zero: with it frozen there, every other gradient is zero."""
    backbone = Backbone(DIM, SHAPE)
    backbone(torch.randn(2, 3, DIM)).square().sum().backward()
    moving = {
        name for name, parameter in backbone.named_parameters() if parameter.grad is not None and parameter.grad.any()
    }
    assert moving == {"head.weight", "recency.weight"}
    behind = [train for train in Trained if train not in {Trained.RECENCY, Trained.TEXT}]
    assert all("head.weight" in trained_parameters(shared_parameters(backbone), train) for train in behind)


def test_factors_change_nothing_at_first_and_leave_multiplied_out() -> None:
    """W + U D: the same function as the merged matrix, of rank at most r; the frozen matrix is not touched before."""
    case = make_case([6, 5, 9], seed=3)
    history = torch.randn(2, 4, DIM, dtype=torch.float64)
    original, whole = case.backbone(history), {n: p.detach().clone() for n, p in case.backbone.named_parameters()}
    part = TrainedPart(case.backbone, LORA, SeededRandomness(2))
    torch.testing.assert_close(case.backbone(history), original)
    layers = [layer for layer in case.backbone.modules() if isinstance(layer, LowRank)]
    assert len(layers) == 5
    with torch.no_grad():
        for layer in layers:
            layer.up.weight.normal_()
    trained = case.backbone(history)
    assert (trained != original).any()
    update = part.finish()
    torch.testing.assert_close(case.backbone(history), trained)
    for name in PARTS[Trained.LORA] - {"head.weight"}:
        assert np.linalg.matrix_rank(update[name], tol=1e-10) == 2
        torch.testing.assert_close(torch.from_numpy(update[name]), case.backbone.get_parameter(name) - whole[name])


def test_a_first_step_of_factors_is_one_of_the_matrix_on_average() -> None:
    """U starts at zero and moves by -rate G D', so W moves by -rate G D'D, and D'D is the identity in the mean."""
    grams = []
    for seed in range(100):
        part = TrainedPart(Backbone(DIM, SHAPE), choosing(train=Trained.LORA, rank=4), SeededRandomness(seed))
        down = part.parameters["blocks.0.query.down.weight"].detach()
        grams.append(down.T @ down)
    mean = torch.stack(grams).mean(dim=0)
    torch.testing.assert_close(mean, torch.eye(SHAPE.width), rtol=0, atol=0.35)


def test_users_gradients_of_factors_are_those_of_plain_autograd() -> None:
    """Both engines, away from the start, where both factors have gradients."""
    case = make_case([6, 5, 9], seed=4)
    part = TrainedPart(case.backbone, LORA, Silent(case.chosen))
    with torch.no_grad():
        for layer in case.backbone.modules():
            if isinstance(layer, LowRank):
                layer.up.weight.normal_()
    history = torch.randn(3, 4, DIM, dtype=torch.float64)
    losses = Losses(case.backbone, history)
    factors = torch.tensor([0.5, 0.0, 2.0], dtype=torch.float64)
    alone = [torch.autograd.grad(losses()[user], list(part.parameters.values())) for user in range(3)]
    for make in (BookKeeping, OpacusHooks):
        with make(case.backbone) as engine:
            found = engine.gradients(losses)
            norms, total = found.norms(), found.weighted_sum(factors)
        for user, gradients in enumerate(alone):
            assert float(norms[user]) == pytest.approx(float(torch.cat([g.flatten() for g in gradients]).norm()))
        for place, tensor in enumerate(total):
            torch.testing.assert_close(tensor, 0.5 * alone[0][place] + 2.0 * alone[2][place])


class Losses:
    """A loss for each user."""

    def __init__(self, backbone: nn.Module, history: torch.Tensor) -> None:
        self.backbone, self.history = backbone, history

    def __call__(self) -> torch.Tensor:
        """(users,)."""
        return self.backbone(self.history).square().sum(dim=(1, 2))
