"""Verbs of the coordinator: `isthmus server init`, `up`, `run`, `status`, `log`, `stop`, and those of `nodes`."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from isthmus.cli.console import log_to, stderr, stdout
from isthmus.cli.data import Json
from isthmus.errors import RunError

if TYPE_CHECKING:
    from isthmus.server.deploy.runs import DeployedRun, Progress
    from isthmus.server.deploy.settings import ServerConfig
    from isthmus.server.deploy.status import ServerStatus
    from isthmus.supervision import Part

server_app = typer.Typer(name="server", help="Run the coordinator of a deployed federation.", no_args_is_help=True)
nodes_app = typer.Typer(name="nodes", help="Say which business units' nodes may connect.", no_args_is_help=True)
server_app.add_typer(nodes_app)

Server = Annotated[Path, typer.Option("--server", help="The coordinator's server.toml.")]
_SERVER = Path("server.toml")
_FOLLOW_SECONDS = 0.2  # between two looks at a log
_WATCH_SECONDS = 0.5  # between two looks at a run


def _say(line: str) -> None:
    stdout.print(line, markup=False, highlight=False, soft_wrap=True)


@server_app.command("init", epilog="Example: isthmus server init server.toml --address localhost --domains 2")
def init(  # noqa: PLR0913, PLR0917 - options
    server: Annotated[Path, typer.Argument()],
    address: Annotated[str, typer.Option(help="Host name or IP address that business units connect to.")],
    domains: Annotated[int, typer.Option(help="A run needs at least so many domains.")],
    bind: Annotated[str, typer.Option(help="IP address of the public port's interface; 0.0.0.0 is all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Public port.")] = 8443,
    loopback_port: Annotated[int, typer.Option(help="Port of the SuperLink, on loopback only.")] = 8000,
    certificates: Annotated[str, typer.Option(help="Folder of `isthmus certs init`, relative to the file.")] = "certs",
) -> None:
    """Write a commented server.toml to start from; the public port is on loopback unless --bind says otherwise.

    SERVER is the file; it must not be there yet.
    """
    from isthmus.server.deploy.settings import write_server  # noqa: PLC0415 - not every command needs it

    config = write_server(
        server,
        address=address,
        bind=bind,
        port=port,
        loopback_port=loopback_port,
        certificates=certificates,
        domains=domains,
    )
    _say(f"{server}: public on {config.bind} port {config.port}, SuperLink on {config.superlink}")


@server_app.command("up", epilog="Example: isthmus server up server.toml")
def up(server: Annotated[Path, typer.Argument()] = _SERVER) -> None:
    """Start the coordinator, say where it listens, and keep it running until Ctrl-C or SIGTERM.

    SERVER is the coordinator's server.toml. SIGHUP takes new certificates into use.
    """
    from isthmus.server.deploy.settings import load_server  # noqa: PLC0415 - not every command needs it
    from isthmus.server.deploy.supervisor import supervise_server  # noqa: PLC0415
    from isthmus.supervision import LOGS, OWN_LOG  # noqa: PLC0415

    config = load_server(server)
    config.state_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    log_to(config.state_folder / LOGS / OWN_LOG)
    supervise_server(config, _print_listening)


def _print_listening(parts: "Sequence[Part]") -> None:
    for part in parts:
        _say(f"{part.name:10} {part.listening}")
    _say("up; Ctrl-C ends it")
    sys.stdout.flush()


@server_app.command("status", epilog="Example: isthmus server status server.toml --json")
def status(server: Annotated[Path, typer.Argument()] = _SERVER, as_json: Json = False) -> None:
    """Print what is up, which nodes may connect and how the runs stand; exit 1 if something is not up.

    SERVER is the coordinator's server.toml.
    """
    from isthmus.server.deploy.settings import load_server  # noqa: PLC0415 - not every command needs it
    from isthmus.server.deploy.status import server_status  # noqa: PLC0415

    found = server_status(load_server(server))
    if as_json:
        stdout.print_json(json.dumps({"well": found.well, **asdict(found)}))
    else:
        _print_status(found)
    if not found.well:
        raise typer.Exit(1)


def _print_status(found: "ServerStatus") -> None:
    _say("not up" if found.pid is None else f"up, process {found.pid}")
    for part in found.parts:
        state = "ready" if part.ready else "NOT READY"
        _say(f"  {part.name:10} {state:10} restarts {part.restarts}  {part.listening}")
    _say(f"  the server's certificate ends in {found.certificate_days:.0f} days")
    for node in found.nodes:
        _say(f"  node {node.name}: {node.status}")
    if found.run is not None:
        _say(f"  run {found.run.run}: {found.finished} of {found.run.rounds} rounds finished")
    for run in found.runs:
        _say(f"  Flower run {run.id}: {run.status} {run.result} {run.details}".rstrip())


@server_app.command("log", epilog="Example: isthmus server log server.toml --part supervisor")
def log(
    server: Annotated[Path, typer.Argument()] = _SERVER,
    part: Annotated[
        str, typer.Option(help="supervisor, superlink, superexec, proxy, or run: the latest run's own words.")
    ] = "run",
    lines: Annotated[int, typer.Option(help="How many of the last lines.", min=1)] = 100,
    follow: Annotated[bool, typer.Option("--follow", help="Go on printing what comes, until Ctrl-C.")] = False,
) -> None:
    """Print the end of a log.

    SERVER is the coordinator's server.toml.
    """
    from isthmus.server.deploy.settings import load_server  # noqa: PLC0415 - not every command needs it
    from isthmus.supervision import LOGS  # noqa: PLC0415

    config = load_server(server)
    if part == "run":
        from isthmus.server.deploy.control import Control  # noqa: PLC0415 - takes a second to import

        with Control(config) as control:
            runs = control.runs()
            if not runs:
                raise RunError("there is no run yet; `isthmus server run federation.toml` starts one.")
            for piece in control.log(runs[0].id, follow=follow):
                _say("\n".join(piece.splitlines()[-lines:]))
        return
    file = config.state_folder / LOGS / f"{part}.log"
    if not file.exists():
        there = sorted(found.stem for found in file.parent.glob("*.log"))
        raise RunError(f"there is no log of {part!r}; there are: {', '.join(['run', *there])}.")
    for line in _lines(file, lines, follow=follow):
        _say(line)


def _lines(file: Path, last: int, *, follow: bool) -> Iterator[str]:
    """The last lines of a file, then those that are added to it."""
    with file.open(encoding="utf-8", errors="replace") as text:
        yield from text.read().splitlines()[-last:]
        while follow:
            line = text.readline()
            if line:
                yield line.rstrip("\n")
            else:
                time.sleep(_FOLLOW_SECONDS)


@server_app.command("stop", epilog="Example: isthmus server stop server.toml")
def stop(
    server: Annotated[Path, typer.Argument()] = _SERVER,
    run: Annotated[bool, typer.Option("--run", help="End the current run only; the server stays up.")] = False,
    as_json: Json = False,
) -> None:
    """End the coordinator, or only its current run; both go on where they were, with `up` and `run --resume`.

    SERVER is the coordinator's server.toml.
    """
    from isthmus.server.deploy.settings import load_server  # noqa: PLC0415 - not every command needs it
    from isthmus.server.deploy.status import stop_current_run, stop_server  # noqa: PLC0415

    config = load_server(server)
    ended = f"Flower run {stop_current_run(config)}" if run else f"process {stop_server(config)}"
    if as_json:
        stdout.print_json(json.dumps({"ended": ended}))
    else:
        _say(f"{ended} has ended")


@server_app.command("run", epilog="Example: isthmus server run isthmus-demo/federation.toml --rounds 2")
def run(  # noqa: PLR0913, PLR0917 - options
    federation: Annotated[Path, typer.Argument()],
    server: Server = _SERVER,
    rounds: Annotated[int | None, typer.Option(help="Rounds, instead of the file's.", min=1)] = None,
    seed: Annotated[
        int | None, typer.Option(help="Draw the first backbone from this seed. Such a run is NOT private.", min=0)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with this federation's latest run.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Start it and return; `status` and `log` show it.")] = False,
    as_json: Json = False,
) -> None:
    """Start a run on the coordinator that is up, and report each round; exit 2 if it does not come to its end.

    FEDERATION is a federation file; its domains are who is connected, not the folders that it names. Ctrl-C stops only
    the reporting: the run goes on.
    """
    from isthmus.server.deploy.runs import begin_run, resume_run  # noqa: PLC0415 - takes seconds to import
    from isthmus.server.deploy.settings import load_server  # noqa: PLC0415

    if resume and seed is not None:
        raise typer.BadParameter("a run that is resumed has its seed already", param_hint="--seed")
    config = load_server(server)
    if resume:
        started = resume_run(config, federation, rounds=rounds)
    else:
        started = begin_run(config, federation, rounds=rounds, seed=seed)
    stderr.print(f"run {started.run}: {started.rounds} rounds", markup=False, highlight=False)
    if started.seed >= 0:
        stderr.print("note: the run has a seed, so it is NOT private", markup=False, highlight=False)
    over = None if detach else _watch(config, started)
    report = {**asdict(started), "finished": None if over is None else over.round}
    if as_json:
        stdout.print_json(json.dumps(report))
    elif over is not None:
        _say(f"{started.run}: {over.round} of {started.rounds} rounds")
    if over is not None and (over.flower is None or over.flower.result != "completed"):
        why = (
            "Flower knows nothing of it any more"
            if over.flower is None
            else f"{over.flower.result}: {over.flower.details}"
        )
        raise RunError(f"run {started.run} ended in round {over.round} of {started.rounds}: {why}. `--resume` goes on.")


def _watch(config: "ServerConfig", run: "DeployedRun") -> "Progress":
    """Report each round as it is finished, until the run is over."""
    from isthmus.server.deploy.runs import progress_of  # noqa: PLC0415 - takes seconds to import

    shown: int | None = None
    while True:
        progress = progress_of(config, run)
        for record in progress.state.history if progress.state else ():
            if shown is not None and record.round > shown:
                words = ", ".join(f"{name} {outcome.status}" for name, outcome in record.outcomes.items())
                stderr.print(f"round {record.round} of {run.rounds}: {words}", markup=False, highlight=False)
        shown = progress.round
        if progress.over:
            return progress
        time.sleep(_WATCH_SECONDS)


@nodes_app.command("add", epilog="Example: isthmus server nodes add books --key books.pub")
def add(
    name: Annotated[str, typer.Argument()],
    key: Annotated[Path, typer.Option(help="The node's public key: the .pub file of `isthmus certs node`.")],
    server: Server = _SERVER,
    as_json: Json = False,
) -> None:
    """Let a business unit's node connect.

    NAME is what people call it.
    """
    from isthmus.server.deploy.control import Control  # noqa: PLC0415 - takes a second to import
    from isthmus.server.deploy.settings import load_server  # noqa: PLC0415

    with Control(load_server(server)) as control:
        node = control.add_node(name, key)
    if as_json:
        stdout.print_json(json.dumps(asdict(node)))
    else:
        _say(f"{node.name} may connect (Flower calls it {node.id})")


@nodes_app.command("list", epilog="Example: isthmus server nodes list --server server.toml")
def list_(server: Server = _SERVER, as_json: Json = False) -> None:
    """Print the nodes that may connect, and which are."""
    from isthmus.server.deploy.control import Control  # noqa: PLC0415 - takes a second to import
    from isthmus.server.deploy.settings import load_server  # noqa: PLC0415

    with Control(load_server(server)) as control:
        nodes = control.nodes()
    if as_json:
        stdout.print_json(json.dumps([asdict(node) for node in nodes]))
        return
    table = Table("name", "status", "Flower's id", "key", box=None)
    for node in nodes:
        table.add_row(node.name, node.status, str(node.id), f"…{node.key[-16:]}")
    stdout.print(table)


@nodes_app.command("remove", epilog="Example: isthmus server nodes remove books")
def remove(name: Annotated[str, typer.Argument()], server: Server = _SERVER) -> None:
    """Let a business unit's node in no more, from its next word on.

    NAME is the one it was added under. A key that was removed cannot be added again; the unit makes a new one.
    """
    from isthmus.server.deploy.control import Control  # noqa: PLC0415 - takes a second to import
    from isthmus.server.deploy.settings import load_server  # noqa: PLC0415

    with Control(load_server(server)) as control:
        node = control.remove_node(name)
    _say(f"{node.name} is not let in any more")
