"""The figures of a report, as inline SVG.

    svg = transfer_figure(result)      # "<svg ...>...</svg>", or "" when there is nothing to draw

Each figure is drawn at most 340 units wide, what a phone shows, with text at 10 units or more: a page
scales it up, never down below legibility. The same result gives the same bytes (fixed hash salt, no
date). Colours are Okabe and Ito's, and every difference in colour is also one in shape or words. Text
stays text, so it can be searched and read aloud; each figure carries a title and a description.

Figures of one page have distinct names: the ids inside an SVG start with its name.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as ET

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from isthmus.report import numbers
from isthmus.report.result import DomainResult, Result
from isthmus.report.words import METHODS, Verdict, verdict

BLUE, ORANGE, GREY, INK = "#0072B2", "#D55E00", "#5F6B76", "#1B2530"  # Okabe-Ito, and two greys
WIDTH = 340  # units of the drawing; 72 to an inch
SMALL = 290
LONGEST_LABEL = 15  # characters of a name inside a figure

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "{http://www.w3.org/1999/xlink}href"
_STYLE: Any = {  # keys of matplotlib's rcParams
    "axes.edgecolor": "#9AA5B1",
    "axes.formatter.limits": (-6, 7),
    "axes.formatter.useoffset": False,
    "axes.labelcolor": INK,
    "axes.labelsize": 10.5,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "grid.color": "#E3E8ED",
    "savefig.transparent": True,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": "#9AA5B1",
    "xtick.labelcolor": INK,
    "ytick.color": "#9AA5B1",
    "ytick.labelcolor": INK,
}


def methods_figure(name: str, domain: DomainResult, figure: str) -> str:
    """NDCG@10 of every method in one domain, with 95% intervals; empty without test users."""
    if domain.test is None or domain.transfer_gain is None:
        return ""
    best = domain.transfer_gain.best_local
    told = []
    with canvas(WIDTH, 176) as (drawing, axes):
        for row, (method, title) in enumerate(METHODS.items()):
            scores = domain.test.of(method)
            low, high = scores.ndcg_ci95
            mark = _FEDERATED if method == "federated" else _BEST_LOCAL if method == best else _PLAIN
            _interval(axes, scores.ndcg, (low, high), row, mark)
            _beside(axes, row, numbers.score(scores.ndcg), mark.weight)
            shown = f"{title} {numbers.score(scores.ndcg)} ({numbers.score(low)} to {numbers.score(high)})"
            told.append(f"{shown}, the best local method" if method == best else shown)
        axes.set_yticks(range(len(METHODS)), list(METHODS.values()))
        for label, method in zip(axes.get_yticklabels(), METHODS, strict=True):
            label.set_fontweight("bold" if method in {"federated", best} else "normal")
        _rows(axes, len(METHODS), ticks=4)
        axes.set_xlabel("NDCG@10, 95% interval")
    title = f"NDCG@10 of every method in {name}"
    return finished(drawing, figure, title, "; ".join(told) + ".")


def transfer_figure(result: Result, figure: str) -> str:
    """Transfer gain of every tested domain, with paired 95% intervals and a zero line; empty without any."""
    gains = {
        name: (domain.transfer_gain, verdict(domain))
        for name, domain in result.domains.items()
        if domain.transfer_gain is not None
    }
    if not gains:
        return ""
    told = []
    with canvas(WIDTH, 74 + 26 * len(gains)) as (drawing, axes):
        axes.axvline(0, color=INK, linewidth=1.2, zorder=1)
        for row, (name, (gain, found)) in enumerate(gains.items()):
            mark = _OF_VERDICT[found]
            _interval(axes, gain.ndcg, gain.ci95, row, mark)
            _beside(axes, row, f"{numbers.signed(gain.ndcg)} {found.symbol}", mark.weight)
            low, high = (numbers.signed(bound) for bound in gain.ci95)
            told.append(f"{name} {numbers.signed(gain.ndcg)} ({low} to {high}), {found.words}")
        axes.set_yticks(range(len(gains)), [label(name) for name in gains])
        _rows(axes, len(gains), ticks=4 if max(map(len, gains)) <= 9 else 2)
        axes.set_xlabel("\u2190 local better \u00b7 NDCG@10 \u00b7 transfer better \u2192")
    return finished(drawing, figure, "Transfer gain by domain, against the best local method", "; ".join(told) + ".")


def epsilon_figure(name: str, result: Result, figure: str) -> str:
    """Epsilon spent by one domain after each round, with its budget; empty without rounds."""
    domain = result.domains[name]
    taken = [(record.round, record.domains[name]) for record in result.federation.history if name in record.domains]
    if not taken:
        return ""
    rounds = [taken[0][0] - 1, *(number for number, _ in taken)]
    spent = [domain.epsilon_before, *(part.epsilon for _, part in taken)]
    missed = [(number, part.epsilon) for number, part in taken if part.status != "ok"]
    with canvas(SMALL, 168) as (drawing, axes):
        axes.axhline(domain.budget, color=ORANGE, linestyle=(0, (5, 3)), linewidth=1.5)
        axes.plot(rounds, spent, color=BLUE, linewidth=1.8, marker="o" if len(rounds) <= 31 else "", markersize=3.5)
        if missed:
            axes.plot(
                *zip(*missed, strict=True), color=INK, linestyle="", marker="x", markersize=7, markeredgewidth=1.6
            )
        axes.annotate(
            f"budget {numbers.epsilon(domain.budget)}",
            (0, domain.budget),
            (2, 4),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            fontsize=10,
        )
        axes.set_ylim(0, 1.22 * max(domain.budget, *spent))
        axes.set_xlabel("round")
        axes.set_ylabel("epsilon spent")
        round_ticks(axes)
    told = (
        f"Epsilon went from {numbers.epsilon(spent[0])} to {numbers.epsilon(spent[-1])} over "
        f"{numbers.plural(len(taken), 'round')}; the budget is {numbers.epsilon(domain.budget)}."
    )
    if missed:
        told += f" Crosses mark rounds without a part: {numbers.rounds([number for number, _ in missed])}."
    return finished(drawing, figure, f"Epsilon against rounds in {name}", told)


def utility_figure(result: Result, figure: str) -> str:
    """Released validation gain against rounds, with a band of two noise deviations; empty without evaluations."""
    measured = [
        (record.round, record.gain, 2 * (record.gain_std or 0.0))
        for record in result.federation.history
        if record.gain is not None
    ]
    if not measured:
        return ""
    rounds = [number for number, _, _ in measured]
    low = [gain - band for _, gain, band in measured]
    high = [gain + band for _, gain, band in measured]
    shipped = result.federation.shipped_round
    with canvas(WIDTH, 226) as (drawing, axes):
        axes.axhline(0, color=INK, linewidth=1.2)
        axes.fill_between(rounds, low, high, color=BLUE, alpha=0.18, linewidth=0)
        axes.vlines(rounds, low, high, color=BLUE, linewidth=1, alpha=0.6)
        axes.plot(rounds, [gain for _, gain, _ in measured], color=BLUE, linewidth=1.8, marker="o", markersize=4.5)
        for number, gain, band in measured:
            if number == shipped:
                axes.plot([number], [gain], color=ORANGE, marker="s", markersize=8)
                axes.annotate("shipped", (number, gain + band), (0, 5), textcoords="offset points", ha="center")
        axes.set_xlim(min(0, *rounds), max(result.federation.rounds, *rounds) * 1.06 + 0.3)
        axes.margins(y=0.16)
        axes.set_xlabel("round")
        axes.set_ylabel("NDCG@10 over text prior")
        round_ticks(axes)
    told = "; ".join(f"round {n}: {numbers.signed(g)}, two deviations {numbers.score(b)}" for n, g, b in measured)
    return finished(drawing, figure, "Released validation gain over the text prior, against rounds", told + ".")


@dataclass(frozen=True, kw_only=True)
class _Mark:
    """How one value looks: never by colour alone."""

    colour: str
    marker: str
    filled: bool

    @property
    def weight(self) -> str:
        """Font weight of the words beside it."""
        return "bold" if self.filled else "normal"


_FEDERATED = _Mark(colour=BLUE, marker="D", filled=True)
_BEST_LOCAL = _Mark(colour=ORANGE, marker="s", filled=True)
_PLAIN = _Mark(colour=GREY, marker="o", filled=False)
_OF_VERDICT = {
    Verdict.HELPS: _Mark(colour=BLUE, marker="D", filled=True),
    Verdict.HURTS: _Mark(colour=ORANGE, marker="s", filled=True),
    Verdict.UNDECIDED: _PLAIN,
    Verdict.NO_TRANSFER: _PLAIN,
}


@contextmanager
def _style(salt: str) -> Iterator[None]:
    """The report's style over matplotlib's own defaults: a reader's matplotlibrc changes nothing."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update({**_STYLE, "svg.hashsalt": salt})
        yield


