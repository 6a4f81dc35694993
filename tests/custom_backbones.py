"""Custom backbones that are good, and one for each line of the protocol that breaks it; and how they are installed.

    place = installed(tmp_path / "site", {"gru4rec": "isthmus_gru4rec:GRU4Rec"})    # for sys.path or PYTHONPATH

What is written there is what `pip install` writes and `importlib.metadata` reads: a dist-info with entry points.
"""

import shutil
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from opacus.layers import DPGRU, DPLSTM
from opacus.layers.dp_rnn import DPRNNBase
from torch import Tensor, nn
from torch.nn import functional

from isthmus.backbone import text_prior
from isthmus.config import BackboneConfig

EXAMPLE = Path(__file__).parents[1] / "examples" / "gru4rec"


def installed(folder: Path, names: Mapping[str, str]) -> Path:
    """Put a distribution with these entry points into a folder; the example's module lies beside it."""
    info = folder / f"{folder.name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {folder.name}\nVersion: 1.0\n")
    lines = "\n".join(f"{name} = {value}" for name, value in names.items())
    (info / "entry_points.txt").write_text(f"[isthmus.backbones]\n{lines}\n")
    shutil.copy(EXAMPLE / "isthmus_gru4rec.py", folder)
    return folder


def telltale(folder: Path) -> Path:
    """Write a package whose code leaves a file `ran` beside it when it is imported; its encoder is a good one.

    Returns:
        The module file of the encoder; the entry point is `telltale.encoder:Encoder`.
    """
    package = folder / "telltale"
    package.mkdir()
    tell = "from pathlib import Path\nPath(__file__).parents[1].joinpath('ran').touch()\n"
    (package / "__init__.py").write_text(tell)
    (package / "encoder.py").write_text(f"{tell}from tests.custom_backbones import Pointwise as Encoder\nVERSION = 1\n")
    return package / "encoder.py"


def forget_telltale(folder: Path) -> None:
    """As if no process had imported it."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "telltale"]:
        del sys.modules[name]
    (folder / "ran").unlink(missing_ok=True)


def example_entry_points() -> dict[str, str]:
    """As the example's own package declares them."""
    declared = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())
    found: dict[str, str] = declared["project"]["entry-points"]["isthmus.backbones"]
    return found


