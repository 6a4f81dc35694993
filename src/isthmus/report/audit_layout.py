"""How the document of an audit looks: its fonts, paragraphs, tables and the plot, drawn by reportlab.

    register_fonts()
    story = [say("Findings", SECTION), table(["Line", "Rule"], rows, [0.2, 0.8]), facts([("Epsilon", "1.22")])]

Every text is untrusted: it is escaped, and control characters are made visible. The font is DejaVu, which comes with
matplotlib, so that names in most scripts are legible.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import matplotlib as mpl
from reportlab.graphics.shapes import Drawing, Line, PolyLine, String
from reportlab.lib.colors import Color, HexColor
from reportlab.lib.enums import TA_RIGHT
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Flowable, Paragraph, SimpleDocTemplate, Spacer, Table, TableStyle

from isthmus.report import numbers
from isthmus.report.audit import DataSet

_INK, SOFT, _LINE = HexColor("#1b2530"), HexColor("#52606d"), HexColor("#d5dce3")
_BLUE, _ORANGE, _GREEN, _RED = HexColor("#0072B2"), HexColor("#b84a00"), HexColor("#00664a"), HexColor("#a33f00")
_PLAIN, _BOLD = "IsthmusPlain", "IsthmusBold"
WIDTH = A4[0] - 36 * mm - 12  # less the padding of reportlab's frame


def _style(
    size: float, *, bold: bool = False, colour: Color = _INK, after: float = 4, before: float = 0
) -> ParagraphStyle:
    return ParagraphStyle(
        f"{size} {bold} {colour} {before}",
        spaceBefore=before,
        keepWithNext=int(before > 0),
        fontName=_BOLD if bold else _PLAIN,
        fontSize=size,
        leading=size * 1.35,
        textColor=colour,
        spaceAfter=after,
        splitLongWords=True,
    )


TEXT, NOTE, CELL = _style(10), _style(8.5, colour=SOFT), _style(7.8, after=0)
NUMBER = ParagraphStyle("number", parent=CELL, alignment=TA_RIGHT)
SMALL = _style(7.4, colour=SOFT, after=0)
HEAD = _style(7.8, bold=True, after=0)
SECTION, PART = (
    _style(14, bold=True, after=6, before=14),
    _style(10.5, bold=True, after=3, before=8),
)
TITLE, KICKER = _style(17, bold=True, after=8), _style(10, bold=True, colour=SOFT, after=2)
GOOD, BAD = (
    _style(7.8, bold=True, colour=_GREEN, after=0),
    _style(7.8, bold=True, colour=_RED, after=0),
)
ALARM = _style(10.5, bold=True, colour=_RED)


def register_fonts() -> None:
    """Make the fonts known to reportlab, once."""
    folder = Path(mpl.get_data_path()) / "fonts" / "ttf"
    known = pdfmetrics.getRegisteredFontNames()
    for name, file in ((_PLAIN, "DejaVuSans.ttf"), (_BOLD, "DejaVuSans-Bold.ttf")):
        if name not in known:
            pdfmetrics.registerFont(TTFont(name, str(folder / file)))


def footer(page: Canvas, document: SimpleDocTemplate) -> None:
    """At the bottom of each page."""
    page.setFont(_PLAIN, 7.5)
    page.setFillColor(SOFT)
    page.drawString(18 * mm + 6, 10 * mm, "Isthmus privacy audit")
    page.drawRightString(A4[0] - 18 * mm - 6, 10 * mm, f"page {document.page}")


def plot(data_set: DataSet) -> list[Flowable]:
    """Epsilon after each charge, with the limit; nothing where an epsilon cannot be proven."""
    points = [
        (number, point.epsilon) for number, point in enumerate(data_set.timeline, start=1) if point.epsilon is not None
    ]
    if not points or len(points) < len(data_set.timeline):
        return []
    width, height, left, bottom = WIDTH * 0.7, 120.0, 34.0, 22.0
    limit = data_set.budget if data_set.budget_delta == data_set.delta else None
    top = 1.15 * max(limit or 0.0, *(epsilon for _, epsilon in points), 1e-9)
    across, up = (width - left) / points[-1][0], (height - bottom) / top
    drawing = Drawing(width, height + 6)
    drawing.add(Line(left, bottom, width, bottom, strokeColor=SOFT, strokeWidth=0.6))
    drawing.add(Line(left, bottom, left, height, strokeColor=SOFT, strokeWidth=0.6))
    for share in (0.0, 0.5, 1.0):
        value = share * top / 1.15
        y = bottom + value * up
        drawing.add(
            String(left - 4, y - 3, f"{value:.2f}", fontName=_PLAIN, fontSize=7.5, textAnchor="end", fillColor=_INK)
        )
        drawing.add(Line(left, y, width, y, strokeColor=_LINE, strokeWidth=0.4))
    if limit is not None:
        y = bottom + limit * up
        drawing.add(Line(left, y, width, y, strokeColor=_ORANGE, strokeWidth=1, strokeDashArray=[4, 3]))
        drawing.add(
            String(left + 3, y + 3, f"limit {numbers.epsilon(limit)}", fontName=_PLAIN, fontSize=7.5, fillColor=_INK)
        )
    stairs, before = [], 0.0
    for number, epsilon in points:
        x = left + (number - 0.5) * across
        stairs += [x, bottom + before * up, x, bottom + epsilon * up]
        before = epsilon
    drawing.add(PolyLine([left, bottom, *stairs, width, bottom + before * up], strokeColor=_BLUE, strokeWidth=1.3))
    drawing.add(
        String(
            (left + width) / 2,
            6,
            "charges, oldest first",
            fontName=_PLAIN,
            fontSize=7.5,
            textAnchor="middle",
            fillColor=_INK,
        )
    )
    return [say("Epsilon over all runs", PART), drawing, Spacer(1, 6)]


def part(
    title: str, columns: list[str], rows: Sequence[Sequence[Any]], shares: list[float], *, right: tuple[int, ...] = ()
) -> list[Flowable]:
    """A titled table, or that there is nothing in it."""
    if not rows:
        return [say(title, PART), say("None.", NOTE)]
    return [say(title, PART), table(columns, rows, shares, right=right)]


def table(
    columns: list[str], rows: Sequence[Sequence[Any]], shares: list[float], *, right: tuple[int, ...] = ()
) -> Table:
    """A table over the whole width.

    Args:
        columns: Titles.
        rows: Strings and paragraphs.
        shares: Of the width, of each column.
        right: Columns of numbers.
    """
    head = [Paragraph(escape(column), HEAD) if at not in right else column for at, column in enumerate(columns)]
    body = [[numbers.visible(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    made = Table([head, *body], [share * WIDTH for share in shares], repeatRows=1, hAlign="LEFT")
    made.setStyle(
        TableStyle(
            [
                ("FONT", (0, 0), (-1, 0), _BOLD, 7.8),
                ("FONT", (0, 1), (-1, -1), _PLAIN, 7.8),
                ("TEXTCOLOR", (0, 0), (-1, -1), _INK),
                ("VALIGN", (0, 0), (-1, -1), "TOP"),
                ("LINEBELOW", (0, 0), (-1, 0), 1, SOFT),
                ("LINEBELOW", (0, 1), (-1, -1), 0.4, _LINE),
                ("LEFTPADDING", (0, 0), (0, -1), 0),
                ("LEFTPADDING", (1, 0), (-1, -1), 4),
                ("RIGHTPADDING", (0, 0), (-1, -1), 3),
                ("TOPPADDING", (0, 0), (-1, -1), 3),
                ("BOTTOMPADDING", (0, 0), (-1, -1), 3),
                *(("ALIGN", (at, 0), (at, -1), "RIGHT") for at in right),
            ]
        )
    )
    return made


def facts(pairs: Sequence[tuple[str, str]]) -> Table:
    """Names and what is to be said of each."""
    rows = [[say(name, NOTE), say(text, CELL)] for name, text in pairs]
    made = Table(rows, [0.2 * WIDTH, 0.8 * WIDTH], hAlign="LEFT")
    made.setStyle(
        TableStyle(
            [
                ("VALIGN", (0, 0), (-1, -1), "TOP"),
                ("LEFTPADDING", (0, 0), (-1, -1), 0),
                ("TOPPADDING", (0, 0), (-1, -1), 1),
                ("BOTTOMPADDING", (0, 0), (-1, -1), 1),
            ]
        )
    )
    return made


def say(text: str, style: ParagraphStyle) -> Paragraph:
    """Untrusted text as a paragraph: escaped, control characters made visible."""
    return Paragraph(escape(numbers.visible(text)), style)
