"""Score a catalogue with a backbone: the same small interface as the local methods.

scorer = BackboneScorer(backbone, features)
scores = scorer.score(histories, users)      # (users, items)
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isthmus.backbone import Backbone, text_prior
from isthmus.clients.data import Histories
from isthmus.custom_backbone import AnyBackbone

_SAMPLE = 4096
"""Items, or a few more, on which users are sifted: at even distances in the catalogue."""
_WORTHWHILE = 4  # times the sample that a catalogue must have
_SIFTED = 256  # users at once


class BackboneScorer:
    """Ranks by the inner product of a predicted query with each item's features.

    Args:
        backbone: Any; it behaves alike in training and evaluation mode.
        features: (items, features) whitened text features.
        residual_only: Leave the text prior out, i.e. score with what was learned.
        read: (items, features) as the items of a history are read, where the text encoder was changed; `features` where
            absent.
    """

    def __init__(
        self, backbone: AnyBackbone, features: Tensor, *, residual_only: bool = False, read: Tensor | None = None
    ) -> None:
        self._backbone = backbone
        self._features = features
        self._read = features if read is None else read
        self._residual_only = residual_only
        self._embedded: Tensor | None = None  # where nothing was learned, the residual is zero, whatever the history
        with torch.inference_mode():
            if isinstance(backbone, Backbone) and backbone.head.weight.any():
                self._embedded = backbone.embed(features)  # (items, width): once, not for each event of a history
            self._sample = torch.arange(0, len(features), max(len(features) // _SAMPLE, 1))
            self._largest = float(features.norm(dim=1).max()) if len(features) else 0.0

    def score(self, histories: Histories, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """(users, items) scores after each user's whole history; zeros for an empty one."""
        with torch.inference_mode():
            scores = self._queries(histories, users) @ self._features.T
        return scores.numpy()

    def beyond(
        self, histories: Histories, users: NDArray[np.int64], targets: NDArray[np.int32], k: int
    ) -> NDArray[np.bool_]:
        """As `Sifter.beyond`: k items of a fixed sample, none of them seen, beat the target by more than rounding."""
        found = np.zeros(len(users), dtype=np.bool_)
        if len(self._features) < _WORTHWHILE * _SAMPLE:
            return found
        place = np.full(len(self._features), -1)
        place[self._sample.numpy()] = np.arange(len(self._sample))
        features = self._features[self._sample]  # (sample, features)
        # A product of n terms is off by n / 2 epsilons at most; there are four of them, and a query is off by less.
        rounding = 1e-4 + 4 * features.shape[1] * torch.finfo(features.dtype).eps
        for start in range(0, len(users), _SIFTED):
            some = slice(start, start + _SIFTED)
            with torch.inference_mode():
                query = self._queries(histories, users[some])
                own = (query * self._features[torch.from_numpy(targets[some].astype(np.int64))]).sum(dim=1)
                bar = own + rounding * self._largest * query.norm(dim=1)
                ahead = ((query @ features.T) > bar[:, None]).numpy()  # (users, sample); False for NaN
            seen = histories.take(users[some])
            row, at = np.repeat(np.arange(len(seen)), seen.lengths()), place[seen.items]
            row, at = row[at >= 0], at[at >= 0]
            # A seen item is out of the race; that one counted twice is taken off twice only makes this less sure.
            out = np.bincount(row[ahead[row, at]], minlength=len(seen))
            found[some] = ahead.sum(axis=1) - out >= k
        return found

    def _queries(self, histories: Histories, users: NDArray[np.int64]) -> Tensor:
        """(users, features) what each user's whole history asks for; zeros for an empty one."""
        rows = [histories.row(int(user))[-self._backbone.config.positions :] for user in users]
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        width = max((len(row) for row in rows), default=0)
        query = self._features.new_zeros((len(rows), self._features.shape[1]))
        if width == 0:
            return query
        backbone, last = self._backbone, lengths.clamp(min=1)
        latest = latest_features(rows, self._read, backbone.config.prior_items)
        if not isinstance(backbone, Backbone):
            query = backbone(self._features[_padded(rows, width)])[torch.arange(len(rows)), last - 1]
            if self._residual_only:
                query = query - text_prior(latest, backbone.config)[:, -1]
        elif self._embedded is not None:
            query = backbone.residual_after(self._embedded[_padded(rows, width)], last)
        if isinstance(backbone, Backbone) and not self._residual_only:
            query = query + backbone.prior(latest)[:, -1]
        return query * (lengths > 0)[:, None]


def _padded(rows: Sequence[NDArray[np.int32]], width: int) -> Tensor:
    """(histories, width) items, the first one of the catalogue behind each history: what is behind is not looked at."""
    padded = np.zeros((len(rows), width), np.int64)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return torch.from_numpy(padded)


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
