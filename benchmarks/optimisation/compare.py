"""What choices of `[training]` are worth: the backbone's own NDCG@10, each alone beside `train = "all"` as it stands.

    python benchmarks/optimisation/compare.py --data ../shared/data --seeds 1
    python benchmarks/optimisation/compare.py --seeds 1 --only default crop     # some of the choices

Runs `office_industrial` (see ../federations) for each choice under one run id a seed, so that batches and, where as
many coordinates are trained, noise are the same. Nothing is evaluated on the way and no private head is fitted: what is
scored is the backbone as the last round left it (or the average, where one is kept), on the held-out last item of every
test user of each domain. In brackets is the 95 % interval, by a bootstrap over users, of the difference from the
default of the same seed, paired by user.

Bar, set before the measurement: a choice pays where its interval is above 0 in both domains, in every seed. Prints a
table in Markdown; `docs/experiments.md` keeps those that were made.
"""

import argparse
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from isthmus.clients.backbone_scorer import BackboneScorer
from isthmus.clients.data import load_domain_data
from isthmus.clients.scorers import rank_users
from isthmus.clients.text_tower import shipped_reading
from isthmus.config import load_domain
from isthmus.features import default_cache_dir, encode_texts
from isthmus.metrics import bootstrap_ci, ndcg_at_k, paired_bootstrap_ci
from isthmus.server.checkpoint import RunState
from isthmus.server.shipping import shipped_backbone
from isthmus.simulation import prepare
from isthmus.simulation.prepare import Simulation
from isthmus.simulation.run import Watcher, trained

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
FEDERATION = "office_industrial"
DEFAULT = "default"
ALIGN = 'align = "dann"\nalign_domains = ["industrial", "office"]'

CHOICES: dict[str, str] = {
    DEFAULT: "[training]",
    "clipping = automatic": '[training]\nclipping = "automatic"',
    "optimizer = adam_bc, rate 0.003": '[training]\noptimizer = "adam_bc"\nlearning_rate = 0.003',
    "optimizer = adam_bc, rate 0.001": '[training]\noptimizer = "adam_bc"\nlearning_rate = 0.001',
    "average = 0.9": "[strategy]\naverage = 0.9",
    "augment = crop": '[training]\naugment = "crop"',
    "augment = mask": '[training]\naugment = "mask"',
    "augment = reorder": '[training]\naugment = "reorder"',
    "train = ends": '[training]\ntrain = "ends"',
    "train = head": '[training]\ntrain = "head"',
    "train = lora, rank 4": '[training]\ntrain = "lora"\nrank = 4',
    "train = lora, rank 16": '[training]\ntrain = "lora"\nrank = 16',
    "optimizer = per_fedavg, inner 1": '[training]\noptimizer = "per_fedavg"\ninner_learning_rate = 1.0',
    "reptile, 0.5": '[strategy]\nname = "reptile"\nserver_learning_rate = 0.5',
    "feddf": '[strategy]\nname = "feddf"',
    "align = dann, weight 0.1": f"[training]\n{ALIGN}\nalign_weight = 0.1",
    "align = dann, weight 1": f"[training]\n{ALIGN}\nalign_weight = 1.0",
    "leave_one_out": '[strategy]\nname = "leave_one_out"\ncompare_every = 2',
    "one domain a round": "[strategy]\ndomains_per_round = 1",
    "learning_rate = 0.5": "[training]\nlearning_rate = 0.5",
    "learning_rate = 2": "[training]\nlearning_rate = 2.0",
    "learning_rate = 2, average = 0.9": "[training]\nlearning_rate = 2.0\n\n[strategy]\naverage = 0.9",
    "learning_rate = 2, train = head": '[training]\nlearning_rate = 2.0\ntrain = "head"',
    "learning_rate = 2, train = ends": '[training]\nlearning_rate = 2.0\ntrain = "ends"',
    "learning_rate = 2, train = lora, rank 4": '[training]\nlearning_rate = 2.0\ntrain = "lora"\nrank = 4',
}
"""Sections and what is added to them, by what it is called. Less noise may bear larger steps: some come with them."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What one run came to.

    Attributes:
        ndcg: (users,) NDCG@10 of each test user, by domain.
        bytes_up: From all domains.
        cpu_seconds: Of the rounds.
    """

    ndcg: Mapping[str, NDArray[np.float64]]
    bytes_up: int
    cpu_seconds: float


