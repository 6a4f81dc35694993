"""One line of the table over all benchmarks: ours beside a named peer, the bar that was set before, met or not."""

from typing import NamedTuple


class Line(NamedTuple):
    """One comparison.

    Attributes:
        name: What was measured.
        ours: Our figure, in `unit`.
        peer: The peer's figure, in `unit`.
        peer_name: Who or what the peer is.
        ratio: What the bar is about; the benchmark says which way round it is taken.
        bar: Limit of the ratio, set before measuring; None where nothing was promised.
        unit: Of both figures.
        met: Whether the ratio keeps to the bar; None where there is none.
    """

    name: str
    ours: float
    peer: float
    peer_name: str
    ratio: float
    bar: float | None
    unit: str
    met: bool | None

    @property
    def limit(self) -> str:
        """The bar in words: on which side of it the ratio must be follows from whether it is."""
        if self.bar is None:
            return ""
        return f"at {'most' if (self.ratio <= self.bar) == self.met else 'least'} {self.bar:.3g}"

    @property
    def verdict(self) -> str:
        """`met`, `NOT met`, or nothing where nothing was promised."""
        return "" if self.met is None else "met" if self.met else "NOT met"


TABLE_HEAD = """| what | ours | peer | peer's | ratio | bar | |
|---|---:|---|---:|---:|---|---|"""


def row(line: Line) -> str:
    """A row of the table."""
    ours, theirs = (f"{figure:.3g} {line.unit}" for figure in (line.ours, line.peer))
    return f"| {line.name} | {ours} | {line.peer_name} | {theirs} | {line.ratio:.2f} | {line.limit} | {line.verdict} |"
