"""Cross-entropy over a whole catalogue, without a table of users times items at any time.

    loss = CatalogueSoftmax(features, adaptor=backbone.adaptor)
    losses = loss(hidden, target, weight)                   # (users,)

Item features are frozen. With them alone the scores of a prediction are `h . E / temperature`; with a tied adaptor they
are `h . (E W' + b) / temperature`, and the adaptor learns from the item side too. Predictions are worked through some
at a time; what is kept of each is one vector, `(softmax - onehot) E`, from which every gradient follows:
since its row sums to 0, the bias gets nothing, the hidden state gets that vector times W', and the adaptor's weight
gets the hidden state's outer product with it.

Reference: Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models", ICLR 2025 (the chunked loss).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_BUFFER = 2_500_000
"""Scores that exist at once, in numbers (10 MB)."""


class CatalogueSoftmax(nn.Module):
    """Each user's loss: cross-entropy of next items against all items, weighed over the user's positions.

    Args:
        features: (items, features) of the catalogue, frozen.
        adaptor: Linear layer from features to hidden states, shared with the module that reads histories. Where absent,
            hidden states are compared with the features themselves.
        temperature: Of the softmax.
        products: Precision of `(softmax - onehot) E`. In bfloat16 the gradient is off by some 1e-3 of its length; what
            is measured and what is summed are the same stored values, so a clipped user still adds at most C.

    Guarantees:
        - User i's loss depends on row i of each argument only.
        - The bound of a clipped sum does not depend on `products`.
    """

    features: Tensor

    def __init__(
        self,
        features: Tensor,
        *,
        adaptor: nn.Linear | None = None,
        temperature: float = 1.0,
        products: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("features", features, persistent=False)
        self.adaptor = adaptor
        self.temperature = temperature
        self.products = products or features.dtype
        self.rows = features.new_zeros(0)
        """(users, positions, features) of the last call: for every position the vector that is kept, times weight."""

    def forward(self, hidden: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """Losses of some users.

        Args:
            hidden: (users, positions, width).
            target: (users, positions) item that came next; any where the weight is 0.
            weight: (users, positions) share of a position in its user's loss. Where it is 0 nothing is computed.

        Returns:
            (users,); a user without weight has 0.
        """
        matrix, bias = (None, None) if self.adaptor is None else (self.adaptor.weight, self.adaptor.bias)
        losses: Tensor
        losses, rows = _Fused.apply(  # type: ignore[no-untyped-call]
            hidden, matrix, bias, self.features, target, weight, self.temperature, self.products
        )
        self.rows = rows
        return losses


class _Fused(torch.autograd.Function):
    """Computes what every gradient needs in the forward pass."""

    @staticmethod
    def forward(  # noqa: PLR0913, PLR0917 - autograd passes them by position
        ctx: Any,
        hidden: Tensor,
        matrix: Tensor | None,
        bias: Tensor | None,
        features: Tensor,
        target: Tensor,
        weight: Tensor,
        temperature: float,
        products: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        valid = weight > 0
        state, share, right = hidden[valid], weight[valid].to(hidden.dtype), target[valid]
        items = features if matrix is None else functional.linear(features, matrix, bias)  # (items, width)
        table = features.to(products)
        loss, kept = state.new_empty(len(state)), state.new_empty(len(state), features.shape[1])
        size = max(1, _BUFFER // len(features))
        buffer = state.new_empty(min(size, max(len(state), 1)), len(features))
        for start in range(0, len(state), size):
            part = slice(start, start + size)
            scores = torch.mm(state[part], items.T, out=buffer[: len(state[part])]).div_(temperature)
            own = scores.gather(1, right[part, None])
            top = scores.amax(dim=1, keepdim=True)
            shares = scores.sub_(top).exp_()  # in place: the buffer now holds the softmax, not yet divided
            total = shares.sum(dim=1, keepdim=True)
            loss[part] = (total.log() + top - own).squeeze(1)
            mean = (shares.to(products) @ table).to(kept.dtype)
            kept[part] = mean.div_(total).sub_(features[right[part]])
        kept *= share[:, None] / temperature
        losses = hidden.new_zeros(weight.shape).masked_scatter(valid, loss * share).sum(dim=1)
        rows = hidden.new_zeros(*weight.shape, features.shape[1])
        rows[valid] = kept
        ctx.save_for_backward(hidden, matrix, rows)
        ctx.mark_non_differentiable(rows)
        return losses, rows

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, matrix, rows = ctx.saved_tensors
        slope = upstream[0][:, None, None]
        to_hidden = (rows if matrix is None else rows @ matrix.T) * slope
        to_matrix = None
        if matrix is not None and ctx.needs_input_grad[1]:
            to_matrix = (hidden * slope).flatten(0, 1).T @ rows.flatten(0, 1)
        return to_hidden, to_matrix, None, None, None, None, None, None
