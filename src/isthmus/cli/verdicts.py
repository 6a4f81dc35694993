"""How `isthmus verify` prints what it found."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from isthmus.report import numbers

if TYPE_CHECKING:
    from isthmus.privacy.audit.verification import Verified

MOST_FINDINGS = 20
"""Of one file; the rest is counted."""


def print_verified(verified: Sequence["Verified"], console: Console) -> None:
    """One paragraph for each file: a verdict, its checks, and what was found."""
    for one in verified:
        verdict, style = ("sound", "bold green") if one.sound else ("NOT SOUND", "bold red")
        _say(console, Text.assemble((verdict, style), f"  {one.kind} {numbers.visible(one.path)}"))
        for check in one.checks:
            mark, style = ("ok ", "green") if check.passed else ("NO ", "bold red")
            _say(console, Text.assemble("  ", (mark, style), f"{check.name}: {numbers.visible(check.detail)}"))
        for finding in one.findings[:MOST_FINDINGS]:
            where = f"line {finding.line}" if finding.line else "whole file"
            _say(console, Text(f"  - {where}: {finding.rule}: {numbers.visible(finding.text)}", style="red"))
        if len(one.findings) > MOST_FINDINGS:
            _say(console, Text(f"  - and {len(one.findings) - MOST_FINDINGS} more (--json lists all)", style="red"))
        for note in one.notes:
            _say(console, Text(f"  note: {numbers.visible(note)}", style="yellow"))


def _say(console: Console, text: Text) -> None:
    console.print(text, highlight=False, soft_wrap=True)
