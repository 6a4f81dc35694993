"""The page of studies shows their figures as they are, and says what they are not."""

import subprocess
import sys
from pathlib import Path

from tests.report.test_study import study  # noqa: F401 - a fixture

from isthmus.report.study import Study, write_study

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "utility" / "table.py"


def test_a_page_shows_the_figures_of_a_study_and_its_warning(study: Study, tmp_path: Path) -> None:  # noqa: F811
    """Every condition has a line; the best local method is bold; the warning is there; what is no study is refused."""
    write_study(study, tmp_path / "sweep.json")
    command = [sys.executable, str(SCRIPT), str(tmp_path / "sweep.json"), "--title", "made up"]
    page = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "NOT private" in page
    for condition in study.conditions:
        line = next(line for line in page.splitlines() if f"| {condition.label} |" in line)
        best = condition.methods[condition.best_local].metrics["ndcg@10"].mean
        assert f"**{best:.4f}".replace("**0.", "**.") in line
        assert f"{condition.differences['federated'].mean:+.4f}" in line
    (tmp_path / "sweep.json").write_text("{}")
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "not a study" in refused.stderr
