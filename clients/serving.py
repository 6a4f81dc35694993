"""A vault as a process of its own: what `isthmus vault` runs, beside the domain's data, warm between rounds.

    serve(vault, UnixSocket(Path("/run/isthmus/books/vault.sock")), stopped=event, ready=print)

Whoever can open the socket can ask the six questions of `vault.proto`, and gets what the policy and the ledger allow.
The process that asks runs code that a coordinator sent, so nothing that it says is believed: sizes and numbers of
questions are limited here, the rest by the vault. gRPC's health service says when the domain's tables are loaded.
"""

import fcntl
import logging
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

import isthmus
from isthmus.clients.answers import INTERNAL
from isthmus.clients.vault import Vault
from isthmus.clients.wire.messages import from_question, to_answer
from isthmus.clients.wire.methods import LARGEST_MESSAGE, METHODS, OF_KIND, SERVICE
from isthmus.clients.wire.vault_pb2 import Answer, BudgetAnswer, BudgetRequest, DescribeRequest, Description, Question
from isthmus.errors import ConfigError, Refused, RunError
from isthmus.privacy.program import code_hash
from isthmus.records import PROTOCOL, Kind, RoundReply, RoundRequest

_LOG = logging.getLogger(__name__)
_WORKERS, _MOST_CALLS = 8, 32
_MOST_WAITING = 2
"""Questions that may wait for an answer at once: one that is worked on, and the same one asked again."""
_LONGEST_SOCKET_PATH = 100  # bytes; the kernel takes 107, and the lock needs none
_GRACE = 5.0
"""Seconds that a question in work gets at the end; what is cut off is answered when it is asked again."""


@dataclass(frozen=True, kw_only=True)
class UnixSocket:
    """Where a vault listens on its own machine.

    Attributes:
        path: Of the socket; who may write to it may ask.
        group: Name or number of the group that may ask besides the owner; the process' own where absent.
    """

    path: Path
    group: str | None = None

    @property
    def address(self) -> str:
        """As a client names it."""
        return f"unix:{self.path}"


@dataclass(frozen=True, kw_only=True)
class TlsPort:
    """Where a vault listens on a network; both sides show certificates.

    Attributes:
        address: HOST:PORT.
        certificate: The vault's, PEM.
        key: Of it, PEM.
        clients: Certificate authority that signs clients, PEM.
    """

    address: str
    certificate: Path
    key: Path
    clients: Path


class Service:
    """The questions of `vault.proto` and what a vault answers.

    Args:
        vault: It.
    """

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._waiting = threading.BoundedSemaphore(_MOST_WAITING)

    def handler(self) -> grpc.GenericRpcHandler:
        """For a gRPC server."""
        calls: dict[str, Callable[[Any], Any]] = {
            "Describe": self.describe,
            "Budget": self.budget,
            "Receive": lambda question: self._answered(question, self._vault.receive),
        }
        for kind, name in OF_KIND.items():
            calls[name] = _Asked(self, kind)
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                name: grpc.unary_unary_rpc_method_handler(
                    _Guarded(call),
                    request_deserializer=METHODS[name].question.FromString,
                    response_serializer=METHODS[name].answer.SerializeToString,
                )
                for name, call in calls.items()
            },
        )

    def describe(self, request: DescribeRequest) -> Description:
        """Who this is: nothing of the data, and nothing that a reply does not show as well."""
        del request
        ledger = self._vault.ledger
        return Description(
            domain=self._vault.name,
            protocol=PROTOCOL,
            version=isthmus.__version__,
            program=code_hash(),
            key=ledger.chain.keys.public.hex(),
            ledger=ledger.chain.ledger,
            kinds=self._vault.policy.allow.kinds,
            private=self._vault.private,
        )

    def budget(self, request: BudgetRequest) -> BudgetAnswer:
        """What is spent, from the entries."""
        del request
        limit = self._vault.budget
        return BudgetAnswer(epsilon=self._vault.epsilon(), limit=limit.epsilon, delta=limit.delta)

    def answer(self, kind: Kind, question: Question) -> Answer:
        """A release or a refusal."""
        if not self._waiting.acquire(blocking=False):
            raise _BusyError
        try:
            return self._answered(question, lambda request: self._vault.answer(kind, request))
        finally:
            self._waiting.release()

    def _answered(self, question: Question, ask: Callable[[RoundRequest], RoundReply]) -> Answer:
        try:
            request = from_question(question)
        except Refused as refusal:
            return Answer(domain=self._vault.name, refusal=str(refusal))
        return to_answer(ask(request))


class _BusyError(Exception):
    """Too many questions at once."""


