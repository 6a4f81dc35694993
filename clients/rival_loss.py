"""How far the next item is from the top of its rivals, without keeping the rivals' features in memory.

    loss = rival_loss(query, features, rivals, place, temperature, LossName.NDCG)      # (predictions,)

Item features are frozen, so only the query needs a gradient, and it can be computed while the features are at
hand: forward looks the rivals up a few predictions at a time, and keeps one vector per prediction. The value and
the gradient are those of the obvious gather and product, and of

| loss            | of a prediction with scores s, t the right one                                          |
|-----------------|-----------------------------------------------------------------------------------------|
| `cross_entropy` | -log softmax(s / temperature)_t                                                         |
| `ndcg`          | -1 / log2(1 + rank), rank = 1 + the sum over rivals j of sigmoid((s_j - s_t) / temperature) |

The second is ApproxNDCG (Qin, Liu and Li, "A general approximation framework for direct optimization of information
retrieval measures", Information Retrieval 2010): it looks at the top of the ranking, as what is measured does.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from isthmus.config import LossName

_BUFFER = 4_000_000
"""Features looked up at once, in numbers (16 MB)."""
_DENSE = 8
"""A catalogue of at most this many times the rivals is multiplied whole: cheaper than looking rivals up."""


def rival_loss(  # noqa: PLR0913, PLR0917 - filled in one after the other
    query: Tensor,
    features: Tensor,
    rivals: Tensor,
    place: Tensor,
    temperature: float,
    name: LossName = LossName.CROSS_ENTROPY,
) -> Tensor:
    """Loss of each prediction over its rivals.

    Args:
        query: (predictions, features); gradients flow to it.
        features: (items, features), frozen.
        rivals: (predictions, rivals) item indices.
        place: (predictions,) which rival is the right one.
        temperature: Of softmax or sigmoids.
        name: Which loss.

    Returns:
        (predictions,) losses; prediction p's depends on row p of each argument only.
    """
    loss: Tensor = _RivalLoss.apply(_LOSSES[name], query, features, rivals, place, temperature)  # type: ignore[no-untyped-call]
    return loss


class _RivalLoss(torch.autograd.Function):
    """Computes the gradient of the query in the forward pass."""

    @staticmethod
    def forward(  # noqa: PLR0913, PLR0917 - autograd passes them by position
        ctx: Any,
        judge: "Judge",
        query: Tensor,
        features: Tensor,
        rivals: Tensor,
        place: Tensor,
        temperature: float,
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
            loss[part], error = judge(scores, place[part].long().unsqueeze(1), temperature)
            if dense:
                whole = error.new_zeros(len(some), len(features)).scatter_(1, some, error)  # rivals are distinct
                slope[part] = whole @ features
            else:
                slope[part] = torch.bmm(error.unsqueeze(1), found).squeeze(1)
        ctx.save_for_backward(slope)
        return loss

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[None, Tensor, None, None, None, None]:
        (slope,) = ctx.saved_tensors
        return None, upstream[0].unsqueeze(1) * slope, None, None, None, None


Judge = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]
"""From scores (rows, rivals), the place of the right one (rows, 1) and a temperature to losses (rows,) and their
gradient in the scores (rows, rivals)."""


def _cross_entropy(scores: Tensor, right: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    scores = torch.log_softmax(scores / temperature, dim=1)
    error = scores.exp().scatter_add_(1, right, torch.full_like(right, -1, dtype=scores.dtype)) / temperature
    return -scores.gather(1, right).squeeze(1), error


def _ndcg(scores: Tensor, right: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    ahead = torch.sigmoid((scores - scores.gather(1, right)) / temperature).scatter_(1, right, 0.0)
    place = 2.0 + ahead.sum(dim=1)  # 1 + rank
    discount = torch.log2(place)
    steep = 1.0 / (discount.square() * place * math.log(2))  # of the loss in the rank
    error = steep.unsqueeze(1) * ahead * (1 - ahead) / temperature  # 0 at the right one, for now
    return -1.0 / discount, error.scatter_(1, right, -error.sum(dim=1, keepdim=True))


_LOSSES: dict[LossName, Judge] = {LossName.CROSS_ENTROPY: _cross_entropy, LossName.NDCG: _ndcg}
