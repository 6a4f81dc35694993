"""Ask the coordinator's own SuperLink: nodes and runs, over Flower's Control API on loopback.

    with Control(config) as control:
        control.add_node("books", Path("books.pub"))
        run = control.start_run(bundle, {"rounds": 3})

With `bundle`, the one place besides `isthmus.grid` that uses names which Flower does not document (1.42): its Control
client and its messages. `flwr run` and `flwr supernode` do the same calls, after seconds of start-up, with a daemon and
a file in the user's home.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import httpx
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    StreamLogsRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab

from isthmus.errors import ConfigError, RunError
from isthmus.server.deploy.bundle import Bundle
from isthmus.server.deploy.certs import AUTHORITY
from isthmus.server.deploy.settings import ServerConfig
from isthmus.supervision import running_pid

_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
_MOST_RUNS = 100  # that are asked for
_RESTART_SECONDS, _AGAIN_SECONDS = 60.0, 0.5  # how long, and how often, a SuperLink that died is waited for

_Answer = TypeVar("_Answer")


@dataclass(frozen=True, kw_only=True)
class Node:
    """A business unit's SuperNode, as the coordinator knows it.

    Attributes:
        id: Flower's.
        name: That it was added under.
        status: `registered`, `online` or `offline`.
        key: Its public key's line, without the name.
    """

    id: int
    name: str
    status: str
    key: str


@dataclass(frozen=True, kw_only=True)
class FlowerRun:
    """A run, as Flower knows it.

    Attributes:
        id: Flower's.
        status: `pending`, `starting`, `running` or `finished`.
        result: `completed`, `failed` or `stopped`, of a finished one.
        details: Flower's words about it.
    """

    id: int
    status: str
    result: str
    details: str

    @property
    def over(self) -> bool:
        """Whether nothing of it is running any more."""
        return self.status == "finished"


class Control:
    """A connection to a running coordinator's SuperLink, from the same machine.

    Every method raises `RunError`, in words, where the SuperLink is not there or says no.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        try:
            authority = (config.certificates_folder / AUTHORITY).read_bytes()
        except OSError as error:
            raise ConfigError(f"{config.certificates_folder / AUTHORITY}: cannot be read: {error.strerror}") from None
        self._client = ControlHttpClient.from_server_address(config.superlink, False, authority, [])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def nodes(self) -> tuple[Node, ...]:
        """Every node that may connect, by name."""
        listed = self._ask(lambda: self._client.ListNodes(ListNodesRequest()), harmless=True).nodes_info
        found = [
            Node(id=one.node_id, name=one.name, status=one.status, key=_line_of(one.public_key))
            for one in listed
            if one.status != "unregistered"
        ]
        return tuple(sorted(found, key=lambda node: (node.name, node.id)))

    def add_node(self, name: str, key: Path) -> Node:
        """Let a business unit's node connect.

        Args:
            name: For people; no two nodes have one name.
            key: File of its public key, in OpenSSH's form, on a NIST curve.
        """
        public = read_public_key(key)
        line = _ssh_line(public)
        for node in self.nodes():
            if node.name == name:
                raise RunError(f"a node {name!r} is there already. `isthmus server nodes remove {name}` takes it out.")
            if node.key == line:
                raise RunError(f"{key} is the key of node {node.name!r}; each node has a key of its own.")
        pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        request = RegisterNodeRequest(public_key=pem, name=name)
        answer = self._ask(lambda: self._client.RegisterNode(request))
        return Node(id=answer.node_id, name=name, status="registered", key=line)

    def remove_node(self, name: str) -> Node:
        """Let a node in no more; what it has sent stays."""
        known = self.nodes()
        node = next((node for node in known if node.name == name), None)
        if node is None:
            raise RunError(f"there is no node {name!r}; there are: {', '.join(n.name for n in known) or 'none'}.")
        self._ask(lambda: self._client.UnregisterNode(UnregisterNodeRequest(node_id=node.id)))
        return node

    def start_run(self, bundle: Bundle, settings: Mapping[str, bool | float | int | str]) -> int:
        """Start a run of the bundle with a run configuration; returns Flower's id of it."""
        request = StartRunRequest(
            fab=fab_to_proto(Fab(bundle.digest, bundle.content, {})),
            override_config=user_config_to_proto(dict(settings)),
        )
        answer = self._ask(lambda: self._client.StartRun(request))
        if not answer.HasField("run_id"):
            raise RunError(f"Flower started no run: {answer.note or 'it does not say why'}")
        return int(answer.run_id)

    def runs(self) -> tuple[FlowerRun, ...]:
        """The latest runs, the newest first."""
        listed = self._ask(lambda: self._client.ListRuns(ListRunsRequest(limit=_MOST_RUNS)), harmless=True).run_dict
        newest_first = sorted(listed.values(), key=lambda run: str(run.pending_at), reverse=True)
        return tuple(
            FlowerRun(
                id=run.run_id,
                status=run.status.status,
                result=run.status.sub_status,
                details=run.status.details,
            )
            for run in newest_first
        )

    def stop_run(self, run: int) -> None:
        """End a run; what it has finished stays."""
        if not self._ask(lambda: self._client.StopRun(StopRunRequest(run_id=run))).success:
            raise RunError(f"run {run} cannot be stopped; it may be over already.")

    def log(self, run: int, *, follow: bool) -> Iterator[str]:
        """What a run's ServerApp has written so far, in pieces; with `follow`, until it is over."""
        request = StreamLogsRequest(run_id=run)
        with _in_words(self._config):
            for piece in self._client.StreamLogs(request):
                yield piece.log_output
                if not follow:
                    return

    def _ask(self, call: Callable[[], _Answer], *, harmless: bool = False) -> _Answer:
        """Call, and again while the SuperLink of a server that is up is being started again.

        What changes something is repeated only if it did not get there; what is `harmless`, however it was cut off.
        """
        deadline = time.monotonic() + _RESTART_SECONDS
        cut_off = httpx.TransportError if harmless else httpx.ConnectError
        with _in_words(self._config):
            while True:
                try:
                    return call()
                except cut_off:
                    if time.monotonic() > deadline or running_pid(self._config.state_folder) is None:
                        raise
                time.sleep(_AGAIN_SECONDS)


def read_public_key(file: Path) -> ec.EllipticCurvePublicKey:
    """The public key of a node.

    Raises:
        ConfigError: If the file holds no public key on a NIST curve.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{file}: cannot be read: {error.strerror}. The unit makes it: `isthmus certs node`."
        ) from None
    if b"PRIVATE KEY" in content:
        raise ConfigError(f"{file} is a private key, which nobody but its unit should have; send the .pub file.")
    try:
        key = serialization.load_ssh_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{file}: not a public key in OpenSSH's form: {error}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, _CURVES):
        raise ConfigError(f"{file}: Flower takes keys on a NIST curve only; `isthmus certs node` makes one.")
    return key


def _ssh_line(key: ec.EllipticCurvePublicKey) -> str:
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


def _line_of(pem: bytes) -> str:
    """The line of a key that Flower keeps."""
    key = serialization.load_pem_public_key(pem)
    return _ssh_line(key) if isinstance(key, ec.EllipticCurvePublicKey) else ""


@contextmanager
def _in_words(config: ServerConfig) -> Iterator[None]:
    """Turn what goes wrong on the way into a sentence."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        said = error.response.text.strip()[:500] or error.response.reason_phrase
        raise RunError(f"the SuperLink on {config.superlink} says no: {said}") from None
    except httpx.HTTPError as error:
        raise RunError(
            f"the SuperLink does not answer on {config.superlink} ({error}). Is `isthmus server up` running?"
        ) from None