@dataclass(frozen=True)
class _Asked:
    """A method that asks for one kind of release."""

    service: Service
    kind: Kind

    def __call__(self, question: Question) -> Answer:
        return self.service.answer(self.kind, question)


@dataclass(frozen=True)
class _Guarded:
    """A method whose errors say nothing: they may quote data."""

    call: Callable[[Any], Any]

    def __call__(self, question: Any, context: grpc.ServicerContext) -> Any:
        try:
            return self.call(question)
        except _BusyError:
            code, words = grpc.StatusCode.RESOURCE_EXHAUSTED, "it is busy with other questions; ask again later"
        except Exception:  # noqa: BLE001 - whatever it is, its words stay in the domain
            _LOG.exception("a question could not be answered")
            code, words = grpc.StatusCode.INTERNAL, INTERNAL
        return context.abort(code, words)  # which raises


def serve(
    vault: Vault,
    where: UnixSocket | TlsPort,
    *,
    stopped: threading.Event,
    ready: Callable[[str], None],
) -> None:
    """Answer questions until told to stop.

    Args:
        vault: What answers; closed at the end.
        where: Where it is asked.
        stopped: Set by whoever wants it to end.
        ready: Told the address once the domain's tables are loaded and questions are answered.

    Raises:
        ConfigError: If the place cannot be used, or a table cannot be read as declared.
        RunError: If another vault listens there.
    """
    options = [
        ("grpc.max_receive_message_length", LARGEST_MESSAGE),
        ("grpc.max_send_message_length", LARGEST_MESSAGE),
        ("grpc.so_reuseport", 0),
    ]
    pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="vault")
    server = grpc.server(pool, options=options, maximum_concurrent_rpcs=_MOST_CALLS)
    told = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(told, server)
    server.add_generic_rpc_handlers((Service(vault).handler(),))
    try:
        with _bound(server, where) as address:
            _tell(told, serving=False)
            server.start()
            try:
                vault.warm_up()
                _tell(told, serving=True)
                ready(address)
                stopped.wait()
                _tell(told, serving=False)
            finally:
                server.stop(_GRACE).wait()
    finally:
        vault.close()


def _tell(told: health.HealthServicer, *, serving: bool) -> None:
    state = health_pb2.HealthCheckResponse
    for name in ("", SERVICE):
        told.set(name, state.SERVING if serving else state.NOT_SERVING)


@contextmanager
def _bound(server: grpc.Server, where: UnixSocket | TlsPort) -> Iterator[str]:
    """The server listens; yields the address that a client names."""
    if isinstance(where, TlsPort):
        try:
            key, certificate, clients = (file.read_bytes() for file in (where.key, where.certificate, where.clients))
        except OSError as error:
            raise ConfigError(f"a vault on a network needs certificates: {error}") from None
        credentials = grpc.ssl_server_credentials([(key, certificate)], clients, require_client_auth=True)
        port = _listen(server, where.address, credentials)
        yield f"{where.address.rpartition(':')[0]}:{port}"
        return
    path = where.path.resolve()
    if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
        raise ConfigError(f"{path}: the path of a socket has at most {_LONGEST_SOCKET_PATH} bytes; name a shorter one")
    if path.exists() and not stat.S_ISSOCK(path.stat().st_mode):
        raise ConfigError(f"{path}: is there and is no socket; name another --socket")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.with_name(path.name + ".lock"), path):
        path.unlink(missing_ok=True)  # what a killed vault left behind
        before = os.umask(0o117)  # from the first moment on, only owner and group may ask
        try:
            _listen(server, f"unix:{path}", grpc.local_server_credentials(grpc.LocalConnectionType.UDS))
        finally:
            os.umask(before)
        try:
            _give_to(path, where.group)
            yield f"unix:{path}"
        finally:
            path.unlink(missing_ok=True)


def _give_to(path: Path, group: str | None) -> None:
    if group is not None:
        try:
            shutil.chown(path, group=int(group) if group.isdigit() else group)
        except (LookupError, OSError) as error:
            raise ConfigError(f"{path}: cannot be given to group {group!r}: {error}") from None


def _listen(server: grpc.Server, address: str, credentials: grpc.ServerCredentials) -> int:
    try:
        return server.add_secure_port(address, credentials)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"a vault cannot listen at {address}: {error}") from None


@contextmanager
def _locked(lock: Path, path: Path) -> Iterator[None]:
    """One vault listens at a socket; the lock ends with its process, however that ends."""
    try:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"{lock}: cannot be made: {error}; name another --socket") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise RunError(f"{path}: another vault listens there; stop it first, or name another --socket") from None
    try:
        yield
    finally:
        os.close(handle)
