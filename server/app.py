"""The ServerApp: reads what the run is from Flower's run configuration and starts the round loop.

    app = make_app()             # for a SuperLink
    app = make_app(listener)     # for a simulation that wants to watch

The same object runs on the in-process grid, on Ray and on a SuperLink. The run configuration holds
`federation` (a file), `folder` (of the run), `heads` (the coordinator's log), `run` (its id), `rounds`, and
`seed`: -1 for a run whose first backbone is drawn freshly. A deployed run adds how long it waits, from `server.toml`:
`domains`, `joining`, `deadline` and `poll` (see `isthmus.server.waiting`); a simulation waits for everybody.
"""

import functools
from collections.abc import Mapping
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from isthmus.config import load_federation
from isthmus.errors import RunError
from isthmus.server.checkpoint import RunState
from isthmus.server.heads import HeadLog
from isthmus.server.loop import Listener, run_rounds
from isthmus.server.waiting import FOR_EVER, Patience

_AGAIN_SECONDS = 10.0  # a node whose vault is not up yet is asked again after so long


def _silent(state: RunState) -> None:
    """The listener of a run that nobody watches."""


def make_app(listener: Listener = _silent) -> ServerApp:
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
    heads = HeadLog(log)
    try:
        run_rounds(
            grid,
            federation,
            run=run,
            rounds=rounds,
            folder=folder,
            heads=heads,
            listener=listener,
            patience=patience,
        )
    finally:
        heads.close()


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
