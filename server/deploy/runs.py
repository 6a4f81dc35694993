"""Start a run of a federation on a running coordinator, go on with one that stopped, and see how far it is.

    run = begin_run(config, Path("federation.toml"), rounds=None, seed=None)
    run = resume_run(config, Path("federation.toml"), rounds=None)
    progress_of(config, run)

A run is a folder `state/runs/ID` with the federation file, what it starts from, `run.json`, the checkpoint and, at the
end, the backbone. Flower's own runs come and go: each start or resumption is a new one of Flower's, with the same ID.
"""

import json
import shutil
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from isthmus.config import load_federation, seeded_run
from isthmus.durable import write_durably
from isthmus.errors import RunError
from isthmus.server.checkpoint import RunState, load_checkpoint
from isthmus.server.deploy.bundle import Bundle, make_bundle
from isthmus.server.deploy.control import Control, FlowerRun
from isthmus.server.deploy.settings import ServerConfig
from isthmus.settings import toml_text

_START = "start.safetensors"


@dataclass(frozen=True, kw_only=True)
class DeployedRun:
    """A run of a federation.

    Attributes:
        run: Its id.
        federation: Name of the federation.
        rounds: Last round.
        seed: Of the first backbone; -1 where it is drawn freshly.
        flower: Flower's id of the latest start of it.
    """

    run: str
    federation: str
    rounds: int
    seed: int
    flower: int = 0


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is.

    Attributes:
        round: Last finished round.
        state: Of that round; None before the first.
        flower: What Flower says of the latest start of it; None if it knows nothing of it.
    """

    round: int
    state: RunState | None
    flower: FlowerRun | None

    @property
    def over(self) -> bool:
        """Whether no process works on the run any more."""
        return self.flower is None or self.flower.over


def begin_run(
    config: ServerConfig, file: Path, *, rounds: int | None, seed: int | None, bundle: Bundle | None = None
) -> DeployedRun:
    """Start a new run.

    Args:
        config: Of the server, which must be up.
        file: Federation file.
        rounds: Instead of the file's.
        seed: Instead of the file's.
        bundle: Instead of the installed version's; in tests only.

    Raises:
        ConfigError: If the file is wrong.
        RunError: If a run is going on, or the server is not up.
    """
    federation = load_federation(file)
    if seed is not None:
        federation = federation.model_copy(update={"seed": seed})
    chosen = federation.seed
    run = DeployedRun(
        run=f"{federation.name}-{uuid.uuid4().hex[:12]}" if chosen is None else seeded_run(federation),
        federation=federation.name,
        rounds=rounds or federation.strategy.rounds,
        seed=-1 if chosen is None else chosen,
    )
    with Control(config) as control:
        going = [one for one in control.runs() if not one.over]
        if going:
            raise RunError(
                f"Flower run {going[0].id} is going on ({going[0].status}), and domains answer one run at a time. "
                f"`isthmus server stop --run` ends it; `run --resume` goes on with one that is stuck."
            )
        folder = _folder(config, run.run)
        if folder.exists():
            raise RunError(
                f"this run has a seed and was started before ({folder}), and domains answer a round once. `--resume` "
                f"goes on with it; another --seed, or none, starts another one."
            )
        folder.mkdir(parents=True)
        _keep_federation(file, folder)
        return _start(config, control, run, bundle or make_bundle())


def resume_run(config: ServerConfig, file: Path, *, rounds: int | None, bundle: Bundle | None = None) -> DeployedRun:
    """Go on with the latest run of a federation, from its last finished round.

    Whatever Flower still has of the run is ended first: a SuperLink that was killed believes in a process that is gone.

    Args:
        config: Of the server, which must be up.
        file: Federation file.
        rounds: Instead of those that it was started with.
        bundle: Instead of the installed version's; in tests only.

    Raises:
        ConfigError: If the file is wrong.
        RunError: If there is no run to go on with, its federation file was changed, or the server is not up.
    """
    federation = load_federation(file)
    run = latest_run(config, federation.name)
    if run is None:
        raise RunError(f"there is no run of {federation.name!r} to go on with; start one without --resume.")
    began_with = load_federation(_folder(config, run.run) / "federation.toml")
    if began_with.digest() != federation.digest():
        raise RunError(
            f"{file} is not what run {run.run} began with ({_folder(config, run.run) / 'federation.toml'}). Put it "
            f"back, or start a new run without --resume."
        )
    run = replace(run, rounds=rounds or run.rounds)
    if progress_of(config, run, ask=False).round >= run.rounds:
        raise RunError(
            f"run {run.run} has finished its {run.rounds} rounds; `--rounds` adds some, a new run starts anew."
        )
    with Control(config) as control:
        for one in control.runs():
            if one.id == run.flower and not one.over:
                control.stop_run(one.id)
        return _start(config, control, run, bundle or make_bundle())


def latest_run(config: ServerConfig, federation: str | None = None) -> DeployedRun | None:
    """The run that was started or resumed last, of one federation or of any."""
    files = sorted((config.state_folder / "runs").glob("*/run.json"), key=lambda file: file.stat().st_mtime_ns)
    runs = [DeployedRun(**json.loads(file.read_text(encoding="utf-8"))) for file in reversed(files)]
    return next((run for run in runs if federation in {None, run.federation}), None)


def progress_of(config: ServerConfig, run: DeployedRun, *, ask: bool = True) -> Progress:
    """How far a run is, by its checkpoint and, if asked, by Flower."""
    folder = _folder(config, run.run)
    federation = load_federation(folder / "federation.toml")
    federation = federation.model_copy(update={"seed": None if run.seed < 0 else run.seed})
    state = load_checkpoint(folder / "checkpoint.safetensors", run=run.run, digest=federation.digest())
    flower = None
    if ask:
        with Control(config) as control:
            flower = next((one for one in control.runs() if one.id == run.flower), None)
    return Progress(round=0 if state is None else state.round, state=state, flower=flower)


def _start(config: ServerConfig, control: Control, run: DeployedRun, bundle: Bundle) -> DeployedRun:
    """Start a Flower run of it. Paths are relative to the state folder, which is where the ServerApp runs."""
    folder = Path("runs") / run.run
    flower = control.start_run(
        bundle,
        {
            "federation": str(folder / "federation.toml"),
            "folder": str(folder),
            "heads": "heads.db",
            "run": run.run,
            "rounds": run.rounds,
            "seed": run.seed,
            "domains": config.rounds.domains,
            "deadline": config.rounds.deadline,
            "joining": config.rounds.joining,
            "poll": config.polling.replies,
        },
    )
    run = replace(run, flower=flower)
    write_durably(_folder(config, run.run) / "run.json", json.dumps(asdict(run), indent=1).encode())
    return run


def _keep_federation(file: Path, folder: Path) -> None:
    """The federation file as it is; one that starts from a backbone, with a copy of that beside it."""
    federation = load_federation(file)
    if federation.start_path is None:
        shutil.copyfile(file, folder / "federation.toml")
        return
    write_durably(folder / _START, federation.start_path.read_bytes())
    started = federation.backbone.model_copy(update={"start": _START})
    write_durably(folder / "federation.toml", toml_text(federation.model_copy(update={"backbone": started})).encode())


def _folder(config: ServerConfig, run: str) -> Path:
    return config.state_folder / "runs" / run
