"""Per-user clipping at the price of ordinary training: norms and clipped sums without any user's gradient.

    with BookKeeping(backbone) as engine:
        gradients = engine.gradients(losses_of_some_users)      # one forward, one backward
        total = gradients.weighted_sum(factors(gradients.norms()))

The gradient that a user has of a linear layer is a sum of outer products, `sum_t g_t a_t'`, of what went into the layer
and of the gradient of what came out of it. So both are written down, parameters are left out of the backward pass, and
everything follows from the books: the squared norm is `sum_ts (a_t . a_s)(g_t . g_s)`, and a sum with a factor for each
user is one product over all users' rows. A layer that is used more than once, or whose weight another layer
uses too, only has more rows.

Norms of gradients, not estimates: where rows nearly cancel, so that the short formula would lose its digits,
that user's product is made and measured. A layer for which no rule is written below is refused.

References: Bu et al., "Differentially Private Optimization on Large Model at Small Cost", ICML 2023 (book-keeping);
Goodfellow, "Efficient Per-Example Gradient Computations", 2015; Li et al., "Large Language Models Can Be
Strong Differentially Private Learners", ICLR 2022 (ghost norms); Lee and Kifer, "Scaling up Differentially Private
Deep Learning with Fast Per-Example Gradient Clipping", PoPETs 2021.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from isthmus.backbone import Positions, Recency
from isthmus.clients.catalogue_softmax import CatalogueSoftmax
from isthmus.clients.gradients import Losses, UserGradients, recency_gradient
from isthmus.errors import EngineError

_PRODUCT = 4_000_000
"""Numbers of users' gradients that exist at once, where they have to (16 MB)."""
_CANCELLED = 1e-3
"""A squared norm below this share of what it could be without cancellation is measured on the product itself."""


@dataclass(frozen=True)
class Rows:
    """A user's gradient of a matrix is the sum over rows of outer products.

    Attributes:
        parameter: (out, in) the matrix.
        inputs: (users, rows, in).
        slopes: (users, rows, out).
    """

    parameter: nn.Parameter
    inputs: Tensor
    slopes: Tensor


@dataclass(frozen=True)
class Whole:
    """Users' gradients of a small parameter, as they are.

    Attributes:
        parameter: A vector, or a table of which the first rows are used.
        gradients: (users, *shape); a table's may end early.
    """

    parameter: nn.Parameter
    gradients: Tensor


Entry = Rows | Whole


@dataclass
class _Use:
    """One use of one layer: an open line in the books until the backward pass closes it."""

    layer: nn.Module
    given: Tensor
    kept: Tensor
    version: int
    slope: Tensor = field(default_factory=lambda: torch.zeros(0))
    closed: bool = False

    def close(self, slope: Tensor) -> None:
        """Write down the gradient of what came out; called by autograd."""
        self.slope, self.closed = slope.detach(), True


Rule = Callable[[_Use], Iterator[Entry]]
"""From a closed line to entries of the layer's parameters."""


def _linear(use: _Use) -> Iterator[Entry]:
    """Outer products for the weight, a sum for the bias."""
    layer: Any = use.layer
    inputs, slopes = (tensor.reshape(len(tensor), -1, tensor.shape[-1]) for tensor in (use.given, use.slope))
    yield Rows(layer.weight, inputs, slopes)
    if layer.bias is not None:
        yield Whole(layer.bias, slopes.sum(dim=1))


def _layer_norm(use: _Use) -> Iterator[Entry]:
    """Products with the normalised input, and a sum, over what lies between users and the norm's own dimensions."""
    layer: Any = use.layer
    shape = (len(use.given), -1, *layer.normalized_shape)
    given, slope = use.given.reshape(shape), use.slope.reshape(shape)
    if layer.weight is not None:
        normed = functional.layer_norm(given, layer.normalized_shape, eps=layer.eps)
        yield Whole(layer.weight, (normed * slope).sum(dim=1))
    if layer.bias is not None:
        yield Whole(layer.bias, slope.sum(dim=1))


def _positions(use: _Use) -> Iterator[Entry]:
    """The gradient of what came out is the gradient of the table's first rows."""
    layer: Any = use.layer
    yield Whole(layer.weight, use.slope)


def _recency(use: _Use) -> Iterator[Entry]:
    """For each age, what came back at a position meets the item that was so old there."""
    layer: Any = use.layer
    yield Whole(layer.weight, recency_gradient(layer, use.given, use.slope))


def _catalogue(use: _Use) -> Iterator[Entry]:
    """The adaptor's gradient on the item side: what was kept of each prediction, and the hidden state that met it."""
    layer: Any = use.layer
    if layer.adaptor is not None:
        yield Rows(layer.adaptor.weight, use.kept, use.given * use.slope[:, None, None])


RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    nn.LayerNorm: _layer_norm,
    Positions: _positions,
    Recency: _recency,
    CatalogueSoftmax: _catalogue,
}
"""By exact type: a subclass may compute anything."""

_MIXES_USERS = (nn.modules.batchnorm._BatchNorm,)  # noqa: SLF001 - torch's own base of all of them


class BookKeeping:
    """Books of one module.

    Args:
        module: Its trainable parameters are those that are trained, in order.

    Raises:
        EngineError: If a layer that is trained has no rule, or a layer mixes users.

    Guarantees:
        - Norms and sums are those of each user's own gradient: equal to a loop over users to rounding, over ragged
          histories, repeated and tied layers, dropout, layers that are frozen.
        - A layer that is given anything but one row per user, or whose input was changed in place after it was used,
          is an error and not a wrong sum.
    """

    def __init__(self, module: nn.Module) -> None:
        self._parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._layers: list[nn.Module] = []
        self._uses: list[_Use] = []
        self._detach: list[Callable[[], None]] = []
        self._open = False
        for name, layer in module.named_modules():
            _require_rule(name, layer)
            adaptor = getattr(layer, "adaptor", None) if type(layer) is CatalogueSoftmax else None
            own = [*layer.parameters(recurse=False), *([] if adaptor is None else adaptor.parameters())]
            if any(parameter.requires_grad for parameter in own):
                self._layers.append(layer)

    def __enter__(self) -> Self:
        self._detach = [layer.register_forward_hook(self._note).remove for layer in self._layers]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for detach in self._detach:
            detach()
        self._uses = []

    def gradients(self, losses: Losses) -> UserGradients:
        """One forward pass that writes down what went in, one backward pass that writes down what came back.

        Raises:
            EngineError: If a layer was given something else than one row per user, or its input was overwritten.
        """
        self._uses = []
        with self._without_parameters():
            value = losses()
            if value.requires_grad:
                value.sum().backward()  # type: ignore[no-untyped-call]
        uses, self._uses = self._uses, []
        entries = [entry for use in uses for entry in _entries(use, users=len(value))] if len(value) else []
        return _Books(self._parameters, entries, users=len(value))

    def _note(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Open a line for a use of a layer."""
        if not self._open or not torch.is_grad_enabled():
            return
        if not output.requires_grad:
            output.requires_grad_()  # its input is data: from here on there is something to differentiate by
        given = inputs[0].detach()
        kept = layer.rows if isinstance(layer, CatalogueSoftmax) else given
        use = _Use(layer, given, kept, given._version)  # noqa: SLF001 - the counter that autograd keeps
        output.register_hook(use.close)  # type: ignore[no-untyped-call]
        self._uses.append(use)

    @contextmanager
    def _without_parameters(self) -> Iterator[None]:
        """Nothing is differentiated by a parameter: that is what the books are for."""
        for parameter in self._parameters:
            parameter.requires_grad_(False)
        self._open = True
        try:
            yield
        finally:
            self._open = False
            for parameter in self._parameters:
                parameter.requires_grad_(True)


class _Books:
    """Entries of all layers, balanced on demand."""

    def __init__(self, parameters: list[nn.Parameter], entries: list[Entry], *, users: int) -> None:
        self._parameters = parameters
        # In the precision of the parameters: a loss that autocast has rounded must not round norms.
        self._none = parameters[0].new_zeros(users) if parameters else torch.zeros(users)
        rows: dict[int, list[Rows]] = {}
        whole: dict[int, list[Whole]] = {}
        for entry in entries:
            kind = rows if isinstance(entry, Rows) else whole
            kind.setdefault(id(entry.parameter), []).append(entry)  # type: ignore[arg-type]
        self._rows = {key: _stacked(some) for key, some in rows.items()}
        self._whole = {key: _added(some) for key, some in whole.items()}

    def norms(self) -> Tensor:
        """(users,) over all parameters together."""
        squares = self._none.clone()
        for whole in self._whole.values():
            squares += whole.flatten(1).square().sum(dim=1)
        gram = _Grams()
        for rows in self._rows.values():
            squares += _squared_norms(rows.inputs, rows.slopes, gram)
        return squares.sqrt()

    def weighted_sum(self, factors: Tensor) -> list[Tensor]:
        """One product per matrix, over the rows of all users."""
        factors = factors.to(self._none.dtype)
        zero = factors == 0
        absent = zero if zero.any() else None  # asked once for all parameters
        total: list[Tensor] = []
        for parameter in self._parameters:
            found = torch.zeros_like(parameter)
            rows, whole = self._rows.get(id(parameter)), self._whole.get(id(parameter))
            if rows is not None:
                slopes = _without(rows.slopes, absent) * factors[:, None, None]
                found += slopes.flatten(0, 1).T @ _without(rows.inputs, absent).flatten(0, 1)
            if whole is not None:
                found[: whole.shape[1]] += torch.einsum("u,u...->...", factors, _without(whole, absent))
            total.append(found)
        return total


class _Grams:
    """Inner products of rows with each other; layers that were given the same tensor share them."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, torch.Size], Tensor] = {}

    def __call__(self, tensor: Tensor) -> Tensor:
        """(users, rows, width) to (users, rows, rows)."""
        key = (tensor.data_ptr(), tensor.shape)
        if key not in self._seen:
            self._seen[key] = tensor @ tensor.transpose(1, 2)
        return self._seen[key]


def _squared_norms(inputs: Tensor, slopes: Tensor, gram: _Grams) -> Tensor:
    """(users,) squared norm of each user's sum of outer products, by whichever way is shorter."""
    rows, given, made = inputs.shape[1], inputs.shape[2], slopes.shape[2]
    if rows * (given + made) >= given * made:
        return _product_norms(inputs, slopes)
    ours, theirs = gram(inputs), slopes @ slopes.transpose(1, 2)
    squares = (ours * theirs).sum(dim=(1, 2))
    most = (ours.diagonal(dim1=1, dim2=2) * theirs.diagonal(dim1=1, dim2=2)).clamp(min=0).sqrt().sum(dim=1).square()
    doubtful = squares < _CANCELLED * most
    if doubtful.any():
        squares[doubtful] = _product_norms(inputs[doubtful], slopes[doubtful])
    return squares


def _product_norms(inputs: Tensor, slopes: Tensor) -> Tensor:
    """(users,) the same from the product itself, some users at a time."""
    size = max(1, _PRODUCT // (inputs.shape[2] * slopes.shape[2]))
    found = [
        (theirs.transpose(1, 2) @ ours).flatten(1).square().sum(dim=1)
        for ours, theirs in zip(torch.split(inputs, size), torch.split(slopes, size), strict=True)
    ]
    return torch.cat(found)


def _without(tensor: Tensor, absent: Tensor | None) -> Tensor:
    """The tensor with zeros for users whose factor is 0: what they hold may not be a number."""
    if absent is None:
        return tensor
    return tensor.masked_fill(absent.view(-1, *[1] * (tensor.dim() - 1)), 0.0)


def _stacked(some: list[Rows]) -> Rows:
    """Rows of all uses of a matrix, one after the other."""
    if len(some) == 1:
        return some[0]
    inputs = torch.cat([one.inputs for one in some], dim=1)
    return Rows(some[0].parameter, inputs, torch.cat([one.slopes for one in some], dim=1))


def _added(some: Iterable[Whole]) -> Tensor:
    """Gradients of all uses of a small parameter, added up; a table that ends early has zeros beyond."""
    return functools.reduce(_longer_sum, (one.gradients for one in some))


def _longer_sum(one: Tensor, other: Tensor) -> Tensor:
    if one.shape[1] < other.shape[1]:
        one, other = other, one
    found = one.clone()
    found[:, : other.shape[1]] += other
    return found


def _entries(use: _Use, *, users: int) -> Iterator[Entry]:
    """What a closed line says of the layer's trained parameters."""
    if not use.closed:  # its output went nowhere
        return
    name = type(use.layer).__name__
    if len(use.given) != users or len(use.slope) != users:
        raise EngineError(
            f"a layer ({name}) was given {len(use.given)} rows for {users} users. Every trained layer must see one row "
            f"per user in its first dimension; a whole catalogue belongs into a CatalogueSoftmax."
        )
    if use.given._version != use.version:  # noqa: SLF001 - the counter that autograd keeps
        raise EngineError(f"what was given to a layer ({name}) was changed in place afterwards; make a new tensor.")
    exact = next(use.layer.parameters()).dtype  # of the parameter, not of what autocast made of the products
    use.given, use.kept, use.slope = use.given.to(exact), use.kept.to(exact), use.slope.to(exact)
    for entry in RULES[type(use.layer)](use):
        if entry.parameter.requires_grad:
            yield entry


def _require_rule(name: str, layer: nn.Module) -> None:
    """Refuse what cannot be kept in the books."""
    what = f"{name or 'the module itself'} ({type(layer).__name__})"
    if isinstance(layer, _MIXES_USERS):
        raise EngineError(f"{what} mixes users: no gradient belongs to one of them. Use LayerNorm.")
    trained = [key for key, one in layer.named_parameters(recurse=False) if one.requires_grad]
    if trained and type(layer) not in RULES:
        known = ", ".join(sorted(one.__name__ for one in RULES))
        raise EngineError(
            f"{what} has parameters of its own ({', '.join(trained)}), and users' gradients of them are known for "
            f"these layers only: {known}. Freeze it, build it from these, or set `engine = 'opacus'`."
        )
