"""Books equal a loop over users, on whatever is built from layers with a rule; anything else is refused."""

import copy
import functools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.clients.loop_over_users import Loop, clipped_sum, norms_of
from torch import Tensor, nn
from torch.nn import functional

from isthmus.backbone import Backbone, Positions
from isthmus.clients import bookkeeping
from isthmus.clients.bookkeeping import BookKeeping
from isthmus.clients.catalogue_softmax import CatalogueSoftmax
from isthmus.clients.gradients import Losses, OpacusHooks, require_separable
from isthmus.config import BackboneConfig
from isthmus.errors import EngineError

EXACT, SINGLE = 1e-12, 1e-5


class LowRank(nn.Module):
    """A frozen layer and what is learnt beside it (LoRA)."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.base = nn.Linear(width, width).requires_grad_(requires_grad=False)
        self.down, self.up = nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to the same shape."""
        found: Tensor = self.base(x) + self.up(self.down(x))
        return found


class Model(nn.Module):
    """A backbone with a catalogue's softmax behind it: tied or not, with LoRA, a layer twice, dropout.

    Args:
        shape: Of the backbone.
        features: (items, features).
        tied: Whether the adaptor reads the item side too.
        dropout: Probability.
    """

    def __init__(self, shape: BackboneConfig, features: Tensor, *, tied: bool, dropout: float) -> None:
        super().__init__()
        self.backbone = Backbone(features.shape[1], shape)
        self.low_rank = LowRank(shape.width, 2)
        self.twice = nn.Linear(shape.width, shape.width)
        self.dropout = nn.Dropout(dropout)
        if tied:
            self.backbone.head = nn.Identity()  # type: ignore[assignment]
        adaptor = self.backbone.adaptor if tied else None
        self.softmax = CatalogueSoftmax(features, adaptor=adaptor, temperature=0.5)

    def forward(self, items: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """(users,) losses."""
        backbone = self.backbone
        x = backbone.positions(backbone.adaptor(self.softmax.features[items]))
        x = self.twice(functional.gelu(self.twice(self.low_rank(self.dropout(x)))))
        for block in backbone.blocks:
            x = block(x)
        losses: Tensor = self.softmax(backbone.head(backbone.norm(x)), target, weight)
        return losses


def case_of(
    lengths: Sequence[int], *, seed: int, width: int = 8, features: int = 6, tied: bool = True, dropout: float = 0.0
) -> tuple[Model, Loop]:
    """A model away from where it starts, and users with so many predictions each, in float64."""
    generator = torch.Generator().manual_seed(seed)
    longest = max([*lengths, 1])
    table = functional.normalize(torch.randn(17, features, generator=generator, dtype=torch.float64), dim=1)
    shape = BackboneConfig(width=width, heads=2, layers=1, feedforward=12, positions=longest + 2)
    model = Model(shape, table, tied=tied, dropout=dropout).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.4)
    items, target = (torch.randint(0, 17, (len(lengths), longest), generator=generator) for _ in range(2))
    weight = torch.rand((len(lengths), longest), generator=generator, dtype=torch.float64)
    weight *= torch.arange(longest)[None, :] < torch.tensor(lengths, dtype=torch.int64)[:, None]
    return model, Loop(items, target, weight)


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    width=st.sampled_from([2, 8, 14]),
    features=st.sampled_from([2, 6, 23]),
    tied=st.booleans(),
    dropout=st.sampled_from([0.0, 0.3]),
    single=st.booleans(),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=30, deadline=None, derandomize=True)
def test_norms_and_sums_are_those_of_a_loop_over_users(
    *, lengths: list[int], width: int, features: int, tied: bool, dropout: float, single: bool, seed: int
) -> None:
    """Ragged, padded, without anything to predict; wide and narrow; tied, twice, frozen, low rank, dropped out."""
    model, loop = case_of(lengths, seed=seed, width=width, features=features, tied=tied, dropout=dropout)
    if single:  # the loop too: with a layer norm of two numbers, autograd's own rounding can be 1e-5
        model, loop = model.float(), loop.single()
    expected = loop.gradients(model, seed=seed).double()
    clip = float(expected.norm(dim=1).median()) or 1.0
    with BookKeeping(model) as engine:
        torch.manual_seed(seed)
        found = engine.gradients(functools.partial(loop.losses, model))
    tolerance = SINGLE if single else EXACT
    torch.testing.assert_close(found.norms().double(), expected.norm(dim=1), rtol=10 * tolerance, atol=tolerance)
    error = float((clipped_sum(found, clip).double() - loop.clipped(expected, clip)).norm())
    assert error <= tolerance * max(clip, float(expected.norm()))


