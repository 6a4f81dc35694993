"""How a client process reaches its domain's vault.

    vault = vault_for(context)      # a DomainVault: name, release, epsilon, head

In a simulation the vault lives in the same process and is opened once per process, from the plan that
`isthmus simulate` wrote (one entry per Flower partition). The vault's code is imported only when it is
opened, so that importing the ClientApp stays cheap.
"""

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from flwr.app import Context

from isthmus.errors import RunError
from isthmus.records import Kind, RoundRequest

if TYPE_CHECKING:  # the accountant behind it takes a second to import
    from isthmus.privacy.gate import Release


class DomainVault(Protocol):
    """What a client may ask of its domain."""

    @property
    def name(self) -> str:
        """Of the domain."""
        ...

    def release(self, kind: Kind, request: RoundRequest) -> "Release":
        """Answer a request, or raise `Refused`."""
        ...

    def epsilon(self) -> float:
        """Spent so far, over all runs."""
        ...

    def head(self) -> str:
        """Where its ledger stands, signed."""
        ...

    def keep_receipt(self, text: str) -> None:
        """Keep the coordinator's receipt for an earlier head, or raise `Refused` if it is none."""
        ...

    def close(self) -> None:
        """Let go of the ledger."""
        ...


_OPEN: dict[tuple[str, int], DomainVault] = {}


def vault_for(context: Context) -> DomainVault:
    """The vault of the node that this context belongs to.

    Raises:
        RunError: If the node was not started by a simulation.
    """
    plan, partition = context.run_config.get("simulation"), context.node_config.get("partition-id")
    if not isinstance(plan, str) or not isinstance(partition, int):
        raise RunError("this node knows no vault: it was not started by `isthmus simulate`")
    return simulated_vault(plan, partition)


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
