"""The table at the end of a run."""

import io
import json
from typing import Any

from rich.console import Console

from isthmus.report.result import Result
from isthmus.report.terminal import summary_table
from isthmus.report.words import headline


def printed(result: Result, width: int = 80) -> str:
    """The table as plain text of one width."""
    stream = io.StringIO()
    Console(file=stream, width=width, force_terminal=False, color_system=None).print(summary_table(result))
    return stream.getvalue()


def test_the_table_holds_every_domain_and_fits_eighty_columns(seeded: Result) -> None:
    """Federated, best local, gain, interval and epsilon of each domain are there, none cut short."""
    text = printed(seeded)
    assert headline(seeded) in text
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "…" not in text
    for name in seeded.domains:
        assert name in text
    for figure in ("0.0912", "0.0841", "+0.0071", "[+0.0039, +0.0103]", "▲ helps", "7.97", "of 8.00"):
        assert figure in text, figure


def test_a_seeded_run_says_that_it_is_not_private(seeded: Result, private: Result) -> None:
    """The warning is in the terminal too, and only where it is true."""
    assert "NOT private" in printed(seeded)
    assert "NOT private" not in printed(private)


def test_a_name_is_printed_as_text_and_cannot_drive_the_terminal(content: dict[str, Any]) -> None:
    """Markup is shown, escape sequences are made harmless."""
    domain = content["domains"].pop("shopping")
    for record in content["federation"]["history"]:
        record["domains"].pop("shopping")
    content["domains"]["[red]x\x1b[2J"] = domain
    text = printed(Result.model_validate_json(json.dumps(content)), width=120)
    assert "[red]x\ufffd[2J" in text
    assert "\x1b" not in text


def test_a_domain_without_test_users_has_a_row(content: dict[str, Any]) -> None:
    """It spent privacy, so it is listed, with dashes for the scores."""
    content["domains"]["dining"] |= {"test": None, "transfer_gain": None, "test_users": 0}
    text = printed(Result.model_validate_json(json.dumps(content)))
    row = next(line for line in text.splitlines() if line.strip().startswith("dining"))
    assert row.split()[1:4] == ["-", "-", "-"]
    assert "7.97" in row
