"""Read the items of histories by a text encoder with changes: in training, user by user, and to serve.

    tower = TextTower(texts, "minilm", whitening)
    read = tower.read(backbone.text, history, needed)           # (users, positions, features), in training
    read = history_features(backbone, texts, "minilm", whitening, cache_dir=None)  # (items, features), to score

The towers are not alike: what is scored, and rivals, keep the frozen features, and only a history is read by the
changed encoder, pooled, brought to length 1, and whitened by the same constants. So without changes a history reads as
ever.

In training each user's items are encoded on rows of the user's own. An item that two users have is encoded twice, or
its gradient would belong to neither.
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from isthmus.backbone import Backbone
from isthmus.backbone_file import ShippedBackbone
from isthmus.config import Trained
from isthmus.custom_backbone import AnyBackbone
from isthmus.features import Whitening, default_cache_dir, encode_texts
from isthmus.features.model_folder import find_model_folder
from isthmus.features.tuned import changed, tuned_encoder
from isthmus.records import Recipe
from isthmus.text_changes import Rows, TextChanges

_PADDED = 1.25
"""A text shares a pass with texts that are at most this much longer."""


class TextTower:
    """A frozen text encoder and the tokens of one catalogue.

    Args:
        texts: Of the catalogue; a blank one says nothing and reads as zeros.
        encoder: A BERT by name, as in `[features]`.
        whitening: The constants of the frozen features.

    Attributes:
        tokens: (items,) tokens of each text; 0 for a blank one.

    Raises:
        ConfigError: If the encoder cannot be loaded.

    Guarantees:
        - A user's rows depend on no other user, to rounding: how long others' texts are decides how a pass is padded.
        - The encoder's weights stay what they are.
    """

    def __init__(self, texts: Sequence[str], encoder: str, whitening: Whitening) -> None:
        from isthmus.features.transformer import load_model, tokenised  # noqa: PLC0415 - seconds of imports

        self._folder = find_model_folder(encoder)
        tokenizer, self._model = load_model(self._folder)
        self._model.requires_grad_(False)
        readable = [text.encode("utf-8", "replace").decode() for text in texts]
        said = [row for row, text in enumerate(readable) if text.strip()]
        found = tokenised(self._folder, tokenizer, [readable[row] for row in said]) if said else []
        self.tokens = np.zeros(len(texts), np.int64)
        self.tokens[said] = [len(ids) for ids in found]
        self._first = np.cumsum(self.tokens) - self.tokens  # (items,) where a text begins in the tokens of all
        self._ids = torch.from_numpy(np.fromiter(itertools.chain.from_iterable(found), np.int32))
        self._mean = torch.from_numpy(whitening.mean.copy())
        self._matrix = torch.from_numpy(whitening.matrix.copy())

    def to(self, where: torch.device | torch.dtype) -> Self:
        """Move to another device, or to another precision."""
        self._model.to(where)
        self._mean, self._matrix = self._mean.to(where), self._matrix.to(where)
        if isinstance(where, torch.device):
            self._ids = self._ids.to(where)
        return self

    def read(self, changes: TextChanges, history: Tensor, needed: Tensor) -> Tensor:
        """Features of items, with gradients.

        Args:
            changes: Beside the encoder's weights.
            history: (users, positions) items.
            needed: (users, positions) which of them are encoded.

        Returns:
            (users, positions, features), zeros where nothing was needed or the text is blank.
        """
        at = needed.nonzero().cpu().numpy()  # (texts, 2), by user
        items = history[needed].cpu().numpy()
        said = self.tokens[items] > 0
        at, items = at[said], items[said]
        found = self._mean.new_zeros(*history.shape, self._matrix.shape[1])
        for some in _alike(self.tokens[items]):
            user, position = (torch.from_numpy(each.copy()).to(found.device) for each in at[some].T)
            features = self._encode(changes, items[some], _rows(at[some, 0], users=len(history), device=found.device))
            found = found.index_put((user, position), features.to(found.dtype))
        return found

    def _encode(self, changes: TextChanges, items: NDArray[np.int64], rows: Rows) -> Tensor:
        """(texts, features) of one pass; what is behind a text is looked at by nobody."""
        first, lengths = (torch.from_numpy(each[items]).to(self._ids.device) for each in (self._first, self.tokens))
        place = torch.arange(int(self.tokens[items].max()), device=self._ids.device)
        mask = place < lengths[:, None]  # (texts, tokens)
        at = (first[:, None] + place).clamp(max=len(self._ids) - 1)
        ids = self._ids[at].long().masked_fill(~mask, 0)
        with changed(self._model, changes, rows):
            hidden: Any = self._model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        if self._folder.pooling == "cls":
            pooled = hidden[:, 0]
        else:
            pooled = (hidden * mask[:, :, None]).sum(dim=1) / lengths[:, None]
        features = functional.normalize(pooled.to(self._mean.dtype), dim=1)
        return functional.normalize((features - self._mean) @ self._matrix, dim=1)


def tower_for(recipe: Recipe, texts: Sequence[str], whitening: Whitening) -> TextTower | None:
    """What a domain trains with under a recipe; None where it trains no text encoder."""
    return TextTower(texts, recipe.features.encoder, whitening) if recipe.training.train is Trained.TEXT else None


def history_features(
    backbone: AnyBackbone, texts: Sequence[str], encoder: str, whitening: Whitening, *, cache_dir: Path | None
) -> Tensor | None:
    """(items, features) of a catalogue as a backbone reads histories; None where it reads the frozen ones.

    Args:
        backbone: May have changes of the text encoder.
        texts: Of the catalogue.
        encoder: That is changed.
        whitening: The constants of the frozen features.
        cache_dir: Where what the changed encoder makes of them is kept, by the changes' digest; None keeps nothing.

    Raises:
        ConfigError: If the encoder is not here, or is none that the changes are of.
    """
    changes = backbone.text if isinstance(backbone, Backbone) else None
    if changes is None or not changes.any:
        return None
    encoded = encode_texts(texts, tuned_encoder(encoder, changes), cache_dir=cache_dir)
    return torch.from_numpy(whitening.apply(encoded))


def shipped_reading(shipped: ShippedBackbone, texts: Sequence[str]) -> Tensor | None:
    """As `history_features`, of a backbone that serves: encoded once, and kept in the cache."""
    encoder = shipped.features.encoder
    return history_features(shipped.backbone, texts, encoder, shipped.whitening, cache_dir=default_cache_dir())


def _alike(lengths: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Places of texts that are about as long, so that little of a pass is padding; each place once."""
    order = np.argsort(lengths, kind="stable")
    start = 0
    while start < len(order):
        shortest = lengths[order[start]]
        stop = int(np.searchsorted(lengths[order], max(shortest * _PADDED, shortest + 2), "right"))
        yield np.sort(order[start:stop])
        start = stop


def _rows(owners: NDArray[np.int64], *, users: int, device: torch.device) -> Rows:
    """Of texts by their users, whose places ascend."""
    first = np.searchsorted(owners, owners)
    slot = np.arange(len(owners)) - first
    user, place = (torch.from_numpy(each.copy()).to(device) for each in (owners, slot))
    return Rows(user=user, slot=place, users=users, slots=int(slot.max()) + 1)
