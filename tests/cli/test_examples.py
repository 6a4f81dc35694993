"""The README's commands and the example at the end of every help text work as printed, as a newcomer meets them."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tests import commands
from tests.cli.test_help import examples
from tests.server.deploy.running import eventually

pytestmark = pytest.mark.slow

_ORDER = (
    "isthmus doctor",
    "isthmus demo",
    "isthmus domain check",
    "isthmus domain import",
    "isthmus calibrate",
    "isthmus simulate",
    "isthmus recommend",
    "isthmus fit",
    "isthmus audit",
    "isthmus verify",
    "isthmus budget",
    "isthmus keys show",
    "isthmus keys revoke",
    "isthmus keys rotate",
    "isthmus certs init",
    "isthmus certs node",
    "isthmus certs show",
    "isthmus certs replace-ca",
    "isthmus certs renew",
    "isthmus certs retire-ca",
    "isthmus server init",
)
_SERVICES = {"isthmus vault": "listening at "}
"""Verbs that go on until they are stopped, and what they say once they are up."""


_ELSEWHERE = {
    "isthmus server up": "runs until it is stopped: tests/server/deploy/test_up.py",
    "isthmus server run": "needs a server and nodes: tests/server/deploy/test_runs.py",
    "isthmus server status": "needs a server that is up: tests/server/deploy/test_up.py",
    "isthmus server stop": "needs a server that is up: tests/server/deploy/test_up.py",
    "isthmus server nodes add": "needs a server that is up: tests/server/deploy/test_nodes.py",
    "isthmus server nodes list": "needs a server that is up: tests/server/deploy/test_nodes.py",
    "isthmus server nodes remove": "needs a server that is up: tests/server/deploy/test_nodes.py",
    "isthmus invite": "needs a server that is up: tests/deployed/test_federation.py",
    "isthmus join": "needs a kit, and so a server: tests/deployed/test_federation.py",
    "isthmus leave": "needs a domain that has joined: tests/deployed/test_federation.py",
    "isthmus evaluate": "trains the demo for a minute: tests/cli/test_study_cli.py runs it as printed on tiny domains",
    "isthmus sweep": "trains the demo twice: tests/cli/test_study_cli.py runs it as printed on tiny domains",
    "isthmus pretrain": "needs domains whose histories are public: tests/simulation/test_pretraining.py",
    "isthmus server log": "needs a server that was up: tests/server/deploy/test_up.py",
}
"""Examples that cannot run one after the other, and where the command is tested instead."""


def arguments(line: str) -> list[str]:
    """Of a line of the documentation."""
    return shlex.split(line)[1:]


def fresh(line: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a line of the documentation in a folder, by a new interpreter, as whoever types it does."""
    command = [sys.executable, "-c", "from isthmus.cli import main; main()", *arguments(line)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src"), "NO_COLOR": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def serve(line: str, words: str, cwd: Path) -> tuple[int, str]:
    """Start a line of the documentation, stop it once it says that it is up: exit code, and what it said."""
    log = cwd / "served.log"
    process = commands.begin(*arguments(line), cwd=cwd, err=log)
    eventually(lambda: (log.exists() and words in log.read_text()) or process.poll() is not None, 60, "it is up")
    process.terminate()
    return process.wait(timeout=60), log.read_text()


def of_the_readme() -> list[str]:
    """The `isthmus` lines of its console blocks."""
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("isthmus ")]


def test_every_command_of_the_readme_and_every_example_works_as_printed(tmp_path: Path) -> None:
    """One after the other, in one folder: the README from top to bottom, then the examples that it does not have."""
    found = examples()
    assert sorted(found) == sorted((*_ORDER, *_SERVICES, *_ELSEWHERE))
    readme = of_the_readme()
    assert len(readme) >= 5
    for line in (*readme, *(found[words] for words in _ORDER if found[words] not in readme)):
        done = fresh(line, tmp_path) if line in readme else commands.run(*arguments(line), cwd=tmp_path)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        assert done.stdout.strip(), line
    for words, up in _SERVICES.items():
        code, said = serve(found[words], up, tmp_path)
        assert (code, up in said) == (0, True), said
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["federation"]["rounds"] == 2
    assert not result["federation"]["private"]  # the demo is seeded, and says so
    assert (tmp_path / "run" / "report.html").exists()
    assert (tmp_path / "run" / "audit.html").exists()
    assert (tmp_path / "books" / "domain.toml").exists()
