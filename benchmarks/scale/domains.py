"""A simulation of 30, 100 and 1,000 tiny domains: CPU-seconds, memory and open files as domains are added.

    python benchmarks/scale/domains.py
    python benchmarks/scale/domains.py --repetitions 1 --domains 30 100

Every domain is real: its own tables, ledger, keys, vault and private head; 12 users, 5 events each, the 30 items of
one public catalogue, the encoder that needs no model. A run is `prepare` and `run` as `isthmus simulate` calls them,
seeded, two rounds with an evaluation after the second, in a fresh process each; sizes take turns. One torch thread.

What a domain costs is the difference between two sizes, divided by the domains between them: what starting costs
drops out. Bars: a domain between 100 and 1,000 costs at most 1.2 times the CPU-seconds of one between 30 and 100, and
at most as many open files; 1,000 domains have at most 1.2 times the peak memory of 100. (The bar of memory was that
of CPU-seconds until the peaks of 30 and 100 domains came out equal, to be divided by.) A report draws figures for up
to 24 domains, so the smallest size is above that: it must have nothing that the others lack.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))

from line import Line  # noqa: E402 - beside the other benchmarks

SIZES = (30, 100, 1000)
BAR = 1.2
USERS, EVENTS, ITEMS, ROUNDS = 12, 5, 30, 2
FEDERATION = """
name = "many"
domains = {domains}
seed = 1

[features]
encoder = "hash:16"

[backbone]
width = 8
layers = 1
heads = 2
feedforward = 16
positions = 4

[strategy]
evaluate_every = 2

[training]
train = "all"
rivals = 5

[evaluation]
bootstrap = 100
"""
DOMAIN = """
name = "{name}"

[interactions]
path = "events.csv"

[items]
path = "../items.csv"
public = true

[privacy]
epsilon = 8.0
delta = 1e-5
clip = 1.0
sample_rate = 0.5
expected_batch = 6.0
steps_per_round = 1
rounds = 2
evaluations = 1
metric_noise_multiplier = 2.0
"""
_RUN = """
import json, os, sys, threading
from isthmus.simulation import prepare, run

class Quiet:
    open_files = 0
    def stage(self, what): self.look()
    def texts(self, done, total): pass
    def round(self, state, rounds, spent): self.look()
    def look(self): self.open_files = max(self.open_files, len(os.listdir("/proc/self/fd")))

watcher = Quiet()
result = run(prepare(sys.argv[1], out=sys.argv[2], rounds=int(sys.argv[3]), backend="in-process"), watcher)
print(json.dumps({"open_files": watcher.open_files, "domains": len(result.domains)}))
"""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One run.

    Attributes:
        cpu: CPU-seconds of the process.
        peak: Its most resident bytes.
        open_files: Most that were open at a stage or a round.
    """

    cpu: float
    peak: int
    open_files: int


def main() -> int:
    """Parse, measure, print; exit code 1 where a bar is missed."""
    parser = argparse.ArgumentParser(
        description="What a domain costs in a simulation of 30, 100 and 1,000 tiny domains.",
        epilog="Example: python benchmarks/scale/domains.py --repetitions 1 --domains 30 100",
    )
    parser.add_argument("--repetitions", type=int, default=3, help="repetitions (default: 3)")
    parser.add_argument(
        "--domains", type=int, nargs="+", default=list(SIZES), help="sizes, rising (default: %(default)s)"
    )
    arguments = parser.parse_args()
    sizes = arguments.domains
    if arguments.repetitions < 1 or len(sizes) < 2 or sizes != sorted(set(sizes)) or sizes[0] < 1:
        print("error: --repetitions must be at least 1, --domains at least two rising sizes from 1", file=sys.stderr)
        return 2
    lines = measure(arguments.repetitions, tuple(sizes))
    for line in lines:
        print(
            f"{line.name}: {line.ours:.4g} {line.unit}, {line.peer_name} {line.peer:.4g}; ratio {line.ratio:.3g}, "
            f"bar {line.bar:g}: {'met' if line.met else 'MISSED'}"
        )
    return 0 if all(line.met for line in lines) else 1


