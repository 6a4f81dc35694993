"""What `server.toml` says: where the coordinator listens, what it keeps where, and how long it waits.

    config = load_server("server.toml")       # ConfigError: file, key, rule, value, way out

Whatever decides who can reach the server, or who takes part, has no default and must be written down.
"""

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from isthmus.errors import ConfigError
from isthmus.settings import Section, read_settings

Port = Annotated[int, Field(ge=1, le=65535)]

_HOST = re.compile(r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*")

_TEMPLATE = """\
# The coordinator: isthmus server up {name}
address = "{address}"          # what business units connect to; in the server's certificate
bind = "{bind}"             # the interface of the public port; "0.0.0.0" or "::" is all of them
port = {port}                   # public, TLS; only the paths that nodes need are reachable on it
loopback_port = {loopback}          # Flower's SuperLink, on 127.0.0.1 only
state = "state"               # database, runs, logs, the coordinator's log of heads and its keys: back this up
certificates = "{certificates}"        # of `isthmus certs init`

[rounds]
domains = {domains}                   # a run starts, and goes on, with at least so many domains
"""


class Polling(Section):
    """How often is looked, in seconds; less is faster and costs processor time.

    Attributes:
        tasks: Between two looks of the SuperExec for work to start.
        replies: Between two looks of a run for replies; Flower's own is 3.
    """

    tasks: Annotated[float, Field(ge=0.01, le=60)] = 0.25
    replies: Annotated[float, Field(ge=0.01, le=60)] = 0.25


class Limits(Section):
    """What one client of the public port may cost.

    Attributes:
        body_megabytes: Largest request; Flower sends tensors in pieces of 5 MB.
        header_seconds: Until a connection has sent its request's head (and finished its TLS handshake).
        body_seconds: Until a request, and until its answer, has gone through.
        idle_seconds: Until a connection on which nothing is asked is closed.
        connections: Open at the same time, roughly; also the most requests that are being answered at the same time.
    """

    body_megabytes: Annotated[int, Field(ge=1, le=2048)] = 16
    header_seconds: Annotated[int, Field(ge=1, le=3600)] = 10
    body_seconds: Annotated[int, Field(ge=1, le=3600)] = 300
    idle_seconds: Annotated[int, Field(ge=1, le=3600)] = 120
    connections: Annotated[int, Field(ge=16, le=100_000)] = 1000


class Rounds(Section):
    """How long a run waits for domains.

    Attributes:
        domains: A run starts with at least so many, and stops, to be resumed, when fewer are connected.
        deadline: For one exchange with all domains, in seconds; the round goes on without who has not answered.
        joining: How long a run waits for `domains` of them, in seconds.
    """

    domains: Annotated[int, Field(ge=1)]
    deadline: Annotated[float, Field(gt=0, le=7 * 86400)] = 1800.0
    joining: Annotated[float, Field(ge=0, le=7 * 86400)] = 600.0


class ServerConfig(Section):
    """One coordinator.

    Attributes:
        address: Host name or IP address that business units connect to; the certificate is for it.
        bind: IP address of the interface of the public port.
        port: Public.
        loopback_port: Of Flower's SuperLink, which is reachable from this machine only.
        state: Folder of everything that must survive, relative to the file.
        certificates: Folder of `isthmus certs init`, relative to the file.
    """

    address: str
    bind: str
    port: Port
    loopback_port: Port
    state: str
    certificates: str
    rounds: Rounds
    polling: Polling = Polling()
    limits: Limits = Limits()
    folder: Path = Field(default=Path(), exclude=True)

    @field_validator("address")
    @classmethod
    def _address_is_one(cls, value: str) -> str:
        if not (_is_ip(value) or _HOST.fullmatch(value)):
            raise ValueError("must be a host name or an IP address, without a port")
        return value

    @field_validator("bind")
    @classmethod
    def _bind_is_an_ip(cls, value: str) -> str:
        if not _is_ip(value):
            raise ValueError('must be an IP address of this machine, "0.0.0.0" or "::" for all of them')
        return value

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        if self.port == self.loopback_port:
            raise ValueError(f"port and loopback_port must differ, got {self.port} twice")
        return self

    @property
    def state_folder(self) -> Path:
        """Absolute."""
        return (self.folder / self.state).resolve()

    @property
    def certificates_folder(self) -> Path:
        """Absolute."""
        return (self.folder / self.certificates).resolve()

    @property
    def heads_log(self) -> Path:
        """The coordinator's log of heads; its keys lie beside it."""
        return self.state_folder / "heads.db"

    @property
    def superlink(self) -> str:
        """Host and port of the SuperLink."""
        return f"127.0.0.1:{self.loopback_port}"

    @property
    def public(self) -> str:
        """Host and port that business units connect to."""
        return f"{bracketed(self.address)}:{self.port}"


def load_server(path: str | Path) -> ServerConfig:
    """Read a `server.toml`.

    Raises:
        ConfigError: If the file is absent or any key or value in it is wrong.
    """
    file = Path(path)
    if not file.exists():
        raise ConfigError(f"{file}: no such file. `isthmus server init {file} --address HOST ...` writes one.")
    return read_settings(file, ServerConfig)


def write_server(  # noqa: PLR0913 - the keys of the file
    file: Path, *, address: str, bind: str, port: int, loopback_port: int, certificates: str, domains: int
) -> ServerConfig:
    """Write a commented `server.toml` to start from.

    Raises:
        ConfigError: If the file is there already, or a value is wrong; then nothing is written.
    """
    if file.exists():
        raise ConfigError(f"{file} is there already; edit it, or name another file.")
    text = _TEMPLATE.format(
        name=file.name,
        address=address,
        bind=bind,
        port=port,
        loopback=loopback_port,
        certificates=certificates,
        domains=domains,
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    try:
        return load_server(file)
    except ConfigError:
        file.unlink()
        raise


def bracketed(host: str) -> str:
    """A host as it stands before a port."""
    return f"[{host}]" if ":" in host else host


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
