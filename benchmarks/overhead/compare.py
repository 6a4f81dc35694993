"""Overhead of simulating on the in-process grid, beside a plain PyTorch loop and, where installed, other frameworks.

    python benchmarks/overhead/compare.py --reps 10
    python benchmarks/overhead/compare.py --venvs benchmarks/venvs      # those of flwr/ and pfl/ that are in it, too

The workload and the other cases are the peers' own, taken from $ISTHMUS_BENCH_PEERS (default `../shared/bench/peers`
beside the checkout); nothing of them is copied. Every repetition runs every case at 5 and at 80 rounds, interleaved,
each in a fresh process with one torch thread. What is compared is CPU-seconds (user and system, of a process and
what it waited for), because load disturbs wall time far more. A figure is the median over the repetitions, as the
peers take it, and the bars are judged by it; the range over repetitions stands beside it. Frameworks that start
daemons go through the peers' `runner.py`, which finds every process of a run.

Cost of a round: (CPU-seconds at 80 rounds - at 5 rounds) / 75; the peers take 20 and 5, but start-up differs by a
second or two from process to process, which over 15 rounds is as much as what is to be measured (docs/adr/0010).
Start-up: what is left at 5 rounds, less the CPU-seconds of a process that imports torch and trains one client (the
first optimizer step imports half of torch). The table goes to `benchmarks/OVERHEAD.md` (or `--out`).
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE))

from line import Line  # noqa: E402 - beside the other benchmarks
from results import BASE, OURS, READY, Measured, lines, meets_bars, page  # noqa: E402

FEW, MANY = 5, 80
"""Rounds whose difference tells the cost of a round from that of starting."""

SAME_ACCURACY, LIKE_ACCURACY = 0.002, 0.05
"""A case whose accuracy is further from the plain loop's did other work; the second where a framework draws cohorts of
its own, as many clients of the same size (0.674 after 80 rounds was seen, where the plain loop has 0.663)."""

_GET_READY = "import torch, workload as w; w.train_client(w.make_model(), 0)"

VENVS = {"pfl": "pfl", "flower": "flwr"}
"""Cases of the peers' runner, and the virtual environment that each needs."""

DRAWS_COHORTS = {"flower"}
"""Those of them that do not take the workload's cohorts."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One thing to measure.

    Attributes:
        name: Shown in the table.
        command: Without the number of rounds.
        folder: Working directory.
        environment: Added to this process's.
        works: Whether it does the workload; what only gets torch ready has no rounds.
        reports_itself: Whether the command is the peers' runner, which measures and says what it measured.
    """

    name: str
    command: tuple[str, ...]
    folder: Path
    environment: tuple[tuple[str, str], ...] = ()
    works: bool = True
    reports_itself: bool = False


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One run: CPU-seconds, peak resident bytes, and the accuracy that was reached (0 where nothing was learnt)."""

    cpu: float
    peak: int
    accuracy: float


def main() -> int:
    """Parse, measure, write the table; exit code 1 where a bar is missed."""
    parser = argparse.ArgumentParser(
        description="CPU-seconds of simulating, beside a plain loop and other frameworks.",
        epilog="Example: python benchmarks/overhead/compare.py --reps 10",
    )
    parser.add_argument("--reps", type=int, default=10, help="repetitions (default: 10)")
    parser.add_argument("--venvs", type=Path, help="folder with virtual environments `flwr` and `pfl`, or one of them")
    parser.add_argument("--out", type=Path, default=CHECKOUT / "benchmarks" / "OVERHEAD.md", help="file of the table")
    arguments = parser.parse_args()
    peers = peers_folder()
    if not (peers / "workload.py").is_file():
        print(f"error: {peers} holds no workload.py. Name the peers' folder in ISTHMUS_BENCH_PEERS.", file=sys.stderr)
        return 2
    if arguments.reps < 1:
        print(f"error: --reps must be at least 1, got {arguments.reps}", file=sys.stderr)
        return 2
    measured = run_all(all_cases(peers, arguments.venvs), arguments.reps)
    text = page(measured, reps=arguments.reps, rounds=(FEW, MANY))
    arguments.out.write_text(text, encoding="utf-8")
    print(text)
    return 0 if meets_bars(measured) else 1


def measure(repetitions: int) -> list[Line]:
    """Our round, start-up and memory beside the plain loop, and a round beside each framework that is installed.

    Args:
        repetitions: Interleaved; medians count. The frameworks are those in $ISTHMUS_BENCH_VENVS, as for `--venvs`.
    """
    venvs = os.environ.get("ISTHMUS_BENCH_VENVS")
    return lines(run_all(all_cases(peers_folder(), Path(venvs) if venvs else None), repetitions))


def peers_folder() -> Path:
    """Where the peers' workload is."""
    return Path(os.environ.get("ISTHMUS_BENCH_PEERS", CHECKOUT.parent / "shared" / "bench" / "peers")).resolve()


