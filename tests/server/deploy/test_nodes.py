"""Which nodes may connect is said by name, and a key is what its file says."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from tests.server.deploy.conftest import new_server
from tests.server.deploy.running import call, running

from isthmus.errors import ConfigError, RunError
from isthmus.server.deploy.certs import make_node_key
from isthmus.server.deploy.control import Control, read_public_key
from isthmus.server.deploy.settings import ServerConfig


def test_a_key_that_flower_would_not_take_is_explained(tmp_path: Path) -> None:
    """Missing, private, no key at all, or on another curve."""
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_public_key(tmp_path / "none.pub")
    make_node_key(tmp_path / "books")
    with pytest.raises(ConfigError, match="is a private key, which nobody but its unit should have"):
        read_public_key(tmp_path / "books.key")
    (tmp_path / "garbage.pub").write_text("garbage")
    with pytest.raises(ConfigError, match="not a public key in OpenSSH's form"):
        read_public_key(tmp_path / "garbage.pub")
    other = ed25519.Ed25519PrivateKey.generate().public_key()
    form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    (tmp_path / "ed.pub").write_bytes(other.public_bytes(*form))
    with pytest.raises(ConfigError, match="keys on a NIST curve only; `isthmus certs node` makes one"):
        read_public_key(tmp_path / "ed.pub")


def test_a_server_that_is_not_up_is_said_to_be(tmp_path: Path) -> None:
    """Not a traceback of Flower's."""
    with Control(new_server(tmp_path)) as control, pytest.raises(RunError, match="Is `isthmus server up` running?"):
        control.nodes()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerConfig]:
    """A coordinator that is up."""
    folder = tmp_path_factory.mktemp("nodes")
    config = new_server(folder)
    with running(folder):
        yield config


@pytest.mark.slow
def test_nodes_are_added_listed_and_removed_by_name(server: ServerConfig, tmp_path: Path) -> None:
    """Neither a name nor a key is taken twice; a name that is not there is answered with those that are."""
    folder = server.folder
    for name in ("books", "games"):
        make_node_key(tmp_path / name)
        call(folder, "server", "nodes", "add", name, "--key", tmp_path / f"{name}.pub")
    listed = json.loads(call(folder, "server", "nodes", "list", "--json"))
    assert [(node["name"], node["status"]) for node in listed] == [("books", "registered"), ("games", "registered")]
    assert listed[0]["key"] == (tmp_path / "books.pub").read_text().strip()
    assert "is the key of node 'books'" in call(
        folder, "server", "nodes", "add", "music", "--key", tmp_path / "books.pub", code=2
    )
    assert "a node 'books' is there already" in call(
        folder, "server", "nodes", "add", "books", "--key", tmp_path / "games.pub", code=2
    )
    assert "there is no node 'music'; there are: books, games." in call(
        folder, "server", "nodes", "remove", "music", code=2
    )
    call(folder, "server", "nodes", "remove", "books")
    assert "games" in call(folder, "server", "nodes", "list")
