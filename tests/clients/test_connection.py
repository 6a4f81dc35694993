"""A node finds its own vault, once per process, and no other."""

import json
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict
from tests.conftest import TinyFederation

from isthmus.clients.connection import leave_simulation, simulated_vault, vault_for
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


def context(
    run_config: dict[str, bool | float | int | str], node_config: dict[str, bool | float | int | str]
) -> Context:
    """What Flower gives a ClientApp."""
    return Context(run_id=1, node_id=2, node_config=node_config, state=RecordDict(), run_config=run_config)


def test_each_partition_has_its_own_vault_and_keeps_it(tiny_federation: TinyFederation, tmp_path: Path) -> None:
    """Opened at the first call, the same object afterwards, and a new one after the simulation was left."""
    plan = str(write_plan(tiny_federation(), tmp_path / "run"))
    books, games = (vault_for(context({"simulation": plan}, {"partition-id": number})) for number in (0, 1))
    assert isinstance(books, Vault)
    assert (books.name, games.name) == ("books", "games")
    assert books.ledger.path == tmp_path / "run" / "books.db"
    assert vault_for(context({"simulation": plan}, {"partition-id": 0})) is books
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


@pytest.mark.parametrize(
    ("run_config", "node_config"),
    [({}, {"partition-id": 0}), ({"simulation": "plan.json"}, {}), ({"simulation": 3}, {"partition-id": 0})],
)
def test_a_node_that_no_simulation_started_is_refused(
    run_config: dict[str, bool | float | int | str], node_config: dict[str, bool | float | int | str]
) -> None:
    """It has no vault, and is told why."""
    with pytest.raises(RunError, match="was not started by `isthmus simulate`"):
        vault_for(context(run_config, node_config))
