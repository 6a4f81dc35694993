"""A study for people: `sweep.html` or `evaluation.html`, one file without network or script, and a table to print.

    write_all(study, Path("out"))          # out/sweep.json, out/sweep.csv, out/sweep.html

The prose is in `study.html`; looks, security policy and escaping are those of `report.html`.
"""

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator
from rich import box
from rich.table import Table
from rich.text import Text

from isthmus.report import numbers
from isthmus.report.figures import BLUE, GREY, INK, ORANGE, WIDTH, canvas, finished, label
from isthmus.report.page import MOST_DRAWN, finalize
from isthmus.report.result import write_atomically
from isthmus.report.study import METHODS, REFERENCES, Condition, Study, study_csv, warning, write_study

_TABLE = ("ndcg@5", "ndcg@10", "ndcg@20", "hr@5", "hr@10", "hr@20", "precision@10", "f1@10", "mrr")
"""Metrics of the page, of those in the JSON."""
_LINES = {
    "federated": (BLUE, "D", "-"),
    "backbone": (BLUE, "o", ":"),
    "centralised": (GREY, "^", "--"),
}
"""Colour, marker and stroke of what is drawn beside the best local method."""


@dataclass(frozen=True, kw_only=True)
class _Domain:
    """One domain as the page shows it."""

    name: str
    conditions: tuple[Condition, ...]
    figure: Markup


def write_all(study: Study, folder: Path) -> None:
    """Write a study as JSON, CSV and a page, each atomically.

    Raises:
        RunError: If a file cannot be written.
    """
    write_study(study, folder / f"{study.kind}.json")
    write_atomically(study_csv(study).encode(), folder / f"{study.kind}.csv")
    write_atomically(render_study(study).encode(), folder / f"{study.kind}.html")


def render_study(study: Study) -> str:
    """The page as text; the same study gives the same bytes."""
    folder = resources.files("isthmus.report")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, finalize=finalize, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {name: getattr(numbers, name) for name in ("score", "signed", "epsilon", "plural")}
    template = environment.from_string((folder / "study.html").read_text(encoding="utf-8"))
    names = list(dict.fromkeys(condition.domain for condition in study.conditions))
    domains = tuple(_domain(study, name, at, drawn=len(names) <= MOST_DRAWN) for at, name in enumerate(names))
    return template.render(
        study=study,
        style=Markup((folder / "report.css").read_text(encoding="utf-8")),  # noqa: S704 - our own file
        warning=warning(study),
        domains=domains,
        transfer_svg=Markup(_who_helps_whom(study) if len(names) <= MOST_DRAWN else ""),  # noqa: S704 - as below
        methods=METHODS,
        references=REFERENCES,
        metrics=_TABLE,
    )


