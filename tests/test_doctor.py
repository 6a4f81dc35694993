"""The doctor finds what is wrong, each with the way to mend it, and nothing where all is well."""

import datetime as dt
import email.utils
import http.server
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.cli.called import Caller
from tests.conftest import TinyDomain
from tests.privacy.test_kit import CONTENT, kit_of
from tests.server.deploy.conftest import new_server

from isthmus.doctor import Check, examine_domain, examine_machine, examine_server
from isthmus.privacy.keys import fresh_keys
from isthmus.privacy.kit import CA, write_kit
from isthmus.privacy.program import code_hash
from isthmus.server.deploy.certs import make_certificates

POLICY = 'approved_by = "Ada"\napproved_on = 2026-01-01\n[budget]\nepsilon = 8.0\ndelta = 1e-6\n'


def ill(checks: list[Check]) -> dict[str, str]:
    """What is not well, and what was seen."""
    found = {check.name: check.seen for check in checks if not check.well}
    assert all(check.mend for check in checks if not check.well)
    return found


@pytest.fixture
def isthmus(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Caller:
    """Call it with the words of a command line."""
    return Caller(monkeypatch, capsys)


@pytest.fixture
def domain(tiny_domain: TinyDomain) -> Path:
    """A folder as it should be."""
    folder = tiny_domain()
    (folder / "policy.toml").write_text(POLICY)
    folder.chmod(0o700)
    return folder


def test_a_machine_that_is_ready_is_well(monkeypatch: pytest.MonkeyPatch, domain: Path, tmp_path: Path) -> None:
    """Machine, coordinator and domain; one switch that phones home is found."""
    for name in ("FLWR_TELEMETRY_ENABLED", "FLWR_DISABLE_UPDATE_CHECK", "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"):
        monkeypatch.setenv(name, str(int("DISABLE" in name)))
    config = new_server(tmp_path / "server")
    assert ill(examine_machine()) == {}
    assert ill(examine_server(config.folder / "server.toml")) == {}
    assert ill(examine_domain(domain)) == {}
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    assert ill(examine_machine()) == {"telemetry": "FLWR_TELEMETRY_ENABLED=1"}


def test_what_is_wrong_with_a_coordinator_is_found(tmp_path: Path) -> None:
    """A port that is taken, a state folder that others can read, certificates that are not there, a wrong file."""
    config = new_server(tmp_path / "server")
    file = config.folder / "server.toml"
    config.state_folder.mkdir(mode=0o755)
    with socket.create_server(("127.0.0.1", config.loopback_port)):
        found = ill(examine_server(file))
    assert set(found) == {"loopback_port", "state folder"}
    for certificate in config.certificates_folder.iterdir():
        certificate.unlink()
    assert "certificates" in ill(examine_server(file))
    file.write_text("port = 1\n")
    assert set(ill(examine_server(file))) == {"server.toml"}


def test_what_is_wrong_with_a_domain_is_found(domain: Path) -> None:
    """A table that is gone, no policy, a folder that others can read, a wrong file."""
    (domain / "items.csv").unlink()
    (domain / "policy.toml").unlink()
    domain.chmod(0o755)
    assert set(ill(examine_domain(domain))) == {"items", "policy.toml", "domain folder"}
    (domain / "domain.toml").write_text("name = 3\n")
    assert set(ill(examine_domain(domain))) == {"domain.toml"}


@contextmanager
def coordinator(folder: Path, *, ahead: float) -> Iterator[str]:
    """A TLS server whose clock is ahead, in seconds; yields its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def date_time_string(self, timestamp: float | None = None) -> str:
            """What time it is here."""
            del timestamp
            now = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=ahead)
            return email.utils.format_datetime(now, usegmt=True)

        def do_GET(self) -> None:
            """Nothing here."""
            self.send_error(404)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
            """Say nothing."""

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.crt", folder / "server.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"localhost:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(("ahead", "found"), [(0.0, set()), (600.0, {"clock"}), (-600.0, {"clock"})])
def test_a_clock_that_is_ten_minutes_off_is_found(domain: Path, tmp_path: Path, ahead: float, found: set[str]) -> None:
    """By the coordinator's own, over TLS under the kit's authority."""
    certs, keys, kit = tmp_path / "certs", fresh_keys(), tmp_path / "books.zip"
    make_certificates(certs, ["localhost"])
    files = {**CONTENT, CA: (certs / "ca.crt").read_bytes()}
    with coordinator(certs, ahead=ahead) as address:
        write_kit(kit, kit_of(keys, address=address, program=code_hash()), files, keys)
        assert set(ill(examine_domain(domain, kit=kit))) == found


def test_a_coordinator_that_is_another_one_or_away_is_found(domain: Path, tmp_path: Path) -> None:
    """A foreign authority, nobody there, a kit for another program, and no kit at all."""
    certs, others, keys, kit = tmp_path / "certs", tmp_path / "others", fresh_keys(), tmp_path / "books.zip"
    make_certificates(certs, ["localhost"])
    make_certificates(others, ["localhost"])
    files = {**CONTENT, CA: (others / "ca.crt").read_bytes()}
    with coordinator(certs, ahead=0) as address:
        write_kit(kit, kit_of(keys, address=address, program=code_hash()), files, keys)
        assert "CERTIFICATE_VERIFY_FAILED" in ill(examine_domain(domain, kit=kit))["coordinator"]
    write_kit(kit, kit_of(keys, address=address), files, keys)
    assert set(ill(examine_domain(domain, kit=kit))) == {"kit", "coordinator"}
    assert set(ill(examine_domain(domain, kit=tmp_path / "none.zip"))) == {"kit"}


def test_the_command_exits_with_1_and_says_how_to_mend(isthmus: Caller, domain: Path) -> None:
    """Each line of what is wrong is followed by what to do."""
    domain.chmod(0o755)
    called = isthmus("doctor", "--domain", domain)
    assert called.code == 1
    assert "MEND  domain folder" in called.out
    assert f"chmod 700 {domain}" in called.out
    assert isthmus("doctor", "--kit", "books.zip").code == 2
    assert '"well": false' in isthmus("doctor", "--domain", domain, "--json").out
