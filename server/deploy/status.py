"""What a coordinator is doing at the moment, and ending it.

status = server_status(config)
stop_server(config)
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime

from isthmus.errors import RunError
from isthmus.server.deploy.certs import show_certificates
from isthmus.server.deploy.control import Control, FlowerRun, Node
from isthmus.server.deploy.parts import HEALTH_PORT, parts_of
from isthmus.server.deploy.runs import DeployedRun, latest_run, progress_of
from isthmus.server.deploy.settings import ServerConfig
from isthmus.supervision import STATE, running_pid, stop


@dataclass(frozen=True, kw_only=True)
class PartStatus:
    """One program of a coordinator.

    Attributes:
        name: Of the part.
        pid: Of its process; None while it waits to be started again.
        ready: Whether it answers as it should, at this moment.
        restarts: Since the server came up.
        listening: Where, and for whom.
    """

    name: str
    pid: int | None
    ready: bool
    restarts: int
    listening: str


@dataclass(frozen=True, kw_only=True)
class ServerStatus:
    """What a coordinator is doing.

    Attributes:
        pid: Of the supervisor; None if the server is not up.
        parts: Its programs.
        certificate_days: Until the server's certificate ends, in days.
        nodes: Business units' nodes that may connect.
        runs: The latest runs, newest first, as Flower knows them.
        run: The run that was started or resumed last; None before the first.
        finished: Rounds of it that are on disk.
    """

    pid: int | None
    parts: tuple[PartStatus, ...]
    certificate_days: float
    nodes: tuple[Node, ...]
    runs: tuple[FlowerRun, ...]
    run: DeployedRun | None
    finished: int

    @property
    def well(self) -> bool:
        """Whether everything that should be up is up."""
        return self.pid is not None and bool(self.parts) and all(part.ready for part in self.parts)


def server_status(config: ServerConfig) -> ServerStatus:
    """Look at everything; asks every program, so it is what is, not what was written down."""
    pid = running_pid(config.state_folder)
    parts = () if pid is None else _parts(config)
    nodes: tuple[Node, ...] = ()
    runs: tuple[FlowerRun, ...] = ()
    if any(part.name == "superlink" and part.ready for part in parts):
        with Control(config) as control:
            nodes, runs = control.nodes(), control.runs()
    days = show_certificates(config.certificates_folder)[0].days_left(datetime.now(UTC))
    run = latest_run(config)
    finished = 0 if run is None else progress_of(config, run, ask=False).round
    return ServerStatus(pid=pid, parts=parts, certificate_days=days, nodes=nodes, runs=runs, run=run, finished=finished)


def stop_current_run(config: ServerConfig) -> int:
    """End the run that is going on; returns Flower's id of it.

    Raises:
        RunError: If there is none, or the server is not up.
    """
    with Control(config) as control:
        going = [run for run in control.runs() if not run.over]
        if not going:
            raise RunError("no run is going on.")
        control.stop_run(going[0].id)
        return going[0].id


def stop_server(config: ServerConfig) -> int:
    """End a server and wait until it is gone; returns its process id.

    Raises:
        RunError: If none is up, or it does not end.
    """
    pid = running_pid(config.state_folder)
    if pid is None:
        raise RunError(f"no server is up with {config.state_folder}.")
    stop(config.state_folder)
    return pid


def _parts(config: ServerConfig) -> tuple[PartStatus, ...]:
    """The programs that the supervisor wrote down, each asked; none while it is starting."""
    try:
        noted = json.loads((config.state_folder / STATE).read_text(encoding="utf-8"))
        port = int((config.state_folder / HEALTH_PORT).read_text(encoding="ascii"))
    except FileNotFoundError:
        return ()
    parts = {part.name: part for part in parts_of(config, port)}
    return tuple(
        PartStatus(
            name=one["name"],
            pid=one["pid"],
            ready=one["pid"] is not None and parts[one["name"]].ready(),
            restarts=one["restarts"],
            listening=one["listening"],
        )
        for one in noted["parts"]
    )
