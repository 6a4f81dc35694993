"""Certificates let in whom they should, are replaced without anybody losing the connection, and say when they end."""

import socket
import ssl
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from isthmus.errors import ConfigError
from isthmus.server.deploy import certs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An authority and a certificate for `coordinator.example`."""
    certs.make_certificates(tmp_path / "certs", ["coordinator.example"])
    return tmp_path / "certs"


def connects(trusted: bytes, server: Path, name: str) -> bool:
    """Whether a client that trusts these authorities gets through to a real TLS server by this name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server / certs.SERVER, server / certs.SERVER_KEY)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=_accept, args=(listener, context))
    thread.start()
    client = ssl.create_default_context(cadata=trusted.decode())
    try:
        with (
            socket.create_connection(listener.getsockname()) as raw,
            client.wrap_socket(raw, server_hostname=name) as tls,
        ):
            return tls.recv(2) == b"ok"
    except ssl.SSLCertVerificationError:
        return False
    finally:
        thread.join()
        listener.close()


def _accept(listener: socket.socket, context: ssl.SSLContext) -> None:
    raw, _ = listener.accept()
    with raw:
        try:
            with context.wrap_socket(raw, server_side=True) as tls:
                tls.sendall(b"ok")
        except (ssl.SSLError, OSError):
            pass  # the client hung up


def authority(folder: Path) -> bytes:
    """What business units trust."""
    return (folder / certs.AUTHORITY).read_bytes()


@pytest.mark.parametrize("name", ["coordinator.example", "localhost", "127.0.0.1"])
def test_a_client_reaches_the_server_by_its_address_and_by_loopback(folder: Path, name: str) -> None:
    """Host names and addresses of the certificate."""
    assert connects(authority(folder), folder, name)


def test_a_foreign_name_or_authority_is_not_believed(folder: Path, tmp_path: Path) -> None:
    """Neither another host's name nor another authority's certificate gets a connection."""
    assert not connects(authority(folder), folder, "elsewhere.example")
    certs.make_certificates(tmp_path / "foreign", ["coordinator.example"])
    assert not connects(authority(tmp_path / "foreign"), folder, "coordinator.example")


def test_an_expired_certificate_is_not_believed(folder: Path) -> None:
    """By clients; and the server does not start with it."""
    certs.renew_server(folder, days=0)
    certificate = certs.show_certificates(folder)[0]
    assert certificate.days_left(datetime.now(UTC)) <= 0
    assert not connects(authority(folder), folder, "coordinator.example")
    with pytest.raises(ConfigError, match=r"server.crt expired on .* Run `isthmus certs renew"):
        certs.check_certificates(folder, "coordinator.example")


def test_a_new_server_certificate_changes_nothing_for_clients(folder: Path) -> None:
    """The authority that they have is still enough; key and certificate are new, the names the same."""
    trusted, key = authority(folder), (folder / certs.SERVER_KEY).read_bytes()
    certs.renew_server(folder)
    assert (folder / certs.SERVER_KEY).read_bytes() != key
    assert connects(trusted, folder, "coordinator.example")
    assert certs.show_certificates(folder)[0].names == ("coordinator.example", "localhost", "127.0.0.1")


def test_an_authority_is_replaced_with_an_overlap(folder: Path) -> None:
    """Old and new clients connect until the old authority is retired, which is refused too early."""
    old = authority(folder)
    certs.replace_authority(folder)
    both = authority(folder)
    assert connects(old, folder, "coordinator.example")  # nobody has done anything yet
    assert connects(both, folder, "coordinator.example")
    with pytest.raises(ConfigError, match="not signed by the authority in force"):
        certs.retire_authorities(folder)
    with pytest.raises(ConfigError, match="the last replacement is not finished"):
        certs.replace_authority(folder)
    certs.renew_server(folder)
    assert connects(both, folder, "coordinator.example")
    assert not connects(old, folder, "coordinator.example")  # who did not take the new file in time
    assert certs.retire_authorities(folder) == 1
    assert connects(authority(folder), folder, "coordinator.example")


def test_an_authority_is_never_overwritten(folder: Path) -> None:
    """Every business unit would lose the connection."""
    before = authority(folder)
    with pytest.raises(ConfigError, match=r"is there already.*`isthmus certs renew`"):
        certs.make_certificates(folder, ["coordinator.example"])
    assert authority(folder) == before


def test_private_keys_can_be_read_by_their_owner_only(folder: Path, tmp_path: Path) -> None:
    """Mode 0600; and a server whose key others can read does not start."""
    certs.make_node_key(tmp_path / "books")
    for path in (folder / certs.AUTHORITY_KEY, folder / certs.SERVER_KEY, tmp_path / "books.key"):
        assert path.stat().st_mode & 0o777 == 0o600
    (folder / certs.SERVER_KEY).chmod(0o644)
    with pytest.raises(ConfigError, match="has mode 644, so others can read it"):
        certs.check_certificates(folder, "coordinator.example")


def test_a_node_key_is_what_flower_takes(tmp_path: Path) -> None:
    """An OpenSSH pair on NIST P-384; Flower's own reader of keys takes it, and it is never overwritten."""
    line = certs.make_node_key(tmp_path / "books")
    public = serialization.load_ssh_public_key(line.encode())
    private = serialization.load_ssh_private_key((tmp_path / "books.key").read_bytes(), password=None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert private.public_key() == public
    assert isinstance(private.curve, ec.SECP384R1)
    reads = (
        "import sys; from pathlib import Path; from flwr.cli.supernode.register import try_load_public_key; "
        "assert try_load_public_key(Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", reads, tmp_path / "books.pub"], check=True)
    with pytest.raises(ConfigError, match=r"books\.key is there already"):
        certs.make_node_key(tmp_path / "books")


def test_a_server_starts_only_with_certificates_that_fit(folder: Path, tmp_path: Path) -> None:
    """Its own address, its own key, its own authority's key: what does not fit is named."""
    assert certs.check_certificates(folder, "coordinator.example").days_left(datetime.now(UTC)) > 390
    with pytest.raises(ConfigError, match=r"good for coordinator.example, localhost, 127.0.0.1, not .*'other.example'"):
        certs.check_certificates(folder, "other.example")
    certs.make_certificates(tmp_path / "foreign", ["coordinator.example"])
    (tmp_path / "foreign" / certs.SERVER_KEY).replace(folder / certs.SERVER_KEY)
    with pytest.raises(ConfigError, match=r"server\.key is not the key of server\.crt"):
        certs.check_certificates(folder, "coordinator.example")
    (tmp_path / "foreign" / certs.AUTHORITY_KEY).replace(folder / certs.AUTHORITY_KEY)
    with pytest.raises(ConfigError, match=r"ca\.key is not the key of the first certificate"):
        certs.renew_server(folder)


@pytest.mark.parametrize("name", ["ca.crt", "server.crt"])
def test_a_file_that_is_missing_or_damaged_is_named(folder: Path, name: str) -> None:
    """With the command that makes it."""
    (folder / name).write_text("garbage")
    with pytest.raises(ConfigError, match=rf"{name}: .*can be read"):
        certs.show_certificates(folder)
    (folder / name).unlink()
    with pytest.raises(ConfigError, match=rf"{name}: no such file. `isthmus certs init"):
        certs.show_certificates(folder)


def test_a_client_whose_clock_is_behind_is_let_in(folder: Path) -> None:
    """A fresh certificate is valid an hour before it was made."""
    server = certs._load(folder / certs.SERVER)
    assert server.not_valid_before_utc < datetime.now(UTC) - timedelta(minutes=50)
