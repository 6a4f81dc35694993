"""The fused loss over a catalogue is the obvious one, in value and in every gradient."""

import copy

import pytest
import torch
from tests.clients.loop_over_users import Loop, naive_losses
from torch import Tensor, nn

from isthmus.clients import catalogue_softmax
from isthmus.clients.bookkeeping import BookKeeping
from isthmus.clients.catalogue_softmax import CatalogueSoftmax


def case_of(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, nn.Linear, Loop]:
    """Hidden states, item features, an adaptor between them, and users with three to five predictions."""
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(4, 5, 3, generator=generator, dtype=dtype)
    features = torch.randn(11, 6, generator=generator, dtype=dtype)
    adaptor = nn.Linear(6, 3).to(dtype)
    target = torch.randint(0, 11, (4, 5), generator=generator)
    weight = torch.rand(4, 5, generator=generator, dtype=dtype) * (torch.arange(5) < torch.tensor([[5], [3], [0], [4]]))
    return hidden, features, adaptor, Loop(target, target, weight)


@pytest.mark.parametrize("buffer", [1, 25, 10_000])
@pytest.mark.parametrize("tied", [True, False])
def test_value_and_gradients_are_the_naive_ones(monkeypatch: pytest.MonkeyPatch, tied: bool, buffer: int) -> None:
    """One prediction at a time, some, all: hidden states, and the adaptor where there is one."""
    monkeypatch.setattr(catalogue_softmax, "_BUFFER", buffer)
    hidden, features, adaptor, loop = case_of()
    hidden = hidden if tied else torch.randn(4, 5, 6, dtype=torch.float64)
    seen = []
    for naive in (True, False):
        state, layer = hidden.clone().requires_grad_(), copy.deepcopy(adaptor)
        if naive:
            losses = naive_losses(state, layer(features) if tied else features, loop, 0.7)
        else:
            softmax = CatalogueSoftmax(features, adaptor=layer if tied else None, temperature=0.7)
            losses = softmax(state, loop.target, loop.weight)
        (losses * torch.tensor([1.0, 2.0, 3.0, 0.5])).sum().backward()
        found = [layer.weight.grad, layer.bias.grad] if tied else []
        seen.append([losses.detach(), state.grad, *found])
    for one, other in zip(*seen, strict=True):
        expected = torch.zeros_like(one) if other is None else other  # the bias: rows of softmax less onehot sum to 0
        torch.testing.assert_close(expected, one, rtol=1e-10, atol=1e-12)


def test_a_prediction_without_weight_is_not_computed() -> None:
    """Its hidden state may be anything, and gets no gradient."""
    hidden, features, adaptor, loop = case_of()
    hidden[loop.weight == 0] = float("nan")
    state = hidden.requires_grad_()
    losses = CatalogueSoftmax(features, adaptor=adaptor)(state, loop.target, loop.weight)
    losses.sum().backward()
    assert losses.isfinite().all()
    assert losses[2] == 0
    assert state.grad is not None
    assert not state.grad[loop.weight == 0].any()


def test_half_precision_products_leave_the_bound_alone() -> None:
    """bfloat16 for (softmax - onehot) E: gradients off by less than 1 %, what is summed is what was measured."""
    hidden, features, adaptor, loop = case_of(torch.float32)
    found = []
    for products in (torch.float32, torch.bfloat16):
        layer = copy.deepcopy(adaptor)
        softmax = CatalogueSoftmax(features, adaptor=layer, products=products)
        state = hidden.clone().requires_grad_()
        with BookKeeping(softmax) as engine:
            gradients = engine.gradients(lambda: softmax(state, loop.target, loop.weight))  # noqa: B023
        norms = gradients.norms()
        alone = []
        for user in range(4):
            only = torch.zeros(4)
            only[user] = 1.0
            alone.append(torch.cat([part.flatten() for part in gradients.weighted_sum(only)]))
        torch.testing.assert_close(torch.stack(alone).norm(dim=1), norms, rtol=1e-5, atol=1e-7)
        found.append(torch.stack(alone))
    error = (found[0] - found[1]).norm(dim=1) / found[0].norm(dim=1).clamp(min=1e-9)
    assert 0 < float(error.max()) < 0.01
