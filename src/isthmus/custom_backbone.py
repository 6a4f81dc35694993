"""A backbone of somebody else's in the place of the built-in one: any torch module that keeps to a protocol.

    # in the author's package: [project.entry-points."isthmus.backbones"]  gru4rec = "isthmus_gru4rec:GRU4Rec"
    # in federation.toml:      [backbone]  module = "gru4rec"
    backbone = make_backbone(384, config)          # the built-in one, or the one that the configuration names

Code never travels. A name stands for what is installed where it is read: every domain and the coordinator install the
package themselves, and a domain's policy must name it as well. Whether a module keeps to the protocol, line by line,
says `isthmus.clients.backbone_check`; docs/backbone.md shows how to write one.
"""

from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from isthmus.backbone import Backbone
from isthmus.config import BackboneConfig
from isthmus.errors import ConfigError
from isthmus.installed import installed_backbone
from isthmus.text_changes import TextShape


@runtime_checkable
class BackboneMaker(Protocol):
    """What an entry point names: a class of modules, or a function that makes one.

    A module's `forward` takes (users, positions, features), each user's items by their whitened text features, oldest
    first, with zeros at the end of shorter histories, and gives the same shape: row t is what the item after items 0
    to t looks like, at a length of about 1. Scores are inner products of it with items' features.

    It must be causal, tell users apart, be deterministic in training mode too (no dropout), keep nothing but float32
    parameters that are all trained (no buffers), be made of layers of which users' gradients are known, and start as
    the text prior (`isthmus.backbone.text_prior`), with which it is compared at every evaluation.
    """

    def __call__(self, features: int, config: BackboneConfig) -> nn.Module:
        """Make a module.

        Args:
            features: Dimensions of an item's features.
            config: Its shape; a module reads what it needs of it. Never more than `positions` items come in.
        """
        ...


class CustomBackbone(nn.Module):
    """A module that somebody else wrote, as a backbone; its parameters are named after its entry point.

    Args:
        module: Keeps to the protocol of `BackboneMaker`.
        config: Its shape; names it.
    """

    def __init__(self, module: nn.Module, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self._name = str(config.module)
        self.add_module(self._name, module)

    def forward(self, history: Tensor) -> Tensor:
        """(users, positions, features) to the same shape, as `Backbone.forward`."""
        query: Tensor = self.get_submodule(self._name)(history)
        return query


AnyBackbone = Backbone | CustomBackbone


def make_backbone(
    features: int, config: BackboneConfig, *, domains: int = 0, text: TextShape | None = None
) -> AnyBackbone:
    """The one place where a backbone is made, from torch's global generator.

    Args:
        features: Dimensions of an item's features.
        config: Its shape, and whose it is.
        domains: As for `Backbone`; a custom one tells none apart.
        text: As for `Backbone`; a custom one changes no text encoder.

    Raises:
        ConfigError: If it is a custom one that is not installed, or cannot be made.
    """
    if config.module is None:
        return Backbone(features, config, domains=domains, text=text)
    return custom_backbone(load_maker(config.module), features, config)


def custom_backbone(make: BackboneMaker, features: int, config: BackboneConfig) -> CustomBackbone:
    """A custom backbone from what makes it.

    Args:
        make: The author's.
        features: Dimensions of an item's features.
        config: Its shape; names it.

    Raises:
        ConfigError: If what is made is no module, or nothing is made.
    """
    try:
        module: Any = make(features, config)
        if not isinstance(module, nn.Module):
            raise TypeError(f"a backbone is a torch.nn.Module, got {type(module).__name__}")
        return CustomBackbone(module, config)
    except Exception as error:  # anything may be wrong in code of other people
        raise ConfigError(f"custom backbone {config.module!r} cannot be made: {_words(error)}") from error


def require_installed(config: BackboneConfig) -> None:
    """Refuse a custom backbone that is not here; none of its code is run.

    Raises:
        ConfigError: If its entry point is absent or there twice.
    """
    if config.module is not None:
        installed_backbone(config.module)


def load_maker(name: str) -> BackboneMaker:
    """What an entry point names; runs the code of its package.

    Raises:
        ConfigError: If it is not installed, or cannot be imported.
    """
    found = installed_backbone(name)
    try:
        maker = found.load()
    except Exception as error:  # as above
        raise ConfigError(f"custom backbone {name!r} ({found.value}) cannot be imported: {_words(error)}") from error
    if not isinstance(maker, BackboneMaker):
        raise ConfigError(f"custom backbone {name!r} ({found.value}) must be a class or a function, got {maker!r:.80}")
    return maker


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
