"""A coordinator that is really running: the command line in a process of its own, its programs below it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests import commands

from isthmus.server.deploy.control import Control
from isthmus.server.deploy.settings import ServerConfig

ISTHMUS = (sys.executable, "-c", "from isthmus.cli import main; main()")


def call(folder: Path, *words: object, code: int = 0) -> str:
    """Call `isthmus` in a folder; returns what it printed, or what it said where it failed as expected."""
    done = commands.run(*words, cwd=folder)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stdout + done.stderr


def status(folder: Path, *, well: bool = True) -> dict[str, Any]:
    """What `isthmus server status` says."""
    found: dict[str, Any] = json.loads(call(folder, "server", "status", "--json", code=0 if well else 1))
    return found


def online(config: ServerConfig) -> set[str]:
    """Names of the nodes that are connected."""
    with Control(config) as control:
        return {node.name for node in control.nodes() if node.status == "online"}


def eventually(holds: Callable[[], bool], seconds: float = 60, what: str = "") -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not after {seconds:g} s: {what}"
        time.sleep(0.25)


def alive(pid: int) -> bool:
    """Whether a process is running."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split(maxsplit=1)[0] != "Z"
    except FileNotFoundError:
        return False


def below(pid: int) -> set[int]:
    """Every process that a process has started, and they."""
    children: dict[int, set[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            parent = int(entry.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, set()).add(int(entry.parent.name))
    found: set[int] = set()
    pending = {pid}
    while pending:
        new = children.get(pending.pop(), set()) - found
        found |= new
        pending |= new
    return found


class Up:
    """`isthmus server up` in a folder with a server.toml."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [*ISTHMUS, "server", "up"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.printed = []
        for line in self.process.stdout:
            self.printed.append(line)
            if line.startswith("up;"):
                return
        pytest.fail(self.process.communicate()[1])

    @property
    def processes(self) -> set[int]:
        """The supervisor, and everything that it or its programs have started."""
        return {self.process.pid, *below(self.process.pid)}

    def part(self, name: str) -> dict[str, Any]:
        """One program, as the status says."""
        found: dict[str, Any] = next(
            part
            for part in json.loads((self.folder / "state" / "up.json").read_text())["parts"]
            if part["name"] == name
        )
        return found

    def end(self) -> int:
        """Ask it to end; returns its exit code."""
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=60)
        return self.process.returncode

    def kill(self) -> None:
        """As `kill -9` does."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.communicate(timeout=60)


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Up]:
    """A coordinator that is up; it has ended afterwards, whatever happens."""
    up = Up(folder)
    try:
        yield up
    finally:
        if up.process.poll() is None:
            up.end()
        elif up.process.stdout is not None and not up.process.stdout.closed:
            up.process.communicate()
