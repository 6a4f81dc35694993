"""What the overhead benchmark found, as the page `benchmarks/OVERHEAD.md`, and the bars it must meet."""

import datetime as dt
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata

from line import Line

BASE, OURS = "plain", "isthmus"
"""The case that all are compared with, and the one that has bars to meet."""

READY = "torch alone"
"""What every case starts with: importing torch, and what its first optimizer step imports."""

BAR_ROUND, AIM_ROUND, BAR_START = 1.30, 1.10, 2.0
"""At most so many times the plain loop for a round (and what we aim at), and CPU-seconds over torch alone."""

AIM_MEMORY, AIM_START = 1.10, 1.0
"""What we aim at for peak memory, in times the plain loop's, and for start-up, in CPU-seconds over torch alone."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A case over all repetitions, in medians.

    Attributes:
        round_cpu: CPU-seconds of a round.
        round_cpu_each: (reps,) the same of each repetition.
        start_cpu: CPU-seconds before the first round, torch alone aside.
        total_cpu: CPU-seconds of the longer run, everything included.
        peak: Most resident bytes.
    """

    round_cpu: float
    round_cpu_each: tuple[float, ...]
    start_cpu: float
    total_cpu: float
    peak: int


def ratio(measured: Mapping[str, Measured], name: str) -> float:
    """CPU-seconds of a round of a case, relative to the plain loop."""
    return measured[name].round_cpu / measured[BASE].round_cpu


def meets_bars(measured: Mapping[str, Measured]) -> bool:
    """Whether our case is within both bars, by the medians."""
    return ratio(measured, OURS) <= BAR_ROUND and measured[OURS].start_cpu <= BAR_START


def lines(measured: Mapping[str, Measured]) -> list[Line]:
    """Our figures beside the plain loop's, and a round beside each framework's, against what we aim at.

    The ratio is ours / peer, but for start-up: there it is our CPU-seconds over torch alone.
    """
    ours, plain = measured[OURS], measured[BASE]
    found = [
        _line("a round", ours.round_cpu, plain.round_cpu, BASE, AIM_ROUND, "CPU-s"),
        _line("peak memory", ours.peak / 2**30, plain.peak / 2**30, BASE, AIM_MEMORY, "GiB"),
        Line(
            name="simulation, start-up over torch alone",
            ours=ours.start_cpu,
            peer=plain.start_cpu,
            peer_name=BASE,
            ratio=ours.start_cpu,
            bar=AIM_START,
            unit="CPU-s",
            met=ours.start_cpu <= AIM_START,
        ),
    ]
    frameworks = [name for name in measured if name not in (OURS, BASE, READY)]
    beside = [_line("a round", ours.round_cpu, measured[name].round_cpu, name, 1.0, "CPU-s") for name in frameworks]
    return [*found, *beside]


def _line(what: str, ours: float, peer: float, peer_name: str, bar: float, unit: str) -> Line:  # noqa: PLR0913, PLR0917
    ratio = ours / peer
    return Line(
        name=f"simulation, {what}",
        ours=ours,
        peer=peer,
        peer_name=peer_name,
        ratio=ratio,
        bar=bar,
        unit=unit,
        met=ratio <= bar,
    )


def page(measured: Mapping[str, Measured], *, reps: int, rounds: tuple[int, int]) -> str:
    """The page as Markdown: what was measured, where, the table, and whether the bars are met.

    Args:
        measured: By case.
        reps: Repetitions.
        rounds: Of the shorter and of the longer run.
    """
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "flwr", "numpy"))
    load = os.getloadavg()[0]
    rows = []
    for name, found in measured.items():
        if name == READY:
            rows.append(f"| {name} | | | | 0 | {found.total_cpu:.1f} | {found.peak / 2**30:.2f} GiB |")
            continue
        each = [a / b for a, b in zip(found.round_cpu_each, measured[BASE].round_cpu_each, strict=True)]
        rows.append(
            f"| {name} | {found.round_cpu:.3f} | {ratio(measured, name):.2f} | {min(each):.2f} to {max(each):.2f} "
            f"| {found.start_cpu:.2f} | {found.total_cpu:.1f} | {found.peak / 2**30:.2f} GiB |"
        )
    return f"""# Measured

## Simulation overhead

50 clients, 20 a round, a 496,522-parameter model, one torch thread; {rounds[0]} and {rounds[1]} rounds, interleaved,
each in a fresh process, medians of {reps} repetitions. Every case reached the same accuracy, so every case did the
same work (Flower draws cohorts of its own, as large, and comes near it).

{dt.datetime.now(tz=dt.UTC):%Y-%m-%d}, {platform.machine()}, {os.cpu_count()} cores, load {load:.1f} at the end,
Python {platform.python_version()}, {versions}.

| case | CPU-s a round | against plain | each repetition | start-up CPU-s, torch aside | CPU-s in all | peak memory |
|---|---|---|---|---|---|---|
{chr(10).join(rows)}

`{READY}` imports torch and takes one optimizer step, which imports more of it; `{BASE}` is a loop without framework.
Bars for {OURS}: at most {BAR_ROUND:.2f} times plain for a round, start-up at most {BAR_START:.0f} CPU-seconds over
torch alone: {"met" if meets_bars(measured) else "**missed**"}.
Aim for a round, {AIM_ROUND:.2f}: {"met" if ratio(measured, OURS) <= AIM_ROUND else "missed"}.

Made by `python benchmarks/overhead/compare.py`, which says how each figure is taken. The rule was
fixed before the measurement; earlier measurements, by other rules, are in `docs/adr/0010-overhead-rule.md`.
"""
