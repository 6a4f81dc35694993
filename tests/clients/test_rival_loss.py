"""Each loss equals the obvious one, gather, product and formula, in value and in gradient."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from isthmus.clients import rival_loss as module
from isthmus.clients.rival_loss import rival_loss
from isthmus.config import LossName


def make(*, predictions: int, items: int, rivals: int, dim: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random queries, features, distinct rivals (int32, as they are kept) and places, in float64."""
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(predictions, dim, generator=generator, dtype=torch.float64)
    features = torch.randn(items, dim, generator=generator, dtype=torch.float64)
    others = torch.rand(predictions, items, generator=generator).argsort(dim=1)[:, :rivals].to(torch.int32)
    place = torch.randint(0, rivals, (predictions,), generator=generator)
    return query.requires_grad_(), features, others, place


def naive(  # noqa: PLR0917 - as the real one
    query: Tensor, features: Tensor, rivals: Tensor, place: Tensor, temperature: float, name: LossName
) -> Tensor:
    """Gather, product, cross-entropy; or the smoothed rank of Qin, Liu and Li (2010), equation 12."""
    scores = (features[rivals.long()] * query[:, None]).sum(dim=2) / temperature
    if name is LossName.CROSS_ENTROPY:
        return functional.cross_entropy(scores, place, reduction="none")
    ahead = torch.sigmoid(scores - scores.gather(1, place[:, None]))
    others = torch.arange(scores.shape[1]) != place[:, None]
    return -1 / torch.log2(1 + 1 + (ahead * others).sum(dim=1))


def assert_same(arguments: tuple[Tensor, Tensor, Tensor, Tensor], temperature: float) -> None:
    """Equal losses, and equal gradients of a weighted sum of them, for each loss."""
    for name in LossName:
        assert_same_loss(arguments, temperature, name)


def assert_same_loss(arguments: tuple[Tensor, Tensor, Tensor, Tensor], temperature: float, name: LossName) -> None:
    """For one of them."""
    query = arguments[0]
    weights = torch.linspace(-1.0, 2.0, len(query), dtype=torch.float64)
    ours, theirs = rival_loss(*arguments, temperature, name), naive(*arguments, temperature, name)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    slopes = [torch.autograd.grad((loss * weights).sum(), query)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*slopes, rtol=1e-11, atol=1e-11)


@given(
    shape=st.tuples(st.integers(0, 9), st.integers(2, 6), st.integers(0, 80), st.integers(1, 7)),
    temperature=st.sampled_from([0.05, 0.1, 1.0, 3.0]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_value_and_gradient_are_the_obvious_ones(
    shape: tuple[int, int, int, int], temperature: float, seed: int
) -> None:
    """On both sides of the switch between multiplying the whole catalogue and looking rivals up."""
    predictions, rivals, more, dim = shape
    assert_same(make(predictions=predictions, items=rivals + more, rivals=rivals, dim=dim, seed=seed), temperature)


@pytest.mark.parametrize("items", [32, 33], ids=["whole catalogue", "looked up"])
@pytest.mark.parametrize("buffer", [1, 50, 100, 4_000_000])
def test_pieces_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch, items: int, buffer: int) -> None:
    """One prediction at a time, a last piece that is shorter, everything at once; just below and above the switch."""
    monkeypatch.setattr(module, "_BUFFER", buffer)
    assert items // 33 == int(items > module._DENSE * 4), "one case on each side of the switch"
    assert_same(make(predictions=7, items=items, rivals=4, dim=5, seed=1), 0.1)


@pytest.mark.parametrize("name", LossName)
@pytest.mark.parametrize("items", [10, 60], ids=["whole catalogue", "looked up"])
def test_the_gradient_passes_autograds_own_check(items: int, name: LossName) -> None:
    """Finite differences agree with what forward kept."""
    query, features, rivals, place = make(predictions=4, items=items, rivals=4, dim=3, seed=2)
    assert torch.autograd.gradcheck(rival_loss, (query, features, rivals, place, 0.5, name))


@pytest.mark.parametrize("name", LossName)
@pytest.mark.parametrize("items", [10, 60], ids=["whole catalogue", "looked up"])
def test_a_prediction_depends_on_its_own_row_only(items: int, name: LossName) -> None:
    """NaN in one query stays in that row, in value and gradient."""
    query, features, rivals, place = make(predictions=5, items=items, rivals=4, dim=3, seed=3)
    spoiled = query.detach().clone()
    spoiled[2] = torch.nan
    spoiled.requires_grad_()
    loss = rival_loss(spoiled, features, rivals, place, 0.1, name)
    (slope,) = torch.autograd.grad(loss.sum(), spoiled)
    rest = [0, 1, 3, 4]
    assert loss[2].isnan()
    torch.testing.assert_close(loss[rest], naive(query, features, rivals, place, 0.1, name)[rest])
    assert torch.isfinite(slope[rest]).all()


def test_large_scores_do_not_overflow() -> None:
    """A sharp softmax in float32 stays finite: the loss is the gap to the best rival."""
    features = torch.eye(3)
    query = torch.tensor([[500.0, 0.0, -500.0]], requires_grad=True)
    loss = rival_loss(query, features, torch.tensor([[0, 1, 2]]), torch.tensor([1]), 0.1)
    (slope,) = torch.autograd.grad(loss.sum(), query)
    assert float(loss.detach()) == pytest.approx(5000.0)
    torch.testing.assert_close(slope, torch.tensor([[10.0, -10.0, 0.0]]))


def test_ndcg_of_a_sharp_temperature_is_that_of_the_rank_and_overflows_nowhere() -> None:
    """Three rivals ahead: rank 4, so minus 1 / log2(5); scores of hundreds leave no NaN."""
    features = torch.eye(5)
    query = torch.tensor([[500.0, 400.0, 300.0, 1.0, -500.0]], requires_grad=True)
    loss = rival_loss(query, features, torch.arange(5)[None], torch.tensor([3]), 0.01, LossName.NDCG)
    (slope,) = torch.autograd.grad(loss.sum(), query)
    assert float(loss.detach()) == pytest.approx(-1 / math.log2(5))
    assert torch.isfinite(slope).all()