class Silent(Watcher):
    """A watcher that says nothing."""


def main() -> int:
    """Parse, run, print a line after each run."""
    parser = argparse.ArgumentParser(
        description="NDCG@10 of the backbone under each choice of [training], beside the defaults.",
        epilog="Example: python benchmarks/optimisation/compare.py --seeds 1",
    )
    parser.add_argument("--data", type=Path, default=CHECKOUT.parent / "shared" / "data", help="the data sets")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of batches and noise (default: 0)")
    parser.add_argument(
        "--only", nargs="+", help="choices whose name holds one of these words; the default always runs"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("flwr").setLevel(logging.WARNING)
    print("| seed | choice | domain | NDCG@10 | difference from the default | bytes up | CPU-s |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        make = CHECKOUT / "benchmarks" / "federations" / "make.py"
        subprocess.run([sys.executable, make, "--data", arguments.data, "--out", root], check=True, capture_output=True)
        file = root / FEDERATION / "federation.toml"
        for seed in arguments.seeds:
            base = None
            for number, (choice, text) in enumerate(CHOICES.items()):
                if choice == DEFAULT or not arguments.only or any(word in choice for word in arguments.only):
                    scored = one_run(file, text, seed, root / f"{seed}-{number}")
                    base = base or scored
                    print("\n".join(lines(choice, seed, scored, base)), flush=True)
    return 0


def one_run(file: Path, text: str, seed: int, out: Path) -> Scored:
    """The rounds of one run, and the backbone that they left, scored."""
    made = file.read_text(encoding="utf-8").replace("evaluate_every = 5", "evaluate_every = 0")
    for said in ('train = "all"', 'name = "fedavg"'):
        if said.partition('"')[0] in text:
            made = made.replace(said, "", 1)
    for section in text.split("\n\n"):
        made = made.replace(section.partition("\n")[0], f"{section}\n", 1)
    other = file.with_name(f"{out.name}.toml")
    other.write_text(made, encoding="utf-8")
    simulation = prepare(other, out=out, seed=seed, backend="in-process")
    simulation = replace(simulation, run=f"optimisation-{seed}")  # noise and batches follow from it
    started = time.process_time()
    with trained(simulation, Silent()) as (_, state):
        spent = time.process_time() - started
    if any(outcome.status != "ok" for record in state.history for outcome in record.outcomes.values()):
        raise RuntimeError(f"{out}: some round went wrong: {state.history}")
    return Scored(ndcg=scores(simulation, state), bytes_up=state.bytes_up, cpu_seconds=spent)


def scores(simulation: Simulation, state: RunState) -> dict[str, NDArray[np.float64]]:
    """NDCG@10 of each test user, by domain."""
    shipped = shipped_backbone(replace(state, best=state.average or state.arrays), simulation.federation)
    found = {}
    for config in simulation.domains:
        data = load_domain_data(load_domain(config.folder))
        encoded = encode_texts(data.catalogue.texts, shipped.features.encoder, cache_dir=default_cache_dir(), threads=1)
        features = torch.from_numpy(shipped.whitening.apply(encoded))
        read = shipped_reading(shipped, data.catalogue.texts)
        scorer = BackboneScorer(shipped.backbone, features, read=read)
        users = np.flatnonzero(data.test >= 0)
        found[config.name] = ndcg_at_k(rank_users(scorer, data.before_test, users, data.test[users]), 10)
    return found


def lines(choice: str, seed: int, scored: Scored, base: Scored) -> list[str]:
    """A row of the table for each domain."""
    rows = []
    for domain, ours in sorted(scored.ndcg.items()):
        low, high = bootstrap_ci(ours, resamples=1000, seed=0)
        below, above = paired_bootstrap_ci(ours, base.ndcg[domain], resamples=1000, seed=0)
        difference = f"{ours.mean() - base.ndcg[domain].mean():+.4f} [{below:+.4f}, {above:+.4f}]"
        rows.append(
            f"| {seed} | {choice} | {domain} | {ours.mean():.4f} [{low:.4f}, {high:.4f}] "
            f"| {'' if choice == DEFAULT else difference} | {scored.bytes_up:,} | {scored.cpu_seconds:.0f} |"
        )
    return rows


if __name__ == "__main__":
    sys.exit(main())
