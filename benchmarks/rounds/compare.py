"""Seconds and CPU-seconds of a deployed round with nothing to train, beside stock Flower.

    python benchmarks/rounds/compare.py --reps 3

Two nodes, 1M parameters each way, TLS and node authentication, everything on this machine. `stock` is Flower's
SuperLink and SuperNodes as they come, and `Grid.send_and_receive`; `isthmus` is `isthmus server up` with its proxy, the
node that `isthmus join` starts, and the exchange of its round loop. Both run the same ClientApp and the same FedAvg
(`trivial_app.py`) and are up at the same time; runs of six rounds take turns. A round's time is the median over all
rounds but the first of each run; CPU-seconds are those of every process of a side, over all rounds of a run. The bar is
wall time at most 0.8 times stock's, the aim 0.5. Bytes are what the parameters take, each way and node.
"""

import argparse
import datetime as dt
import hashlib
import itertools
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from flwr.cli.build import build_fab_from_files

from isthmus.server.deploy.bundle import Bundle
from isthmus.server.deploy.certs import make_certificates, make_node_key
from isthmus.server.deploy.control import Control
from isthmus.server.deploy.settings import ServerConfig, load_server, write_server
from isthmus.supervision import find_program, free_port

HERE = Path(__file__).resolve().parent
ROUNDS = 6
BAR, AIM = 0.8, 0.5
_PYPROJECT = """[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "trivial"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "bench"
[tool.flwr.app.components]
serverapp = "trivial_app:app"
clientapp = "trivial_app:client"
[tool.flwr.app.config]
times = ""
rounds = 0
poll = 0.0
"""


@dataclass
class Side:
    """One way to run the apps.

    Attributes:
        name: Shown in the table.
        config: Of its coordinator.
        poll: Seconds between two looks for replies; 0 for Flower's own exchange.
        processes: Of all its parts.
        rounds: Seconds of every round that counts.
        cpu: CPU-seconds a round, of each run.
    """

    name: str
    config: ServerConfig
    poll: float
    processes: "list[subprocess.Popen[bytes]]"
    rounds: list[float]
    cpu: list[float]


def main() -> int:
    """Parse, measure, print; exit code 1 where the bar is missed."""
    parser = argparse.ArgumentParser(
        description="A deployed round with nothing to train, beside stock Flower.",
        epilog="Example: python benchmarks/rounds/compare.py --reps 3",
    )
    parser.add_argument("--reps", type=int, default=3, help="runs of each side (default: 3)")
    parser.add_argument("--out", type=Path, default=HERE.parent / "ROUNDS.md", help="file of the table")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="isthmus-rounds-") as folder, both(Path(folder)) as sides:
        for rep in range(arguments.reps):
            for side in sides:
                measure(side, Path(folder) / f"{side.name}-{rep}.times")
                print(f"{rep + 1}/{arguments.reps} {side.name}: {side.rounds[-1]:.2f} s", file=sys.stderr, flush=True)
    text, ratio = page(*sides)
    arguments.out.write_text(text, encoding="utf-8")
    print(text)
    return 0 if ratio <= BAR else 1


def page(stock: Side, ours: Side) -> tuple[str, float]:
    """The table as a page, and wall time against stock's."""
    lines = [
        "# A deployed round with nothing to train",
        "",
        "Two nodes, 1M parameters (4 MB each way and node), TLS and node authentication, everything on one machine;",
        f"runs of {ROUNDS} rounds that take turns, {len(ours.cpu)} of each side; medians over all but the first round.",
        "",
        f"{dt.datetime.now(dt.UTC):%Y-%m-%d}, {platform.machine()}, {os.cpu_count()} cores,",
        f"load {os.getloadavg()[0]:.1f} at the end,",
        f"Python {platform.python_version()}, flwr {metadata.version('flwr')}.",
        "",
        "| side | s a round | range | of stock | CPU-s a round |",
        "|---|---|---|---|---|",
    ]
    base = statistics.median(stock.rounds)
    for side in (stock, ours):
        median, low, high = statistics.median(side.rounds), min(side.rounds), max(side.rounds)
        cpu = statistics.median(side.cpu)
        lines.append(f"| {side.name} | {median:.2f} | {low:.2f} to {high:.2f} | {median / base:.2f} | {cpu:.2f} |")
    ratio = statistics.median(ours.rounds) / base
    met = {True: "met", False: "missed"}
    lines += [
        "",
        f"Bar, at most {BAR} of stock's time: **{met[ratio <= BAR]}**. Aim, {AIM}: {met[ratio <= AIM]}. The proxy and",
        "the more frequent looks cost CPU time; most of what is left is starting a client process for each message.",
        "",
        "Made by `python benchmarks/rounds/compare.py` (or `make bench`), which says what each side is.",
        "",
    ]
    return "\n".join(lines), ratio


