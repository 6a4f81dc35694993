"""The shared backbone: from a history of item features to what the next item's features look like.

    backbone = Backbone(features=384, config=BackboneConfig())
    query = backbone(histories)            # (users, positions, features)
    scores = query[:, -1] @ catalogue.T    # (users, items)

It starts as the training-free text prior, a decayed sum of the last items' features scaled to length
1. It learns how much each of these items counts (`recency`, a weight for each age), and a residual around that:
`query = prior + head(encoder(adaptor(history)))`, where the head starts at zero. So an untrained backbone *is* the
prior, and can be compared with it at every round.

Every parameter is met once per user in the forward pass (no tied weights, no in-batch statistics,
no whole-catalogue tensor in a hooked layer), which is what exact per-user clipping needs. The
attention is plain Linear layers and `scaled_dot_product_attention` for the same reason.

References: Kang and McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018 (the encoder);
Hou et al., "Towards Universal Sequence Representation Learning for Recommender Systems", KDD 2022
(text features and an adaptor); Xiong et al., "On Layer Normalization in the Transformer
Architecture", ICML 2020 (pre-LN).
"""

import fnmatch
import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from isthmus.config import BackboneConfig, Trained
from isthmus.text_changes import TextChanges, TextShape


class Positions(nn.Module):
    """Adds a learned vector to each position of a history."""

    def __init__(self, positions: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(positions, width))

    def forward(self, x: Tensor) -> Tensor:
        """(users, positions, width) to the same shape; histories may be shorter than the table."""
        return x + self.weight[: x.shape[1]]


class Recency(nn.Module):
    """Adds up the latest items of a history, with a learned weight for each age.

    Args:
        items: How many of them count.
        decay: Weight of an item / weight of the one after it, at first.
    """

    def __init__(self, items: int, decay: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(items) * math.log(decay))  # logarithms, from the latest item on

    def forward(self, history: Tensor) -> Tensor:
        """(users, positions, features) to the same shape; row t has seen items 0 to t."""
        return recent_sum(history, self.weights())

    def weights(self) -> Tensor:
        """(ages,) in [0, 1]: only ratios count, so the largest is 1 and none overflows, whatever noise made them."""
        return (self.weight - self.weight.detach().max()).exp()


class Block(nn.Module):
    """Pre-LN causal transformer block."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.norm_attention = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.norm_feedforward = nn.LayerNorm(width)
        self.expand = nn.Linear(width, config.feedforward)
        self.contract = nn.Linear(config.feedforward, width)

    def forward(self, x: Tensor) -> Tensor:
        """(users, positions, width) to the same shape; a position sees itself and older ones."""
        normed = self.norm_attention(x)
        attended = functional.scaled_dot_product_attention(
            self._split(self.query(normed)),
            self._split(self.key(normed)),
            self._split(self.value(normed)),
            is_causal=True,
        )
        x = x + self.output(attended.transpose(1, 2).flatten(2))
        x = x + self.contract(functional.gelu(self.expand(self.norm_feedforward(x))))
        return x

    def _split(self, x: Tensor) -> Tensor:
        """(users, positions, width) to (users, heads, positions, width / heads)."""
        users, positions, width = x.shape
        return x.view(users, positions, self.heads, width // self.heads).transpose(1, 2)


class Backbone(nn.Module):
    """The shared sequence encoder.

    Args:
        features: Dimensions of an item's whitened text features.
        config: Its shape.
        domains: That its domain classifier tells apart, in training only (see `isthmus.clients.alignment`); 0 for a
            backbone without one, which is what is shipped.
        text: Shape of its changes of the text encoder, where that is trained; None for a backbone without any. The
            encoder is none of its parameters: who has changed features of a history hands them over.

    Every parameter is shared: what is private to a domain (co-occurrence, popularity, blend weights) lives in
    `isthmus.clients.head` and is not a parameter of this module.
    """

    def __init__(
        self, features: int, config: BackboneConfig, *, domains: int = 0, text: TextShape | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.recency = Recency(config.prior_items, config.prior_decay)
        self.adaptor = nn.Linear(features, config.width)
        self.positions = Positions(config.positions, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, features, bias=False)
        nn.init.zeros_(self.head.weight)
        # Last, so that everything before it starts as it does without one. At zero it knows nothing, and moves nothing.
        self.domain_classifier = nn.Linear(config.width, domains) if domains else None
        if self.domain_classifier is not None:
            nn.init.zeros_(self.domain_classifier.weight)
            nn.init.zeros_(self.domain_classifier.bias)
        self.text = TextChanges(text) if text else None

    def forward(self, history: Tensor, read: Tensor | None = None) -> Tensor:
        """Predict the features of the item after each position.

        Args:
            history: (users, positions, features) of each user's items, oldest first, padded with zeros at the
                end. Attention is causal, so padding changes nothing at the positions before it.
            read: (users, positions, features) the same items by the changed text encoder; `history` where absent.

        Returns:
            (users, positions, features); row t has seen items 0 to t.
        """
        return self.prior(history if read is None else read) + self.residual(history)

    def residual(self, history: Tensor) -> Tensor:
        """What is learned: (users, positions, features) to the same shape."""
        x: Tensor = self.head(self.represent(history))
        return x

    def represent(self, history: Tensor) -> Tensor:
        """What the last layer reads, and domains are told apart by: (users, positions, features) to (..., width)."""
        x: Tensor = self.norm(self._encode(self.embed(history)))
        return x

    def residual_after(self, embedded: Tensor, lengths: Tensor) -> Tensor:
        """What is learned after whole histories: row `lengths - 1` of `residual`, the other rows left out at the end.

        Args:
            embedded: (users, positions, width) `embed` of each user's items, oldest first, anything behind them.
            lengths: (users,) items of each history, at least 1.

        Returns:
            (users, features).
        """
        x: Tensor = self.head(self.norm(self._encode(embedded)[torch.arange(len(lengths)), lengths - 1]))
        return x

    def embed(self, features: Tensor) -> Tensor:
        """What the encoder sees of items: (..., features) to (..., width)."""
        # Rows of unit length have entries of about 1 / sqrt(features); the adaptor's start expects about 1.
        x: Tensor = self.adaptor(features * math.sqrt(features.shape[-1]))
        return x

    def _encode(self, embedded: Tensor) -> Tensor:
        """(users, positions, width) to the same shape."""
        x: Tensor = self.positions(embedded)
        for block in self.blocks:
            x = block(x)
        return x

    def prior(self, history: Tensor) -> Tensor:
        """The text prior, with the weights that were learned: (users, positions, features) to the same shape."""
        return _direction(self.recency(history))


def text_prior(history: Tensor, config: BackboneConfig) -> Tensor:
    """Direction of the decayed sum of the last items' features: what an untrained backbone predicts.

    Args:
        history: (users, positions, features), as for `Backbone.forward`.
        config: Says how many items count, and how much.

    Returns:
        (users, positions, features); row t has seen items 0 to t.
    """
    ages = torch.arange(config.prior_items, device=history.device, dtype=history.dtype)
    return _direction(recent_sum(history, history.new_tensor(config.prior_decay) ** ages))


def recent_sum(history: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of the latest items at each position.

    Args:
        history: (users, positions, features).
        weights: (ages,) from the latest item on; older ones count nothing.

    Returns:
        (users, positions, features); row t has seen items 0 to t.
    """
    steps = torch.arange(history.shape[1], device=history.device)
    age = steps[:, None] - steps[None, :]  # (positions, positions), age of column's item at row
    counts = (age >= 0) & (age < len(weights))
    spread = torch.where(counts, weights[age.clamp(0, len(weights) - 1)], weights.new_zeros(()))
    total: Tensor = torch.einsum("ts,bsf->btf", spread.to(history.dtype), history)
    return total


