"""Run a prepared simulation to its end: rounds, private heads, result and report.

    result = run(simulation, watcher)

Killed at any moment and called again, it continues from the last finished round.
"""

import contextlib
import functools
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from isthmus.backbone_file import ShippedBackbone, save_backbone
from isthmus.clients.app import app as client_app
from isthmus.clients.connection import leave_simulation, simulated_vault
from isthmus.clients.finish import FinishedDomain, finish_domain, read_by, to_serve
from isthmus.clients.vault import Vault
from isthmus.durable import write_durably
from isthmus.errors import RunError
from isthmus.features import default_cache_dir
from isthmus.grid import InProcessGrid, RunConfig
from isthmus.packing import arrays_digest
from isthmus.ray_grid import RayGrid
from isthmus.records import recipe_of
from isthmus.report.page import render_report
from isthmus.report.result import Result, read_result, write_result
from isthmus.server.app import make_app
from isthmus.server.checkpoint import RunState, load_checkpoint
from isthmus.server.heads import HeadLog
from isthmus.server.shipping import shipped_backbone
from isthmus.simulation.parallel import shares, work_of
from isthmus.simulation.prepare import Simulation
from isthmus.simulation.result import assemble_result


class Watcher(Protocol):
    """Whoever wants to see how far a simulation is."""

    def stage(self, what: str) -> None:
        """A new part of the work begins."""
        ...

    def texts(self, done: int, total: int) -> None:
        """Item texts are being encoded; `total` counts those that are not in the cache."""
        ...

    def round(self, state: RunState, rounds: int, spent: dict[str, float]) -> None:
        """A round is finished; `spent` is each domain's epsilon over all runs."""
        ...


def run(simulation: Simulation, watcher: Watcher) -> Result:
    """Run, or continue, a prepared simulation to its end, and write everything that the run folder holds.

    Killed at any moment and called again, it continues from the last finished round.
    """
    finished_before = _finished_result(simulation)
    if finished_before is not None:
        return finished_before
    started = time.monotonic()
    with trained(simulation, watcher) as (vaults, state):
        shipped = shipped_backbone(state, simulation.federation)
        save_backbone(simulation.out / "backbone.safetensors", shipped)
        # 3. After the last release: every domain fits its private head on what was shipped.
        finished = {vault.name: _finish(simulation, vault, shipped, watcher) for vault in vaults}
        # 4. What it all came to.
        result = assemble_result(
            simulation.federation,
            backend=simulation.backend,
            state=state,
            vaults=vaults,
            finished=finished,
            seconds=time.monotonic() - started,
        )
        write_result(result, simulation.out / "result.json")
        result = read_result(simulation.out / "result.json")  # what everybody else will read, rounding included
        render_report(result, simulation.out / "report.html")
        for vault in vaults if simulation.private else []:
            vault.ledger.backup(simulation.out / "ledgers" / f"{vault.name}.db")
        if simulation.private:
            _copy_heads(simulation)
    return result


@contextlib.contextmanager
def trained(simulation: Simulation, watcher: Watcher) -> Iterator[tuple[list[Vault], RunState]]:
    """The domains of a simulation, open, and what its rounds came to; no private head is fitted.

    Raises:
        RunError: If the rounds cannot be run.
    """
    logging.getLogger("flwr").setLevel(logging.WARNING)
    torch.set_num_threads(simulation.federation.compute.threads)
    _write_plan(simulation)
    try:
        # 1. Open every domain here first, so that a bad table stops the run before anything is spent.
        vaults = [_vault(simulation, partition) for partition in range(len(simulation.domains))]
        for vault in vaults:
            watcher.stage(f"reading {vault.name} and encoding its item texts")
            vault.encoded(simulation.federation.features.encoder, progress=watcher.texts)
        # 2. The rounds, through Flower's ServerApp and ClientApp.
        watcher.stage("rounds")
        _run_rounds(simulation, vaults, watcher)
        state = load_checkpoint(
            simulation.out / "checkpoint.safetensors", run=simulation.run, digest=simulation.federation.digest()
        )
        if state is None:
            raise RunError(f"{simulation.out}: the run ended without a checkpoint")
        yield vaults, state
    finally:
        leave_simulation(str(simulation.plan))


def _finished_result(simulation: Simulation) -> Result | None:
    """The result of this very run, if an earlier call has come to its end."""
    file = simulation.out / "result.json"
    if not file.exists():
        return None
    result = read_result(file)
    # The folder's run.json was compared already: it is this run. It may have been asked for fewer rounds.
    return result if result.federation.rounds >= simulation.rounds else None


def _run_rounds(simulation: Simulation, vaults: list[Vault], watcher: Watcher) -> None:
    """Drive Flower's ServerApp and ClientApp on a grid."""
    seed = simulation.federation.seed
    run_config: RunConfig = {
        "federation": str(simulation.file),
        "folder": str(simulation.out),
        "heads": str(simulation.heads_path),
        "run": simulation.run,
        "rounds": simulation.rounds,
        "seed": -1 if seed is None else seed,
    }
    listener = _Listener(simulation, vaults, watcher)
    nodes = len(simulation.domains)
    seats: RunConfig = {"simulation": str(simulation.plan)}
    grid = (
        RayGrid(
            client_app,
            nodes=nodes,
            run_config=run_config,
            node_config=seats,
            share=functools.partial(shares, work_of(simulation.federation, simulation.domains)),
        )
        if simulation.backend == "ray"
        else InProcessGrid(client_app, nodes=nodes, run_config=run_config, node_config=seats)
    )
    with grid:
        make_app(listener)(grid, grid.server_context())


@dataclass(frozen=True)
class _Listener:
    """Passes the server's progress on, with what each ledger says."""

    simulation: Simulation
    vaults: list[Vault]
    watcher: Watcher

    def __call__(self, state: RunState) -> None:
        spent = {vault.name: vault.epsilon() for vault in self.vaults}
        self.watcher.round(state, self.simulation.rounds, spent)


def _finish(simulation: Simulation, vault: Vault, shipped: ShippedBackbone, watcher: Watcher) -> FinishedDomain:
    watcher.stage(f"fitting the private head of {vault.name}")
    federation = simulation.federation
    recipe = recipe_of(federation, arrays_digest(shipped.whitening.arrays()).hex())
    encoded = vault.encoded(recipe.features.encoder)
    served, recipe = to_serve(shipped, recipe, encoded)
    return finish_domain(
        vault.data,
        vault.training_set(recipe, served.whitening),
        served,
        recipe,
        evaluation=federation.evaluation,
        seed=federation.seed or 0,
        folder=simulation.out / "heads" / vault.name,
        shared=read_by(shipped, encoded),
    )


def _copy_heads(simulation: Simulation) -> None:
    heads = HeadLog(simulation.heads_path)
    heads.backup(simulation.out / "heads.db")
    heads.close()


def _vault(simulation: Simulation, partition: int) -> Vault:
    vault = simulated_vault(str(simulation.plan), partition)
    assert isinstance(vault, Vault)  # noqa: S101 - plan.json seats nothing else
    return vault


def _write_plan(simulation: Simulation) -> None:
    seats = [
        {
            "folder": str(domain.folder),
            "ledger": str(simulation.ledger_path(domain)),
            "seed": simulation.federation.seed,
            "cache": str(default_cache_dir()),
            "threads": simulation.federation.compute.threads,
        }
        for domain in simulation.domains
    ]
    plan = {"federation": str(simulation.file), "seats": seats}
    write_durably(simulation.plan, json.dumps(plan, indent=1).encode())
