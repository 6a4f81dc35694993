"""The figure of an audit: epsilon against everything that was ever charged, as inline SVG.

svg = timeline_figure(data_set, "books")      # "" when there is nothing to draw
"""

from isthmus.report import numbers
from isthmus.report.audit import DataSet
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
    policy = data_set.policies[-1] if data_set.policies else None
    limit = policy.epsilon if policy and policy.delta == data_set.delta else None
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
