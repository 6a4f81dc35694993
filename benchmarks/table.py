"""All benchmarks in one table: ours, peer, ratio, bar, met or not. `make bench` runs this.

    python benchmarks/table.py                      # everything, some hours on two cores
    python benchmarks/table.py engine evaluation --repetitions 1

Each benchmark interleaves its cases and takes CPU-seconds of fresh processes, so load disturbs it little; it says
itself how its figures are taken. The table goes to `benchmarks/RESULTS.md`; lines of benchmarks that were not asked for
stay as they were. Exit code 1 where a bar is missed.
"""

import argparse
import datetime as dt
import importlib.util
import os
import platform
import re
import sys
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from line import TABLE_HEAD, Line, row  # noqa: E402 - beside this file, not in a package

BENCHMARKS = {
    "engine": ("A private step", "engine/compare.py", 3),
    "overhead": ("Simulating", "overhead/compare.py", 10),
    "scale": ("A million users", "scale/compare.py", 1),
    "domains": ("A thousand domains", "scale/domains.py", 1),
    "evaluation": ("Evaluation over the whole catalogue", "evaluation/compare.py", 3),
    "encoding": ("Encoding catalogue text", "encoding/compare.py", 3),
    "bytes": ("Bytes", "bytes/compare.py", 1),
}
"""By name: what it is about, where it is, and repetitions."""


WHY = {
    "overhead": """\
A round (profile of 30, 2026-11-27): 80 % is training, 6 % copying messages from one side to the other, 5 %
packing replies, 5 % Flower's aggregation, 2 % loading what was sent; the plain loop pays for the first, and for
the last two in part. Memory: Flower's message classes are 28 MiB more than torch alone and the grid 9, and
Flower's FedAvg averages the 20 replies of a round (1.9 MiB each) at once, where the plain loop adds them up one
by one: together about a quarter of the plain loop's 307 MiB, so that 1.1 is out of reach with FedAvg as it is.""",
    "domains": """\
Memory grows by half a MiB a domain. Half of that is its open ledger (0.24 MiB; 0.12 for a bare SQLite connection),
the rest its tables, texts, training set and parameters, kept from round to round. Letting go of them between
messages would hold memory and open files; but opening a domain took 17 ms for its tables and 5 ms for its ledger (a
profile of 1,000 domains), and a run asks each five times, for 0.18 CPU-seconds in all. A thousand
domains fit into 1.1 GiB as they are.""",
    "encoding": """\
Of the float32 encoder's CPU-time 83 % is in matrix products (torch's profiler, 600 texts of Office), 5 % in
gelu and 5 % in attention. Length sorting saves padding, and these texts have little of it. What is left is
fewer bits, or another runtime: ONNX Runtime 1.32 on the same sorted batches of 600 texts of Office took a 1.8th to
a 2.0th of the card's time in float32, and a 2.9th to a 3.7th in 8 bits (dynamic, per channel), where the lowest
cosine is 0.983 and 78 texts are below the 0.99 that the bar asks for (tried once, not kept: two dependencies and
an export for what is done once). Real catalogues are encoded once and kept.""",
}
"""What keeps a bar that is missed out of reach; printed below a benchmark's lines where one is."""


def main() -> int:
    """Parse, run what was asked for, write the page."""
    parser = argparse.ArgumentParser(
        description="All benchmarks in one table.", epilog="Example: python benchmarks/table.py engine --repetitions 1"
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)} (default: all)")
    parser.add_argument("--repetitions", type=int, help="instead of each benchmark's own number")
    parser.add_argument("--out", type=Path, default=HERE / "RESULTS.md", help="page to write")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - BENCHMARKS.keys()
    if unknown or (arguments.repetitions is not None and arguments.repetitions < 1):
        parser.error(f"names must be of {', '.join(BENCHMARKS)}, and repetitions at least 1; got {sys.argv[1:]}")
    kept = read(arguments.out)
    missed = False
    for name in arguments.names or BENCHMARKS:
        repetitions = arguments.repetitions or BENCHMARKS[name][2]
        lines = measure(name, repetitions)
        missed |= any(line.met is False for line in lines)
        kept[name] = section(name, lines, repetitions)
        arguments.out.write_text(page(kept), encoding="utf-8")  # at once: what is measured is not lost
        print(kept[name])
    return 1 if missed else 0


def measure(name: str, repetitions: int) -> list[Line]:
    """Lines of one benchmark."""
    where = HERE / BENCHMARKS[name][1]
    sys.path.insert(0, str(where.parent))  # for what lies beside it
    spec = importlib.util.spec_from_file_location(f"{name}_compare", where)
    if spec is None or spec.loader is None:
        raise RuntimeError(f"{where} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    found: list[Line] = module.measure(repetitions)
    sys.path.remove(str(where.parent))
    return found


def section(name: str, lines: list[Line], repetitions: int) -> str:
    """One benchmark's part of the page."""
    versions = ", ".join(f"{one} {metadata.version(one)}" for one in ("torch", "opacus", "flwr", "numpy"))
    machine = f"{dt.datetime.now(tz=dt.UTC):%Y-%m-%d}, {processor()}, {os.cpu_count()} cores"
    load = f"load {os.getloadavg()[0]:.1f} at the end"
    return "\n".join(
        [
            f"## {BENCHMARKS[name][0]} (`{name}`)",
            "",
            f"{machine}, {load}, Python {platform.python_version()}, {versions}. Repetitions: {repetitions}.",
            "",
            TABLE_HEAD,
            *map(row, lines),
            "",
            *([WHY[name], ""] if name in WHY and any(line.met is False for line in lines) else []),
        ]
    )


def processor() -> str:
    """What the system calls it."""
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    return f"{platform.machine()} ({found.group(1)})" if found else platform.machine()


def read(file: Path) -> dict[str, str]:
    """Sections of an earlier page, by benchmark."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    parts = re.split(r"^(?=## .* \(`\w+`\)$)", text, flags=re.MULTILINE)[1:]
    return {re.findall(r"\(`(\w+)`\)", part)[0]: part.rstrip("\n") + "\n" for part in parts}


def page(sections: dict[str, str]) -> str:
    """The page, in the order of the benchmarks."""
    head = """# Measured

Ours beside a named peer, on the same machine in the same interleaved run. `ratio` is what the bar is about; bars were
set before anything was measured, and a line without one promised nothing. Written by `make bench`; how each figure
is taken stands at the top of the benchmark's `compare.py`.
"""
    return "\n".join([head, *(sections[name] for name in BENCHMARKS if name in sections)])


if __name__ == "__main__":
    sys.exit(main())
