"""Bytes that cross in a run, and what rounding them costs, for each format of updates.

    python benchmarks/bytes/compare.py              # the demo; Office and Industrial too, where the data are there
    python benchmarks/bytes/compare.py --seeds 1 --only demo

Every seed runs each federation in all formats, under one run id, so that batches and noise are the same and a
difference is that of rounding. Bytes are what `result.json` counts: tensors, their names and scales, without what
Flower, gRPC and TLS put around a message. NDCG@10 is on the test items of every domain: of the backbone alone as the
last round left it (so that a run which ships the untrained prior says something, too), and of what the domain serves
in the end. In brackets is the 95 % bootstrap interval over users of the float32 run.

Bars, set before the measurement: int8 crosses in at most 1 / 3.5 of the bytes of float32, up and, after the first
round, down; and every NDCG@10 is within the interval of float32's. Exit code 1 where a bar is missed.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from isthmus.backbone import load_shared
from isthmus.backbone_file import load_backbone
from isthmus.clients.backbone_scorer import BackboneScorer
from isthmus.clients.data import load_domain_data
from isthmus.clients.scorers import rank_users
from isthmus.config import UpdateFormat, load_domain
from isthmus.demo import write_demo
from isthmus.features import default_cache_dir, encode_texts
from isthmus.metrics import RankingSummary, summarise
from isthmus.server.checkpoint import RunState, load_checkpoint
from isthmus.simulation import prepare, run

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from line import Line  # noqa: E402 - beside the other benchmarks

CHECKOUT = HERE.parents[1]
DATA = CHECKOUT.parent / "shared" / "data"
REAL = "office_industrial"
BASE = UpdateFormat.FLOAT32
BAR = 3.5
"""Float32's bytes are at least so many times int8's."""


@dataclass(kw_only=True)
class Measured:
    """One run; also the watcher that it tells how far it is.

    Attributes:
        federation: Its name.
        form: Of its updates.
        seed: Of its noise.
        up, down: Bytes by the end of each round, from round 0 on.
        ndcg: For (domain, `backbone` or `served`), with its interval.
        domains: Taking part.
    """

    federation: str
    form: UpdateFormat
    seed: int
    up: list[int] = field(default_factory=list)
    down: list[int] = field(default_factory=list)
    ndcg: dict[tuple[str, str], RankingSummary] = field(default_factory=dict)

    def stage(self, what: str) -> None:
        """Nothing to do."""

    def texts(self, done: int, total: int) -> None:
        """Nothing to do."""

    def round(self, state: RunState, rounds: int, spent: dict[str, float]) -> None:  # noqa: ARG002
        """Note what crossed."""
        self.up.append(state.bytes_up)
        self.down.append(state.bytes_down)

    @property
    def later(self) -> tuple[float, float]:
        """Mean bytes up and down of a round after the first, evaluations included."""
        rounds = len(self.up) - 2
        return (self.up[-1] - self.up[1]) / rounds, (self.down[-1] - self.down[1]) / rounds

    @property
    def first_down(self) -> int:
        """Bytes down of the first round: whitening and parameters, whole."""
        return self.down[1]


def main() -> int:
    """Parse, measure, print; exit code 1 where a bar is missed."""
    parser = argparse.ArgumentParser(
        description="Bytes of a run in each format of updates, and NDCG@10 beside float32's.",
        epilog="Example: python benchmarks/bytes/compare.py --seeds 1 --only demo",
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs of each case (default: 3)")
    parser.add_argument("--only", choices=["demo", REAL], help="one federation (default: both)")
    parser.add_argument(
        "--data", type=Path, default=DATA, help="the data sets (default: ../shared/data by the checkout)"
    )
    arguments = parser.parse_args()
    compared = lines(list(runs(arguments.seeds, only=arguments.only, data=arguments.data)))
    for line in compared:
        print(f"{line.name}: {line.ours:.6g} {line.unit}, {line.peer_name} {line.peer:.6g}, ratio {line.ratio:.3f}")
    return 0 if all(line.met is not False for line in compared) else 1


def measure(repetitions: int) -> list[Line]:
    """Run every case with so many seeds and compare each format with float32."""
    return lines(list(runs(repetitions)))


def runs(seeds: int, *, only: str | None = None, data: Path = DATA) -> Iterator[Measured]:
    """All runs, formats in turn within a seed."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for federation, file in federations(root, only, data):
            for seed in range(seeds):
                for form in UpdateFormat:
                    yield one_run(federation, file, form, seed, root)