@pytest.mark.parametrize("ghost", [True, False])
def test_the_short_formula_and_the_product_give_one_norm(monkeypatch: pytest.MonkeyPatch, ghost: bool) -> None:
    """Many rows and few, so that either way is taken; and users' products in more than one part."""
    monkeypatch.setattr(bookkeeping, "_PRODUCT", 100)
    inputs, slopes = torch.randn(5, 3, 40, dtype=torch.float64), torch.randn(5, 3, 30, dtype=torch.float64)
    expected = torch.einsum("uti,uto->uoi", inputs, slopes).flatten(1).square().sum(dim=1)
    if ghost:
        found = bookkeeping._squared_norms(inputs, slopes, bookkeeping._Grams())
    else:
        found = bookkeeping._product_norms(inputs, slopes)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def cancelling(size: float) -> tuple[Tensor, Tensor]:
    """Rows in float32 of which two nearly undo each other: the gradient is short, its rows are `size` long."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(1, 3, 256, generator=generator)
    slopes = torch.randn(1, 3, 256, generator=generator) * 0.05
    inputs[0, 1], slopes[0, 0] = inputs[0, 0], slopes[0, 0] * size
    slopes[0, 1] = -slopes[0, 0]
    return inputs, slopes


def test_rows_that_cancel_are_measured_and_not_guessed() -> None:
    """The short formula loses its digits there: off by 2 %, then below zero; a user might add more than C."""
    for size in (1e2, 1e3, 1e4):
        inputs, slopes = cancelling(size)
        expected = torch.einsum("uti,uto->uoi", inputs.double(), slopes.double()).flatten(1).square().sum(dim=1)
        found = bookkeeping._squared_norms(inputs, slopes, bookkeeping._Grams())
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=0)


def test_the_check_catches_a_norm_that_was_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the second look the same rows are off."""
    monkeypatch.setattr(bookkeeping, "_CANCELLED", -1e30)
    with pytest.raises(AssertionError):
        test_rows_that_cancel_are_measured_and_not_guessed()


def test_a_user_whose_gradient_is_no_number_adds_nothing() -> None:
    """NaN in what goes in, infinity in what comes back: factor 0 leaves the others' sum as it is."""
    model, loop = case_of([4, 2, 5], seed=3)
    expected = loop.gradients(model, seed=0)
    expected[1] = 0.0
    for spoiled in (float("nan"), float("inf")):
        with BookKeeping(model) as engine:
            factors = torch.tensor([1.0, spoiled, 1.0], dtype=torch.float64)
            found = engine.gradients(lambda factors=factors: loop.losses(model) * factors)  # type: ignore[misc]
        assert not found.norms()[1].isfinite()
        total = found.weighted_sum(torch.tensor([1.0, 0.0, 1.0]))
        torch.testing.assert_close(torch.cat([part.flatten() for part in total]), expected.sum(dim=0))


def test_parameters_are_as_before() -> None:
    """Trainable, without gradients, and no hook is left."""
    model, loop = case_of([4, 2], seed=4)
    with BookKeeping(model) as engine:
        engine.gradients(functools.partial(loop.losses, model))
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained == [name for name, _ in model.named_parameters() if ".base." not in name]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())


class Doubled(nn.Linear):
    """A linear layer that is none."""

    def forward(self, x: Tensor) -> Tensor:
        """Twice."""
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (nn.MultiheadAttention(4, 2), "has parameters of its own"),
        (nn.Embedding(4, 2), "has parameters of its own"),
        (nn.GRU(4, 2), "has parameters of its own"),
        (Doubled(2, 2), "Doubled"),
        (nn.BatchNorm1d(4, affine=False), "mixes users"),
    ],
)
def test_a_layer_without_a_rule_is_refused(layer: nn.Module, words: str) -> None:
    """Named, with what can be done; frozen it is welcome (but not where it mixes users)."""
    module = nn.Sequential(nn.Linear(4, 4), layer)
    with pytest.raises(EngineError, match=words):
        BookKeeping(module)
    if words != "mixes users":
        BookKeeping(nn.Sequential(nn.Linear(4, 4), layer.requires_grad_(requires_grad=False)))


def test_a_catalogue_in_a_trained_layer_is_refused() -> None:
    """Its rows are not users."""
    layer, catalogue = nn.Linear(3, 3), torch.randn(7, 3)
    with BookKeeping(layer) as engine, pytest.raises(EngineError, match="7 rows for 4 users"):
        engine.gradients(lambda: torch.ones(4) * layer(catalogue).sum())


