"""Cross-entropy of the next item against its rivals, without keeping the rivals' features in memory.

    loss = rival_loss(query, features, rivals, place, temperature)      # (predictions,)

Item features are frozen, so only the query needs a gradient, and it can be computed while the features are at
hand: forward looks the rivals up a few predictions at a time, and keeps one vector per prediction. The value and
the gradient are those of the obvious gather, product and `cross_entropy`.
"""

from typing import Any

import torch
from torch import Tensor

_BUFFER = 4_000_000
"""Features looked up at once, in numbers (16 MB)."""
_DENSE = 8
"""A catalogue of at most this many times the rivals is multiplied whole: cheaper than looking rivals up."""


def rival_loss(query: Tensor, features: Tensor, rivals: Tensor, place: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of each prediction over its rivals.

    Args:
        query: (predictions, features); gradients flow to it.
        features: (items, features), frozen.
        rivals: (predictions, rivals) item indices.
        place: (predictions,) which rival is the right one.
        temperature: Of the softmax.

    Returns:
        (predictions,) losses; prediction p's depends on row p of each argument only.
    """
    loss: Tensor = _RivalLoss.apply(query, features, rivals, place, temperature)  # type: ignore[no-untyped-call]
    return loss


class _RivalLoss(torch.autograd.Function):
    """Computes the gradient of the query in the forward pass."""

    @staticmethod
    def forward(  # noqa: PLR0913, PLR0917 - autograd passes them by position
        ctx: Any, query: Tensor, features: Tensor, rivals: Tensor, place: Tensor, temperature: float
    ) -> Tensor:
        loss, slope = torch.empty_like(query[:, 0]), torch.empty_like(query)
        dense = len(features) <= _DENSE * rivals.shape[1]
        rows = max(1, _BUFFER // (len(features) if dense else rivals.shape[1] * features.shape[1]))
        for start in range(0, len(query), rows):
            part = slice(start, start + rows)
            some = rivals[part].long()
            if dense:
                scores = (query[part] @ features.T).gather(1, some)  # (rows, rivals)
            else:
                found = features[some]  # (rows, rivals, features)
                scores = torch.bmm(found, query[part].unsqueeze(2)).squeeze(2)
            scores = torch.log_softmax(scores / temperature, dim=1)
            right = place[part].long().unsqueeze(1)
            loss[part] = -scores.gather(1, right).squeeze(1)
            error = scores.exp().scatter_add_(1, right, torch.full_like(right, -1, dtype=scores.dtype)) / temperature
            if dense:
                whole = error.new_zeros(len(some), len(features)).scatter_(1, some, error)  # rivals are distinct
                slope[part] = whole @ features
            else:
                slope[part] = torch.bmm(error.unsqueeze(1), found).squeeze(1)
        ctx.save_for_backward(slope)
        return loss

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
        (slope,) = ctx.saved_tensors
        return upstream[0].unsqueeze(1) * slope, None, None, None, None