@contextmanager
def both(folder: Path) -> Iterator[tuple[Side, Side]]:
    """Both coordinators, each with two nodes that are connected."""
    sides = []
    try:
        for name, poll in (("stock", 0.0), ("isthmus", 0.1)):
            config = new_server(folder / name)
            side = Side(name, config, poll, [], [], [])
            sides.append(side)
            start(side)
        yield sides[0], sides[1]
    finally:
        for side in sides:
            for process in reversed(side.processes):
                process.terminate()
            for process in side.processes:
                process.wait()


def new_server(folder: Path) -> ServerConfig:
    """A coordinator on free ports of loopback."""
    make_certificates(folder / "certs", ["localhost"])
    file, ports = folder / "server.toml", (free_port(), free_port())
    write_server(
        file,
        address="localhost",
        bind="127.0.0.1",
        port=ports[0],
        loopback_port=ports[1],
        certificates="certs",
        domains=2,
    )
    with file.open("a", encoding="utf-8") as end:
        end.write("\n[polling]\ntasks = 0.25\nreplies = 0.1\n")
    return load_server(file)


def start(side: Side) -> None:
    """Coordinator, then nodes; returns when both are online."""
    config, folder, certs = side.config, side.config.folder, side.config.certificates_folder
    python = (sys.executable, "-c", "from isthmus.cli import main; main()")
    if side.name == "stock":
        coordinator = (
            *(find_program("flower-superlink"), "--host", "127.0.0.1", "--port", str(config.loopback_port)),
            *("--ssl-ca-certfile", str(certs / "ca.crt"), "--ssl-certfile", str(certs / "server.crt")),
            *("--ssl-keyfile", str(certs / "server.key"), "--enable-supernode-auth"),
        )
        address, node, more = config.superlink, (find_program("flower-supernode"),), {}
    else:
        coordinator = (*python, "server", "up")
        address, node = config.public, (sys.executable, "-m", "isthmus.clients.node")
        more = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.25"}
    launch(side, "coordinator", coordinator, {})
    retry(lambda: Control(config).nodes(), 60)
    for name in ("one", "two"):
        make_node_key(folder / name)
        with Control(config) as control:
            control.add_node(name, folder / f"{name}.pub")
        launch(
            side,
            name,
            (
                *(*node, "--superlink", address, "--root-certificates", str(certs / "ca.crt")),
                *("--auth-supernode-private-key", str(folder / f"{name}.key"), "--port", str(free_port())),
            ),
            more,
        )
    retry(lambda: online(config), 60)


def online(config: ServerConfig) -> None:
    with Control(config) as control:
        if sum(node.status == "online" for node in control.nodes()) != 2:
            raise RuntimeError("not yet")


def launch(side: Side, name: str, command: tuple[str, ...], more: Mapping[str, str]) -> None:
    """A program of one side, its words in a file beside it."""
    environment = {
        **os.environ,
        **more,
        "FLWR_HOME": str(side.config.folder / f"{name}-home"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "XDG_STATE_HOME": str(side.config.folder / "secrets"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    with (side.config.folder / f"{name}.log").open("ab") as log:
        side.processes.append(
            subprocess.Popen(command, cwd=side.config.folder, env=environment, stdout=log, stderr=log)
        )


def measure(side: Side, times: Path) -> None:
    """One run of six rounds."""
    code = (HERE / "trivial_app.py").read_bytes()
    content, _ = build_fab_from_files({"pyproject.toml": _PYPROJECT.encode(), "trivial_app.py": code})
    bundle = Bundle(content=content, digest=hashlib.sha256(content).hexdigest())
    before = cpu_seconds(side)
    with Control(side.config) as control:
        run = control.start_run(bundle, {"times": str(times), "rounds": ROUNDS, "poll": side.poll})
        while not (found := next(one for one in control.runs() if one.id == run)).over:
            time.sleep(0.5)
        if found.result != "completed":
            raise RuntimeError(f"{side.name}: {found.result}: {found.details}")
    ends = [float(line) for line in times.read_text().split()]
    side.rounds += [later - earlier for earlier, later in itertools.pairwise(ends)]
    side.cpu.append((cpu_seconds(side) - before) / ROUNDS)


def cpu_seconds(side: Side) -> float:
    """Of all processes of a side, and of the ones that have ended and were waited for."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.name)], ticks[int(entry.name)] = int(fields[1]), sum(map(int, fields[11:15]))
    mine = {process.pid for process in side.processes}
    while more := {pid for pid, parent in parents.items() if parent in mine} - mine:
        mine |= more
    return sum(ticks.get(pid, 0) for pid in mine) / os.sysconf("SC_CLK_TCK")


def retry(happens: Callable[[], object], seconds: float) -> None:
    """Until it raises nothing."""
    until = time.monotonic() + seconds
    while True:
        try:
            happens()
        except Exception:
            if time.monotonic() > until:
                raise
            time.sleep(0.3)
        else:
            return


if __name__ == "__main__":
    sys.exit(main())
