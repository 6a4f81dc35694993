"""A vault behind a socket, as the client process sees it: an address and six questions.

    vault = remote_vault({"vault": "unix:/run/isthmus/books/vault.sock"})
    reply = vault.answer(Kind.UPDATE, request)

A vault that is away (it is started again after a crash) is waited for. Asking again is safe: it answers a round once,
with the same bytes. Over TCP both sides show certificates; over a Unix socket, the permissions of the file are the
border.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc

from isthmus.clients.wire.messages import from_answer, to_question
from isthmus.clients.wire.methods import LARGEST_MESSAGE, METHODS, OF_KIND, SERVICE
from isthmus.clients.wire.vault_pb2 import Answer, BudgetAnswer, BudgetRequest, DescribeRequest, Description
from isthmus.errors import ConfigError, Refused, RunError
from isthmus.records import Kind, RoundReply, RoundRequest

_OPTIONS = [("grpc.max_receive_message_length", LARGEST_MESSAGE), ("grpc.max_send_message_length", LARGEST_MESSAGE)]
_PAUSE = 0.2
PATIENCE = 120.0
"""Seconds that a vault which is away is waited for."""


class RemoteVault:
    """One vault's address.

    Args:
        channel: To it.
        address: For errors.
        patience: Seconds that it may be away.
    """

    def __init__(self, channel: grpc.Channel, *, address: str, patience: float = PATIENCE) -> None:
        self._channel = channel
        self._address = address
        self._patience = patience

    @property
    def name(self) -> str:
        """Of the domain."""
        return str(self.describe().domain)

    def describe(self) -> Description:
        """Who it is, and what it lets out at all.

        Raises:
            RunError: If it cannot be reached.
        """
        found: Description = self._ask("Describe", DescribeRequest())
        return found

    def budget(self) -> BudgetAnswer:
        """What is spent, and the limit.

        Raises:
            RunError: If it cannot be reached.
        """
        found: BudgetAnswer = self._ask("Budget", BudgetRequest())
        return found

    def answer(self, kind: Kind, request: RoundRequest) -> RoundReply:
        """A release or a refusal.

        Raises:
            RunError: If the vault cannot be reached.
        """
        return self._reply(OF_KIND[kind], request)

    def receive(self, request: RoundRequest) -> RoundReply:
        """Hand over the backbone that a run ended with, and the receipt for the last reply.

        Raises:
            RunError: If the vault cannot be reached.
        """
        return self._reply("Receive", request)

    def close(self) -> None:
        """Hang up."""
        self._channel.close()

    def _reply(self, method: str, request: RoundRequest) -> RoundReply:
        try:
            answer: Answer = self._ask(method, to_question(request))
            return from_answer(answer)
        except Refused as refusal:
            try:
                name = self.name
            except Refused:  # too busy even for that
                name = ""
            return RoundReply(domain=name, run=request.run, round=request.round, refusal=str(refusal))

    def _ask(self, method: str, question: Any) -> Any:
        call = self._channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=METHODS[method].question.SerializeToString,
            response_deserializer=METHODS[method].answer.FromString,
        )
        until = time.monotonic() + self._patience
        while True:
            try:
                return call(question)
            except grpc.RpcError as error:
                code, words = error.code(), error.details()
            if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise Refused(f"the vault takes no such question: {words}", rule="size")
            if code is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > until:
                raise RunError(f"the vault at {self._address} cannot be asked: {code.name}: {words}")
            time.sleep(_PAUSE)


def remote_vault(settings: Mapping[str, Any]) -> RemoteVault:
    """The vault that a node's configuration names.

    Args:
        settings: `vault`: `unix:PATH`, or `HOST:PORT` with `vault-ca`, `vault-cert` and `vault-key`, files in PEM.

    Raises:
        ConfigError: If a setting is absent, or a file cannot be read.
    """
    address = str(settings["vault"])
    if address.startswith("unix:"):
        credentials = grpc.local_channel_credentials(grpc.LocalConnectionType.UDS)
    else:
        try:
            ca, certificate, key = (
                Path(str(settings[name])).read_bytes() for name in ("vault-ca", "vault-cert", "vault-key")
            )
        except KeyError as error:
            raise ConfigError(
                f"a vault at {address} is reached over mutual TLS; the setting {error} is absent"
            ) from None
        except OSError as error:
            raise ConfigError(f"a vault at {address} is reached over mutual TLS: {error}") from None
        credentials = grpc.ssl_channel_credentials(ca, key, certificate)
    return RemoteVault(grpc.secure_channel(address, credentials, _OPTIONS), address=address)
