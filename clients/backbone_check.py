"""Hold a custom backbone against every line of its protocol, on made-up histories.

    assert broken_lines(GRU4Rec) == {}              # in the author's tests
    isthmus doctor --backbone gru4rec               # the same for what is installed, a line each

A vault does it as well, before it charges anything for a backbone that it has not met. It finds mistakes, not malice:
a module can tell that it is being looked at, and whoever installs it lets it see what a vault sees. In training, an
engine is held against plain autograd anew before each round, on the domain's own users.
"""

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from safetensors.numpy import load, save
from torch import Tensor, nn
from torch.nn import functional

from isthmus.backbone import load_shared, shared_arrays, shared_parameters, text_prior, without_classifier
from isthmus.backbone_file import load_tensors, tensors_of
from isthmus.clients.engines import engine_for
from isthmus.clients.gradients import Losses, require_separable
from isthmus.clients.wire.methods import LARGEST_MESSAGE
from isthmus.config import BackboneConfig, DomainCompute
from isthmus.custom_backbone import BackboneMaker, CustomBackbone, custom_backbone, load_maker
from isthmus.errors import ConfigError, EngineError
from isthmus.features import Whitening

LINES: Mapping[str, str] = {
    "parameters": "it has parameters, all of them of float32, trained, and finite",
    "size": "the parameters fit into one message beside a whitening",
    "deterministic": "the same again, whatever it saw meanwhile, in training as in evaluation mode; nothing is drawn",
    "users": "a user's rows do not depend on who else is in the batch: no batch statistics",
    "state": "nothing but parameters decides what it predicts: no buffers, no constants that are drawn when it is made",
    "file": "written to a file and read back, it predicts the same: each parameter has a name and memory of its own",
    "shape": "(users, positions, features) come back in the same shape, in float32, finite, from 1 position on",
    "start": "untrained, it predicts what `isthmus.backbone.text_prior` does",
    "causal": "row t does not change with the items after t",
    "padding": "zeros behind a history change no row of it",
    "gradients": "each user's gradient is known exactly, by the engine of the domain",
}
"""The protocol: what holds, by the name of the line."""

LARGEST_BACKBONE = LARGEST_MESSAGE - 4 * 2**20
"""Bytes of float32 parameters."""

_USERS, _MOST_POSITIONS, _SEED = 4, 16, 20251127
_CLOSE = 1e-3
"""Relative difference that is put down to rounding in float32; a tenth of it, absolute."""
_NAMED = "custom"  # where a maker is looked at that nobody has registered

_GROUND = ("parameters", "deterministic", "users", "shape")
"""Lines without which those after them cannot be told."""

_Line = Callable[["_Tried"], str]


@functools.lru_cache(maxsize=64)
def require_protocol(config: BackboneConfig, features: int, compute: DomainCompute) -> None:
    """Refuse an installed custom backbone that breaks a line; what has passed is not looked at again.

    Args:
        config: Its shape; names it. A built-in backbone always passes.
        features: Dimensions of an item's features.
        compute: Says which engine trains it.

    Raises:
        ConfigError: If it is not installed, cannot be made, or breaks a line.
    """
    if config.module is None:
        return
    make = load_maker(config.module)
    for name, seen in broken_lines(make, features=features, config=config, compute=compute).items():
        raise ConfigError(
            f"custom backbone {config.module!r} breaks its protocol, line `{name}` ({LINES[name]}): {seen}. "
            f"`isthmus doctor --backbone {config.module}` looks at every line."
        )


def broken_lines(
    make: BackboneMaker,
    *,
    features: int = 32,
    config: BackboneConfig = BackboneConfig(),  # noqa: B008 - frozen
    compute: DomainCompute = DomainCompute(),  # noqa: B008 - frozen
) -> dict[str, str]:
    """Those of `examine_lines` that are broken, of what it takes; empty if all hold."""
    seen = examine_lines(make, features=features, config=config, compute=compute)
    return {name: what for name, what in seen.items() if what}