def all_cases(peers: Path, venvs: Path | None) -> list[Case]:
    """The cases that can be run here; the first one only gets torch ready."""
    python = sys.executable
    cases = [
        Case(name=READY, command=(python, "-c", _GET_READY), folder=peers, works=False),
        Case(name=BASE, command=(python, "run_plain.py"), folder=peers),
        Case(name=OURS, command=ours("run_isthmus.py"), folder=HERE, environment=our_environment(peers)),
    ]
    for name, venv in VENVS.items():
        if venvs is not None and (venvs / venv / "bin" / "python").exists():
            environment = (("BENCH_VENVS", str(venvs.absolute())),)
            command = (python, "runner.py", name)
            cases.append(Case(name=name, command=command, folder=peers, environment=environment, reports_itself=True))
    return cases


def ours(script: str) -> tuple[str, ...]:
    """Command of a script beside this one."""
    return (sys.executable, str(HERE / script))


def our_environment(peers: Path) -> tuple[tuple[str, str], ...]:
    """Where our scripts find the package and the workload."""
    return (("PYTHONPATH", str(CHECKOUT / "src")), ("ISTHMUS_BENCH_PEERS", str(peers)))


def run_all(cases: list[Case], reps: int) -> dict[str, Measured]:
    """Run everything, interleaved; a run that failed or did other work than the plain loop ends the benchmark."""
    samples: dict[str, dict[int, list[Sample]]] = {case.name: {FEW: [], MANY: []} for case in cases}
    for rep in range(reps):
        for rounds in (FEW, MANY):
            for case in (case for case in cases if case.works or rounds == FEW):
                sample = run(case, rounds)
                samples[case.name][rounds].append(sample)
                told = f"{rep + 1}/{reps} {case.name}, {rounds} rounds: {sample.cpu:.2f} CPU-s"
                print(told, file=sys.stderr, flush=True)
                plain = samples[BASE][rounds][-1].accuracy if samples[BASE][rounds] else 0.0
                allowed = LIKE_ACCURACY if case.name in DRAWS_COHORTS else SAME_ACCURACY
                if case.works and abs(sample.accuracy - plain) > allowed:
                    raise RuntimeError(f"{case.name}: accuracy must be {plain} at {rounds} rounds: {sample.accuracy}")
    ready = samples[READY][FEW]
    return {name: summary(few=part[FEW], many=part[MANY] or ready, ready=ready) for name, part in samples.items()}


def summary(*, few: list[Sample], many: list[Sample], ready: list[Sample]) -> Measured:
    """A case's figures from its samples at few and at many rounds, and from those that only got torch ready."""
    low, high = (statistics.median(sample.cpu for sample in part) for part in (few, many))
    each = (high - low) / (MANY - FEW)
    return Measured(
        round_cpu=each,
        round_cpu_each=tuple((b.cpu - a.cpu) / (MANY - FEW) for a, b in zip(few, many, strict=True)),
        start_cpu=low - FEW * each - statistics.median(sample.cpu for sample in ready),
        total_cpu=high,
        peak=max(sample.peak for sample in (*few, *many)),
    )


def run(case: Case, rounds: int) -> Sample:
    """One fresh process, to its end.

    Raises:
        RuntimeError: If it failed.
    """
    command = [*case.command, str(rounds)] if case.works else list(case.command)
    said, usage = finished(case, command)
    cpu, peak, accuracy = usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, 0.0
    if case.works:
        start = "{" if case.reports_itself else "BENCH_RESULT "
        found = json.loads(said[said.index(start) + len(start.strip("{")) :].splitlines()[0])
        accuracy = float(found["acc"])
        if case.reports_itself:
            cpu, peak = found["cpu_s"], found["rss_mib"] * 2**20
    return Sample(cpu=cpu, peak=peak, accuracy=accuracy)


def finished(case: Case, command: list[str]) -> tuple[str, resource.struct_rusage]:
    """What a process said by its end, and what it used; RuntimeError if it failed."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "BENCH_THREADS": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    environment |= dict(case.environment)
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, cwd=case.folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        said = output.read().decode(errors="replace")
    if process.returncode:
        raise RuntimeError(f"{case.name} ended with {process.returncode}:\n{said[-2000:]}")
    return said, usage


if __name__ == "__main__":
    sys.exit(main())
