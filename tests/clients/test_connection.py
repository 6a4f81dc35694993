"""A node finds its own vault, once per process, and no other."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict
from tests.conftest import TinyFederation

from isthmus.clients.connection import DomainVault, leave_simulation, simulated_vault, vault_for
from isthmus.clients.vault import Vault
from isthmus.config import load_federation
from isthmus.errors import RunError


def write_plan(file: Path, folder: Path) -> Path:
    """Seats for every domain of a federation, ledgers in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    seats = [
        {
            "folder": str(domain),
            "ledger": str(folder / f"{domain.name}.db"),
            "seed": 5,
            "cache": str(folder / "cache"),
            "threads": 1,
        }
        for domain in load_federation(file).domain_folders()
    ]
    plan = folder / "plan.json"
    plan.write_text(json.dumps({"seats": seats}))
    return plan


def context(node_config: Mapping[str, bool | float | int | str], **run_config: str) -> Context:
    """What Flower gives a ClientApp."""
    return Context(run_id=1, node_id=2, node_config=dict(node_config), state=RecordDict(), run_config={**run_config})


def opened(simulation: str, partition: int) -> DomainVault:
    """The vault at a seat, as a ClientApp gets it."""
    with vault_for(context({"simulation": simulation, "partition-id": partition})) as vault:
        return vault


def test_each_partition_has_its_own_vault_and_keeps_it(tiny_federation: TinyFederation, tmp_path: Path) -> None:
    """Opened at the first call, the same object afterwards, and a new one after the simulation was left."""
    plan = str(write_plan(tiny_federation(), tmp_path / "run"))
    books, games = (opened(simulation=plan, partition=number) for number in (0, 1))
    assert isinstance(books, Vault)
    assert isinstance(games, Vault)
    assert (books.name, games.name) == ("books", "games")
    assert books.ledger.path == tmp_path / "run" / "books.db"
    assert opened(simulation=plan, partition=0) is books
    assert simulated_vault(plan, 0) is books
    leave_simulation(plan)
    again = simulated_vault(plan, 0)
    assert again is not books
    leave_simulation(plan)


def test_leaving_one_simulation_leaves_the_others_alone(tiny_federation: TinyFederation, tmp_path: Path) -> None:
    """Two simulations of one process have vaults, and ledgers, of their own."""
    file = tiny_federation()
    first, second = (str(write_plan(file, tmp_path / name)) for name in ("one", "two"))
    kept = simulated_vault(second, 0)
    assert simulated_vault(first, 0) is not kept
    leave_simulation(first)
    assert simulated_vault(second, 0) is kept
    assert kept.epsilon() == 0.0  # its ledger is still open
    leave_simulation(second)


@pytest.mark.parametrize("node_config", [{}, {"partition-id": 0}, {"simulation": "plan.json"}, {"vault": 3}])
def test_a_node_that_names_no_vault_is_refused(node_config: dict[str, bool | float | int | str]) -> None:
    """It is told what is missing."""
    with pytest.raises(RunError, match="this node knows no vault"), vault_for(context(node_config)):
        pass


def test_a_run_configuration_cannot_name_a_vault(tiny_federation: TinyFederation, tmp_path: Path) -> None:
    """It is the coordinator's, and signed by nobody: a plan or an address in it is not looked at."""
    plan = str(write_plan(tiny_federation(), tmp_path / "run"))
    node = {"partition-id": 0}
    for theirs in ({"simulation": plan}, {"vault": "unix:other.sock"}):
        with pytest.raises(RunError, match="this node knows no vault"), vault_for(context(node, **theirs)):
            pass
    assert not (tmp_path / "run" / "books.db").exists()
