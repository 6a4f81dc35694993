"""A kit is accepted for the domain, by the coordinator and with the program that it names; leaving forgets its key."""

import hashlib
import os
import stat
from pathlib import Path

import pytest
from tests.privacy.test_kit import CONTENT, kit_of

from isthmus.clients.joining import Membership, accept_kit, leave, node_part
from isthmus.errors import ConfigError, Refused, RunError
from isthmus.privacy.keys import Keys, fresh_keys
from isthmus.privacy.kit import write_kit
from isthmus.privacy.program import code_hash


@pytest.fixture
def keys() -> Keys:
    """The coordinator's."""
    return fresh_keys()


@pytest.fixture
def kit(tmp_path: Path, keys: Keys) -> Path:
    """For `books`, made with this program."""
    path = tmp_path / "books.zip"
    write_kit(path, kit_of(keys, program=code_hash()), CONTENT, keys)
    return path


def accepted(kit: Path, **changes: str) -> Membership:
    """Accept it into the folder `state` beside it."""
    return accept_kit(kit, kit.parent / "state", **{"domain": "books", **changes})  # type: ignore[arg-type]


def test_the_nodes_files_are_its_own_and_the_command_names_them(kit: Path, keys: Keys) -> None:
    """The key is readable by its owner only; the SuperNode gets address, authority, key and the vault's address."""
    member = accepted(kit, coordinator=keys.public.hex().upper())
    files = {file.name: file for file in member.node_folder.iterdir()}
    assert {name: file.read_bytes() for name, file in files.items()} == {
        name: CONTENT[name] for name in ("ca.crt", "node.key")
    }
    assert stat.S_IMODE(files["node.key"].stat().st_mode) == 0o600
    assert stat.S_IMODE(member.folder.stat().st_mode) == 0o700
    command = node_part(member, "unix:/run/vault.sock").command
    assert command[1:5] == ("-m", "isthmus.clients.node", "--superlink", "fl.example.org:8443")
    assert 'vault="unix:/run/vault.sock"' in command
    assert "--insecure" not in command


def test_a_kit_for_another_domain_coordinator_or_program_is_refused(kit: Path, keys: Keys) -> None:
    """With what was seen and what was expected; nothing is written."""
    with pytest.raises(ConfigError, match="invites 'books', and this domain is 'games'"):
        accepted(kit, domain="games")
    with pytest.raises(Refused, match="do not use it") as refused:
        accepted(kit, coordinator=fresh_keys().public.hex())
    assert refused.value.rule == "coordinators"
    write_kit(kit, kit_of(keys), CONTENT, keys)
    with pytest.raises(Refused, match="Install the same") as refused:
        accepted(kit)
    assert refused.value.rule == "programs"
    assert not (kit.parent / "state").exists()


def test_a_kit_that_was_accepted_in_time_can_be_used_again(kit: Path, keys: Keys, tmp_path: Path) -> None:
    """A unit that starts again next year needs no new kit; another one that is too old is refused all the same."""
    accepted(kit)
    until = "2026-01-01T00:00:00.000+00:00"
    write_kit(kit, kit_of(keys, program=code_hash(), until=until), CONTENT, keys)
    with pytest.raises(ConfigError, match="was to be used until"):
        accepted(kit)
    state = tmp_path / "state" / "accepted.json"
    digest = hashlib.sha256(kit.read_bytes()).hexdigest()
    state.write_text(f'{{"kit": "{digest}", "accepted": "2025-12-31T00:00:00+00:00"}}')
    assert accepted(kit).kit.until == until


def test_leaving_forgets_the_key_and_can_be_done_once(kit: Path) -> None:
    """Without the node's key nobody can take part as this domain from here."""
    member = accepted(kit)
    leave(member.folder)
    assert not (member.node_folder / "node.key").exists()
    with pytest.raises(RunError, match="no federation was joined from here"):
        leave(member.folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")
def test_another_user_for_the_node_gets_its_files_and_a_way_to_them(kit: Path, tmp_path: Path) -> None:
    """A closed folder on the way is named, with the way out; an open one gives the node its own files and no others."""
    with pytest.raises(ConfigError, match="is closed to other users"):
        accepted(kit, client_user="nobody")  # a test's folder is
    with pytest.raises(ConfigError, match="there is no user 'nobody-like-this'"):
        accepted(kit, client_user="nobody-like-this")
    assert not (tmp_path / "state" / "node").exists()
