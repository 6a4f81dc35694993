"""Backbones that say that they were trained in the open, written without training."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from isthmus.backbone import Backbone, shared_parameters
from isthmus.backbone_file import Origin, ShippedBackbone, save_backbone
from isthmus.config import PublicDomain, Trained, TrainingConfig, load_federation
from isthmus.features import Whitening

ORIGIN = Origin(
    domains=(PublicDomain(name="elsewhere", users=700, fingerprint="ab" * 32),),
    training=TrainingConfig(train=Trained.ALL),
    passes=2,
    seed=0,
    gain=0.01,
)


def write_start(
    path: Path, file: Path, *, axes: bool, dim: int = 64, origin: Origin | None = ORIGIN, seed: int = 17
) -> ShippedBackbone:
    """Write a start for a federation file, with parameters and a whitening that are told from all others.

    Args:
        path: Where to.
        file: Of the federation, without a start so far.
        axes: Whether it has learned something about axes.
        dim: Of item features.
        origin: What it says of itself.
        seed: Of parameters and whitening.
    """
    federation = load_federation(file)
    generator = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = Backbone(dim, federation.backbone.shape)
        with torch.no_grad():
            backbone.recency.weight.mul_(2.0)
            if axes:
                backbone.head.weight.normal_(std=0.1)
    whitening = Whitening(
        mean=generator.normal(size=dim).astype(np.float32), matrix=generator.normal(size=(dim, dim)).astype(np.float32)
    )
    shipped = ShippedBackbone(
        backbone=backbone.eval(), whitening=whitening, features=federation.features, round=0, origin=origin
    )
    save_backbone(path, shipped)
    return shipped


def start_from(file: Path, start: Path | str) -> None:
    """Let a federation file name a backbone."""
    file.write_text(file.read_text().replace("[backbone]\n", f'[backbone]\nstart = "{start}"\n'))


def arrays_of(shipped: ShippedBackbone) -> dict[str, NDArray[np.float32]]:
    """Its parameters."""
    return {name: one.detach().numpy() for name, one in shared_parameters(shipped.backbone).items()}
