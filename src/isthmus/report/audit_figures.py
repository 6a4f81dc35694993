"""The figures of an audit as inline SVG: epsilon against everything that was ever charged, and the ROC of an attack.

svg = timeline_figure(data_set, "books")      # "" when there is nothing to draw
svg = roc_figure(attack, "membership")
"""

from isthmus.report import numbers
from isthmus.report.audit import DataSet, Empirical
from isthmus.report.figures import BLUE, GREY, INK, ORANGE, WIDTH, canvas, finished, round_ticks

MOST_LABELS = 8
"""Runs that are named by their number in the figure."""


def timeline_figure(data_set: DataSet, figure: str) -> str:
    """Epsilon after each charge, run by run, with the limit in force; empty where nothing can be drawn."""
    numbered = {entry.line: number for number, entry in enumerate(data_set.entries, start=1)}
    points = [(numbered[point.line], point.epsilon, point.run) for point in data_set.timeline]
    steps = [(number, epsilon) for number, epsilon, _ in points if epsilon is not None]
    if not steps or len(steps) < len(points):
        return ""
    starts = {run.run: number for number, run in enumerate(data_set.runs, start=1)}
    last: dict[str, int] = {}
    for number, entry in enumerate(data_set.entries, start=1):
        last[entry.run] = number
    limit = data_set.budget if data_set.budget_delta == data_set.delta else None
    with canvas(WIDTH, 196) as (drawing, axes):
        if limit is not None:
            axes.axhline(limit, color=ORANGE, linestyle=(0, (5, 3)), linewidth=1.5)
            axes.annotate(
                f"limit {numbers.epsilon(limit)}",
                (0, limit),
                (2, 4),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
            )
        axes.step(*zip((0, 0.0), *steps, strict=True), where="post", color=BLUE, linewidth=1.8)
        top = 1.24 * max(limit or 0.0, *(epsilon for _, epsilon in steps), 1e-9)
        if len(last) <= MOST_LABELS:
            for run, end in last.items():
                axes.axvline(end + 0.5, color=GREY, linewidth=0.8, linestyle=(0, (1, 2)))
                axes.annotate(
                    str(starts[run]),
                    (end + 0.5, 1),
                    (-3, -10),
                    xycoords=("data", "axes fraction"),
                    textcoords="offset points",
                    ha="right",
                    color=INK,
                )
        axes.set_ylim(0, top)
        axes.set_xlim(0, max(numbered.values()) + 1)
        axes.set_xlabel("charges, oldest first; dotted: end of a run")
        axes.set_ylabel("epsilon")
        round_ticks(axes)
    told = (
        f"Epsilon grew to {numbers.epsilon(steps[-1][1])} over {numbers.plural(len(data_set.entries), 'charge')} in "
        f"{numbers.plural(len(data_set.runs), 'run')}"
        + (f"; the limit is {numbers.epsilon(limit)}." if limit is not None else "; no limit is known.")
    )
    return finished(drawing, figure, f"Epsilon over all runs on {data_set.name}", told)


def roc_figure(attack: Empirical, figure: str) -> str:
    """Members found against outsiders called one, both on a logarithmic scale; empty where there is no such point."""
    points = [point for point in attack.roc if point.false_positives.successes and point.true_positives.successes]
    if not points:
        return ""
    across = [point.false_positives.value for point in points]
    up = [point.true_positives.value for point in points]
    low = min(*across, *(point.true_positives.low for point in points), 1e-3) / 1.3
    with canvas(WIDTH, 236) as (drawing, axes):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.plot((low, 1), (low, 1), color=GREY, linestyle=(0, (1, 2)), linewidth=1.2)
        axes.annotate("guessing", (0.1, 0.1), (8, -12), textcoords="offset points", color=GREY)
        spread = (
            [value - point.true_positives.low for value, point in zip(up, points, strict=True)],
            [point.true_positives.high - value for value, point in zip(up, points, strict=True)],
        )
        axes.errorbar(across, up, yerr=spread, color=BLUE, marker="o", markersize=4, linewidth=1.6, elinewidth=1)
        axes.set_xlim(low, 1)
        axes.set_ylim(low, 1)
        axes.xaxis.set_major_formatter(_share)
        axes.yaxis.set_major_formatter(_share)
        axes.minorticks_off()
        axes.set_xlabel("outsiders called members")
        axes.set_ylabel("members found")
    told = (
        f"Area {attack.area:.3f}. At {across[0]:.2%} of outsiders {up[0]:.2%} of members are found; bars are "
        f"{attack.confidence:.0%} intervals."
    )
    return finished(drawing, figure, f"ROC of the attack {attack.name}", told)


def _share(value: float, _: float) -> str:
    """A tick of a logarithmic axis of shares."""
    return f"{100 * value:g}%"
