"""How much each of the latest items counts: at first, in what it computes, and in a user's gradient."""

import math

import pytest
import torch
from torch import Tensor

from isthmus.backbone import Backbone, Recency, recent_sum, text_prior, trained_parameters
from isthmus.clients.bookkeeping import BookKeeping
from isthmus.clients.gradients import OpacusHooks
from isthmus.config import BackboneConfig, Trained

SHAPE = BackboneConfig(width=8, layers=1, heads=2, feedforward=8, positions=9, prior_items=4, prior_decay=0.7)
DIM = 5


def histories(users: int, positions: int) -> Tensor:
    """Random, in float64, the last user's ending early."""
    found = torch.randn(users, positions, DIM, generator=torch.Generator().manual_seed(positions), dtype=torch.float64)
    found[-1, positions // 2 :] = 0.0
    return found


def by_hand(history: Tensor, weights: list[float]) -> Tensor:
    """Position by position, age by age."""
    total = torch.zeros_like(history)
    for at in range(history.shape[1]):
        for age, weight in enumerate(weights[: at + 1]):
            total[:, at] += weight * history[:, at - age]
    return total


@pytest.mark.parametrize("positions", [1, 3, 4, 9])
def test_each_age_has_its_weight(positions: int) -> None:
    """Histories shorter than, as long as, and longer than the ages that count."""
    weights = [1.5, 0.2, 0.9, 0.01]
    found = recent_sum(histories(3, positions), torch.tensor(weights, dtype=torch.float64))
    torch.testing.assert_close(found, by_hand(histories(3, positions), weights))


def test_an_untrained_backbone_is_the_text_prior() -> None:
    """Decay ** age, and nothing learned."""
    history = histories(3, 7).float()
    torch.testing.assert_close(Backbone(DIM, SHAPE).prior(history), text_prior(history, SHAPE), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(Recency(4, 0.7).weight.exp(), torch.tensor([1.0, 0.7, 0.49, 0.343]))


def test_no_weight_overflows() -> None:
    """Noise may drive a logarithm anywhere: what is predicted stays finite, and only ratios count."""
    backbone, moved = Backbone(DIM, SHAPE), Backbone(DIM, SHAPE)
    with torch.no_grad():
        moved.recency.weight += 1000.0
    history = histories(3, 7).float()
    assert torch.isfinite(moved.prior(history)).all()
    torch.testing.assert_close(moved.prior(history), backbone.prior(history), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("engine", [BookKeeping, OpacusHooks])
@pytest.mark.parametrize("positions", [2, 9])
def test_a_users_gradient_is_that_of_a_loop_over_users(engine: type, positions: int) -> None:
    """In float64, against plain autograd, where users are added up only afterwards."""
    layer = Recency(4, 0.7).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.3, -1.0, 0.1, -0.4]))
    history = histories(4, positions)
    wanted = torch.randn(history.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def losses() -> Tensor:
        return (layer(history) - wanted).square().sum(dim=(1, 2))

    alone = torch.stack([torch.autograd.grad(losses()[user], layer.weight)[0] for user in range(4)])
    with engine(layer) as attached:
        together = attached.gradients(losses)
        factors = torch.tensor([0.5, 0.0, 2.0, 1.0], dtype=torch.float64)
        torch.testing.assert_close(together.norms(), alone.norm(dim=1), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(together.weighted_sum(factors)[0], factors @ alone, rtol=1e-12, atol=1e-12)


def test_the_recipe_trains_nothing_else() -> None:
    """Ten numbers by default, whatever the width."""
    names = dict(Backbone(DIM, BackboneConfig()).named_parameters())
    assert trained_parameters(names, Trained.RECENCY) == ("recency.weight",)
    assert names["recency.weight"].shape == (10,)
    assert math.isclose(float(names["recency.weight"][1].detach().exp()), 0.8, rel_tol=1e-6)
