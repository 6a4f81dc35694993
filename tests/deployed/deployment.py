"""A whole federation as real processes on this machine: the coordinator's programs, a vault and a node per domain.

    with Deployment(folder) as deployed:
        deployed.up(domains=2)
        deployed.join("books", folder_of_books)
        deployed.call("server", "run", "federation.toml")

Every process is started by the command that a person would type, over TLS with node authentication. Whatever still
runs at the end is stopped.
"""

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.commands import Command, begin
from tests.other_user import ROOT, as_user
from tests.server.deploy.conftest import new_server
from tests.server.deploy.running import below

from isthmus.errors import RunError
from isthmus.privacy.reading import Books, read_ledger
from isthmus.server.deploy.settings import ServerConfig

ISTHMUS = (sys.executable, "-c", "from isthmus.cli import main; main()")

_SELDOM = "\n[polling]\ntasks = 2.0\nreplies = 1.0\n"
"""Few looks: several coordinators run at a time, and most of what they do is look."""


@dataclass
class Deployment:
    """Processes, and the folder that they work in.

    Attributes:
        folder: Everybody may walk through it; what belongs to a domain is closed.
        processes: By what they are: `coordinator`, or a domain's name.
        config: Of the coordinator, once there is one.
    """

    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="isthmus-deployed-")))
    processes: dict[str, "subprocess.Popen[bytes] | Command"] = field(default_factory=dict)
    config: ServerConfig | None = None
    _said: dict[int, Path] = field(default_factory=dict)
    _count: Iterator[int] = field(default_factory=itertools.count)

    def __enter__(self) -> Self:
        self.folder.chmod(0o755)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in reversed(list(self.processes)):
            self.stop(name)
        shutil.rmtree(self.folder)

    @property
    def environment(self) -> dict[str, str]:
        """Of every process: this checkout, keys and caches of the test's own, nothing phones home."""
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("ISTHMUS_")},
            "PYTHONPATH": str(ROOT / "src"),
            "XDG_STATE_HOME": str(self.folder / "secrets"),
            "ISTHMUS_CACHE": str(self.folder / "cache"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "NO_COLOR": "1",
            "COLUMNS": "200",
        }

    def up(self, *, domains: int, extra: str = "") -> None:
        """Start the coordinator; returns when it says that it is up."""
        if self.config is None:
            self.config = new_server(self.folder / "coordinator", domains=domains, extra=extra + _SELDOM)
        self._start("coordinator", [*ISTHMUS, "server", "up"], self.config.folder, until="up; Ctrl-C")

    def invite(self, name: str) -> Path:
        """A kit."""
        self.call("invite", name)
        assert self.config is not None
        return self.config.folder / f"{name}.zip"

    def join(
        self,
        name: str,
        domain: Path,
        *options: str | Path,
        kit: Path | None = None,
        user: int | None = None,
        before: Sequence[str] = (),
    ) -> None:
        """Start a domain's vault and node, the node as another user if asked to; returns when both are ready.

        `before` are the words that put the command into another network.
        """
        kit = kit or self.invite(name)
        state = ("--state", str(self.folder / "units" / name))
        (self.folder / "units").mkdir(mode=0o755, exist_ok=True)
        before = [
            *before,
            *([] if user is None else as_user(0)),
        ]  # root still, where the interpreter is open to everybody
        as_other = () if user is None else ("--client-user", str(user))
        command = [*before, *ISTHMUS, "join", str(kit), str(domain), *state, *as_other, *map(str, options)]
        self._start(name, command, self.folder, until="takes part in")

    def call(self, *words: object, code: int = 0) -> str:
        """Run a command in the coordinator's folder to its end; what it says."""
        return self.ended(self.begin(*words), code=code)

    def begin(self, *words: object) -> Command:
        """Start a command in the coordinator's folder; `ended` waits for it."""
        assert self.config is not None
        said = self.folder / f"command-{next(self._count)}.log"
        said.touch()
        process = begin(*words, out=said, err=said, cwd=self.config.folder, environment=self.environment)
        self.processes[f"command {process.pid}"] = process
        self._said[process.pid] = said
        return process

    def ended(self, process: Command, *, code: int = 0) -> str:
        """Wait until a command has ended, with this exit code; what it said."""
        process.wait()
        said = self._said.pop(process.pid).read_text()
        del self.processes[f"command {process.pid}"]
        assert process.returncode == code, f"{process.args!r}: {process.returncode}\n{said}\n{self.logs()}"
        return said

    def pid(self, name: str, part: str) -> int:
        """Process id of one of the programs that a command keeps running."""
        found = next(one for one in self._noted(name)["parts"] if one["name"] == part)
        return int(found["pid"])

    def serverapp(self) -> int:
        """Process id of the run's ServerApp, which the SuperExec has started."""
        return next(
            pid
            for pid in below(self.pid("coordinator", "superexec"))
            if b"flwr-serverapp" in Path(f"/proc/{pid}/cmdline").read_bytes()
        )

    def kill(self, name: str, part: str | None = None) -> None:
        """As `kill -9` does: one program, or the command itself."""
        if part is not None:
            os.kill(self.pid(name, part), signal.SIGKILL)
            return
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def stop(self, name: str) -> int:
        """As SIGTERM does; the exit code."""
        process = self.processes.pop(name)
        process.terminate()
        try:
            return process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def books(self, domain: Path) -> Books:
        """A domain's ledger, as an auditor reads it."""
        return read_ledger(domain / "ledger.db")

    def logs(self) -> str:
        """The end of every log, for a test that fails."""
        found = [
            *self.folder.glob("*.log"),
            *self.folder.glob("*/state/logs/*.log"),
            *self.folder.glob("units/*/logs/*"),
        ]
        return "\n".join(f"== {log}\n" + "\n".join(log.read_text().splitlines()[-15:]) for log in found)

    def _noted(self, name: str) -> dict[str, Any]:
        assert self.config is not None
        state = self.config.state_folder if name == "coordinator" else self.folder / "units" / name
        noted: dict[str, Any] = json.loads((state / "up.json").read_text())
        return noted

    def _start(self, name: str, command: list[str], cwd: Path, *, until: str) -> None:
        log = self.folder / f"{name}.log"
        since = log.stat().st_size if log.exists() else 0
        with log.open("ab") as said:
            self.processes[name] = subprocess.Popen(command, cwd=cwd, env=self.environment, stdout=said, stderr=said)
        eventually(
            lambda: until in log.read_text()[since:] or self.processes[name].poll() is not None, 120, f"{name} is up"
        )
        assert until in log.read_text()[since:], self.logs()


def eventually(happens: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait until something is so; a coordinator that does not answer for a while is no answer."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(OSError, StopIteration, ValueError, TypeError, RunError):
            if happens():
                return
        time.sleep(0.25)
    raise AssertionError(f"not after {seconds:g} s: {what}")
