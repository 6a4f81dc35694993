"""The ServerApp runs what its run configuration names, or says what the run configuration lacks."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.serverapp import ServerApp
from tests.clients.test_connection import write_plan
from tests.conftest import TinyFederation

from isthmus.clients.app import app as client_app
from isthmus.clients.connection import leave_simulation
from isthmus.config import load_federation
from isthmus.errors import ConfigError, RunError
from isthmus.grid import InProcessGrid, RunConfig
from isthmus.server import app as server
from isthmus.server.checkpoint import RunState, load_checkpoint


class Runs:
    """Starts ServerApps over one federation, each in a folder of its own."""

    def __init__(self, file: Path, root: Path) -> None:
        self.file = file
        self.root = root
        self.plans: list[Path] = []

    def settings(self, name: str, **changes: str | int) -> dict[str, bool | float | int | str]:
        """A complete run configuration, but for the changes."""
        folder = self.root / name
        self.plans.append(write_plan(self.file, folder))
        return {
            "federation": str(self.file),
            "folder": str(folder),
            "heads": str(folder / "heads.db"),
            "run": "r1",
            "rounds": 1,
            "seed": 5,
            **changes,
        }

    def start(self, settings: RunConfig, app: ServerApp = server.app) -> None:
        """Run an app on the in-process grid."""
        seats: RunConfig = {"simulation": str(self.plans[-1])}
        with InProcessGrid(client_app, nodes=2, run_config=settings, node_config=seats) as grid:
            app(grid, grid.server_context())


@pytest.fixture
def runs(tiny_federation: TinyFederation, tmp_path: Path) -> Iterator[Runs]:
    """Two domains, one round."""
    runs = Runs(tiny_federation(evaluate_every=0), tmp_path)
    yield runs
    for plan in runs.plans:
        leave_simulation(str(plan))


def test_the_app_runs_the_named_federation_in_the_named_folder(runs: Runs) -> None:
    """Rounds and run id come from the run configuration; the listener hears of the start and of each round."""
    heard: list[RunState] = []
    runs.start(runs.settings("a", rounds=2, run="r7"), server.make_app(heard.append))
    assert [state.round for state in heard] == [0, 1, 2]
    digest = load_federation(runs.file).digest()
    state = load_checkpoint(runs.root / "a" / "checkpoint.safetensors", run="r7", digest=digest)
    assert state is not None
    assert state.round == 2
    assert all(np.array_equal(state.arrays[name], array) for name, array in heard[-1].arrays.items())


def test_the_seed_of_the_run_configuration_decides(runs: Runs) -> None:
    """Not the file's: -1 draws the first backbone freshly each time, any other seed gives it again."""
    firsts: dict[str, list[RunState]] = {}
    for name, seed in (("a", 8), ("b", 8), ("c", 9), ("d", -1), ("e", -1)):
        firsts[name] = []
        runs.start(runs.settings(name, seed=seed, rounds=0), server.make_app(firsts[name].append))
    weights = {name: states[0].arrays["adaptor.weight"].tobytes() for name, states in firsts.items()}
    assert weights["a"] == weights["b"]
    assert len(set(weights.values())) == 4
    assert len({states[0].digest for states in firsts.values()}) == 3  # the seed is part of what a run is


@pytest.mark.parametrize("key", ["federation", "folder", "run", "rounds", "seed"])
def test_a_missing_setting_is_named(runs: Runs, key: str) -> None:
    """With the command that gives all of them."""
    settings = {name: value for name, value in runs.settings("a").items() if name != key}
    with pytest.raises(RunError, match=f"lacks '{key}'; start a run with `isthmus simulate`"):
        runs.start(settings)


@pytest.mark.parametrize("key", ["rounds", "seed"])
def test_a_setting_that_is_no_number_is_named(runs: Runs, key: str) -> None:
    """One sentence, no traceback."""
    with pytest.raises(RunError, match=r"`rounds` and `seed` must be whole numbers: .*'many'"):
        runs.start(runs.settings("a", **{key: "many"}))


def test_a_federation_file_that_is_not_there_is_named(runs: Runs) -> None:
    """The user's error is passed on as it is."""
    with pytest.raises(ConfigError, match=r"nowhere\.toml: no such file"):
        runs.start(runs.settings("a", federation=str(runs.root / "nowhere.toml")))
