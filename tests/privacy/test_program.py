"""The hash of a program, or of a custom backbone's package, is that of its files' names and contents."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.custom_backbones import forget_telltale, installed, telltale

import isthmus
from isthmus.errors import ConfigError
from isthmus.privacy.program import backbone_hash, code_hash

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


def first_hash(title: str, files: dict[str, bytes]) -> str:
    """The recipe, again."""
    running = hashlib.sha256(f"{title}\n".encode())
    for name, content in sorted(files.items()):
        running.update(f"{name}\n{len(content)}\n".encode() + content)
    return running.hexdigest()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Packages that hold backbones, or would."""
    names = {
        "telltale": "telltale.encoder:Encoder",
        "gru4rec": "isthmus_gru4rec:GRU4Rec",
        "spaced": "spaced_out.inner.encoder:Encoder",
        "scattered": "scattered.far.encoder:Encoder",
        "zipped": "zipped.encoder:Encoder",
        "builtin": "sys:exit",
        "absent": "no_such_module:Thing",
        "submodule": "isthmus_gru4rec.more:Thing",
        "wordless": "of no meaning",
    }
    place, other = installed(tmp_path / "site", names), tmp_path / "other"
    telltale(place)
    for file in ("site/spaced_out/inner/__init__.py", "site/spaced_out/inner/encoder.py", "other/spaced_out/more.py"):
        write(tmp_path / file, "raise RuntimeError")
    write(place / "scattered" / "__init__.py", "__path__ = __import__('pkgutil').extend_path(__path__, __name__)")
    write(other / "scattered" / "far" / "encoder.py", "raise RuntimeError")
    write(tmp_path / "zip" / "zipped" / "encoder.py", "raise RuntimeError")
    write(tmp_path / "zip" / "zipped" / "__init__.py", "raise RuntimeError")
    shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "zip")
    for folder in (tmp_path / "packed.zip", other, place):
        monkeypatch.syspath_prepend(str(folder))
    forget_telltale(place)
    return place


def write(file: Path, text: str) -> None:
    """With the folders above it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_the_hash_of_a_backbone_is_of_its_whole_package(site: Path) -> None:
    """Recomputed here; a data file and a compiled one are in it, a cache is not, and nothing was run."""
    package = site / "telltale"
    files = {f"{name}.py": (package / f"{name}.py").read_bytes() for name in ("__init__", "encoder")}
    assert backbone_hash("telltale") == first_hash("isthmus backbone 1 telltale.encoder:Encoder", files)
    write(package / "__pycache__" / "encoder.cpython-312.pyc", "cached")
    assert backbone_hash("telltale") == first_hash("isthmus backbone 1 telltale.encoder:Encoder", files)
    for name in ("inner/weights.bin", "fast.cpython-312-x86_64-linux-gnu.so"):
        write(package / name, "data")
        files[name] = b"data"
        assert backbone_hash("telltale") == first_hash("isthmus backbone 1 telltale.encoder:Encoder", files)
    assert not (site / "ran").exists()
    assert "telltale" not in sys.modules


@pytest.mark.parametrize(
    "change",
    [
        lambda site: (site / "telltale" / "encoder.py").write_text("Encoder = 7\n"),
        lambda site: (site / "telltale" / "encoder.py").rename(site / "telltale" / "encoder.pyc"),
        lambda site: (site / "telltale" / "more.py").touch(),
        lambda site: (site / "telltale" / "__init__.py").write_bytes(b""),
        lambda site: (site / "site-1.0.dist-info" / "entry_points.txt").write_text(
            "[isthmus.backbones]\ntelltale = telltale.encoder:Path\n"
        ),
    ],
    ids=["content", "name", "new file", "the package's own file", "another object of it"],
)
def test_the_hash_of_a_backbone_changes(site: Path, change: Callable[[Path], object]) -> None:
    """In the process that has seen it before."""
    before = backbone_hash("telltale")
    change(site)
    assert backbone_hash("telltale") != before


def test_a_backbone_may_be_a_module_or_lie_in_a_namespace(site: Path) -> None:
    """What others keep beside the module, or in the same namespace, is no part of it."""
    files = {"isthmus_gru4rec.py": (site / "isthmus_gru4rec.py").read_bytes()}
    assert backbone_hash("gru4rec") == first_hash("isthmus backbone 1 isthmus_gru4rec:GRU4Rec", files)
    files = dict.fromkeys(("__init__.py", "encoder.py"), b"raise RuntimeError")
    assert backbone_hash("spaced") == first_hash("isthmus backbone 1 spaced_out.inner.encoder:Encoder", files)


@pytest.mark.parametrize("name", ["scattered", "zipped", "builtin", "absent", "submodule", "wordless"])
def test_a_backbone_whose_files_cannot_be_told_has_no_hash(site: Path, name: str) -> None:
    """One error with the way out, that says nothing of where things lie here."""
    with pytest.raises(ConfigError, match="has no hash.*by its name alone: docs/backbone.md") as error:
        backbone_hash(name)
    assert str(site.parent) not in str(error.value)
    assert "scattered" not in sys.modules


def test_a_name_of_two_lines_is_no_way_to_another_package_with_the_same_hash(site: Path) -> None:
    """Whose one file has the other's name and content as part of its own name."""
    with_break = os.fsencode(site / "telltale") + b"/a\n1\nbc"
    Path(os.fsdecode(with_break)).write_bytes(b"")
    with pytest.raises(ConfigError, match="has no hash"):
        backbone_hash("telltale")
