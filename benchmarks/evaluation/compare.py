"""Cost of ranking the whole catalogue for held-out items, beside the naive loop.

    python benchmarks/evaluation/compare.py --reps 5
    python benchmarks/evaluation/compare.py --data ../shared/data --out evaluation.json

The naive loop takes one user after the other: score all items, leave the seen ones out, sort, find the target. Ours is
`rank_users`. Both use the same scorers: the backbone alone (what a noisy evaluation ranks) and a blend of backbone,
text, item-CF and popularity (what a private head ranks), on the real sets that lie beside the checkout and on a made-up
one. Every repetition runs every case, ours and naive in turn, each in a fresh process with one thread. Compared are the
CPU-seconds of the ranking itself (fitting and reading are the same for both) and the peak memory of the process.

A line's ratio is naive / ours, the median over repetitions of the same repetition's two; the bar is 5. Ranks must be
the same: the two multiply in different orders, so a rank may differ where a rival's score is within rounding of the
target's, and nowhere else. Exit code 1 where a bar is missed.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from isthmus.backbone import Backbone
from isthmus.clients.backbone_scorer import BackboneScorer
from isthmus.clients.blend import Blend, Signal, Signals
from isthmus.clients.data import Histories, load_domain_data
from isthmus.clients.scorers import Scorer, rank_users
from isthmus.config import BackboneConfig, load_domain
from isthmus.features import encode_texts

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))

from line import Line  # noqa: E402 - beside the other benchmarks

BAR = 5.0
"""The naive loop takes at least so many times our CPU-seconds."""

USERS = 2000
"""Test users of a case; the naive loop has no patience for more."""

ROUNDING = 1e-5
"""Scores closer than this (relative to the largest of the user) may change places with the order of a sum."""

SETS = {"office": "amazon18_office", "yelp": "yelp"}
MADE_UP = "made-up"
METHODS = ("backbone", "blend")
WAYS = ("ours", "naive")


def main() -> int:
    """Parse, measure, print; exit code 1 where a bar is missed."""
    parser = argparse.ArgumentParser(
        description="CPU-seconds and memory of full ranking, beside a naive loop.",
        epilog="Example: python benchmarks/evaluation/compare.py --reps 5",
    )
    parser.add_argument("--reps", type=int, default=5, help="repetitions (default: 5)")
    parser.add_argument(
        "--data", type=Path, default=CHECKOUT.parent / "shared" / "data", help="folder of the real sets"
    )
    parser.add_argument("--out", type=Path, help="file for the lines, as JSON")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # a child: set, method, way
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(run_one(*arguments.one, data=arguments.data.resolve())))
        return 0
    if arguments.reps < 1:
        print(f"error: --reps must be at least 1, got {arguments.reps}", file=sys.stderr)
        return 2
    lines = measure(arguments.reps, data=arguments.data)
    for line in lines:
        verdict = "met" if line.met else "NOT met"
        figures = f"{line.ours:8.2f} {line.unit}, {line.peer_name} {line.peer:8.2f} {line.unit}"
        print(f"{line.name:44s} {figures}, ratio {line.ratio:6.2f}, bar {line.bar:g}: {verdict}")
    if arguments.out:
        arguments.out.write_text(json.dumps([line._asdict() for line in lines], indent=1) + "\n", encoding="utf-8")
    return 0 if all(line.met for line in lines) else 1


def measure(repetitions: int, *, data: Path = CHECKOUT.parent / "shared" / "data") -> list[Line]:
    """Every case, `repetitions` times, interleaved.

    Args:
        repetitions: At least 1.
        data: Folder of the real sets; one that is not there is left out.

    Returns:
        Per case a line of CPU-seconds (bar: naive / ours at least 5) and one of peak memory (bar: ours / naive at most
        1.5: nothing is bought with memory).
    """
    names = [name for name, folder in SETS.items() if (data / folder).is_dir()] + [MADE_UP]
    cases = [(name, method) for name in names for method in METHODS]
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {(*case, way): [] for case in cases for way in WAYS}
    for rep in range(repetitions):
        for name, method in cases:
            for way in WAYS:
                one = child(name, method, way, data=data)
                found[name, method, way].append(one)
                told = f"{rep + 1}/{repetitions} {name} {method} {way}: {one['cpu']:.2f} CPU-s"
                print(told, file=sys.stderr, flush=True)
            require_same_ranks(found[name, method, "ours"][-1], found[name, method, "naive"][-1])
    return [line for name, method in cases for line in summary(name, method, found)]


def summary(name: str, method: str, found: dict[tuple[str, str, str], list[dict[str, Any]]]) -> list[Line]:
    """The two lines of a case."""
    ours, naive = (found[name, method, way] for way in WAYS)
    ratio = statistics.median(slow["cpu"] / fast["cpu"] for fast, slow in zip(ours, naive, strict=True))
    cpu = [statistics.median(one["cpu"] for one in part) for part in (ours, naive)]
    peak = [max(one["peak_mib"] for one in part) for part in (ours, naive)]
    about = f"{name}, {method}, {ours[0]['users']} x {ours[0]['items']}"
    memory = peak[0] / peak[1]
    return [
        Line(f"ranking {about}", cpu[0], cpu[1], "naive loop", ratio, BAR, "CPU-s", ratio >= BAR),
        Line(f"memory {about}", peak[0], peak[1], "naive loop", memory, 1.5, "MiB", memory <= 1.5),
    ]


def require_same_ranks(ours: dict[str, Any], naive: dict[str, Any]) -> None:
    """Refuse a rank that differs by more than the rivals whose score is within rounding of the target's."""
    for user, (mine, theirs, near) in enumerate(zip(ours["ranks"], naive["ranks"], naive["near"], strict=True)):
        if abs(mine - theirs) > near:
            raise RuntimeError(f"user {user} must have rank {theirs} (up to {near} near ties), got {mine}")


