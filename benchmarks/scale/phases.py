"""The phases of a domain's life that `compare.py` measures, each in a process of its own.

    python benchmarks/scale/phases.py import scale-data --users 10000     # prints CPU-seconds and peak memory as JSON

import: `isthmus domain import`, from the log to a domain folder. open: the vault reads that folder for the first time.
open again: it does so for the second time. texts: item texts become features. round: one round of DP-SGD is released.
evaluation: one noisy evaluation is released, which ranks the catalogue for every user, twice.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from make import make_log

from isthmus.backbone import Backbone, shared_parameters
from isthmus.clients.data import ImportColumns, import_domain, propose_privacy
from isthmus.clients.vault import Vault, open_vault
from isthmus.config import BackboneConfig, FeatureConfig, Trained, TrainingConfig, load_domain
from isthmus.features import fit_whitening, text_moments
from isthmus.records import Arrays, Kind, Recipe, RoundRequest, arrays_digest

ENCODER, DIM = "hash:64", 64


def main() -> int:
    """Run one phase; what a phase needs of earlier ones is not counted into its seconds, but into its memory."""
    parser = argparse.ArgumentParser(
        description="One phase of a large domain's life.",
        epilog="Example: python benchmarks/scale/phases.py import scale-data --users 10000",
    )
    parser.add_argument("phase", choices=list(PHASES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--users", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cpu, wall = PHASES[arguments.phase](arguments.folder, arguments.users)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"cpu": cpu, "wall": wall, "peak_mib": peak}))
    return 0


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """CPU-seconds and seconds of some work."""
    cpu, wall = time.process_time(), time.monotonic()
    work()
    return time.process_time() - cpu, time.monotonic() - wall


def make(folder: Path, users: int) -> tuple[float, float]:
    return timed(lambda: make_log(folder / "log", users=users))


def bring_in(folder: Path, users: int) -> tuple[float, float]:
    privacy = propose_privacy(epsilon=8.0, delta=1e-7, expected_users=users, clip=1.0)
    return timed(
        lambda: import_domain(
            name="shop",
            interactions=folder / "log" / "events.parquet",
            items=folder / "log" / "items.parquet",
            target=folder / "shop",
            public_catalogue=True,
            privacy=privacy,
            columns=ImportColumns(timestamp="at"),
        )
    )


def opened(folder: Path) -> Vault:
    """The domain's vault; its features lie beside it."""
    return open_vault(load_domain(folder / "shop"), cache=folder / "cache")


def open_data(folder: Path, users: int) -> tuple[float, float]:  # noqa: ARG001 - phases are called alike
    vault = opened(folder)
    return timed(lambda: vault.data)


def encode(folder: Path, users: int) -> tuple[float, float]:  # noqa: ARG001
    vault = opened(folder)
    _ = vault.data
    return timed(lambda: vault.encoded(ENCODER))


def ask(folder: Path, kind: Kind) -> tuple[float, float]:
    """What a coordinator asks for, answered by a vault that has read its data."""
    vault = opened(folder)
    _ = vault.data, vault.plan
    moments = text_moments(vault.encoded(ENCODER))
    whitening = fit_whitening([moments], eps=1e-3, dim=DIM)
    arrays: Arrays = {"mean": whitening.mean, "matrix": whitening.matrix}
    torch.manual_seed(0)
    backbone = Backbone(DIM, BackboneConfig())
    torch.nn.init.normal_(backbone.head.weight, std=0.01)
    recipe = Recipe(
        features=FeatureConfig(encoder=ENCODER, dim=DIM),
        backbone=BackboneConfig(),
        training=TrainingConfig(train=Trained.ALL),
        whitening=arrays_digest(arrays).hex(),
    )
    parameters = {name: np.array(value.detach()) for name, value in shared_parameters(backbone).items()}
    request = RoundRequest(run=f"scale-{kind}", round=1, recipe=recipe, arrays=parameters, whitening=arrays)
    return timed(lambda: vault.release(kind, request))


PHASES: Mapping[str, Callable[[Path, int], tuple[float, float]]] = {
    "make": make,
    "import": bring_in,
    "open": open_data,
    "open again": open_data,
    "texts": encode,
    "round": lambda folder, _: ask(folder, Kind.UPDATE),
    "evaluation": lambda folder, _: ask(folder, Kind.METRIC),
}

if __name__ == "__main__":
    sys.exit(main())
