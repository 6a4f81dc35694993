"""How a client process reaches its domain's vault.

    with vault_for(context) as vault:
        reply = vault.answer(Kind.UPDATE, request)

Where the vault is, the business unit says, in the configuration of its own node; nothing that a coordinator sends is
looked at. Deployed, it is a process of its own behind a socket (`isthmus vault`); the client process holds nothing but
the address. In a simulation it lives in this process and is opened once, from the plan that `isthmus simulate` wrote
(one seat per Flower partition). A vault's code is imported only when one is opened here, so that importing the
ClientApp stays cheap.
"""

import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from flwr.app import Context

from isthmus.errors import RunError
from isthmus.records import Kind, RoundReply, RoundRequest


class DomainVault(Protocol):
    """What a client may ask of its domain."""

    @property
    def name(self) -> str:
        """Of the domain."""
        ...

    def answer(self, kind: Kind, request: RoundRequest) -> RoundReply:
        """A release or a refusal."""
        ...

    def receive(self, request: RoundRequest) -> RoundReply:
        """Keep the backbone that a run ended with, and the receipt for the last reply."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


_OPEN: dict[tuple[str, int], DomainVault] = {}


@contextmanager
def vault_for(context: Context) -> Iterator[DomainVault]:
    """The vault of the node that this context belongs to.

    Raises:
        RunError: If the node's own configuration names none, or it cannot be reached.
    """
    node = context.node_config
    address, plan, partition = node.get("vault"), node.get("simulation"), node.get("partition-id")
    if isinstance(address, str):
        remote = importlib.import_module("isthmus.clients.remote").remote_vault(node)
        try:
            yield remote
        finally:
            remote.close()
    elif isinstance(plan, str) and isinstance(partition, int):
        yield simulated_vault(plan, partition)
    else:
        raise RunError(
            "this node knows no vault: its configuration has no `vault`, and it was not started by `isthmus simulate`. "
            "Give the SuperNode --node-config 'vault=\"unix:/path/of/vault.sock\"'."
        )


def simulated_vault(plan: str, partition: int) -> DomainVault:
    """The vault at one seat of a simulation, opened at the first call in this process.

    Args:
        plan: Path of the plan that `isthmus simulate` wrote.
        partition: Position of the domain in it.
    """
    if (plan, partition) not in _OPEN:
        seat = json.loads(Path(plan).read_text(encoding="utf-8"))["seats"][partition]
        _OPEN[plan, partition] = importlib.import_module("isthmus.clients.vault").open_seat(seat)
    return _OPEN[plan, partition]


def leave_simulation(plan: str) -> None:
    """Close every vault that this process opened for a simulation."""
    for key in [key for key in _OPEN if key[0] == plan]:
        _OPEN.pop(key).close()