def child(name: str, method: str, way: str, *, data: Path) -> dict[str, Any]:
    """One case in a fresh process."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(CHECKOUT / "src"),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    command = [sys.executable, __file__, "--data", str(data.resolve()), "--one", name, method, way]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} {method} {way} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def run_one(name: str, method: str, way: str, *, data: Path) -> dict[str, Any]:
    """Read and fit, then rank and say what the ranking cost."""
    torch.set_num_threads(1)
    histories, targets, features = made_up() if name == MADE_UP else real(name, data)
    torch.manual_seed(0)
    backbone = Backbone(features.shape[1], BackboneConfig())
    torch.nn.init.normal_(backbone.head.weight, std=0.01)  # so that what was learned has something to say
    scorer: Scorer = BackboneScorer(backbone, torch.from_numpy(features))
    weights = {Signal.TEXT: 0.3, Signal.BACKBONE: 0.3, Signal.ITEM_CF: 0.3, Signal.POPULARITY: 0.1}
    if method == "blend":
        scorer = Blend(signals=Signals.fit(histories, features=features, backbone=scorer), weights=weights)
    tested = np.flatnonzero(targets >= 0)
    users = np.sort(np.random.default_rng(0).choice(tested, min(USERS, len(tested)), replace=False))
    near: list[int] = []
    start = time.process_time()
    if way == "ours":
        ranks = rank_users(scorer, histories, users, targets[users]).tolist()
    else:
        ranks = naive_ranks(scorer, histories, users, targets[users])
    cpu = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if way == "naive":
        near = near_ties(scorer, histories, users, targets[users])
    return {"cpu": cpu, "peak_mib": peak, "users": len(users), "items": len(features), "ranks": ranks, "near": near}


def naive_ranks(
    scorer: Scorer, histories: Histories, users: NDArray[np.int64], targets: NDArray[np.int32]
) -> list[int]:
    """One user after the other: score all items, leave the seen ones out, sort, find the target behind its equals."""
    ranks = []
    for user, target in zip(users, targets, strict=True):
        scores = scorer.score(histories, np.array([user]))[0]
        seen = histories.row(int(user))
        if target not in seen:
            scores[seen] = -np.inf
        order = np.argsort(-scores, kind="stable")
        place = int(np.flatnonzero(order == target)[0])
        while place + 1 < len(order) and scores[order[place + 1]] == scores[target]:
            place += 1
        ranks.append(place + 1)
    return ranks


def near_ties(scorer: Scorer, histories: Histories, users: NDArray[np.int64], targets: NDArray[np.int32]) -> list[int]:
    """How many other items of each user have a score within rounding of the target's."""
    counts = []
    for user, target in zip(users, targets, strict=True):
        scores = scorer.score(histories, np.array([user]))[0]
        counts.append(int((np.abs(scores - scores[target]) <= ROUNDING * np.abs(scores).max()).sum()) - 1)
    return counts


def real(name: str, data: Path) -> tuple[Histories, NDArray[np.int32], NDArray[np.float32]]:
    """Histories before the test item, test items, and hashed features of the real titles."""
    template = CHECKOUT / "benchmarks" / "federations" / "domains" / f"{name}.toml"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "domain.toml"
        file.write_text(template.read_text(encoding="utf-8").replace("{data}", str(data)), encoding="utf-8")
        domain = load_domain_data(load_domain(folder))
        features = encode_texts(domain.catalogue.texts, "hash", cache_dir=None)
    return domain.before_test, domain.test, features


def made_up() -> tuple[Histories, NDArray[np.int32], NDArray[np.float32]]:
    """2,000 users with 5 to 40 events among 30,000 items of skewed popularity, 128 features."""
    rng, users, items = np.random.default_rng(0), USERS, 30_000
    offsets = np.concatenate([[0], np.cumsum(rng.integers(5, 41, users))])
    events = (items * rng.random(int(offsets[-1])) ** 3).astype(np.int32)
    features = rng.normal(size=(items, 128)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    targets = (items * rng.random(users) ** 3).astype(np.int32)
    return Histories(offsets=offsets, items=events), targets, features


if __name__ == "__main__":
    sys.exit(main())
