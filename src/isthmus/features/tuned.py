"""A text encoder with a federation's changes: what it may be, and what it makes of a catalogue.

    shape = text_shape(recipe.features, recipe.training)       # None unless the recipe trains the encoder
    encoded = encode_texts(texts, tuned_encoder("minilm", backbone.text), cache_dir=...)

The frozen encoder and the whitening are those that make item features; what is changed is how the items of a *history*
are read. Encoders are those whose attention is BERT's. Not imported by `isthmus.features`, because it imports torch.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from isthmus.config import FeatureConfig, Trained, TrainingConfig
from isthmus.errors import ConfigError
from isthmus.features.model_folder import ModelFolder, find_model_folder
from isthmus.text_changes import Rows, TextChanges, TextShape

_FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert")
"""Whose layers are `encoder.layer.N.attention.self.query` and `.value`."""


def text_shape(features: FeatureConfig, training: TrainingConfig) -> TextShape | None:
    """Shape of the changes that a recipe trains; None where it trains no text encoder. No weights are loaded.

    Raises:
        ConfigError: If the encoder is not here, is made in another way than BERT, or is narrower than the rank.
    """
    if training.train is not Trained.TEXT:
        return None
    assert training.rank is not None  # noqa: S101 - or the configuration were refused
    shape = _shape(find_model_folder(features.encoder), rank=training.rank)
    if shape.rank > shape.width:
        raise ConfigError(
            f"`training.rank` is {shape.rank}, and encoder {features.encoder!r} is {shape.width} wide: no matrix of it "
            f"has a higher rank than that; 4 is a usual one"
        )
    return shape


def _shape(folder: ModelFolder, *, rank: int) -> TextShape:
    """Shape of changes of an encoder.

    Raises:
        ConfigError: If it cannot have any.
    """
    config = json.loads((folder.path / "config.json").read_text(encoding="utf-8"))
    layers = config.get("num_hidden_layers")
    if config.get("model_type") not in _FAMILIES or not isinstance(layers, int):
        raise ConfigError(
            f'`train = "text"` changes the attention of a BERT ({", ".join(_FAMILIES)}), and encoder '
            f"{folder.name!r} is of type {config.get('model_type')!r}; choose another, or train something else"
        )
    return TextShape(layers=layers, width=folder.dim, rank=rank)


@contextmanager
def changed(model: Any, changes: TextChanges, rows: Rows | None) -> Iterator[None]:
    """While this lasts, a transformers model computes with the changes; its weights are not touched.

    Args:
        model: A BERT of as many layers.
        changes: Beside them.
        rows: As for `Change.forward`.
    """
    with ExitStack() as stack:
        for layer, change in zip(model.encoder.layer, changes.layer, strict=True):
            for name, one in change.named_children():
                frozen = getattr(layer.attention.self, name)
                stack.callback(frozen.register_forward_hook(partial(_add, one, rows)).remove)
        yield


def _add(change: nn.Module, rows: Rows | None, frozen: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> Tensor:
    del frozen
    added: Tensor = change(given[0], rows)
    return made + added.to(made.dtype)


@dataclass(frozen=True, kw_only=True)
class TunedEncoder:
    """An `Encoder` (see `isthmus.features.encoders`) with changes.

    Attributes:
        folder: Of the frozen weights.
        changes: Beside them.
    """

    folder: ModelFolder
    changes: TextChanges

    @property
    def identity(self) -> str:
        """As that of the folder, changes included."""
        return f"{self.folder.identity} changed by {self.changes.digest()}"

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return self.folder.dim

    def encode(
        self, texts: Sequence[str], *, threads: int | None
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """As `ModelFolder.encode`."""
        from isthmus.features.transformer import encode_batches  # noqa: PLC0415 - seconds of imports, when needed

        yield from encode_batches(self.folder, texts, threads, changes=self.changes)


def tuned_encoder(encoder: str, changes: TextChanges) -> TunedEncoder:
    """The encoder of that name, with changes.

    Raises:
        ConfigError: If it is not here, or is none that these are changes of.
    """
    there = changes.shape
    try:
        folder = find_model_folder(encoder)
        here = _shape(folder, rank=there.rank)
        if folder.int8 or here != there:
            bits = " in 8 bits" if folder.int8 else ""
            raise ConfigError(
                f"encoder {encoder!r} has {here.layers} layers of width {here.width}{bits} here, and the changes are "
                f"of {there.layers} layers of width {there.width}; put the model there that the run was trained with"
            )
    except ConfigError as error:
        raise ConfigError(f"this backbone has changes of its text encoder and needs it to serve: {error}") from None
    return TunedEncoder(folder=folder, changes=changes)
