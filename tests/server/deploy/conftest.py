"""What tests of the deployment share: free ports, and a coordinator's folder with certificates."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from isthmus.server.deploy.certs import make_certificates
from isthmus.server.deploy.settings import ServerConfig, load_server, write_server

SOURCES = Path(__file__).parents[3] / "src"


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    """Child processes import this checkout, and nothing phones home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(SOURCES), os.environ.get("PYTHONPATH")))))
        patch.setenv("FLWR_TELEMETRY_ENABLED", "0")
        patch.setenv("FLWR_DISABLE_UPDATE_CHECK", "1")
        patch.setenv("NO_COLOR", "1")
        yield


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def new_server(folder: Path, *, domains: int = 1, extra: str = "") -> ServerConfig:
    """A coordinator on free ports of loopback, with certificates; its file is `server.toml` in the folder."""
    port, loopback = free_ports(2)
    make_certificates(folder / "certs", ["localhost"])
    file = folder / "server.toml"
    write_server(
        file,
        address="localhost",
        bind="127.0.0.1",
        port=port,
        loopback_port=loopback,
        certificates="certs",
        domains=domains,
    )
    with file.open("a", encoding="utf-8") as end:
        end.write(extra)
    return load_server(file)
