"""A new domain with 0, 64, 256 and 1,024 users: what others have learned, beside what it can do alone.

    python benchmarks/utility/new_domain.py --data ../shared/data --seeds 0 1 2

The sources train together at epsilon 8 and delta 1e-6 each, by the default recipe, which knows nothing of the targets;
the targets take no part, their texts included. No private head of a source is fitted, on which `isthmus evaluate
--scenario new-domain` would spend most of its time; everything else is as there. A target whitens its texts by itself,
for its local methods and for the backbone, which has learned nothing about axes. Support users are drawn with the seed;
all else is measured on the same half of the target's users. Differences are paired by user, averaged over seeds first,
with 95 % intervals of a bootstrap over users; they are against the local method that is best *on these very users*.

The shipped backbone is the evaluated round with the highest noisy gain that the sources released, or the untrained
prior. Prints a table in Markdown.

Aim, set before: at least +10 % at 0 to 256 users, both targets, intervals clear of 0; never below and clear of 0.
"""

import argparse
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from isthmus.backbone_file import ShippedBackbone
from isthmus.clients.data import load_domain_data
from isthmus.config import load_domain, load_federation
from isthmus.metrics import ndcg_at_k, paired_bootstrap_ci
from isthmus.server.shipping import shipped_backbone
from isthmus.simulation import prepare
from isthmus.simulation.measuring import measure
from isthmus.simulation.methods import LOCAL, methods_of
from isthmus.simulation.run import Watcher, trained
from isthmus.simulation.scenarios import new_domain
from isthmus.simulation.study import Study, fit_private_head, known

CHECKOUT = Path(__file__).resolve().parents[2]
MOST = 4000
"""Users measured on."""


class Silent(Watcher):
    """A watcher that says nothing."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One seed and number of support users in one target: NDCG@10 of each measured user, by method."""

    target: str
    users: int
    ndcg: dict[str, NDArray[np.float64]]


def main() -> int:
    """Parse, train, measure, print."""
    parser = argparse.ArgumentParser(
        description="A new domain: federated against the best local method.",
        epilog="Example: python benchmarks/utility/new_domain.py --seeds 0",
    )
    parser.add_argument("--data", type=Path, default=CHECKOUT.parent / "shared" / "data", help="the data sets")
    parser.add_argument("--sources", nargs="+", default=["beauty", "sports", "yelp", "ml_1m"], help="who trains")
    parser.add_argument("--targets", nargs="+", default=["office", "industrial"], help="who comes later")
    parser.add_argument("--users", type=int, nargs="+", default=[0, 64, 256, 1024], help="support users")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of noise, batches and support users")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("flwr").setLevel(logging.WARNING)
    found: list[Measured] = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        make = CHECKOUT / "benchmarks" / "federations" / "make.py"
        subprocess.run([sys.executable, make, "--data", arguments.data, "--out", root], check=True, capture_output=True)
        for seed in arguments.seeds:
            file = federation_file(root, arguments.sources, seed)
            shipped = train(file, seed=seed, out=root / f"run-{seed}")
            for target in arguments.targets:
                found += measure_target(file, shipped, target, arguments.users, seed=seed, out=root / f"new-{seed}")
    print("\n".join(table(found)))
    return 0


def federation_file(root: Path, sources: Sequence[str], seed: int) -> Path:
    """A federation of the sources."""
    folders = ", ".join(f'"../domains/{name}"' for name in sources)
    file = root / "retail" / f"sources-{seed}.toml"
    file.write_text(
        f'name = "sources"\ndomains = [{folders}]\nseed = {seed}\n\n'
        f'[strategy]\nname = "fedavg"\nrounds = 10\nevaluate_every = 5\n',
        encoding="utf-8",
    )
    return file


def train(file: Path, *, seed: int, out: Path) -> ShippedBackbone:
    """The rounds of a run, and the backbone that it ships."""
    simulation = prepare(file, out=out, seed=seed, backend="in-process")
    started = time.process_time()
    with trained(simulation, Silent()) as (_, state):
        shipped = shipped_backbone(state, simulation.federation)
    if any(outcome.status != "ok" for record in state.history for outcome in record.outcomes.values()):
        raise RuntimeError(f"{out}: some round went wrong: {state.history}")
    weights = shipped.backbone.recency.weights().detach().numpy()
    gains = [f"{record.gain:+.4f} +- {record.gain_stddev:.4f}" for record in state.history if record.gain is not None]
    print(
        f"seed {seed}: round {shipped.round} is shipped, released gains {gains}, weights "
        f"{(weights / weights[0]).round(2).tolist()}, {time.process_time() - started:.0f} CPU-s",
        file=sys.stderr,
        flush=True,
    )
    return shipped


def measure_target(  # noqa: PLR0913 - keyword-only
    file: Path, shipped: ShippedBackbone, target: str, sizes: Sequence[int], *, seed: int, out: Path
) -> list[Measured]:
    """Every method in one target, for every number of support users."""
    config = load_domain(file.parent.parent / "domains" / target)
    study = Study(out=out, federation=load_federation(file), domains=(config,), seeds=(seed,), rounds=10)
    split = new_domain(load_domain_data(config), most=MOST)
    found = []
    for users in sizes:
        support = split.support(users, seed=seed)
        domain = known(study, support, shipped, newcomer=True)
        head = out / f"{target}-{users}"
        fit_private_head(study, domain, shipped, seed=seed, folder=head)
        measured = measure(methods_of(domain, shipped=shipped, head=head, seed=seed), split.task(support))
        ndcg = {name: ndcg_at_k(ranks, 10) for name, ranks in measured.ranks.items()}
        found.append(Measured(target=target, users=users, ndcg=ndcg))
        print(target, users, {name: round(float(v.mean()), 4) for name, v in ndcg.items()}, file=sys.stderr, flush=True)
    return found


def table(found: Sequence[Measured]) -> list[str]:
    """A row for each target and number of support users."""
    rows = [
        "| target | users | text | item-CF | text + item-CF | best local | backbone | served | served - best local | |",
        "|---|---:|---:|---:|---:|---|---:|---:|---|---:|",
    ]
    for target, users in dict.fromkeys((one.target, one.users) for one in found):
        some = [one.ndcg for one in found if (one.target, one.users) == (target, users)]
        mean = {name: np.mean([ndcg[name] for ndcg in some], axis=0) for name in some[0]}
        best = max((name for name in LOCAL if name in mean), key=lambda name: float(mean[name].mean()))
        gain = float((mean["federated"] - mean[best]).mean())
        low, high = paired_bootstrap_ci(mean["federated"], mean[best], resamples=2000, seed=0)
        figures = [f"{mean[name].mean():.4f}" for name in ("text_knn", "item_cf", "text_item_cf")]
        rows.append(
            f"| {target} | {users} | {' | '.join(figures)} | {mean[best].mean():.4f} {best} "
            f"| {mean['backbone'].mean():.4f} | {mean['federated'].mean():.4f} "
            f"| {gain:+.4f} [{low:+.4f}, {high:+.4f}] | {gain / mean[best].mean():+.1%} |"
        )
    return rows


if __name__ == "__main__":
    sys.exit(main())