def measure(repetitions: int, sizes: tuple[int, ...] = SIZES) -> list[Line]:
    """What a domain costs between the two largest sizes, beside what it costs between the smaller ones.

    Args:
        repetitions: In turns; medians count.
        sizes: Domains of a run, rising, at least two.
    """
    samples: dict[int, list[Sample]] = {size: [] for size in sizes}
    for repetition in range(repetitions):
        for size in sizes:
            samples[size].append(sample(size))
            last = samples[size][-1]
            told = f"{last.cpu:.1f} CPU-s, {last.peak / 2**20:.0f} MiB, {last.open_files} open files"
            print(f"{repetition + 1}/{repetitions} {size} domains: {told}", file=sys.stderr, flush=True)
    *_, some, many = sizes
    few = sizes[-3] if len(sizes) > 2 else 0  # with two sizes, a domain is compared with the smaller run's share
    medians = {
        name: {0: 0.0} | {size: statistics.median(getattr(one, name) for one in each) for size, each in samples.items()}
        for name in ("cpu", "peak", "open_files")
    }
    lines = []
    for name, unit, bar in (("cpu", "CPU-s", BAR), ("open_files", "files", 1.0)):
        figures = medians[name]
        ours = (figures[many] - figures[some]) / (many - some)
        beside = (figures[some] - figures[few]) / (some - few)
        lines.append(
            Line(
                name=f"{name} of a domain between {some} and {many}",
                ours=ours,
                peer=beside,
                peer_name=f"between {few} and {some}",
                ratio=ours / beside,
                bar=bar,
                unit=unit,
                met=ours <= bar * beside,
            )
        )
    peak, fewer = (medians["peak"][size] / 2**20 for size in (many, some))
    lines.append(
        Line(
            name=f"peak memory of {many} domains",
            ours=peak,
            peer=fewer,
            peer_name=f"{some} domains",
            ratio=peak / fewer,
            bar=BAR,
            unit="MiB",
            met=peak <= BAR * fewer,
        )
    )
    return lines


def sample(size: int) -> Sample:
    """One run of so many domains, in a fresh process and a fresh folder."""
    with tempfile.TemporaryDirectory() as folder:
        federation = write_federation(Path(folder), size)
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT / "src"), "OMP_NUM_THREADS": "1"}
        environment |= {"ISTHMUS_CACHE": str(Path(folder) / "cache"), "FLWR_TELEMETRY_ENABLED": "0"}
        command = [sys.executable, "-c", _RUN, str(federation), str(Path(folder) / "out"), str(ROUNDS)]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
        assert process.stdout is not None  # noqa: S101 - a pipe was asked for
        said = process.stdout.read().decode()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"a simulation of {size} domains ended with {process.returncode}")
    found = json.loads(said)
    if found["domains"] != size:
        raise RuntimeError(f"{size} domains were asked for, {found['domains']} have a result")
    return Sample(cpu=usage.ru_utime + usage.ru_stime, peak=usage.ru_maxrss * 1024, open_files=found["open_files"])


def write_federation(folder: Path, size: int) -> Path:
    """Folders of `size` domains with one catalogue between them; returns the federation file."""
    words = ("red", "blue", "small", "large", "old", "new")
    items = [f"item-{n:02d},{words[n % 6]} {words[n // 6]} thing {n}" for n in range(ITEMS)]
    (folder / "items.csv").write_text("\n".join(["item_id,title", *items]) + "\n", encoding="utf-8")
    names = [f"domain-{n:04d}" for n in range(size)]
    for n, name in enumerate(names):
        own = folder / name
        own.mkdir()
        (own / "domain.toml").write_text(DOMAIN.format(name=name), encoding="utf-8")
        rows = [
            f"user-{user},item-{(7 * user + 3 * event + n) % ITEMS:02d},{1_700_000_000 + 60 * event}"
            for user in range(USERS)
            for event in range(EVENTS)
        ]
        (own / "events.csv").write_text("\n".join(["user,item,timestamp", *rows]) + "\n", encoding="utf-8")
    file = folder / "federation.toml"
    file.write_text(FEDERATION.format(domains=json.dumps(names)), encoding="utf-8")
    return file


if __name__ == "__main__":
    sys.exit(main())
