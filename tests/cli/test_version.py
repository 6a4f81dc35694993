"""`isthmus --version` says which program this is, as ledgers and policies name it."""

import subprocess
import sys

import pytest
from tests.cli.called import Caller

import isthmus as package
from isthmus.privacy.program import code_hash


def test_it_prints_version_and_hash_and_ends(isthmus: Caller) -> None:
    """Two lines, exit 0; the hash is the one that a policy's `programs` names, on one line however narrow."""
    done = isthmus("--version")
    assert done.code == 0
    assert done.out == f"isthmus {package.__version__}\nprogram {code_hash()}\n"


def test_it_is_in_the_help(isthmus: Caller) -> None:
    """Of the command itself."""
    assert "--version" in isthmus("--help").out


@pytest.mark.parametrize("heavy", ["torch", "flwr", "dp_accounting", "matplotlib"])
def test_it_loads_nothing_heavy(heavy: str) -> None:
    """Whoever compares a hash need not wait."""
    code = (
        "import sys\nfrom isthmus.cli import main\nsys.argv = ['isthmus', '--version']\n"
        f"try:\n    main()\nexcept SystemExit:\n    print({heavy!r} in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
