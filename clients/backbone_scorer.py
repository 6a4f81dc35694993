"""Score a catalogue with a backbone: the same small interface as the local methods.

scorer = BackboneScorer(backbone, features)
scores = scorer.score(histories, users)      # (users, items)
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isthmus.backbone import Backbone
from isthmus.clients.data import Histories


class BackboneScorer:
    """Ranks by the inner product of a predicted query with each item's features.

    Args:
        backbone: Any; it behaves alike in training and evaluation mode.
        features: (items, features) whitened text features.
        residual_only: Leave the text prior out, i.e. score with what was learned.
    """

    def __init__(self, backbone: Backbone, features: Tensor, *, residual_only: bool = False) -> None:
        self._backbone = backbone
        self._features = features
        self._residual_only = residual_only
        with torch.inference_mode():
            self._embedded = backbone.embed(features)  # (items, width): once for all, not for each event of a history

    def score(self, histories: Histories, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """(users, items) scores after each user's whole history; zeros for an empty one."""
        rows = [histories.row(int(user))[-self._backbone.config.positions :] for user in users]
        width = max((len(row) for row in rows), default=0)
        if width == 0:
            return np.zeros((len(users), len(self._features)), np.float32)
        padded = np.zeros((len(rows), width), np.int64)
        for i, row in enumerate(rows):
            padded[i, : len(row)] = row
        lengths = torch.tensor([len(row) for row in rows])
        with torch.inference_mode():
            query = self._backbone.residual_after(self._embedded[torch.from_numpy(padded)], lengths.clamp(min=1))
            if not self._residual_only:
                latest = latest_features(rows, self._features, self._backbone.config.prior_items)
                query = query + self._backbone.prior(latest)[:, -1]  # (users, features)
            scores = (query * (lengths > 0)[:, None]) @ self._features.T
        return scores.numpy()


def latest_features(rows: Sequence[NDArray[np.int32]], features: Tensor, count: int) -> Tensor:
    """Features of the latest items of some histories, as the text prior reads them.

    Args:
        rows: Per history, its items, oldest first.
        features: (items, features).
        count: Latest items that are read.

    Returns:
        (histories, count, features), zeros before the first item.
    """
    at = np.full((len(rows), count), -1, np.int64)
    for i, row in enumerate(rows):
        latest = row[-count:]
        at[i, count - len(latest) :] = latest
    found = features[torch.from_numpy(at.clip(0))]
    found[torch.from_numpy(at < 0)] = 0.0
    return found
