"""What a federation starts from is checked when its file is read, before anything heavy is imported."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import TinyFederation
from tests.starts import ORIGIN, start_from, write_start

from isthmus.config import PublicDomain, StartedFrom, load_federation
from isthmus.errors import ConfigError
from isthmus.records import recipe_of

ROOT = Path(__file__).parents[1]
ASK = """
import sys
from isthmus.config import load_federation
from isthmus.errors import ConfigError
try:
    load_federation(sys.argv[1])
except ConfigError as error:
    print(error)
print(sorted({"torch", "numpy", "flwr", "safetensors"} & set(sys.modules)))
"""


def test_the_start_counts_by_its_content(tiny_federation: TinyFederation, tmp_path: Path) -> None:
    """The same bytes elsewhere are the same federation; other parameters, or none, are another one."""
    file = tiny_federation()
    without = load_federation(file)
    write_start(file.parent / "start.safetensors", file, axes=True)
    start_from(file, "start.safetensors")
    with_start = load_federation(file)
    assert with_start.digest() != without.digest()
    shutil.copy(file.parent / "start.safetensors", tmp_path / "moved")
    file.write_text(file.read_text().replace('"start.safetensors"', f'"{tmp_path / "moved"}"'))
    assert load_federation(file).digest() == with_start.digest()
    plain = file.with_name("plain.toml")
    plain.write_text("\n".join(line for line in file.read_text().splitlines() if not line.startswith("start")))
    assert load_federation(plain).digest() == without.digest()
    write_start(tmp_path / "moved", plain, axes=True, seed=18)
    assert load_federation(file).digest() != with_start.digest()


def test_a_federation_without_a_start_is_written_as_before(tiny_federation: TinyFederation) -> None:
    """The key is in no digest, no recipe and no file of those who do not use it."""
    federation = load_federation(tiny_federation())
    assert "start" not in federation.model_dump_json()
    assert "start" not in recipe_of(federation, "").model_dump_json()


def test_domains_are_told_what_was_public_and_no_path(tiny_federation: TinyFederation) -> None:
    """The recipe names domains and the file's digest; where it lies is the coordinator's business."""
    file = tiny_federation()
    write_start(file.parent / "start.safetensors", file, axes=True)
    start_from(file, file.parent / "start.safetensors")
    federation = load_federation(file)
    recipe = recipe_of(federation, "")
    assert recipe.start == federation.started_from()
    assert isinstance(recipe.start, StartedFrom)
    assert recipe.start.domains == (PublicDomain(name="elsewhere", users=700, fingerprint="ab" * 32),)
    assert str(file.parent) not in recipe.model_dump_json()


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (
            "absent",
            "start.safetensors: cannot be read (No such file or directory). `isthmus pretrain` writes such a file",
        ),
        ("text", "not a backbone of this version"),
        ("long", "its header is too long"),
        ("private", "does not say that it was trained in the open, so nothing private may start from it"),
        ("shape", "was trained with `backbone.layers` = 1, and this federation has 2. Change [backbone]"),
        ("encoder", "was trained with `features.encoder` = 'hash:64', and this federation has 'hash:32'"),
        ("people", "not a backbone of this version"),
    ],
)
def test_what_does_not_fit_is_one_error_before_anything_heavy(
    tiny_federation: TinyFederation, case: str, words: str
) -> None:
    """File, key, value seen and way out; neither torch nor numpy nor flwr was imported for it."""
    file = tiny_federation()
    start = file.parent / "start.safetensors"
    write_start(start, file, axes=True, origin=None if case == "private" else ORIGIN)
    if case == "absent":
        start.unlink()
    elif case == "text":
        start.write_bytes(b"\x08\0\0\0\0\0\0\0not JSON")
    elif case == "long":
        start.write_bytes(b"\xff" * 100)
    elif case == "people":
        content = start.read_bytes()
        assert content.count(b'\\"users\\": 700') == 1
        start.write_bytes(content.replace(b'\\"users\\": 700', b'\\"users\\": -70'))
    start_from(file, "start.safetensors")
    changed = {"shape": ("layers = 1", "layers = 2"), "encoder": ("hash:64", "hash:32")}.get(case, ("", ""))
    file.write_text(file.read_text().replace(*changed) if changed[0] else file.read_text())
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(file)],
        env={"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=True,
    )
    said, imported = done.stdout.splitlines()
    assert "`backbone.start`: " in said
    assert words in said
    assert imported == "[]"
    with pytest.raises(ConfigError):
        load_federation(file)