@contextmanager
def canvas(width: int, height: int) -> Iterator[tuple[Figure, Axes]]:
    """An empty figure of `width` x `height` units with one plot, drawn in the report's style."""
    with _style(""):
        drawing = Figure(figsize=(width / 72, height / 72))
        yield drawing, drawing.subplots()


def _interval(axes: Axes, value: float, ci95: tuple[float, float], row: int, mark: _Mark) -> None:
    """One value with its interval, on one row."""
    axes.plot(ci95, (row, row), color=mark.colour, linewidth=2, solid_capstyle="butt", zorder=2)
    face = mark.colour if mark.filled else "white"
    axes.plot([value], [row], color=mark.colour, marker=mark.marker, markersize=7, markerfacecolor=face, zorder=3)


def _beside(axes: Axes, row: int, text: str, weight: str) -> None:
    """A value written at the right end of its row."""
    axes.annotate(
        text,
        (1, row),
        (6, 0),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        va="center",
        fontweight=weight,
        annotation_clip=False,
    )


def _rows(axes: Axes, rows: int, *, ticks: int) -> None:
    """Axes of a plot with one row per line of text, first row on top, and at most `ticks` steps of its scale."""
    axes.set_ylim(rows - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.margins(x=0.08)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=ticks))


def round_ticks(axes: Axes) -> None:
    """Axes of a plot against rounds: whole rounds, few ticks."""
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))


