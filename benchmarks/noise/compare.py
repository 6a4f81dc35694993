"""Cost of cryptographic lattice noise beside torch's own generator, on one million parameters, one thread.

    python benchmarks/noise/compare.py --reps 31
    python benchmarks/noise/compare.py --out noise.json      # also writes what was measured

Every repetition runs every case once, in turn, in one process, so that what else the machine does slows all alike.
Compared are CPU-seconds (user and system); a ratio is the median over repetitions of a case's time to the baseline's
in the *same* repetition, and the quartiles stand beside it. Baselines: `torch.randn` in single precision for
generators, `sum + torch.normal` (what Opacus does without its secure mode) for noisy sums. Exit code 1 where a ratio
of a generator is above the bar.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from isthmus.privacy.noise import SecureRandomness

COUNT = 1_000_000
BAR = 1.5
"""At most so many times torch's generator."""

STDDEV, CLIP = 1.2, 1.0
SOURCE = SecureRandomness()
SUM = torch.linspace(-20.0, 20.0, COUNT)

TORCH, TORCH_NORMAL, OURS = "torch.randn", "torch.normal", "gaussian"
TORCH_SUM, OURS_SUM = "sum + torch.normal", "noisy sum"
WARM_UP = 3


def torch_randn() -> Tensor:
    return torch.randn(COUNT)


def torch_normal() -> Tensor:
    return torch.normal(0.0, STDDEV, (COUNT,))


def torch_sum() -> Tensor:
    return SUM + torch.normal(0.0, STDDEV, (COUNT,))


def gaussian() -> Tensor:
    return torch.from_numpy(SOURCE.gaussian(COUNT))


def noisy_sum() -> Tensor:
    return torch.from_numpy(SOURCE.noisy(SUM.numpy(), stddev=STDDEV, sensitivity=CLIP))


CASES: Mapping[str, Callable[[], Tensor]] = {
    TORCH: torch_randn,
    TORCH_NORMAL: torch_normal,
    OURS: gaussian,
    TORCH_SUM: torch_sum,
    OURS_SUM: noisy_sum,
}
RATIOS = ((OURS, TORCH), (OURS, TORCH_NORMAL), (OURS_SUM, TORCH_SUM), (OURS_SUM, TORCH))


def main() -> int:
    """Parse, measure, print; exit code 1 where the bar is missed."""
    parser = argparse.ArgumentParser(
        description="CPU-seconds of noise on a million parameters, relative to torch's generator.",
        epilog="Example: python benchmarks/noise/compare.py --reps 31",
    )
    parser.add_argument("--reps", type=int, default=31, help="repetitions, at least 15 (default: 31)")
    parser.add_argument("--out", type=Path, help="file for the figures, as JSON")
    arguments = parser.parse_args()
    if arguments.reps < 15:
        print(f"error: --reps must be at least 15, got {arguments.reps}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    seconds = measure(arguments.reps)
    ratios = {f"{ours} / {base}": quartiles(seconds[ours], seconds[base]) for ours, base in RATIOS}
    for name, times in seconds.items():
        print(f"{name:20s} {1e3 * statistics.median(times):6.2f} CPU-ms (least {1e3 * min(times):.2f})")
    for name, (low, middle, high) in ratios.items():
        print(f"{name:32s} {middle:.2f} (quartiles {low:.2f} to {high:.2f})")
    met = ratios[f"{OURS} / {TORCH}"][1] <= BAR and ratios[f"{OURS} / {TORCH_NORMAL}"][1] <= BAR
    print(f"bar for the generator, at most {BAR}: {'met' if met else 'missed'}")
    if arguments.out:
        found = {"count": COUNT, "reps": arguments.reps, "seconds": seconds, "ratios": ratios, "bar": BAR, "met": met}
        versions = {"torch": torch.__version__, "numpy": np.__version__}
        arguments.out.write_text(json.dumps(found | versions, indent=2) + "\n", encoding="utf-8")
    return 0 if met else 1


def measure(reps: int) -> dict[str, list[float]]:
    """CPU-seconds of each case in each repetition; which case goes first changes, and the first rounds do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in CASES}
    names = list(CASES)
    for rep in range(reps + WARM_UP):
        for name in names[rep % len(names) :] + names[: rep % len(names)]:
            start = time.process_time()
            made = CASES[name]()
            spent = time.process_time() - start
            if made.shape != (COUNT,):
                raise RuntimeError(f"{name} made {tuple(made.shape)} values instead of {COUNT}")
            if rep >= WARM_UP:
                seconds[name].append(spent)
    return seconds


def quartiles(ours: list[float], base: list[float]) -> tuple[float, float, float]:
    """Of the ratio within a repetition."""
    low, middle, high = statistics.quantiles([mine / other for mine, other in zip(ours, base, strict=True)], n=4)
    return low, middle, high


if __name__ == "__main__":
    sys.exit(main())
