"""What a federation file says of its backbone: the shape, whose it is, and what it starts from."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from isthmus.config.domain import Name
from isthmus.settings import Section, is_none


class BackboneConfig(Section):
    """The shape of the shared sequence encoder.

    Attributes:
        width: Model width d; divisible by `heads`.
        layers: Transformer blocks.
        heads: Attention heads.
        feedforward: Width of the feed-forward layer.
        positions: Longest history the encoder sees, in items.
        prior_items: Items of the history that make the text prior.
        prior_decay: Weight of each older item of the prior, in (0, 1].
        module: Entry point of a backbone of somebody else's (see `isthmus.custom_backbone`), which reads of the shape
            what it needs; the built-in one where absent.
    """

    width: Annotated[int, Field(ge=2)] = 64
    layers: Annotated[int, Field(ge=1)] = 2
    heads: Annotated[int, Field(ge=1)] = 2
    feedforward: Annotated[int, Field(ge=2)] = 128
    positions: Annotated[int, Field(ge=2, le=1000)] = 20
    prior_items: Annotated[int, Field(ge=1)] = 10
    prior_decay: Annotated[float, Field(gt=0, le=1)] = 0.8
    module: Annotated[Name | None, Field(exclude_if=is_none)] = None

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads must divide width, got {self.heads} and {self.width}")
        return self


class StartingBackbone(BackboneConfig):
    """The shape of the shared sequence encoder, and what it starts from.

    Attributes:
        start: File of `isthmus pretrain`, relative to the federation file; the text prior where absent. It stays with
            the coordinator: domains are told the shape, and what was public.
    """

    start: Annotated[str | None, Field(min_length=1, exclude_if=is_none)] = None

    @property
    def shape(self) -> BackboneConfig:
        """The shape alone."""
        return BackboneConfig(**{name: getattr(self, name) for name in BackboneConfig.model_fields})
