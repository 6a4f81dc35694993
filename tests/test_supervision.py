"""What is started again, how often, and when it is given up."""

from pathlib import Path

import pytest

from isthmus.errors import RunError
from isthmus.supervision import Part, supervise


def test_a_program_that_keeps_dying_is_given_up_after_as_many_deaths_as_it_may_have(tmp_path: Path) -> None:
    """Started again twice, and not a third time; the error says how it ended and what it wrote."""
    part = Part(
        name="node",
        command=("sh", "-c", "echo started | tee -a starts; until [ -e up ]; do sleep 0.05; done; exit 3"),
        listening="",
        ready=(tmp_path / "starts").exists,
        most_deaths=2,
        longest_delay=0.1,
    )
    with pytest.raises(RunError, match="(?s)node died 3 times in a row, the last time with code 3.*started"):
        supervise(lambda: [part], state=tmp_path, started=lambda _: (tmp_path / "up").touch())
    assert (tmp_path / "starts").read_text().split() == ["started"] * 3
