"""The shipped backbone as one file: parameters, whitening, and what they belong to.

    save_backbone("run/backbone.safetensors", ShippedBackbone(...))
    shipped = load_backbone("run/backbone.safetensors")

A safetensors file: the shared parameters by name, the whitening as `whitening.mean` and
`whitening.matrix`, and the shape and encoder as JSON in the header under `isthmus`. Where the backbone, or what it
began with, was trained in the open, the header says on what. Changes of the text encoder are among the parameters; the
encoder itself is not, and is needed to serve with them. Loading it runs no code, but for that of an installed
custom backbone, where it names one.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from isthmus.backbone import load_shared, shared_arrays
from isthmus.config import BackboneConfig, FeatureConfig, PublicDomains, StartedFrom, TrainingConfig
from isthmus.custom_backbone import AnyBackbone, CustomBackbone, make_backbone
from isthmus.durable import write_durably
from isthmus.errors import ConfigError, RunError
from isthmus.features import Whitening
from isthmus.settings import Section
from isthmus.text_changes import shape_in

_PREFIX = "whitening."


class Origin(Section):
    """How a backbone was trained in the open: without noise, on histories that their domains have declared public.

    Attributes:
        domains: Whose histories.
        training: What was trained, and by which loss.
        passes: Over all users, until the backbone that was kept.
        seed: Of first parameters and order.
        gain: Mean over these domains of their validation NDCG@10 over the text prior; raw.
    """

    domains: PublicDomains
    training: TrainingConfig
    passes: Annotated[int, Field(ge=1)]
    seed: Annotated[int, Field(ge=0)]
    gain: float


@dataclass(frozen=True, kw_only=True)
class ShippedBackbone:
    """What a federation hands to everyone.

    Attributes:
        backbone: In evaluation mode.
        whitening: Makes item features from encoded text.
        features: Names the encoder.
        round: Round it is from; 0 is the text prior, or what the run started from.
        origin: How it was trained in the open; None where it was trained in a federation.
        start: What its federation started from; None for the text prior.
    """

    backbone: AnyBackbone
    whitening: Whitening
    features: FeatureConfig
    round: int
    origin: Origin | None = None
    start: StartedFrom | None = None


def tensors_of(backbone: AnyBackbone, whitening: Whitening) -> dict[str, NDArray[np.float32]]:
    """What the file of a backbone holds, by name.

    Raises:
        ValueError: If a parameter has the name of a part of the whitening.
    """
    arrays, beside = shared_arrays(backbone), {_PREFIX + name: array for name, array in whitening.arrays().items()}
    if taken := sorted(arrays.keys() & beside.keys()):
        raise ValueError(f"parameter {taken[0]!r} has the name that a part of the whitening has in the file")
    return arrays | beside


def load_tensors(backbone: AnyBackbone, tensors: Mapping[str, NDArray[np.float32]]) -> Whitening:
    """The way back from `tensors_of`.

    Args:
        backbone: Gets the parameters.
        tensors: By name.

    Returns:
        The whitening that is among them.

    Raises:
        KeyError: If there is none.
        ValueError: If the others are not the backbone's parameters, or a custom one has buffers.
    """
    arrays = dict(tensors)
    whitening = Whitening(mean=arrays.pop(f"{_PREFIX}mean"), matrix=arrays.pop(f"{_PREFIX}matrix"))
    buffers = [name for name, _ in backbone.named_buffers()] if isinstance(backbone, CustomBackbone) else []
    if buffers:
        raise ValueError(f"its custom backbone has a buffer here, {buffers[0]!r}, and a file holds parameters only")
    load_shared(backbone, arrays)
    return whitening


def save_backbone(path: Path, shipped: ShippedBackbone) -> None:
    """Write the file, durably; equal backbones give equal bytes."""
    tensors = tensors_of(shipped.backbone, shipped.whitening)
    header: dict[str, Any] = {
        "backbone": shipped.backbone.config.model_dump(mode="json"),
        "features": shipped.features.model_dump(mode="json"),
        "round": shipped.round,
    }
    said = {"origin": shipped.origin, "start": shipped.start}
    header |= {key: one.model_dump(mode="json") for key, one in said.items() if one is not None}
    write_durably(path, save(tensors, metadata={"isthmus": json.dumps(header, sort_keys=True)}))


def load_backbone(path: Path, *, admit: Callable[[str | None], None] | None = None) -> ShippedBackbone:
    """Read the file.

    Args:
        path: Of the file.
        admit: Told the custom backbone that it names, None for the built-in one, before any of its code runs, and
            raises if that may not be: `Policy.check_backbone` wherever a domain's data are. None admits what is
            installed, as whoever has no policy does.

    Raises:
        RunError: If it is absent or not a backbone, or names a custom one that is not installed here.
        Refused: As `admit` says.
    """
    try:
        with safe_open(path, framework="np") as file:
            header = json.loads(file.metadata()["isthmus"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        broken = [name for name, tensor in tensors.items() if not np.isfinite(tensor).all()]
        if broken:
            raise ValueError(f"{broken[0]} is not finite")
        shape = BackboneConfig.model_validate(header["backbone"])
        if admit is not None:
            admit(shape.module)
        backbone = make_backbone(tensors[f"{_PREFIX}matrix"].shape[1], shape, text=shape_in(tensors))
        whitening = load_tensors(backbone, tensors)
        features = FeatureConfig.model_validate(header["features"])
        round_ = int(header["round"])
        origin = Origin.model_validate_json(json.dumps(header["origin"])) if "origin" in header else None
        start = StartedFrom.model_validate(header["start"]) if "start" in header else None
    except ConfigError as error:  # of a custom backbone
        raise RunError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise RunError(f"{path}: no backbone here. Finish the run first: `isthmus simulate`.") from None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RunError(f"{path}: not a backbone of this version: {error}") from None
    return ShippedBackbone(
        backbone=backbone.eval(), whitening=whitening, features=features, round=round_, origin=origin, start=start
    )
