"""The shipped backbone as one file: parameters, whitening, and what they belong to.

    save_backbone("run/backbone.safetensors", ShippedBackbone(...))
    shipped = load_backbone("run/backbone.safetensors")

A safetensors file: the shared parameters by name, the whitening as `whitening.mean` and
`whitening.matrix`, and the shape and encoder as JSON in the header under `isthmus`. Loading it runs no code.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from isthmus.backbone import Backbone, shared_parameters
from isthmus.config import BackboneConfig, FeatureConfig
from isthmus.durable import write_durably
from isthmus.errors import RunError
from isthmus.features import Whitening

_PREFIX = "whitening."


@dataclass(frozen=True, kw_only=True)
class ShippedBackbone:
    """What a federation hands to everyone.

    Attributes:
        backbone: In evaluation mode.
        whitening: Makes item features from encoded text.
        features: Names the encoder.
        round: Round it is from; 0 is the text prior.
    """

    backbone: Backbone
    whitening: Whitening
    features: FeatureConfig
    round: int


def save_backbone(path: Path, shipped: ShippedBackbone) -> None:
    """Write the file, durably; equal backbones give equal bytes."""
    tensors = {name: parameter.detach().numpy() for name, parameter in shared_parameters(shipped.backbone).items()}
    tensors |= {f"{_PREFIX}mean": shipped.whitening.mean, f"{_PREFIX}matrix": shipped.whitening.matrix}
    header = {
        "backbone": shipped.backbone.config.model_dump(mode="json"),
        "features": shipped.features.model_dump(mode="json"),
        "round": shipped.round,
    }
    write_durably(path, save(tensors, metadata={"isthmus": json.dumps(header, sort_keys=True)}))


def load_backbone(path: Path) -> ShippedBackbone:
    """Read the file.

    Raises:
        RunError: If it is absent or not a backbone.
    """
    try:
        with safe_open(path, framework="np") as file:
            header = json.loads(file.metadata()["isthmus"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        whitening = Whitening(mean=tensors.pop(f"{_PREFIX}mean"), matrix=tensors.pop(f"{_PREFIX}matrix"))
        backbone = Backbone(whitening.matrix.shape[1], BackboneConfig.model_validate(header["backbone"]))
        backbone.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in tensors.items()})
        features = FeatureConfig.model_validate(header["features"])
        round_ = int(header["round"])
    except FileNotFoundError:
        raise RunError(f"{path}: no backbone here. Finish the run first: `isthmus simulate`.") from None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RunError(f"{path}: not a backbone of this version: {error}") from None
    return ShippedBackbone(backbone=backbone.eval(), whitening=whitening, features=features, round=round_)
