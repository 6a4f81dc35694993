"""The three programs that a coordinator consists of: how each is started, and how one sees that it is ready.

    prepare_state(config)
    for part in parts_of(config, health_port):
        part.command, part.environment, part.ready()

| part       | what                                               | listens                                      |
|------------|----------------------------------------------------|----------------------------------------------|
| superlink  | Flower's SuperLink: nodes, messages, runs (SQLite) | loopback, TLS                                |
| superexec  | starts a run's ServerApp; holds the shared secret  | nothing (a health check on loopback)         |
| proxy      | Caddy                                              | the public port, TLS, `/v1/fleet/NAME` only  |
"""

import http.client
import ipaddress
import os
import secrets
import socket
import ssl
import sys
from pathlib import Path

from isthmus.durable import write_durably
from isthmus.server.deploy.certs import AUTHORITY, SERVER, SERVER_KEY
from isthmus.server.deploy.proxy import caddyfile, find_caddy
from isthmus.server.deploy.settings import ServerConfig, bracketed
from isthmus.supervision import Part, find_program

SECRET, CADDYFILE, HEALTH_PORT = "superexec.secret", "Caddyfile", "superexec.port"

_SECONDS = 5.0  # that a readiness check waits for an answer
_PROXY_FILES = 64  # that Caddy has open besides its connections


def prepare_state(config: ServerConfig) -> None:
    """Write what the programs read: the proxy's configuration and, the first time, the SuperExec's secret."""
    secret = config.state_folder / SECRET
    if not secret.exists():
        write_durably(secret, secrets.token_hex(32).encode(), mode=0o600)
    write_durably(config.state_folder / CADDYFILE, caddyfile(config).encode())


def parts_of(config: ServerConfig, health_port: int) -> tuple[Part, Part, Part]:
    """The coordinator's programs, in the order in which they are started.

    Args:
        config: Of the server.
        health_port: Of loopback, for the SuperExec's health check.
    """
    state, certificates = config.state_folder, config.certificates_folder
    authority, secret = str(certificates / AUTHORITY), str(state / SECRET)
    flower = {
        "FLWR_HOME": str(state / "flower"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": str(config.polling.tasks),
        "NO_PROXY": "127.0.0.1,localhost",  # whatever proxy the machine goes out through, loopback is not behind it
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))),
    }
    superlink = Part(
        name="superlink",
        command=(
            *(find_program("flower-superlink"), "--host", "127.0.0.1", "--port", str(config.loopback_port)),
            *("--ssl-ca-certfile", authority),
            *("--ssl-certfile", str(certificates / SERVER), "--ssl-keyfile", str(certificates / SERVER_KEY)),
            *("--enable-supernode-auth", "--database", str(state / "superlink.db")),
            *("--isolation", "process", "--superexec-auth-secret-file", secret),
            "--disable-runtime-dependency-installation",
        ),
        listening=f"https://{config.superlink}  this machine only: Flower's Fleet, Control and Runtime APIs",
        ready=lambda: _status(config, config.superlink, "127.0.0.1", "GET", "/health") == 200,
        environment=flower,
        reload=True,
    )
    superexec = Part(
        name="superexec",
        command=(
            *(find_program("flower-superexec"), "--runtime-api-address", config.superlink),
            *("--root-certificates", authority, "--superexec-auth-secret-file", secret),
            *("--health-server-address", f"127.0.0.1:{health_port}"),
        ),
        listening=f"127.0.0.1:{health_port}  this machine only: a health check",
        ready=lambda: _accepts(health_port),  # opened when everything before its loop is done
        environment=flower,
    )
    proxy = Part(
        name="proxy",
        command=(find_caddy(), "run", "--adapter", "caddyfile", "--config", str(state / CADDYFILE)),
        listening=f"https://{config.public}  on {config.bind}, for business units: POST /v1/fleet/NAME, nothing else",
        # Nobody signed this request: 401 says that it got through, and that nodes must sign.
        ready=lambda: (
            _status(config, _public_from_here(config), config.address, "POST", "/v1/fleet/pull-messages") == 401
        ),
        environment={"XDG_DATA_HOME": str(state / "proxy"), "XDG_CONFIG_HOME": str(state / "proxy")},
        reload=True,
        files=2 * config.limits.connections + _PROXY_FILES,  # one from outside, one to the SuperLink
    )
    return superlink, superexec, proxy


def _public_from_here(config: ServerConfig) -> str:
    """The public port as this machine reaches it."""
    address = ipaddress.ip_address(config.bind)
    if address.is_unspecified:
        address = ipaddress.ip_address("127.0.0.1" if address.version == 4 else "::1")
    return f"{bracketed(str(address))}:{config.port}"


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(_SECONDS)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _status(config: ServerConfig, place: str, name: str, method: str, path: str) -> int:
    """Status of an answer over TLS whose certificate is for `name`; 0 if there is none."""
    host, _, port = place.rpartition(":")
    try:
        context = ssl.create_default_context(cafile=str(config.certificates_folder / AUTHORITY))
        with (
            socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS) as raw,
            context.wrap_socket(raw, server_hostname=name) as tls,
        ):
            headers = {"Host": name, "Content-Length": 0, "Content-Type": "application/protobuf", "Connection": "close"}
            lines = (f"{method} {path} HTTP/1.1", *(f"{key}: {value}" for key, value in headers.items()), "", "")
            tls.sendall("\r\n".join(lines).encode())
            answer = http.client.HTTPResponse(tls)
            answer.begin()
            return answer.status
    except (OSError, http.client.HTTPException):
        return 0
