"""GRU4Rec as a backbone of Isthmus: a gated recurrent unit over the items of a history.

    pip install ./examples/gru4rec
    isthmus doctor --backbone gru4rec

The encoder of Hidasi et al., with three differences. An item comes in by its text features, not by a learned vector, so
that catalogues need not overlap. States are normalised before the last layer: they are small at first, and under noise
there is no time to grow. What goes out is the text prior and a learned change of it, which is zero at first. The loss
is the federation's.

It is made of `nn.Linear` alone: torch's own GRU computes in one kernel that no user's gradient can be told from.

References: Hidasi, Karatzoglou, Baltrunas and Tikk, "Session-based Recommendations with Recurrent Neural Networks",
ICLR 2016; Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder", EMNLP 2014 (the unit).
"""

import math

import torch
from torch import Tensor, nn

from isthmus.backbone import text_prior
from isthmus.config import BackboneConfig


class Recurrent(nn.Module):
    """A gated recurrent unit.

    Args:
        width: Of what goes in, and of the state.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.given = nn.Linear(width, 3 * width)
        self.kept = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor) -> Tensor:
        """(users, positions, width) to the same shape: the state after each position."""
        given = self.given(x)  # of all positions at once
        state, states = x.new_zeros(len(x), self.width), []
        for at in range(x.shape[1]):
            reset, update, new = given[:, at].chunk(3, dim=1)
            old_reset, old_update, old = self.kept(state).chunk(3, dim=1)
            candidate = torch.tanh(new + torch.sigmoid(reset + old_reset) * old)
            keep = torch.sigmoid(update + old_update)
            state = (1 - keep) * candidate + keep * state
            states.append(state)
        return torch.stack(states, dim=1)


class GRU4Rec(nn.Module):
    """The sequence encoder.

    Args:
        features: Dimensions of an item's whitened text features.
        config: Of it, `width`, `layers` and the prior's settings are read.
    """

    def __init__(self, features: int, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.adaptor = nn.Linear(features, config.width)
        self.layers = nn.Sequential(*(Recurrent(config.width) for _ in range(config.layers)))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, features, bias=False)
        nn.init.zeros_(self.head.weight)  # so that it starts as the text prior

    def forward(self, history: Tensor) -> Tensor:
        """(users, positions, features) to the same shape; row t has seen items 0 to t."""
        # Rows of unit length have entries of about 1 / sqrt(features); layers expect about 1.
        states = self.layers(self.adaptor(history * math.sqrt(history.shape[-1])))
        query: Tensor = text_prior(history, self.config) + self.head(self.norm(states))
        return query
