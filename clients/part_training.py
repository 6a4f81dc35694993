"""Train a part of the backbone: fewer coordinates carry noise.

    part = TrainedPart(backbone, training, randomness)      # freezes what is not trained; factors in place of matrices
    ...                                                     # train `part.parameters`
    update = part.finish()                                  # the backbone is whole again, moved

Which parameters a name stands for says `isthmus.backbone.trained_parameters`. What is not trained keeps its value to
the bit, is in no update, and adds nothing to a norm.

`lora` trains factors of low rank beside frozen matrices, W + U D, and what leaves is U D, multiplied out: averages over
domains are then exact (a mean of products is not the product of means), nobody else needs to know that there were
factors, and a backbone serves as fast as any. It costs bytes: an update is as large as the matrices. Factors live for a
round; the next one starts from the moved matrices with new ones, so that the backbone moves by more than one rank.

`text` has factors that live as long as the run (`isthmus.text_changes`); to this module they are parameters like any.

References: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022; Yu et al., "Differentially
Private Fine-tuning of Language Models", ICLR 2022 (under noise).
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from isthmus.backbone import shared_parameters, trained_parameters
from isthmus.config import Trained, TrainingConfig
from isthmus.custom_backbone import AnyBackbone
from isthmus.encoding import Arrays
from isthmus.privacy.noise import Randomness

_WHOLE = ("head.weight", "domain_classifier.weight", "domain_classifier.bias")
"""What `lora` trains whole. The head starts at zero, and with it everything else stands still; a domain classifier is
small."""


class LowRank(nn.Module):
    """A frozen linear layer and a trained change of its matrix, of low rank.

    Args:
        base: The layer.
        start: (rank, in) where the factor D starts; U starts at zero, so nothing changes at first.
    """

    def __init__(self, base: nn.Linear, start: Tensor) -> None:
        super().__init__()
        rank, width = start.shape
        self.base = base
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        with torch.no_grad():
            self.down.weight = nn.Parameter(start)
            self.up.weight = nn.Parameter(start.new_zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        out: Tensor = self.base(x) + self.up(self.down(x))
        return out

    def merged(self) -> nn.Linear:
        """The layer with its change added."""
        with torch.no_grad():
            self.base.weight += self.up.weight @ self.down.weight
        return self.base


class TrainedPart:
    """The part of a backbone that one round trains.

    Args:
        backbone: Changed until `finish`.
        training: Says which part.
        randomness: Where factors start; drawn from only where there are some.

    Attributes:
        parameters: By name, in the module's order; nothing else has a gradient.
    """

    parameters: dict[str, nn.Parameter]

    def __init__(self, backbone: AnyBackbone, training: TrainingConfig, randomness: Randomness) -> None:
        self._backbone = backbone
        self._shared = shared_parameters(backbone)
        self._names = trained_parameters(self._shared, training.train)
        self._before = {name: self._shared[name].detach().clone() for name in self._names}
        for name, parameter in self._shared.items():
            parameter.requires_grad_(name in self._names)
        if training.train is Trained.LORA:
            assert training.rank is not None  # noqa: S101 - or the configuration were refused
            for name in self._names:
                if name not in _WHOLE:
                    self._replace(name.removesuffix(".weight"), training.rank, randomness)
        self.parameters = {name: one for name, one in backbone.named_parameters() if one.requires_grad}

    def finish(self) -> Arrays:
        """Put the backbone together again; the update, new minus old, of each shared parameter that was trained."""
        for name, layer in list(self._backbone.named_modules()):
            if isinstance(layer, LowRank):
                self._put(name, layer.merged())
        for parameter in self._shared.values():
            parameter.requires_grad_(True)
        return {name: (self._shared[name].detach() - self._before[name]).cpu().numpy() for name in self._names}

    def _replace(self, name: str, rank: int, randomness: Randomness) -> None:
        """Factors beside a layer's matrix, which is frozen."""
        base = self._backbone.get_submodule(name)
        assert isinstance(base, nn.Linear)  # noqa: S101 - what `lora` stands for
        base.weight.requires_grad_(False)
        # Of mean 0 and variance 1 / rank: D'D is then the identity on average, and a first step of U is one of the
        # whole matrix, seen through D. So a learning rate means what it means without factors.
        draws = 2 * randomness.uniform(rank * base.in_features) - 1
        start = torch.from_numpy((draws * math.sqrt(3 / rank)).reshape(rank, -1).astype(np.float32))
        self._put(name, LowRank(base, start.to(base.weight)))

    def _put(self, name: str, layer: nn.Module) -> None:
        """Another layer under a name."""
        parent, _, last = name.rpartition(".")
        setattr(self._backbone.get_submodule(parent), last, layer)
