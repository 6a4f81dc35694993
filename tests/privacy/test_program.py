"""The hash of a program is that of its files' names and contents, wherever they lie."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import isthmus
from isthmus.privacy.program import code_hash

PACKAGE = Path(isthmus.__file__).parent


def files_of(package: Path) -> dict[str, bytes]:
    """Content of every Python file of a package, by its place; links followed."""
    listed = subprocess.run(
        ["find", "-L", ".", "-name", "*.py", "-type", "f"], cwd=package, capture_output=True, text=True, check=True
    )
    return {line.removeprefix("./"): (package / line).read_bytes() for line in listed.stdout.splitlines()}


def hash_in(folder: Path) -> str:
    """What the copy of the package in a folder says of itself, in a process of its own."""
    code = "from isthmus.privacy.program import code_hash; print(code_hash())"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    return ran.stdout.strip()


def test_the_hash_is_of_names_and_contents() -> None:
    """Recomputed here from a listing that another program made; the role folders are in it."""
    files = files_of(PACKAGE)
    assert {"__init__.py", "privacy/program.py", "clients/vault.py", "server/loop.py", "cli/__init__.py"} <= set(files)
    expected = hashlib.sha256(b"isthmus program 1\n")
    for name, content in sorted(files.items()):
        expected.update(f"{name}\n{len(content)}\n".encode() + content)
    assert code_hash() == expected.hexdigest()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package somewhere else, as it is installed: without links."""
    shutil.copytree(PACKAGE, tmp_path / "isthmus", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_the_hash_changes_with_every_file_and_nothing_else(copy: Path) -> None:
    """Elsewhere it is the same; a byte of one file, another name, a new file: another hash. Caches do not count."""
    assert hash_in(copy) == code_hash()  # this run has left caches behind
    assert hash_in(copy) == code_hash()
    (copy / "isthmus" / "notes.txt").write_text("not a program")
    assert hash_in(copy) == code_hash()
    vault = copy / "isthmus" / "clients" / "vault.py"
    content = vault.read_bytes()
    vault.write_bytes(content + b"\n")
    changed = hash_in(copy)
    vault.write_bytes(content)
    vault.rename(vault.with_name("vault2.py"))
    renamed = hash_in(copy)
    vault.with_name("vault2.py").rename(vault)
    (copy / "isthmus" / "clients" / "more.py").write_text("")
    added = hash_in(copy)
    assert len({code_hash(), changed, renamed, added}) == 4
