"""Score a catalogue with a backbone: the same small interface as the local methods.

scorer = BackboneScorer(backbone, features)
scores = scorer.score(histories, users)      # (users, items)
"""

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
        self._query = backbone.residual if residual_only else backbone.forward

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
            queries = self._query(self._features[torch.from_numpy(padded)])  # (users, width, features)
            last = queries[torch.arange(len(rows)), (lengths - 1).clamp(min=0)]  # (users, features)
            scores = (last * (lengths > 0)[:, None]) @ self._features.T
        return scores.numpy()
