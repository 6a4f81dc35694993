"""The ServerApp: reads what the run is from Flower's run configuration and starts the round loop.

    app = make_app()             # for a SuperLink
    app = make_app(listener)     # for a simulation that wants to watch

The same object runs on the in-process grid, on Ray and on a SuperLink. The run configuration holds
`federation` (a file), `folder` (of the run), `heads` (the coordinator's log), `run` (its id), `rounds`, and
`seed`: -1 for a run whose first backbone is drawn freshly. A deployed run adds how long it waits, from `server.toml`:
`domains`, `joining`, `deadline` and `poll` (see `isthmus.server.waiting`); a simulation waits for everybody.
"""

import contextlib
import fcntl
import functools
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from isthmus.backbone_file import save_backbone
from isthmus.config import load_federation
from isthmus.errors import RunError
from isthmus.server.checkpoint import RunState
from isthmus.server.heads import HeadLog
from isthmus.server.loop import Listener, run_rounds
from isthmus.server.shipping import shipped_backbone
from isthmus.server.waiting import FOR_EVER, Patience

_LOG = logging.getLogger(__name__)

_AGAIN_SECONDS = 10.0  # a node whose vault is not up yet is asked again after so long
_LOCK_SECONDS = 120.0  # that a process which was given up may take to see it; Flower looks twice a minute


def _tell(state: RunState) -> None:
    """Log a finished round, for whoever reads the log of a deployed run."""
    if not state.history or state.history[-1].round != state.round:
        return
    outcomes = state.history[-1].outcomes.items()
    words = (f"{name} {outcome.status}{outcome.reason and f' ({outcome.reason})'}" for name, outcome in outcomes)
    _LOG.info("round %d: %s", state.round, ", ".join(words))


def make_app(listener: Listener = _tell) -> ServerApp:
    """A ServerApp that runs the federation named in its run configuration.

    Args:
        listener: Told the state before the first round of this process and after each finished one.
    """
    server = ServerApp()
    server.main()(functools.partial(_main, listener))
    return server


def _main(listener: Listener, grid: Grid, context: Context) -> None:
    settings = context.run_config
    try:
        federation = load_federation(str(settings["federation"]))
        run, folder = str(settings["run"]), Path(str(settings["folder"]))
        log = Path(str(settings["heads"]))
        rounds, seed = int(settings["rounds"]), int(settings["seed"])
        patience = _patience(settings)
    except KeyError as error:
        raise RunError(f"the run configuration lacks {error}; start a run with `isthmus simulate`") from None
    except ValueError as error:
        raise RunError(f"the run configuration's `rounds` and `seed` must be whole numbers: {error}") from None
    federation = federation.model_copy(update={"seed": None if seed < 0 else seed})
    deployed = patience is not FOR_EVER
    with contextlib.ExitStack() as stack:
        if deployed:
            _speak()
            stack.enter_context(_alone(folder))
        heads = HeadLog(log)
        stack.callback(heads.close)
        state = run_rounds(
            grid,
            federation,
            run=run,
            rounds=rounds,
            folder=folder,
            heads=heads,
            listener=listener,
            patience=patience,
        )
        if deployed:  # a simulation writes it with the rest of its results
            save_backbone(folder / "backbone.safetensors", shipped_backbone(state, federation))
            _LOG.info("finished after round %d of %d; shipped: round %d", state.round, rounds, state.best_round)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a run's folder, so that a process that was given up and is still there writes nothing beside this one."""
    with (folder / "run.lock").open("a", encoding="ascii") as file:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise RunError(f"{folder}: another process is working on this run, and does not end") from None
            time.sleep(0.2)
        yield


def _speak() -> None:
    """Write what Isthmus has to say where Flower collects the words of a run."""
    logger = logging.getLogger("isthmus")  # not the root, to which Flower's own words go a second time
    logger.setLevel(logging.INFO)
    logger.addHandler(logging.StreamHandler(sys.stdout))
    logger.propagate = False


def _patience(settings: Mapping[str, bool | float | int | str]) -> Patience:
    """How long a deployed run waits; a simulation's settings have no `deadline`."""
    if "deadline" not in settings:
        return FOR_EVER
    return Patience(
        domains=int(settings["domains"]),
        joining=float(settings["joining"]),
        deadline=float(settings["deadline"]),
        again=_AGAIN_SECONDS,
        poll=float(settings["poll"]),
    )


app = make_app()
