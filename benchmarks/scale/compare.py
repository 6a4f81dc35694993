"""How the cost of a domain grows with its users: from the log to a released round and a released evaluation.

    python benchmarks/scale/compare.py                                   # 10,000, 100,000 and 1,000,000 users
    python benchmarks/scale/compare.py --users 10000 100000 --out scale.md

A made-up log (`make.py`: 50 events a user, 100,000 items) goes through the phases of `phases.py`, each in a fresh
process with one thread of torch; polars takes two. The table has CPU-seconds and peak memory of each, and goes to
`benchmarks/SCALE.md` (or `--out`). Bars, stated before: no phase above 4 GiB at the largest size; the phases that look
at every user, together, grow no faster than users do from the size before, 20 % allowed for disturbance. Making the log
is not ours to judge.
Exit code 1 where a bar is missed. A million users take some ten minutes of CPU and 4 GB of disk.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))

from line import Line  # noqa: E402 - beside the other benchmarks

SIZES = (10_000, 100_000, 1_000_000)
PHASES = ("make", "import", "open", "open again", "texts", "round", "evaluation")
JUDGED = PHASES[1:]
GROWING = ("import", "open", "open again", "evaluation")
"""Phases that look at every user."""
MOST_MIB = 4096.0
GROWTH_BAR = 1.2
"""CPU-seconds of the growing phases at the largest size / those of the size before, scaled by users."""

_HEAD = """# Growth with users

Written by `benchmarks/scale/compare.py`: CPU-seconds and peak resident memory of each phase, in a process of its own.
50 events a user and 100,000 items, made up; hashed texts of 64 dimensions, the default backbone. The last columns say
how many times the CPU-seconds grew where users grew as in their heads.
"""
_NOTES = """
- `make` draws the log and is not ours. `import` is `isthmus domain import`: it checks the log, then copies it.
- `open` is a vault's first reading of the folder, `open again` any later one: digests are compared, arrays mapped.
- `round` is a released update: two steps of at most 4,096 expected users, so from 100,000 users on it costs the same.
  Nearly all of it is ranking the catalogue before their last ten events.
- `evaluation` is a released gain over all users. The made-up titles say nothing about the next item, so a sample of the
  catalogue shows for nearly all that nothing is gained; where titles tell, more users are ranked in full.
- Not in here: the local methods after a run. Item-CF holds every pair of items that share a user.

| what | ours | limit | ratio | bar | |
|---|---:|---:|---:|---:|---|"""


class Cost(NamedTuple):
    """Of one phase: CPU-seconds, seconds, and peak resident MiB of its process."""

    cpu: float
    wall: float
    peak_mib: float


def main() -> int:
    """Parse, measure, write the table; exit code 1 where a bar is missed."""
    parser = argparse.ArgumentParser(
        description="CPU-seconds and memory of a domain's life, by number of users.",
        epilog="Example: python benchmarks/scale/compare.py --users 10000 100000",
    )
    parser.add_argument("--users", type=int, nargs="+", default=list(SIZES), help="sizes (default: 10 k, 100 k, 1 M)")
    parser.add_argument("--out", type=Path, default=CHECKOUT / "benchmarks" / "SCALE.md", help="file of the table")
    arguments = parser.parse_args()
    if min(arguments.users) < 1:
        print(f"error: --users must be at least 1, got {min(arguments.users)}", file=sys.stderr)
        return 2
    costs = run(sorted(arguments.users), 1)
    lines = judged(costs)
    arguments.out.write_text(page(costs, lines), encoding="utf-8")
    print(page(costs, lines))
    return 0 if all(line.met for line in lines) else 1


def measure(repetitions: int, *, sizes: tuple[int, ...] = SIZES) -> list[Line]:
    """All sizes, `repetitions` times, the least disturbed of each phase.

    Returns:
        A line for peak memory (ours / 4 GiB, bar 1) and one for growth (CPU-seconds at the largest size / linear from
        the size before, bar 1.2).
    """
    return judged(run(sorted(sizes), repetitions))


def run(sizes: list[int], repetitions: int) -> dict[int, dict[str, Cost]]:
    """Costs by users and phase: the least CPU-seconds, and the largest peak, over repetitions."""
    costs: dict[int, dict[str, Cost]] = {}
    for _ in range(repetitions):
        for users in sizes:
            with tempfile.TemporaryDirectory(prefix="isthmus-scale-") as folder:
                for phase in PHASES:
                    cost = one(phase, Path(folder), users)
                    told = f"{users:>9,} {phase:10s} {cost.cpu:8.1f} CPU-s {cost.wall:8.1f} s {cost.peak_mib:7.0f} MiB"
                    print(told, file=sys.stderr, flush=True)
                    known = costs.setdefault(users, {}).get(phase, cost)
                    costs[users][phase] = Cost(
                        min(known.cpu, cost.cpu), min(known.wall, cost.wall), max(known.peak_mib, cost.peak_mib)
                    )
    return costs


def one(phase: str, folder: Path, users: int) -> Cost:
    """One phase in a fresh process; RuntimeError if it failed."""
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT / "src"), "POLARS_MAX_THREADS": "2"}
    environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "phases.py"), phase, str(folder), "--users", str(users)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{phase} at {users} users ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def judged(costs: dict[int, dict[str, Cost]]) -> list[Line]:
    """The bars, on the largest size and the one before."""
    *_, largest = sizes = sorted(costs)
    worst = max(JUDGED, key=lambda phase: costs[largest][phase].peak_mib)
    peak = costs[largest][worst].peak_mib
    name = f"peak memory, {largest:,} users ({worst})"
    lines = [Line(name, peak, MOST_MIB, "4 GiB", peak / MOST_MIB, 1.0, "MiB", peak <= MOST_MIB)]
    if len(sizes) > 1:
        before = sizes[-2]
        ours = sum(costs[largest][phase].cpu for phase in GROWING)
        linear = sum(costs[before][phase].cpu for phase in GROWING) * largest / before
        name, met = f"growth, {before:,} to {largest:,} users", ours / linear <= GROWTH_BAR
        lines.append(Line(name, ours, linear, "linear", ours / linear, GROWTH_BAR, "CPU-s", met))
    return lines


def page(costs: dict[int, dict[str, Cost]], lines: list[Line]) -> str:
    """The table and the bars as markdown."""
    sizes = sorted(costs)
    heads = [f"{users:,} users | MiB" for users in sizes]
    growth = [f"x {users // before}" for before, users in itertools.pairwise(sizes)]
    text = [
        _HEAD,
        f"| phase | {' | '.join([*heads, *growth])} |",
        f"|---|{'---:|' * (2 * len(sizes) + len(growth))}",
    ]
    for phase in PHASES:
        cells = [f"{costs[users][phase].cpu:,.1f} | {costs[users][phase].peak_mib:,.0f}" for users in sizes]
        pairs = itertools.pairwise(sizes)
        cells += [f"{costs[users][phase].cpu / costs[before][phase].cpu:.1f}" for before, users in pairs]
        text.append(f"| {phase} | {' | '.join(cells)} |")
    text.append(_NOTES)
    for line in lines:
        figures = f"{line.ours:,.0f} {line.unit} | {line.peer:,.0f} {line.unit} ({line.peer_name})"
        text.append(
            f"| {line.name} | {figures} | {line.ratio:.2f} | {line.bar:g} | {'met' if line.met else 'NOT met'} |"
        )
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    sys.exit(main())
