"""A new domain with 0, 64, 256 and 1,024 users: what others have learned, beside what it can do alone.

    python benchmarks/utility/new_domain.py --data ../shared/data --seeds 0 1 2
    python benchmarks/utility/new_domain.py --sources beauty sports --users 0 64 --epsilon 1 2 4 8 inf

The sources train together at epsilon 8 (`--epsilon`, where `inf` is a run without noise) and delta 1e-6 each, by the
default recipe, which knows nothing of the targets; the targets take no part, their texts included. No private head of a
source is fitted, on which `isthmus evaluate --scenario new-domain` would spend most of its time; everything else is as
there. A target whitens its texts by itself, for its local methods and for the backbone, which has learned nothing about
axes. Support users are drawn with the seed; all else is measured on the same half of the target's users. Differences
are paired by user, averaged over seeds first, with 95 % intervals of a bootstrap over users; they are against the local
method that is best *on these very users*.

The shipped backbone is the evaluated round with the highest noisy gain that the sources released, or the untrained
prior. Prints a table in Markdown.

Aim, set before: at least +10 % at 0 to 256 users, both targets, intervals clear of 0; never below and clear of 0.
"""

import argparse
import itertools
import logging
import math
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
from isthmus.simulation.derived import derive
from isthmus.simulation.measuring import measure
from isthmus.simulation.methods import LOCAL, methods_of
from isthmus.simulation.noise_free import run_noise_free
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
    """One run of the sources and number of support users in one target: NDCG@10 of each measured user, by method."""

    epsilon: float
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
    parser.add_argument("--epsilon", type=float, nargs="+", default=[8.0], help="of each source; inf: no noise")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("flwr").setLevel(logging.WARNING)
    found: list[Measured] = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        make = CHECKOUT / "benchmarks" / "federations" / "make.py"
        subprocess.run([sys.executable, make, "--data", arguments.data, "--out", root], check=True, capture_output=True)
        for epsilon, seed in itertools.product(arguments.epsilon, arguments.seeds):
            file = federation_file(root, arguments.sources, seed)
            out = root / f"{epsilon}-{seed}"
            shipped = train(file, epsilon=epsilon, seed=seed, out=out / "run")
            for target in arguments.targets:
                for users, ndcg in measure_target(file, shipped, target, arguments.users, seed=seed, out=out).items():
                    found.append(Measured(epsilon=epsilon, target=target, users=users, ndcg=ndcg))
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


def train(file: Path, *, epsilon: float, seed: int, out: Path) -> ShippedBackbone:
    """The rounds of a run, and the backbone that it ships."""
    started, federation = time.process_time(), load_federation(file)
    if math.isinf(epsilon):
        rounds, states = federation.strategy.rounds, []
        shipped = run_noise_free(file, seed=seed, rounds=rounds, out=out, listener=states.append)
        state = states[-1]
    else:
        domains = [load_domain(folder) for folder in federation.domain_folders()]
        file = derive(federation, domains, to=out.with_name("federation"), epsilon=epsilon)
        with trained(prepare(file, out=out, seed=seed, backend="in-process"), Silent()) as (_, state):
            shipped = shipped_backbone(state, federation)
    if any(outcome.status != "ok" for record in state.history for outcome in record.outcomes.values()):
        raise RuntimeError(f"{out}: some round went wrong: {state.history}")
    weights = shipped.backbone.recency.weights().detach().numpy()
    gains = [f"{record.gain:+.4f} +- {record.gain_stddev:.4f}" for record in state.history if record.gain is not None]
    print(
        f"epsilon {epsilon:g}, seed {seed}: round {shipped.round} is shipped, released gains {gains}, weights "
        f"{(weights / weights[0]).round(2).tolist()}, {time.process_time() - started:.0f} CPU-s",
        file=sys.stderr,
        flush=True,
    )
    return shipped


def measure_target(  # noqa: PLR0913 - keyword-only
    file: Path, shipped: ShippedBackbone, target: str, sizes: Sequence[int], *, seed: int, out: Path
) -> dict[int, dict[str, NDArray[np.float64]]]:
    """NDCG@10 of each measured user of one target, by method, for every number of support users."""
    config = load_domain(file.parent.parent / "domains" / target)
    study = Study(out=out, federation=load_federation(file), domains=(config,), seeds=(seed,), rounds=10)
    split = new_domain(load_domain_data(config), most=MOST)
    found = {}
    for users in sizes:
        support = split.support(users, seed=seed)
        domain = known(study, support, shipped, newcomer=True)
        head = out / f"{target}-{users}"
        fit_private_head(study, domain, shipped, seed=seed, folder=head)
        measured = measure(methods_of(domain, shipped=shipped, head=head, seed=seed), split.task(support))
        found[users] = {name: ndcg_at_k(ranks, 10) for name, ranks in measured.ranks.items()}
        means = {name: round(float(ndcg.mean()), 4) for name, ndcg in found[users].items()}
        print(target, users, means, file=sys.stderr, flush=True)
    return found


def table(found: Sequence[Measured]) -> list[str]:
    """A row for each epsilon, target and number of support users."""
    methods = "text | item-CF | text + item-CF | best local | backbone | served"
    rows = [
        f"| epsilon | target | users | {methods} | served - best local | |",
        "|---:|---|---:|---:|---:|---:|---|---:|---:|---|---:|",
    ]
    for key in dict.fromkeys((one.epsilon, one.target, one.users) for one in found):
        epsilon, target, users = key
        some = [one.ndcg for one in found if (one.epsilon, one.target, one.users) == key]
        mean = {name: np.mean([ndcg[name] for ndcg in some], axis=0) for name in some[0]}
        best = max((name for name in LOCAL if name in mean), key=lambda name: float(mean[name].mean()))
        gain = float((mean["federated"] - mean[best]).mean())
        low, high = paired_bootstrap_ci(mean["federated"], mean[best], resamples=2000, seed=0)
        figures = [f"{mean[name].mean():.4f}" for name in ("text_knn", "item_cf", "text_item_cf")]
        rows.append(
            f"| {epsilon:g} | {target} | {users} | {' | '.join(figures)} | {mean[best].mean():.4f} {best} "
            f"| {mean['backbone'].mean():.4f} | {mean['federated'].mean():.4f} "
            f"| {gain:+.4f} [{low:+.4f}, {high:+.4f}] | {gain / mean[best].mean():+.1%} |"
        )
    return rows


if __name__ == "__main__":
    sys.exit(main())
