"""A private step beside ordinary ones: CPU-seconds and peak memory, every case in fresh processes, interleaved.

    python benchmarks/engine/compare.py --reps 3

What is measured, and who the peers are, is said in `step.py`. A figure is the median over the repetitions of a
process's median step; memory is how far the process's peak lies above what it held before the first step. Bars were set
before the engine was written: at most 1.0 times a plain autograd + Adam step, at most 1.40 times the best fused
step without privacy, and at most 0.65 times the memory of Opacus' hooks.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from line import TABLE_HEAD, Line, row  # noqa: E402 - beside this folder, not in a package

Case = tuple[str, str, str]
"""Model, loss, who computes."""

PEERS = {
    ("tied", "catalogue"): ("plain", "fused"),
    ("backbone", "catalogue"): ("plain", "fused", "opacus", "ghost"),
    ("backbone", "rivals"): ("plain", "opacus"),
    ("backbone", "last"): ("plain", "opacus"),
    ("backbone", "short"): ("plain", "opacus"),
}
OURS = "bookkeeping"
BARS = {"plain": 1.0, "fused": 1.40}
BAR_MEMORY = 0.65
LOSSES = {
    "catalogue": "loss at all positions, whole catalogue",
    "rivals": "loss at all positions, 50 candidates",
    "last": "loss at the last position, whole catalogue",
    "short": "histories of median 6, whole catalogue",
}
NAMES = {
    "plain": "plain autograd + Adam",
    "fused": "best fused non-private step",
    "opacus": "Opacus hooks",
    "ghost": "Opacus ghost clipping",
}


def measure(repetitions: int) -> list[Line]:
    """Run every case, interleaved.

    Args:
        repetitions: At least 1.
    """
    cases: list[Case] = [(*what, how) for what, peers in PEERS.items() for how in (OURS, *peers)]
    found: dict[Case, list[dict[str, float]]] = {case: [] for case in cases}
    for repetition in range(repetitions):
        for case in cases:
            found[case].append(_run(case))
            told = f"{repetition + 1}/{repetitions} {' '.join(case)}: {found[case][-1]['cpu']:.2f} CPU-s"
            print(told, file=sys.stderr, flush=True)
    lines = []
    for (model, loss), peers in PEERS.items():
        ours = (model, loss, OURS)
        for how in peers:
            peer = (model, loss, how)
            ratio = statistics.median(
                one["cpu"] / other["cpu"] for one, other in zip(found[ours], found[peer], strict=True)
            )
            bar = BARS.get(how) if loss == "catalogue" else None
            name = f"private step, {'tied adaptor' if model == 'tied' else 'own backbone'}, {LOSSES[loss]}"
            lines.append(_line(name, found[ours], found[peer], "cpu", how, ratio, bar, "CPU-s"))
        if "opacus" in peers:
            peer = (model, loss, "opacus")
            ratio = statistics.median(
                one["peak"] / other["peak"] for one, other in zip(found[ours], found[peer], strict=True)
            )
            bar = BAR_MEMORY if loss == "catalogue" else None
            name = f"memory of a private step, {LOSSES[loss]}"
            lines.append(_line(name, found[ours], found[peer], "peak", "opacus", ratio, bar, "GiB"))
    return lines


def _line(  # noqa: PLR0913, PLR0917 - a row
    name: str,
    ours: list[dict[str, float]],
    peer: list[dict[str, float]],
    what: str,
    how: str,
    ratio: float,
    bar: float | None,
    unit: str,
) -> Line:
    scale = 2**30 if what == "peak" else 1
    figures = [statistics.median(one[what] for one in some) / scale for some in (ours, peer)]
    return Line(name, *figures, NAMES[how], ratio, bar, unit, None if bar is None else ratio <= bar)


def _run(case: Case) -> dict[str, float]:
    """One case in a process of its own."""
    model, loss, how = case
    command = [sys.executable, str(HERE / "step.py"), "--model", model, "--loss", loss, "--how", how]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1] / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> int:
    """Parse, measure, print; exit code 1 where a bar is missed."""
    parser = argparse.ArgumentParser(
        description="CPU-seconds and memory of a private step, beside ordinary ones.",
        epilog="Example: python benchmarks/engine/compare.py --reps 3",
    )
    parser.add_argument("--reps", type=int, default=3, help="repetitions (default: 3)")
    arguments = parser.parse_args()
    lines = measure(max(1, arguments.reps))
    print("\n".join([TABLE_HEAD, *map(row, lines)]))
    return 0 if all(line.met is not False for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