def examine_lines(
    make: BackboneMaker, *, features: int, config: BackboneConfig, compute: DomainCompute
) -> dict[str, str]:
    """Hold a module against the lines of the protocol.

    Args:
        make: The author's class or function.
        features: Dimensions of an item's features.
        config: Shape that it is asked for.
        compute: Says which engine trains it.

    Returns:
        By the name of the line (`LINES`) what was seen that breaks it, or nothing. Where `parameters`, `deterministic`,
        `users` or `shape` is broken, what comes after it is not looked at: it would be broken, too, or mean nothing.

    Raises:
        ConfigError: If it cannot be made at all.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        tried = _Tried(make, features=features, config=config, compute=compute)
        found: dict[str, str] = {}
        for name, line in _CHECKS.items():
            try:
                found[name] = line(tried)
            except Exception as error:  # noqa: BLE001 - anything may be wrong in code of other people
                found[name] = f"{type(error).__name__}: {' '.join(str(error).split())}"
            if found[name] and name in _GROUND:
                break
        return found


class _Tried:
    """A maker, and what is needed to try it."""

    def __init__(self, make: BackboneMaker, *, features: int, config: BackboneConfig, compute: DomainCompute) -> None:
        named = config if config.module is not None else config.model_copy(update={"module": _NAMED})
        self.compute, self.config, self.features = compute, config, features
        self.fresh: Callable[[], CustomBackbone] = functools.partial(custom_backbone, make, features, named)
        self.untrained = self.fresh()

    def moved(self) -> CustomBackbone:
        """A module as it might be after some rounds: what starts at zero hides what is behind it."""
        return _moved(self.fresh(), seed=_SEED)

    def histories(self, positions: int | None = None, *, users: int = _USERS, seed: int = 0) -> Tensor:
        """(users, positions, features) of random items at length 1, full length."""
        generator = torch.Generator().manual_seed(seed)
        longest = min(self.config.positions, _MOST_POSITIONS)
        made = torch.randn((users, positions or longest, self.features), generator=generator)
        return functional.normalize(made, dim=-1)


def _moved(backbone: CustomBackbone, *, seed: int) -> CustomBackbone:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return backbone


def _parameters(tried: _Tried) -> str:
    found = shared_parameters(tried.untrained)
    if not found:
        return "there are none"
    for name, one in found.items():
        if one.dtype != torch.float32 or one.device.type != "cpu":
            return f"{name} is of {one.dtype} on {one.device}"
        if not one.requires_grad:
            return f"{name} is not trained"
        if not one.isfinite().all():
            return f"{name} is not finite"
    again = {name: one.shape for name, one in shared_parameters(tried.fresh()).items()}
    return "" if again == {name: one.shape for name, one in found.items()} else "made again, it has others"


def _size(tried: _Tried) -> str:
    size = sum(4 * parameter.numel() for parameter in tried.untrained.parameters())
    return "" if size <= LARGEST_BACKBONE else f"{size:,} bytes, and {LARGEST_BACKBONE:,} fit"


def _state(tried: _Tried) -> str:
    buffers = [name for name, _ in tried.untrained.named_buffers()]
    if buffers:
        return f"it has buffers: {', '.join(buffers[:5])}"
    one, other, histories = tried.moved(), tried.fresh(), tried.histories()
    load_shared(other, shared_arrays(one))
    with torch.no_grad():
        same = _close(other(histories), one(histories))
    return "" if same else "another module with the same parameters predicts something else"


def _file(tried: _Tried) -> str:
    one, other, histories = tried.moved(), tried.fresh(), tried.histories()
    # Each with a change of its own, as noise makes them; what `moved` adds, it adds to all that share memory.
    generator = np.random.default_rng(_SEED)
    arrays = {
        name: array + generator.normal(scale=0.1, size=array.shape).astype(np.float32)
        for name, array in shared_arrays(one).items()
    }
    load_shared(one, without_classifier(arrays))  # as at the end of a run
    for name, array in shared_arrays(one).items():
        if not np.array_equal(array, arrays[name]):
            return f"{name} is not what was loaded: it shares memory with another parameter"
    axes = Whitening(mean=np.zeros(tried.features, np.float32), matrix=np.eye(tried.features, dtype=np.float32))
    load_tensors(other, load(save(tensors_of(one, axes))))
    with torch.no_grad():
        same = _close(other.eval()(histories), one.eval()(histories))
    return "" if same else "what is read from its file predicts something else"


def _shape(tried: _Tried) -> str:
    for backbone in (tried.untrained, tried.moved()):
        for positions in (1, 2, tried.config.positions):
            histories = tried.histories(positions, users=2)
            histories[1, positions // 2 :] = 0.0  # a shorter history, or none
            with torch.no_grad():
                query = backbone(histories)
            if not isinstance(query, Tensor) or query.shape != histories.shape or query.dtype != histories.dtype:
                got = f"{tuple(query.shape)} {query.dtype}" if isinstance(query, Tensor) else type(query).__name__
                return f"{tuple(histories.shape)} came back as {got}"
            if not query.isfinite().all():
                return f"after {tuple(histories.shape)} not everything is finite"
    return ""


def _start(tried: _Tried) -> str:
    histories = tried.histories()
    with torch.no_grad():
        query, prior = tried.untrained(histories), text_prior(histories, tried.config)
    return "" if _close(query, prior) else f"it is off by up to {float((query - prior).abs().max()):.2g}"


def _causal(tried: _Tried) -> str:
    backbone, histories = tried.moved(), tried.histories()
    with torch.no_grad():
        before = backbone(histories)
        for seen in range(1, histories.shape[1]):
            other = histories.clone()
            other[:, seen:] = tried.histories(seed=2)[:, seen:]
            if not _close(backbone(other)[:, :seen], before[:, :seen]):
                return f"rows up to {seen - 1} change with the items from {seen} on"
    return ""


def _padding(tried: _Tried) -> str:
    backbone, histories = tried.moved(), tried.histories()
    longest = histories.shape[1]
    with torch.no_grad():
        for seen in range(1, longest):
            padded = histories.clone()
            padded[:, seen:] = 0.0
            if not _close(backbone(padded)[:, :seen], backbone(histories[:, :seen])):
                return f"a history of {seen} items predicts something else with {longest - seen} zeros behind it"
    return ""


def _users(tried: _Tried) -> str:
    backbone, histories = tried.moved().train(), tried.histories()
    with torch.no_grad():
        together = backbone(histories)
        alone = torch.cat([backbone(histories[[user]]) for user in range(len(histories))])
    return "" if _close(together, alone) else "alone, a user's rows are something else"


def _deterministic(tried: _Tried) -> str:
    backbone, histories = tried.moved(), tried.histories()
    generator = torch.get_rng_state()
    with torch.no_grad():
        first, again = backbone.train()(histories), backbone(histories)
        backbone(tried.histories(seed=1))
        later, evaluated = backbone(histories), backbone.eval()(histories)
    if not _close(first, again):
        return "it predicts something else the second time"
    if not _close(first, later):
        return "it predicts something else once it has seen other users"
    if not _close(first, evaluated):
        return "it predicts something else in evaluation mode"
    return "" if torch.equal(generator, torch.get_rng_state()) else "it draws from torch's generator"


def _gradients(tried: _Tried) -> str:
    backbone = tried.moved().train()
    histories, lengths = tried.histories(), range(1, _USERS + 1)
    for user, length in enumerate(lengths):
        histories[user, length:] = 0.0
    aims = tried.histories(seed=3)
    try:
        engine = engine_for(backbone, tried.compute)
        require_separable(engine, backbone, functools.partial(_losses_of, backbone, histories, aims), _USERS)
    except EngineError as error:
        return str(error)
    return ""


def _losses_of(backbone: nn.Module, histories: Tensor, aims: Tensor, users: Sequence[int]) -> Losses:
    """Losses of some of the users."""
    return functools.partial(_losses, backbone, histories[list(users)], aims[list(users)])


def _losses(backbone: nn.Module, histories: Tensor, aims: Tensor) -> Tensor:
    """(users,) how far what is predicted at the positions of each user is from an aim."""
    there = histories.any(dim=2, keepdim=True)
    off: Tensor = (backbone(histories) - aims) * there
    return off.square().sum(dim=(1, 2))


def _close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=_CLOSE, atol=_CLOSE / 10)


_CHECKS: Mapping[str, _Line] = {
    "parameters": _parameters,
    "size": _size,
    "deterministic": _deterministic,
    "users": _users,
    "state": _state,
    "file": _file,
    "shape": _shape,
    "start": _start,
    "causal": _causal,
    "padding": _padding,
    "gradients": _gradients,
}
