"""A real Caddy before a real TLS server: what a node needs gets through, and nothing else."""

import contextlib
import http.client
import http.server
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.server.deploy.conftest import new_server

from isthmus.errors import RunError
from isthmus.server.deploy.certs import AUTHORITY, SERVER, SERVER_KEY
from isthmus.server.deploy.proxy import caddyfile, find_caddy
from isthmus.server.deploy.settings import ServerConfig

_LIMITS = "\n[limits]\nbody_megabytes = 1\nheader_seconds = 2\nidle_seconds = 2\nconnections = 600\n"


class Upstream(http.server.ThreadingHTTPServer):
    """Stands where the SuperLink stands; remembers which paths reached it."""

    reached: list[str]

    def handle_error(self, *_: object) -> None:
        """Silently: the proxy hangs up on what is too large."""


class _Answer(http.server.BaseHTTPRequestHandler):
    server: Upstream

    def do_POST(self) -> None:
        """Answer with the path."""
        self.server.reached.append(f"{self.command} {self.path}")
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.path)))
        self.end_headers()
        self.wfile.write(self.path.encode())

    do_GET = do_PUT = do_POST  # noqa: N815 - names of the standard library

    def log_message(self, *_: object) -> None:
        """Silently."""


@dataclass
class Front:
    """The proxy, seen from outside."""

    config: ServerConfig
    upstream: Upstream
    context: ssl.SSLContext = field(init=False)

    def __post_init__(self) -> None:
        self.context = ssl.create_default_context(cafile=str(self.config.certificates_folder / AUTHORITY))

    def connect(self) -> ssl.SSLSocket:
        """A TLS connection to the public port."""
        raw = socket.create_connection(("127.0.0.1", self.config.port), timeout=10)
        return self.context.wrap_socket(raw, server_hostname="localhost")

    def ask(self, line: str, body: bytes = b"") -> int:
        """Send a request line as it is; the status of the answer."""
        with self.connect() as tls:
            head = f"{line} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            tls.sendall(head.encode() + body)
            response = http.client.HTTPResponse(tls)
            response.begin()
            response.read()
            return response.status


