"""A whole federation on one machine: `isthmus simulate`.

    simulation = prepare("demo/federation.toml", out="isthmus-run")    # refuses what cannot run, touches no data
    result = run(simulation, watcher)                                  # or continues where it stopped

This is where server and clients are put together; they never import each other. The run folder holds

    run.json                 which run this is: another configuration is refused
    plan.json                which vault sits at which Flower partition
    checkpoint.safetensors   the server's state after the last finished round
    ledgers/<domain>.db      what was spent (seeded run: the ledger; private run: a copy of the domain's own)
    backbone.safetensors     what was shipped
    heads/<domain>/          each domain's private head
    result.json, report.html

A private run spends from the ledger beside the domain's data, whatever folder the run is in. A seeded run is not
private: it keeps its books in the run folder, and leaves the domain's own alone.
"""

from isthmus.simulation.prepare import Backend, Simulation, prepare
from isthmus.simulation.run import Watcher, run

__all__ = ["Backend", "Simulation", "Watcher", "prepare", "run"]