def federations(root: Path, only: str | None, data: Path) -> Iterator[tuple[str, Path]]:
    """Names and files of what is there to run."""
    if only != REAL:
        yield "demo", write_demo(root / "demo")
    if only != "demo":
        if not data.is_dir():
            print(f"{REAL} is left out: {data} is not there; say where the data sets are with --data", file=sys.stderr)
            return
        make = CHECKOUT / "benchmarks" / "federations" / "make.py"
        subprocess.run([sys.executable, make, "--data", data, "--out", root / "real"], check=True, capture_output=True)
        yield REAL, root / "real" / REAL / "federation.toml"


def one_run(federation: str, file: Path, form: UpdateFormat, seed: int, root: Path) -> Measured:
    """Simulate, and score what came of it."""
    other = file.with_name(f"federation-{form}.toml")
    text = file.read_text(encoding="utf-8")
    other.write_text(text.replace("[training]", f'[training]\nupdate_format = "{form}"', 1), encoding="utf-8")
    out = root / f"{federation}-{form}-{seed}"
    simulation = prepare(other, out=out, seed=seed, backend="in-process")
    if simulation.federation.training.update_format is not form:
        raise RuntimeError(f"{other} is not of format {form}")
    # An id of its own, so that noise, which follows from it, is the same in every format.
    simulation = replace(simulation, run=f"bytes-{federation}-{seed}")
    measured = Measured(federation=federation, form=form, seed=seed)
    result = run(simulation, measured)
    for name, domain in result.domains.items():
        if domain.test is not None:
            served = domain.test.federated
            measured.ndcg[name, "served"] = RankingSummary(
                hr=served.hr, ndcg=served.ndcg, mrr=served.mrr, ndcg_ci95=served.ndcg_ci95
            )
    shipped = load_backbone(out / "backbone.safetensors")
    state = load_checkpoint(out / "checkpoint.safetensors", run=simulation.run, digest=simulation.federation.digest())
    if state is None:
        raise RuntimeError(f"{out} has no checkpoint")
    load_shared(shipped.backbone, state.arrays)
    for domain_config in simulation.domains:
        data = load_domain_data(load_domain(domain_config.folder))
        encoded = encode_texts(data.catalogue.texts, shipped.features.encoder, cache_dir=default_cache_dir(), threads=1)
        scorer = BackboneScorer(shipped.backbone, torch.from_numpy(shipped.whitening.apply(encoded)))
        users = np.flatnonzero(data.test >= 0)
        ranks = rank_users(scorer, data.before_test, users, data.test[users])
        measured.ndcg[domain_config.name, "backbone"] = summarise(ranks, k=10, resamples=1000, seed=0)
    return measured


def lines(measured: list[Measured]) -> list[Line]:
    """Every format beside float32: bytes by medians over seeds, NDCG@10 for each domain and seed."""
    found = []
    names = list(dict.fromkeys(each.federation for each in measured))
    for name in names:
        mine = {
            form: [each for each in measured if (each.federation, each.form) == (name, form)] for form in UpdateFormat
        }
        for form in UpdateFormat:
            if form is not BASE:
                found += _bytes(name, form, mine[form], mine[BASE])
                found += [
                    _quality(name, form, key, ours, base)
                    for ours, base in zip(mine[form], mine[BASE], strict=True)
                    for key in sorted(base.ndcg)
                ]
    return found


def _bytes(name: str, form: UpdateFormat, ours: list[Measured], base: list[Measured]) -> list[Line]:
    """Up and down: a later round, the first contact, the whole run."""
    cases = (
        ("up, a round", lambda each: each.later[0]),
        ("down, a round after the first", lambda each: each.later[1]),
        ("down, the first round", lambda each: each.first_down),
        ("up and down, whole run", lambda each: each.up[-1] + each.down[-1]),
    )
    found = []
    for what, figure in cases:
        mine, peer = (statistics.median(map(figure, side)) for side in (ours, base))
        bar = BAR if form is UpdateFormat.INT8 and what.endswith(("up, a round", "after the first")) else None
        found.append(
            Line(
                name=f"{name}, {form}: {what}",
                ours=mine,
                peer=peer,
                peer_name=str(BASE),
                ratio=peer / mine,
                bar=bar,
                unit="bytes",
                met=None if bar is None else peer / mine >= bar,
            )
        )
    return found


def _quality(name: str, form: UpdateFormat, key: tuple[str, str], ours: Measured, base: Measured) -> Line:
    mine, peer = ours.ndcg[key], base.ndcg[key]
    low, high = peer.ndcg_ci95
    return Line(
        name=f"{name}, {form}: {key[0]}, {key[1]}, seed {ours.seed}",
        ours=mine.ndcg,
        peer=peer.ndcg,
        peer_name=str(BASE),
        ratio=mine.ndcg / peer.ndcg,
        bar=low / peer.ndcg,
        unit="NDCG@10",
        met=low <= mine.ndcg <= high,
    )


if __name__ == "__main__":
    sys.exit(main())