class Gated(nn.Module):
    """Opacus' own GRU around the prior: good, and of a layer that books have no rule for."""

    unit_type: type[DPRNNBase] = DPGRU

    def __init__(self, features: int, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.unit = self.unit_type(features, config.width, batch_first=True)
        self.head = nn.Linear(config.width, features, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, history: Tensor) -> Tensor:
        """The prior and a change of it."""
        states: Tensor = self.unit(history)[0]
        return text_prior(history, self.config) + self.head(states)


class LongShort(Gated):
    """The same of Opacus' LSTM."""

    unit_type = DPLSTM


class Pointwise(nn.Module):
    """The smallest good one, for others to go wrong in one way."""

    def __init__(self, features: int, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.expand = nn.Linear(features, config.width)
        self.head = nn.Linear(config.width, features, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, history: Tensor) -> Tensor:
        """The prior and a change of it."""
        return text_prior(history, self.config) + self.head(self.hidden(history))

    def hidden(self, history: Tensor) -> Tensor:
        """(users, positions, width)."""
        return torch.tanh(self.expand(history))


class Centred(Pointwise):
    """Adds a vector that is a parameter of its own, `mean`: good, under most names."""

    def __init__(self, features: int, config: BackboneConfig) -> None:
        super().__init__(features, config)
        self.mean = nn.Parameter(torch.zeros(config.width))

    def hidden(self, history: Tensor) -> Tensor:
        """With it."""
        return super().hidden(history) + self.mean


class Turned(Pointwise):
    """Good, and with a weight that does not lie in memory row by row."""

    def __init__(self, features: int, config: BackboneConfig) -> None:
        super().__init__(features, config)
        self.expand.weight = nn.Parameter(self.expand.weight.detach().T.contiguous().T)


class Wide(Pointwise):
    """Good, and of other shapes than the smallest."""

    def __init__(self, features: int, config: BackboneConfig) -> None:
        super().__init__(features, config.model_copy(update={"width": 2 * config.width}))


class Frozen(Pointwise):
    """One parameter is not trained."""

    def __init__(self, features: int, config: BackboneConfig) -> None:
        super().__init__(features, config)
        self.expand.bias.requires_grad_(False)


class Double(Pointwise):
    """Parameters of another precision."""

    def __init__(self, features: int, config: BackboneConfig) -> None:
        super().__init__(features, config)
        self.double()


class Huge(Pointwise):
    """More parameters than cross."""

    def __init__(self, features: int, config: BackboneConfig) -> None:
        super().__init__(features, config)
        self.unused = nn.Linear(4096, 4096, bias=False)


class Buffered(Pointwise):
    """A buffer as state."""

    def __init__(self, features: int, config: BackboneConfig) -> None:
        super().__init__(features, config)
        self.register_buffer("seen", torch.zeros(()))


class Projected(Pointwise):
    """A matrix that is drawn anew wherever it is made, and is no parameter."""

    def __init__(self, features: int, config: BackboneConfig) -> None:
        super().__init__(features, config)
        self.drawn = torch.randn(features, features)

    def hidden(self, history: Tensor) -> Tensor:
        """Of projected items."""
        return super().hidden(history @ self.drawn)


class Aliased(Pointwise):
    """Ties two layers by their memory: two parameters for torch, and rounds add to each what is its own."""

    def __init__(self, features: int, config: BackboneConfig) -> None:
        super().__init__(features, config)
        self.again = nn.Linear(features, config.width)
        self.again.weight.data = self.expand.weight.data

    def hidden(self, history: Tensor) -> Tensor:
        """By both."""
        return super().hidden(history) + torch.tanh(self.again(history))


class Remembering(Pointwise):
    """Carries the last state over to the next users, as sessions are carried on in parallel."""

    carried: Tensor | float = 0.0

    def hidden(self, history: Tensor) -> Tensor:
        """With what was left of the last batch."""
        states = super().hidden(history) + self.carried
        self.carried = states.detach().mean()
        return states


class Narrow(Pointwise):
    """The last position alone."""

    def forward(self, history: Tensor) -> Tensor:
        """One row too few dimensions."""
        return super().forward(history)[:, -1]


class Undirected(Pointwise):
    """Divides by zero where a history is empty."""

    def forward(self, history: Tensor) -> Tensor:
        """Divided."""
        prior = text_prior(history, self.config)
        return prior / prior.norm(dim=-1, keepdim=True) + self.head(self.hidden(history))


class Unready(Pointwise):
    """Starts somewhere else."""

    def __init__(self, features: int, config: BackboneConfig) -> None:
        super().__init__(features, config)
        nn.init.normal_(self.head.weight, std=0.1)


class Foreseeing(Pointwise):
    """Looks one item ahead, which is the item that it is to predict."""

    def hidden(self, history: Tensor) -> Tensor:
        """Of the next item."""
        return super().hidden(history.roll(-1, dims=1))


class Stretched(Pointwise):
    """Weighs by the length of the tensor and not of the history."""

    def hidden(self, history: Tensor) -> Tensor:
        """Larger in a batch of longer histories."""
        return super().hidden(history) * history.shape[1]


class Normalised(Pointwise):
    """Batch normalisation, without running statistics."""

    def __init__(self, features: int, config: BackboneConfig) -> None:
        super().__init__(features, config)
        self.norm = nn.BatchNorm1d(config.width, track_running_stats=False)

    def hidden(self, history: Tensor) -> Tensor:
        """By the mean and variance of everybody."""
        return self.norm(super().hidden(history).transpose(1, 2)).transpose(1, 2)


class Dropping(Pointwise):
    """Dropout, which is another network in each step."""

    def hidden(self, history: Tensor) -> Tensor:
        """Half of it."""
        return functional.dropout(super().hidden(history), 0.5, self.training)


class Mixing(Pointwise):
    """Its layer sees positions as if they were users."""

    def hidden(self, history: Tensor) -> Tensor:
        """The same figures, and nobody's gradient."""
        return super().hidden(history.flatten(0, 1)).unflatten(0, history.shape[:2])


class Fused(Pointwise):
    """Torch's own GRU, a kernel with several outputs."""

    def __init__(self, features: int, config: BackboneConfig) -> None:
        super().__init__(features, config)
        self.unit = nn.GRU(features, config.width, batch_first=True)

    def hidden(self, history: Tensor) -> Tensor:
        """Its states."""
        states: Tensor = self.unit(history)[0]
        return states


class Wordless(nn.Module):
    """Cannot be made."""

    def __init__(self, features: int, config: BackboneConfig) -> None:
        raise LookupError(f"no tokenizer for {features} features")


def dictionary(features: int, config: BackboneConfig) -> Any:
    """Makes no module."""
    return {"features": features}


NUMBER = 7
"""No maker at all."""

MUTANTS: Mapping[str, tuple[type[nn.Module], str]] = {
    "frozen": (Frozen, "parameters"),
    "double": (Double, "parameters"),
    "huge": (Huge, "size"),
    "buffered": (Buffered, "state"),
    "projected": (Projected, "state"),
    "aliased": (Aliased, "file"),
    "remembering": (Remembering, "deterministic"),
    "narrow": (Narrow, "shape"),
    "undirected": (Undirected, "shape"),
    "unready": (Unready, "start"),
    "foreseeing": (Foreseeing, "causal"),
    "stretched": (Stretched, "padding"),
    "normalised": (Normalised, "users"),
    "dropping": (Dropping, "deterministic"),
    "mixing": (Mixing, "gradients"),
    "fused": (Fused, "gradients"),
}
"""By the name that each is installed under, the line that it breaks first of all."""