def study_table(study: Study) -> Table:
    """The terminal's table: NDCG@10 of what is served, of the best local method and of the ceiling."""
    table = Table(
        title=Text(f"{study.federation}: {study.scenario}", style="bold"),
        caption=Text(warning(study), style="bold red"),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("domain", overflow="fold")
    table.add_column("condition")
    pooled = any("centralised" in one.methods for one in study.conditions)
    for column in ("backbone", "federated", "best local", "gain [95%]", *(("ceiling",) if pooled else ())):
        table.add_column(column, justify="right", no_wrap=column != "best local")
    for one in study.conditions:
        ndcg = {name: figures.metrics["ndcg@10"].mean for name, figures in one.methods.items()}
        gain = one.differences["federated"]
        low, high = (numbers.signed(bound) for bound in gain.ci95)
        table.add_row(
            Text(numbers.visible(one.domain)),
            one.label,
            numbers.score(ndcg["backbone"]),
            numbers.score(ndcg["federated"]),
            f"{numbers.score(ndcg[one.best_local])}\n{METHODS[one.best_local]}",
            Text(f"{numbers.signed(gain.mean)} (p {gain.p_holm:.2g})\n[{low}, {high}]"),
            *((numbers.score(ndcg["centralised"]),) if pooled else ()),
        )
    return table


def _domain(study: Study, name: str, at: int, *, drawn: bool) -> _Domain:
    conditions = tuple(condition for condition in study.conditions if condition.domain == name)
    svg = ""
    if drawn and study.scale is not None and len(conditions) > 1:
        svg = _against_scale(study, name, conditions, f"scale{at}")
    elif drawn:
        svg = _every_method(conditions[0], f"methods{at}")
    return _Domain(name=name, conditions=conditions, figure=Markup(svg))  # noqa: S704 - the XML writer has escaped


def _against_scale(study: Study, name: str, conditions: tuple[Condition, ...], figure: str) -> str:
    """NDCG@10 with 95% intervals of what is served and its rivals, against the study's scale."""
    places = list(range(len(conditions)))
    told = []
    with canvas(WIDTH, 236) as (drawing, axes):
        for number, (method, (colour, marker, stroke)) in enumerate(_LINES.items()):
            if method not in conditions[0].methods:
                continue
            beside = [place + 0.05 * (number - 1) for place in places]  # so that no interval hides another
            figures = [condition.methods[method].metrics["ndcg@10"] for condition in conditions]
            means = [one.mean for one in figures]
            axes.vlines(beside, [f.ci95[0] for f in figures], [f.ci95[1] for f in figures], color=colour, alpha=0.35)
            axes.plot(beside, means, color=colour, marker=marker, linestyle=stroke, label=METHODS[method])
            told.append(f"{METHODS[method]} {', '.join(map(numbers.score, means))}")
        local = [condition.methods[condition.best_local].metrics["ndcg@10"].mean for condition in conditions]
        axes.plot(places, local, color=ORANGE, marker="s", linestyle="-.", label="Best local method")
        told.append(f"Best local method {', '.join(map(numbers.score, local))}")
        labels = ["no noise" if condition.noise == "none" else f"{condition.at:g}" for condition in conditions]
        axes.set_xticks(places, labels)
        axes.grid(axis="y")
        axes.margins(x=0.12, y=0.12)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.set_xlabel(f"{study.scale} (seeded, not private)")
        axes.set_ylabel("NDCG@10")
        axes.legend(fontsize=10, frameon=False, loc="upper center", bbox_to_anchor=(0.45, -0.24), ncols=2)
    description = f"At {study.scale} {', '.join(labels)}: {'; '.join(told)}."
    return finished(drawing, figure, f"NDCG@10 against {study.scale} in {name}", description)


def _who_helps_whom(study: Study) -> str:
    """The matrix of transfers, sources down and targets across; empty without any."""
    if not study.transfers:
        return ""
    sources = list(dict.fromkeys(one.source for one in study.transfers))
    targets = list(dict.fromkeys(one.target for one in study.transfers))
    worth = np.full((len(sources), len(targets)), np.nan)
    for one in study.transfers:
        worth[sources.index(one.source), targets.index(one.target)] = one.mean
    most = float(np.nanmax(np.abs(worth))) or 1.0
    with canvas(WIDTH, 90 + 34 * len(sources)) as (drawing, axes):
        axes.imshow(worth, cmap="PuOr", vmin=-most, vmax=most, aspect="auto")
        for row, column in np.ndindex(worth.shape):
            dark = abs(worth[row, column]) > 0.6 * most
            text, colour = numbers.signed(float(worth[row, column])), "white" if dark else INK
            axes.text(column, row, text, ha="center", va="center", fontsize=10, color=colour)
        axes.set_xticks(range(len(targets)), [label(name) for name in targets], rotation=30, ha="right")
        axes.set_yticks(range(len(sources)), [label(name) for name in sources])
        axes.set_xlabel("helped")
        axes.set_ylabel("trained too")
    told = "; ".join(f"{one.source} to {one.target} {numbers.signed(one.mean)}" for one in study.transfers)
    return finished(drawing, "transfer", "What each domain's part in training is worth to each", told + ".")


def _every_method(condition: Condition, figure: str) -> str:
    """NDCG@10 with 95% intervals of every method, one row each."""
    names = [name for name in METHODS if name in condition.methods]
    told = []
    with canvas(WIDTH, 40 + 24 * len(names)) as (drawing, axes):
        for row, name in enumerate(names):
            found = condition.methods[name].metrics["ndcg@10"]
            colour = BLUE if name == "federated" else ORANGE if name == condition.best_local else GREY
            filled = colour if name in {"federated", condition.best_local} else "white"
            axes.plot(found.ci95, (row, row), color=colour, linewidth=2)
            axes.plot([found.mean], [row], color=colour, marker="o", markerfacecolor=filled)
            told.append(f"{METHODS[name]} {numbers.score(found.mean)}")
        axes.set_yticks(range(len(names)), [METHODS[name] for name in names])
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.grid(axis="x", color=INK, alpha=0.1)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=3))
        axes.set_xlabel("NDCG@10, 95% interval")
    return finished(drawing, figure, f"NDCG@10 of every method in {condition.domain}", "; ".join(told) + ".")
