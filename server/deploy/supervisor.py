"""Keep a coordinator's programs running until it is told to stop, and leave none of them behind.

supervise_server(config, started=print_listening)      # returns after SIGTERM or Ctrl-C
"""

import functools
import logging
import socket
from collections.abc import Callable, Sequence

from isthmus.durable import write_durably
from isthmus.errors import RunError
from isthmus.server.deploy.certs import check_certificates
from isthmus.server.deploy.parts import HEALTH_PORT, parts_of, prepare_state
from isthmus.server.deploy.settings import ServerConfig
from isthmus.supervision import Part, free_port, supervise

_LOG = logging.getLogger(__name__)


def supervise_server(config: ServerConfig, started: Callable[[Sequence[Part]], None]) -> None:
    """Run a coordinator until SIGTERM or Ctrl-C.

    Args:
        config: Of the server.
        started: Called once, when every program is ready.

    Raises:
        ConfigError: If the certificates cannot be used.
        RunError: If the server is up already, a port is taken, or a program does not come up or keeps dying.
    """
    supervise(functools.partial(_parts, config), state=config.state_folder, started=started)


def _parts(config: ServerConfig) -> Sequence[Part]:
    """The programs, once nothing stands against them; the state folder is held."""
    certificate = check_certificates(config.certificates_folder, config.address)
    _LOG.info("the server's certificate ends on %s", f"{certificate.expires:%Y-%m-%d}")
    _check_port("127.0.0.1", config.loopback_port, "loopback_port")
    _check_port(config.bind, config.port, "port")
    prepare_state(config)
    health_port = free_port()
    write_durably(config.state_folder / HEALTH_PORT, str(health_port).encode())
    return parts_of(config, health_port)


def _check_port(host: str, port: int, key: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        raise RunError(
            f"`{key}` = {port} on {host} cannot be used: {error.strerror}. End what listens there (`ss -ltnp`), or "
            f"change server.toml."
        ) from None
