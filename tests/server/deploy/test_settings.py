"""`server.toml` is read strictly, and nothing that decides who can reach the server has a default."""

from pathlib import Path

import pytest
from tests.server.deploy.conftest import new_server

from isthmus.errors import ConfigError
from isthmus.server.deploy.settings import load_server, write_server

EXPOSING = ("address", "bind", "port", "loopback_port", "state", "certificates", "domains")


def test_a_written_file_says_what_was_asked(tmp_path: Path) -> None:
    """Paths are relative to the file; the addresses carry their ports."""
    config = new_server(tmp_path, domains=2)
    assert (config.address, config.bind, config.rounds.domains) == ("localhost", "127.0.0.1", 2)
    assert config.state_folder == tmp_path / "state"
    assert config.certificates_folder == tmp_path / "certs"
    assert config.superlink == f"127.0.0.1:{config.loopback_port}"
    assert config.public == f"localhost:{config.port}"


@pytest.mark.parametrize("key", EXPOSING)
def test_what_decides_about_exposure_has_no_default(tmp_path: Path, key: str) -> None:
    """Who leaves it out is told so."""
    new_server(tmp_path)
    file = tmp_path / "server.toml"
    lines = [line for line in file.read_text().splitlines() if not line.startswith(f"{key} =")]
    file.write_text("\n".join(lines))
    where = f"rounds.{key}" if key == "domains" else key
    with pytest.raises(ConfigError, match=rf"server.toml: key `{where}` is missing"):
        load_server(file)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('address = "http://a"', "host name or an IP address, without a port"),
        ('address = "a:1"', "host name or an IP address, without a port"),
        ('address = "a{b"', "host name or an IP address"),  # it stands in the proxy's configuration
        ('bind = "eth0"', "must be an IP address of this machine"),
        ("port = 0", "greater than or equal to 1"),
        ('port = "443"', "valid integer"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, line: str, said: str) -> None:
    """File, key, rule and value."""
    new_server(tmp_path)
    file, key = tmp_path / "server.toml", line.partition(" ")[0]
    file.write_text("\n".join(line if old.startswith(f"{key} =") else old for old in file.read_text().splitlines()))
    with pytest.raises(ConfigError, match=rf"server.toml: `{key}`: .*{said}.*got"):
        load_server(file)


def test_both_ports_must_differ_and_an_unknown_key_is_named(tmp_path: Path) -> None:
    """One sentence each."""
    config = new_server(tmp_path)
    with (tmp_path / "server.toml").open("a") as file:
        file.write("deadlin = 3\n")
    with pytest.raises(ConfigError, match=r"unknown key `rounds.deadlin`; did you mean `deadline`\?"):
        load_server(tmp_path / "server.toml")
    with pytest.raises(ConfigError, match=r"port and loopback_port must differ, got 99 twice"):
        write_server(
            tmp_path / "b.toml",
            address="a",
            bind="::",
            port=99,
            loopback_port=99,
            certificates=config.certificates,
            domains=1,
        )
    assert not (tmp_path / "b.toml").exists()


def test_a_file_is_never_overwritten_and_a_missing_one_is_explained(tmp_path: Path) -> None:
    """With the command that writes one."""
    new_server(tmp_path / "a")
    with pytest.raises(ConfigError, match="is there already"):
        write_server(
            tmp_path / "a" / "server.toml",
            address="a",
            bind="::",
            port=1,
            loopback_port=2,
            certificates="certs",
            domains=1,
        )
    with pytest.raises(ConfigError, match="no such file. `isthmus server init"):
        load_server(tmp_path / "none.toml")


def test_the_guide_says_the_defaults(tmp_path: Path) -> None:
    """Its table has every key that has one, with its value."""
    config = new_server(tmp_path)
    guide = (Path(__file__).parents[3] / "docs" / "deploy.md").read_text()
    for name in ("rounds", "polling", "limits"):
        for key, value in getattr(config, name):
            said = "none" if (name, key) == ("rounds", "domains") else f"{value:g}"
            assert f"| `{name}.{key}` | {said} |" in guide