@contextlib.contextmanager
def standing(folder: Path, *, instead: tuple[str, str] = ("", "")) -> Iterator[Front]:
    """A proxy with tight limits before an upstream that answers everything; its configuration may be a broken one."""
    config = new_server(folder, extra=_LIMITS)
    upstream = Upstream(("127.0.0.1", config.loopback_port), _Answer)
    upstream.reached = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(config.certificates_folder / SERVER, config.certificates_folder / SERVER_KEY)
    upstream.socket = context.wrap_socket(upstream.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=upstream.serve_forever)
    thread.start()
    text = caddyfile(config)
    assert instead[0] in text
    (folder / "Caddyfile").write_text(text.replace(*instead) if instead[0] else text)
    proxy = subprocess.Popen(
        [find_caddy(), "run", "--adapter", "caddyfile", "--config", folder / "Caddyfile"],
        env={**os.environ, "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)},
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 20
        while not _listens(config.port) and time.monotonic() < deadline:
            time.sleep(0.05)
        yield Front(config, upstream)
    finally:
        proxy.terminate()
        proxy.wait()
        upstream.shutdown()
        thread.join()
        upstream.server_close()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """The proxy as it is."""
    with standing(tmp_path_factory.mktemp("proxy")) as front:
        yield front


def test_what_a_node_asks_gets_through(front: Front) -> None:
    """As it was asked."""
    front.upstream.reached.clear()
    assert front.ask("POST /v1/fleet/pull-messages", b"x" * 1000) == 200
    assert front.upstream.reached == ["POST /v1/fleet/pull-messages"]


@pytest.mark.parametrize(
    "line",
    [
        "POST /v1/control/start-run",
        "POST /v1/runtime/acquire-task",
        "POST /",
        "POST /health",
        "GET /docs",
        "GET /openapi.json",
        "GET /v1/fleet/pull-messages",
        "PUT /v1/fleet/pull-messages",
        "POST /v1/fleet/",
        "POST /v1/fleet/../control/start-run",
        "POST /v1/fleet/..%2fcontrol/start-run",
        "POST /v1/fleet/%2e%2e/control/start-run",
        "POST /v1/fleet/a/../../control/start-run",
        "POST /v1/fleet/pull-messages/../../control/start-run",
        "POST /v1/fleet%2f..%2fcontrol/start-run",
        "POST //v1/control/start-run",
        "POST /V1/CONTROL/start-run",
        "POST https://localhost/v1/control/start-run",
    ],
)
def test_nothing_else_gets_through(front: Front, line: str) -> None:
    """In no spelling: answered by the proxy, never seen by the SuperLink."""
    front.upstream.reached.clear()
    assert front.ask(line) in {400, 404}
    assert front.upstream.reached == []


@pytest.mark.parametrize(
    "path", ["/v1/control/../fleet/pull-messages", "//v1/fleet/pull-messages", "/v1/%66leet/pull-messages"]
)
def test_what_gets_through_is_sent_on_as_it_was_matched(front: Front, path: str) -> None:
    """Proxy and SuperLink cannot read one path in two ways."""
    front.upstream.reached.clear()
    front.ask(f"POST {path}")
    assert front.upstream.reached in ([], ["POST /v1/fleet/pull-messages"])


def test_a_proxy_that_lets_more_through_is_found_out(tmp_path: Path) -> None:
    """The mutant: a pattern that is one level too wide."""
    with standing(tmp_path, instead=("^/v1/fleet/[a-z-]+$", "^/v1/.*")) as wide:
        assert wide.ask("POST /v1/control/start-run") == 200
        assert wide.upstream.reached == ["POST /v1/control/start-run"]


def test_a_large_body_is_refused(front: Front) -> None:
    """Above the limit, without the SuperLink having it."""
    assert front.ask("POST /v1/fleet/push-object", b"x" * 900_000) == 200
    assert front.ask("POST /v1/fleet/push-object", b"x" * 1_500_000) in {413, 502}


def test_silent_connections_are_closed_and_do_not_keep_others_out(front: Front) -> None:
    """500 of them, without a handshake, or without a request after it."""
    raw = [socket.create_connection(("127.0.0.1", front.config.port)) for _ in range(500)]
    quiet = front.connect()
    assert front.ask("POST /v1/fleet/pull-messages") == 200
    quiet.settimeout(6)
    assert quiet.recv(1) == b""  # closed by the proxy
    for one in raw:
        one.settimeout(6)
        with contextlib.suppress(ConnectionResetError):
            assert one.recv(1) == b""
        one.close()
    quiet.close()


def test_plain_text_and_old_tls_are_refused(front: Front) -> None:
    """On the TLS port."""
    with socket.create_connection(("127.0.0.1", front.config.port), timeout=10) as raw:
        raw.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
        assert not raw.recv(100).startswith(b"HTTP/1.1 2")
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.load_verify_locations(front.config.certificates_folder / AUTHORITY)
    old.set_ciphers("DEFAULT:@SECLEVEL=0")
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection(("127.0.0.1", front.config.port), timeout=10) as raw,
        pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION|protocol version|alert"),
    ):
        old.wrap_socket(raw, server_hostname="localhost")


def test_a_client_that_names_no_host_sees_the_same_certificate(front: Front) -> None:
    """Who connects to an IP address sends no name."""
    context = ssl.create_default_context(cafile=str(front.config.certificates_folder / AUTHORITY))
    with (
        socket.create_connection(("127.0.0.1", front.config.port), timeout=10) as raw,
        context.wrap_socket(raw, server_hostname="127.0.0.1") as tls,
    ):
        assert tls.version() == "TLSv1.3"


def test_caddy_has_no_port_for_administration(front: Front) -> None:
    """Its usual one."""
    assert not _listens(2019)
    assert "admin off" in caddyfile(front.config)


def test_a_missing_proxy_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it; the server never comes up without one."""
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(RunError, match=r"`pip install 'isthmus\[deploy\]'` brings it"):
        find_caddy()
