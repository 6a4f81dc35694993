"""A kit is taken only as its coordinator signed it, and only as long as it says."""

import datetime as dt
import json
import stat
import zipfile
from pathlib import Path

import pytest

from isthmus.errors import ConfigError
from isthmus.privacy.keys import Keys, fresh_keys
from isthmus.privacy.kit import FILES, Kit, read_kit, write_kit

CONTENT = {name: f"content of {name}".encode() for name in FILES}


@pytest.fixture
def keys() -> Keys:
    """The coordinator's."""
    return fresh_keys()


def kit_of(keys: Keys, **changes: str) -> Kit:
    """A good one, but for the changes."""
    fields = {
        "domain": "books",
        "coordinator": "Example federation",
        "address": "fl.example.org:8443",
        "key": keys.public.hex(),
        "isthmus": "0.1.0",
        "program": "ab" * 32,
        "bundle": "cd" * 32,
        "until": "2999-01-01T00:00:00.000+00:00",
        **changes,
    }
    return Kit.model_validate(fields)


@pytest.fixture
def path(tmp_path: Path, keys: Keys) -> Path:
    """A kit for `books`."""
    path = tmp_path / "books.zip"
    write_kit(path, kit_of(keys), CONTENT, keys)
    return path


def rewritten(path: Path, changes: dict[str, bytes | None]) -> None:
    """Replace, add or leave out members."""
    with zipfile.ZipFile(path) as archive:
        members: dict[str, bytes | None] = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**members, **changes}.items():
            if content is not None:
                archive.writestr(name, content)


def about(path: Path) -> dict[str, dict[str, str]]:
    """What `kit.json` says."""
    with zipfile.ZipFile(path) as archive:
        found: dict[str, dict[str, str]] = json.loads(archive.read("kit.json"))
    return found


def test_a_kit_is_read_as_it_was_written(path: Path, keys: Keys) -> None:
    """What it says and every file; readable by its owner only."""
    assert read_kit(path) == (kit_of(keys), CONTENT)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_was_changed_is_found(path: Path, name: str) -> None:
    """Each of them by name."""
    rewritten(path, {name: b"other"})
    with pytest.raises(ConfigError, match=rf"{name} was changed after the kit was signed"):
        read_kit(path)


@pytest.mark.parametrize("field", ["address", "domain", "program", "until", "coordinator"])
def test_a_word_that_was_changed_is_found(path: Path, field: str) -> None:
    """The signature covers all of them."""
    said = about(path)
    others = {"address": "evil.example.org:1", "domain": "games", "until": "2998-01-01T00:00:00.000+00:00"}
    said["kit"][field] = others.get(field, "ef" * 32)
    rewritten(path, {"kit.json": json.dumps(said).encode()})
    with pytest.raises(ConfigError, match="is not signed by the key that it names"):
        read_kit(path)


def test_another_coordinators_signature_does_not_fit(path: Path, keys: Keys, tmp_path: Path) -> None:
    """A kit that was signed anew names another key, which its reader can compare."""
    other = fresh_keys()
    with pytest.raises(ValueError, match="signed by its own key"):
        write_kit(tmp_path / "other.zip", kit_of(keys), CONTENT, other)
    write_kit(path, kit_of(other), CONTENT, other)
    assert read_kit(path)[0].key != keys.public.hex()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ca.crt": None}, "a kit holds"),
        ({"../../etc/passwd": b"x"}, "a kit holds"),
        ({"kit.json": b"{}"}, "not a kit"),
        ({"kit.json": b"[]"}, "not a kit"),
        ({"kit.json": b"\xff"}, "not a kit"),
        ({"node.key": b"0" * 2_000_000}, "too"),
    ],
)
def test_what_is_no_kit_is_one_error(path: Path, changes: dict[str, bytes | None], words: str) -> None:
    """It names the file and what is wrong; nothing is unpacked."""
    rewritten(path, changes)
    with pytest.raises(ConfigError, match=words):
        read_kit(path)
    assert [file.name for file in path.parent.iterdir()] == ["books.zip"]


def test_a_file_that_is_not_there_or_no_archive_is_one_error(tmp_path: Path) -> None:
    """With the command that makes one."""
    with pytest.raises(ConfigError, match="isthmus invite"):
        read_kit(tmp_path / "none.zip")
    (tmp_path / "text.zip").write_text("hello")
    with pytest.raises(ConfigError, match="not a kit"):
        read_kit(tmp_path / "text.zip")


def test_an_old_kit_is_not_used(path: Path, keys: Keys) -> None:
    """Until its last moment, and not a moment longer."""
    until = dt.datetime(2026, 5, 1, tzinfo=dt.UTC)
    write_kit(path, kit_of(keys, until=until.isoformat(timespec="milliseconds")), CONTENT, keys)
    assert read_kit(path, now=until)[0].domain == "books"
    with pytest.raises(ConfigError, match="ask the coordinator for another one"):
        read_kit(path, now=until + dt.timedelta(seconds=1))
