"""What a user does wrong gets one clear error and an exit code, never a traceback."""

from pathlib import Path

import pytest
from tests.commands import run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the demo federation."""
    folder = tmp_path_factory.mktemp("mistakes")
    assert run("demo", "demo", cwd=folder).returncode == 0
    return folder


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("isthmus simulate nowhere.toml", 2, "nowhere.toml: no such file"),
        ("isthmus simulate demo/federation.toml --rounds 0", 2, "at least 1 round, got 0"),
        ("isthmus simulate demo/federation.toml --backend cloud", 2, "in-process or ray"),
        ("isthmus domain check demo", 2, "domain.toml: no such file"),
        ("isthmus calibrate demo/federation.toml", 2, "unknown key `domains`"),
        ("isthmus demo demo", 2, "exists already"),
        ("isthmus recommend --run demo --domain music --user x", 2, "no backbone here"),
        ("isthmus simulate demo/federation.toml --rounds 99", 1, "the policy was planned for 12"),
    ],
)
def test_a_users_mistake_gets_one_clear_error(folder: Path, line: str, code: int, words: str) -> None:
    """Exit code and words, no traceback, nothing on stdout."""
    done = run(*line.split()[1:], cwd=folder)
    assert done.returncode == code, done.stderr
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
