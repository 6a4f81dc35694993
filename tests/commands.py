"""`isthmus` in a process of its own that does not import for seconds what all of them import.

    done = run("simulate", file, "--out", out)        # as subprocess.run does
    process = begin("vault", folder, err=log)         # as subprocess.Popen does
    process.kill()

One process per test worker has imported it; each command is forked from that one before anything has been computed, so
nothing but modules is shared. Who tests what happens in a fresh interpreter starts one.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

_FORKED = multiprocessing.get_context("forkserver")
_FORKED.set_forkserver_preload(
    ["isthmus.cli.main", "isthmus.simulation.run", "isthmus.clients.vault", "isthmus.report.page", "torch._dynamo"]
)


@dataclass(frozen=True)
class Command:
    """A command that was started, with the methods of `subprocess.Popen`."""

    process: ForkServerProcess
    args: tuple[str, ...]

    @property
    def pid(self) -> int:
        """Process id."""
        assert self.process.pid is not None
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        """Exit code; negative for a signal; None while it runs."""
        return self.process.exitcode

    def poll(self) -> int | None:
        """As `returncode`."""
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end.

        Raises:
            TimeoutExpired: If it still runs then.
        """
        self.process.join(timeout)
        code = self.process.exitcode
        if code is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        return code

    def send_signal(self, number: int) -> None:
        """Unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.process.terminate()

    def kill(self) -> None:
        """-9."""
        self.process.kill()


def begin(
    *words: object,
    out: Path | None = None,
    err: Path | None = None,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Command:
    """Start a command.

    Args:
        words: Its arguments.
        out: What it prints is added to this file; it goes nowhere when absent.
        err: The same for stderr.
        cwd: Where it runs.
        environment: Its variables; the test's own when absent.
    """
    args = tuple(map(str, words))
    where = (os.fspath(out or os.devnull), os.fspath(err or os.devnull), os.fspath(cwd or Path.cwd()))
    variables = {**(os.environ if environment is None else environment), "NO_COLOR": "1"}
    process = _FORKED.Process(target=_main, args=(args, *where, variables))
    process.start()
    return Command(process, args)


def run(*words: object, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        command = begin(*words, out=out, err=err, cwd=cwd)
        code = command.wait()
        return subprocess.CompletedProcess(command.args, code, out.read_text(), err.read_text())


def _main(args: tuple[str, ...], out: str, err: str, cwd: str, environment: Mapping[str, str]) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in ((1, out), (2, err)):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(opened, number)
        os.close(opened)
    sys.argv = ["isthmus", *args]
    from isthmus.cli import main  # noqa: PLC0415 - imported long ago

    main()
