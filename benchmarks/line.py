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
        bar: Limit of the ratio, set before measuring.
        unit: Of both figures.
        met: Whether the ratio keeps to the bar.
    """

    name: str
    ours: float
    peer: float
    peer_name: str
    ratio: float
    bar: float
    unit: str
    met: bool