def test_an_input_that_was_overwritten_is_refused() -> None:
    """Books of what is not there any more."""
    layer = nn.Linear(3, 3)

    def losses() -> Tensor:
        x = torch.randn(4, 2, 3)
        y = layer(x)
        x.mul_(2)
        found: Tensor = y.sum(dim=(1, 2))
        return found

    with BookKeeping(layer) as engine, pytest.raises(EngineError, match="changed in place"):
        engine.gradients(losses)


# What no look at a module can show.


def _in_batch(model: Model, loop: Loop, places: Sequence[int]) -> Losses:
    """A loss that tells a user's items from other users'."""

    def losses() -> Tensor:
        own = loop.only(places).losses(model)
        return own * own.mean()

    return losses


class Behind(nn.Module):
    """Uses a layer's weight behind its back: tied, by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4).double()

    def forward(self, x: Tensor) -> Tensor:
        """(users, 4) to (users,)."""
        found: Tensor = (functional.gelu(self.layer(x)) @ self.layer.weight).square().sum(dim=1)
        return found


@pytest.mark.parametrize("engine", [BookKeeping, OpacusHooks])
def test_users_that_cannot_be_told_apart_are_refused(engine: type[BookKeeping] | type[OpacusHooks]) -> None:
    """In-batch negatives, a weight that is used behind its layer's back; the honest model passes."""
    model, loop = case_of([4, 2, 5], seed=5, tied=False)
    if engine is OpacusHooks:
        model.softmax = CatalogueSoftmax(model.softmax.features)
    require_separable(engine, model, lambda places: functools.partial(loop.only(places).losses, model), 3)
    with pytest.raises(EngineError, match="cannot be told apart"):
        require_separable(engine, model, lambda places: _in_batch(model, loop, places), 3)
    behind, x = Behind(), torch.randn(3, 4, dtype=torch.float64)
    with pytest.raises(EngineError, match="cannot be told apart"):
        require_separable(engine, behind, lambda places: functools.partial(behind, x[list(places)]), 3)


def test_a_catalogue_as_long_as_the_batch_is_refused() -> None:
    """Rows of items that could be taken for rows of users."""
    layer, catalogue = nn.Linear(3, 3).double(), torch.randn(3, 3, dtype=torch.float64)
    x = torch.randn(3, 3, dtype=torch.float64)

    def losses(places: Sequence[int]) -> Losses:
        return lambda: torch.logsumexp(x[list(places)] @ layer(catalogue).T, dim=1)

    with pytest.raises(EngineError):
        require_separable(BookKeeping, layer, losses, 3)


# Mutants: mistakes that would let a user add more than C.


def _untied(some: list[bookkeeping.Rows]) -> bookkeeping.Rows:
    """Mutant: forgets every use of a matrix but the first."""
    return some[0]


def _diagonal(inputs: Tensor, slopes: Tensor, gram: bookkeeping._Grams) -> Tensor:
    """Mutant: takes rows for orthogonal."""
    del gram
    return (inputs.square().sum(dim=2) * slopes.square().sum(dim=2)).sum(dim=1)


@pytest.mark.parametrize(("name", "mutant"), [("_stacked", _untied), ("_squared_norms", _diagonal)])
def test_the_loop_catches_books_that_forget(monkeypatch: pytest.MonkeyPatch, name: str, mutant: object) -> None:
    """A tied matrix counted once, and cross terms left out."""
    model, loop = case_of([6, 4, 5], seed=6)
    expected = loop.gradients(model, seed=0).norm(dim=1)
    torch.testing.assert_close(norms_of(BookKeeping, model, loop), expected)
    monkeypatch.setattr(bookkeeping, name, mutant)
    assert float((norms_of(BookKeeping, model, loop) / expected - 1).abs().max()) > 0.01


def test_positions_may_be_used_at_two_lengths() -> None:
    """A table that is read twice, one time further than the other."""
    table = Positions(5, 3).double()
    x = torch.randn(4, 5, 3, dtype=torch.float64)

    def losses(rows: Tensor) -> Tensor:
        found: Tensor = table(rows).pow(3).sum(dim=(1, 2)) + table(rows[:, :2]).pow(2).sum(dim=(1, 2))
        return found

    with BookKeeping(table) as engine:
        total = engine.gradients(lambda: losses(x)).weighted_sum(torch.ones(4, dtype=torch.float64))
    again = copy.deepcopy(table)
    table.zero_grad()
    losses(x).sum().backward()  # type: ignore[no-untyped-call]
    assert again.weight.shape == total[0].shape
    torch.testing.assert_close(total[0], table.weight.grad)
