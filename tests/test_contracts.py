"""The import contracts hold, and each of them can fail."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

MUTANTS = {
    "the server reads raw data": ("server/loop.py", "import isthmus.clients.data"),
    "a domain imports the server": ("clients/vault.py", "import isthmus.server.loop"),
    "the judge imports torch": ("privacy/gate.py", "import torch"),
    "the strategies import opacus": ("strategies/guarded.py", "import opacus"),
    "the head reaches the trainer": ("clients/trainer.py", "import isthmus.clients.head"),
    "the head reaches what is evaluated": ("clients/evaluation.py", "import isthmus.clients.blend"),
    "the ClientApp grows heavy": ("clients/app.py", "import isthmus.clients.vault"),
    "what asks a vault grows heavy": ("clients/remote.py", "import isthmus.clients.vault"),
    "a business unit's vault reaches the runs without noise": (
        "clients/serving.py",
        "import isthmus.simulation.noise_free",
    ),
    "the core imports a role": ("records.py", "import isthmus.privacy.gate"),
}


def contracts_hold(folder: Path) -> bool:
    """Whether import-linter finds nothing in a copy of the package."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command; lint_imports_command()",
            "--no-cache",
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    assert "Contracts:" in done.stdout, done.stdout + done.stderr
    return done.returncode == 0


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package and its contracts, links resolved."""
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_contracts_hold(copy: Path) -> None:
    """The package as it is breaks none."""
    assert contracts_hold(copy)


@pytest.mark.parametrize("what", list(MUTANTS))
def test_a_forbidden_import_is_found(copy: Path, what: str) -> None:
    """One import in the wrong direction, and the check fails."""
    name, line = MUTANTS[what]
    file = copy / "src" / "isthmus" / name
    file.write_text(file.read_text() + f"\n{line}\n")
    assert not contracts_hold(copy)