def label(name: str) -> str:
    """A domain's name, safe and short enough for an axis."""
    shown = numbers.visible(name)
    return shown if len(shown) <= LONGEST_LABEL else shown[: LONGEST_LABEL - 1] + "\u2026"


def finished(drawing: Figure, figure: str, title: str, description: str) -> str:
    """The drawing as an `<svg>` element for a page: described, ids prefixed, nothing outside referred to."""
    stream = io.BytesIO()
    with _style(figure), warnings.catch_warnings():
        # Text stays text, so a reader's own fonts draw what the measuring font lacks.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font", category=UserWarning)
        drawing.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    ET.register_namespace("", _SVG)
    root = ET.fromstring(stream.getvalue())  # noqa: S314 - matplotlib wrote it just now
    for metadata in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(metadata)
    for element in root.iter():
        for key, value in list(element.attrib.items()):
            if key == "id":
                element.set("id", f"{figure}-{value}")
            elif key == _XLINK:
                del element.attrib[key]
                element.set("href", value.replace("#", f"#{figure}-", 1))
            elif "url(#" in value:
                element.set(key, value.replace("url(#", f"url(#{figure}-"))
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib |= {"role": "img", "aria-labelledby": f"{figure}-title", "aria-describedby": f"{figure}-desc"}
    for tag, text in (("desc", description), ("title", title)):
        element = ET.Element(f"{{{_SVG}}}{tag}", {"id": f"{figure}-{tag}"})
        element.text = numbers.visible(text)
        root.insert(0, element)
    return ET.tostring(root, encoding="unicode")
