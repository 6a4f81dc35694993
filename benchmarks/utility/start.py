"""A federation that starts from a backbone which was trained in the open, beside one that starts from the text prior.

    isthmus pretrain public.toml --out start.safetensors
    python benchmarks/utility/start.py federation.toml --starts start.safetensors --seeds 0

For each start two federations follow: from the prior and from the start, both with what the start was trained for
(`train`). NDCG@10 of the backbone alone, before the first round and after the last one whatever was released, on all
test users, in the axes in which each domain would serve it. Differences are paired by user, from the prior after as
many rounds, with 95 % intervals of a bootstrap. Prints a table in Markdown.
"""

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from isthmus.backbone_file import load_backbone
from isthmus.clients.backbone_scorer import BackboneScorer
from isthmus.clients.data import load_domain_data
from isthmus.clients.finish import read_by, to_serve
from isthmus.clients.scorers import rank_users
from isthmus.config import load_federation
from isthmus.features import default_cache_dir, encode_texts
from isthmus.metrics import ndcg_at_k, paired_bootstrap_ci
from isthmus.packing import arrays_digest
from isthmus.records import recipe_of
from isthmus.server.checkpoint import RunState
from isthmus.server.shipping import shipped_backbone
from isthmus.settings import toml_text
from isthmus.simulation import Simulation, prepare
from isthmus.simulation.run import Watcher, trained

Scores = Mapping[str, NDArray[np.float64]]
"""NDCG@10 of each test user, by domain."""


@dataclass
class First(Watcher):
    """A watcher that remembers the state before the first round, and says nothing."""

    state: RunState | None = None

    def round(self, state: RunState, rounds: int, spent: dict[str, float]) -> None:
        """Keep the first."""
        del rounds, spent
        self.state = self.state or state


def main() -> int:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(
        description="A start from the open, against the text prior.",
        epilog="Example: python benchmarks/utility/start.py federation.toml --starts start.safetensors",
    )
    parser.add_argument("federation", type=Path, help="federation file; its `train` is replaced")
    parser.add_argument("--starts", type=Path, nargs="+", required=True, help="files of `isthmus pretrain`")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of noise and batches")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("flwr").setLevel(logging.WARNING)
    print("| start | trained | seed | domain | rounds | from the prior | from the start | difference |")
    print("|---|---|---:|---|---:|---:|---:|---:|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        for number, start in enumerate(arguments.starts):
            for seed in arguments.seeds:
                folder = Path(name) / f"{number}-{seed}"
                folder.mkdir()
                prior = one_run(arguments.federation, start, seed, folder / "prior", begin=False)
                begun = one_run(arguments.federation, start, seed, folder / "start", begin=True)
                print("\n".join(rows(start, seed, prior, begun)), flush=True)
    return 0


def one_run(file: Path, start: Path, seed: int, out: Path, *, begin: bool) -> dict[int, Scores]:
    """A federation's backbone before its first round and after its last one, scored."""
    federation, origin = load_federation(file), load_backbone(start).origin
    if origin is None:
        raise SystemExit(f"{start}: not of `isthmus pretrain`")
    training = type(origin.training)(train=origin.training.train, rank=origin.training.rank)
    shape = federation.backbone.model_copy(update={"start": str(start.resolve()) if begin else None})
    folders = tuple(map(str, federation.domain_folders()))
    made = federation.model_copy(update={"training": training, "backbone": shape, "domains": folders, "seed": seed})
    copy = out.with_suffix(".toml")
    copy.write_text(toml_text(made), encoding="utf-8")
    simulation, first, began = prepare(copy, out=out, seed=seed, backend="in-process"), First(), time.process_time()
    with trained(simulation, first) as (_, state):
        spent = time.process_time() - began
    if first.state is None or any(one.status != "ok" for record in state.history for one in record.outcomes.values()):
        raise RuntimeError(f"{out}: some round went wrong: {state.history}")
    gains = [(record.round, round(record.gain, 4)) for record in state.history if record.gain is not None]
    weights = np.exp(state.arrays["recency.weight"] - state.arrays["recency.weight"].max())
    print(
        f"{out.name}: round {state.best_round} is shipped, released gains {gains}, weights by age "
        f"{(weights / weights[0]).round(2).tolist()}, {spent:.0f} CPU-s",
        file=sys.stderr,
        flush=True,
    )
    return {0: scores(simulation, first.state), state.round: scores(simulation, state)}


def scores(simulation: Simulation, state: RunState) -> Scores:
    """Of the parameters of a state, in the axes that a member would serve them in."""
    shipped = shipped_backbone(replace(state, best=state.arrays), simulation.federation)
    recipe = recipe_of(simulation.federation, arrays_digest(state.whitening).hex())
    found = {}
    for config in simulation.domains:
        data = load_domain_data(config)
        encoded = encode_texts(data.catalogue.texts, shipped.features.encoder, cache_dir=default_cache_dir(), threads=1)
        served, _ = to_serve(shipped, recipe, encoded)
        read = read_by(shipped, encoded)
        features = served.whitening.apply(encoded) if read is None else read
        users = np.flatnonzero(data.test >= 0)
        scorer = BackboneScorer(shipped.backbone, torch.from_numpy(features))
        found[config.name] = ndcg_at_k(rank_users(scorer, data.before_test, users, data.test[users]), 10)
    return found


def rows(start: Path, seed: int, prior: dict[int, Scores], begun: dict[int, Scores]) -> list[str]:
    """A row of the table for each domain and number of rounds."""
    origin = load_backbone(start).origin
    made = []
    for rounds, scored in prior.items():
        for domain, theirs in sorted(scored.items()):
            ours = begun[rounds][domain]
            low, high = paired_bootstrap_ci(ours, theirs, resamples=2000, seed=0)
            made.append(
                f"| {start.stem} | {origin.training.train if origin else ''} | {seed} | {domain} | {rounds} "
                f"| {theirs.mean():.4f} | {ours.mean():.4f} "
                f"| {ours.mean() - theirs.mean():+.4f} [{low:+.4f}, {high:+.4f}] |"
            )
    return made


if __name__ == "__main__":
    sys.exit(main())