def _direction(total: Tensor) -> Tensor:
    """The same vectors (..., features) at length 1; zero stays zero."""
    scaled: Tensor = total / (total.norm(dim=-1, keepdim=True) + 1e-6)
    return scaled


def shared_parameters(backbone: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that travel, and may be trained under privacy, by name: the one place that says which."""
    return dict(backbone.named_parameters())


_CLASSIFIER = "domain_classifier"

_TRAINED = {
    Trained.ALL: ("*",),
    Trained.RECENCY: ("recency.*",),
    Trained.ENDS: ("adaptor.*", "head.*", f"{_CLASSIFIER}.*"),
    Trained.HEAD: ("head.*",),
    Trained.TEXT: ("recency.*", "text.*"),
    Trained.LORA: (
        "adaptor.weight",
        *(f"blocks.*.{layer}.weight" for layer in ("query", "key", "value", "output")),
        "head.weight",
        f"{_CLASSIFIER}.*",
    ),
}
"""Patterns of names. Whatever is behind the head comes with it: the head starts at zero, and until it moves nothing
before it has a gradient."""


def trained_parameters(names: Iterable[str], train: Trained) -> tuple[str, ...]:
    """Those of the shared parameters that a recipe trains, in the same order; the others keep their first values."""
    return tuple(name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in _TRAINED[train]))


def learned_axes(backbone: nn.Module) -> bool:
    """Whether it predicts more than a sum of the history's features, so that it can read no other axes."""
    if not isinstance(backbone, Backbone):
        return True
    return bool(backbone.head.weight.detach().any()) or (backbone.text is not None and backbone.text.any)


def without_classifier(arrays: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """The shared parameters that serve: a domain classifier is of use in training only."""
    return {name: array for name, array in arrays.items() if name.partition(".")[0] != _CLASSIFIER}


def shared_arrays(backbone: nn.Module) -> dict[str, NDArray[np.float32]]:
    """Copies of the shared parameters by name, row by row in memory: what travels, and what a file holds."""
    return {name: parameter.detach().numpy().copy(order="C") for name, parameter in shared_parameters(backbone).items()}


def load_shared(backbone: nn.Module, arrays: Mapping[str, NDArray[np.float32]]) -> None:
    """Copy named arrays into the parameters of the same names; the way back from `shared_arrays`.

    Names are those of `shared_parameters` and not of `state_dict`, which a module may choose itself, as Opacus' `DPGRU`
    does. Buffers stay as they were made: the built-in backbone's are public constants, and a custom one has none.

    Args:
        backbone: Changed in place.
        arrays: One for each shared parameter, of its shape.

    Raises:
        ValueError: If one is missing, is of another shape, or belongs to no parameter; nothing is changed then.
    """
    shared = shared_parameters(backbone)
    if odd := sorted(shared.keys() ^ arrays.keys()):
        raise ValueError(f"its parameters are not those of its backbone: {odd[:5]}")
    for name, parameter in shared.items():
        if arrays[name].shape != tuple(parameter.shape):
            raise ValueError(f"parameter {name!r} must be of shape {tuple(parameter.shape)}, got {arrays[name].shape}")
    for name, parameter in shared.items():
        np.copyto(parameter.detach().numpy(), arrays[name])
