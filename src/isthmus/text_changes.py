"""What a federation changes of a text encoder that everybody has: matrices of low rank, of which one factor is fixed.

    changes = TextChanges(TextShape(layers=6, width=384, rank=4))
    changes.layer[0].query(x, None)            # (rows, tokens, width): what is added to the frozen query

Beside the query and the value of each layer's attention stands U D. D is public: it follows from the layer's name, so
it never travels and is the same everywhere. U starts at zero, so nothing is changed at first, and U alone is trained
(FFA-LoRA). Means of U over domains are then means of the changes themselves, and noise on U is noise on the change,
where noise on both factors would be multiplied with itself.

This module has the changes and nothing of the encoder: `isthmus.features.tuned` puts them beside its weights.

References: Sun, Li, Li and Ding, "Improving LoRA in Privacy-preserving Federated Learning", ICLR 2024 (FFA-LoRA); Hu et
al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022 (query and value).
"""

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

SCALE = 1 / 8
"""Of D, as LoRA has a scale beside its factors. With it users' gradients of the changes are about as long as those of
the weights by age, so that one clip and one learning rate do for both (docs/experiments.md has the lengths)."""

_NAME = re.compile(r"text\.layer\.([0-9]{1,4})\.(query|value)\.up\.weight")


@dataclass(frozen=True, kw_only=True)
class TextShape:
    """Of the changes.

    Attributes:
        layers: Of the encoder.
        width: Of its hidden states.
        rank: Of each change.
    """

    layers: int
    width: int
    rank: int


@dataclass(frozen=True)
class Rows:
    """Whose the texts of a batch are. A trained layer sees one row per user, with all of the user's tokens in it.

    Attributes:
        user: (texts,) place of its user among the users of the batch.
        slot: (texts,) place among its user's texts; no two of a user have the same.
        users: In the batch, those without a text included.
        slots: Most texts of a user.
    """

    user: Tensor
    slot: Tensor
    users: int
    slots: int

    def by_user(self, x: Tensor) -> Tensor:
        """(texts, tokens, width) to (users, slots * tokens, width), zeros where a user has fewer texts."""
        made = x.new_zeros(self.users, self.slots, *x.shape[1:]).index_put((self.user, self.slot), x)
        return made.flatten(1, 2)

    def by_text(self, x: Tensor) -> Tensor:
        """The way back."""
        found: Tensor = x.view(self.users, self.slots, -1, x.shape[-1])[self.user, self.slot]
        return found


class Change(nn.Module):
    """U D beside one frozen matrix; U is `up.weight`.

    Args:
        name: Of the matrix; D follows from it.
        width: In and out.
        rank: Of the change.
    """

    down: Tensor

    def __init__(self, name: str, *, width: int, rank: int) -> None:
        super().__init__()
        self.up = nn.Linear(rank, width, bias=False)
        nn.init.zeros_(self.up.weight)
        self.register_buffer("down", fixed_factor(name, rank=rank, width=width), persistent=False)

    def forward(self, x: Tensor, rows: Rows | None) -> Tensor:
        """What is added to the product: (texts, tokens, width) to the same shape.

        Args:
            x: What the frozen matrix is multiplied with.
            rows: Whose the texts are, in training; None where nobody asks.
        """
        low = functional.linear(x, self.down)  # (texts, tokens, rank)
        added: Tensor = self.up(low) if rows is None else rows.by_text(self.up(rows.by_user(low)))
        return added


class _Layer(nn.Module):
    def __init__(self, number: int, shape: TextShape) -> None:
        super().__init__()
        self.query = Change(f"layer.{number}.query", width=shape.width, rank=shape.rank)
        self.value = Change(f"layer.{number}.value", width=shape.width, rank=shape.rank)


class TextChanges(nn.Module):
    """The changes of all layers.

    Args:
        shape: Theirs.
    """

    def __init__(self, shape: TextShape) -> None:
        super().__init__()
        self.shape = shape
        self.layer = nn.ModuleList(_Layer(number, shape) for number in range(shape.layers))

    @property
    def any(self) -> bool:
        """Whether something is changed at all."""
        return any(bool(parameter.detach().any()) for parameter in self.parameters())

    def digest(self) -> str:
        """Hash of the changes, hex."""
        running = hashlib.sha256(repr(self.shape).encode())
        for name, parameter in self.named_parameters():
            running.update(name.encode() + parameter.detach().float().cpu().numpy().tobytes())
        return running.hexdigest()


def fixed_factor(name: str, *, rank: int, width: int) -> Tensor:
    """D of a matrix: (rank, width), uniform around 0 with variance `SCALE`^2 / rank, from a hash of its name and shape.

    D'D is then `SCALE`^2 times the identity on average, and a first step of U is so much of one of the whole matrix,
    seen through D: a learning rate means the same at every rank.
    """
    bits = hashlib.shake_256(f"isthmus text change {name} {rank}x{width}".encode()).digest(4 * rank * width)
    draws = (np.frombuffer(bits, "<u4").astype(np.float64) + 0.5) / 2.0**31 - 1
    return torch.from_numpy((draws * SCALE * math.sqrt(3 / rank)).reshape(rank, width).astype(np.float32))


def shape_in(tensors: Mapping[str, np.ndarray]) -> TextShape | None:
    """The shape of the changes that are among a backbone's parameters; None where there are none.

    Args:
        tensors: By name.

    Raises:
        ValueError: If they are of layers that do not follow each other, or no matrices: nothing is made of them then.
    """
    layers = {int(found[1]): tensor.shape for name, tensor in tensors.items() if (found := _NAME.fullmatch(name))}
    if not layers:
        return None
    shape = layers[max(layers)]
    if len(layers) != max(layers) + 1 or len(shape) != 2 or 0 in shape:
        raise ValueError(f"its changes of a text encoder are of layers {sorted(layers)[:5]}, the last one {shape}")
    return TextShape(layers=len(layers), width=shape[0], rank=shape[1])
