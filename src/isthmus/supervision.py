"""Keep some programs running until told to stop, and leave none of them behind.

    supervise(lambda: [Part(...), ...], state=Path("state"), started=print_listening)   # until SIGTERM or Ctrl-C

A program that dies is started again, later each time; one that keeps dying ends the whole. If the supervisor itself
is killed, its programs die with it (see `isthmus.tether`), and the next `supervise` finds its state where it was.
SIGHUP starts the programs that hold certificates again. `python -m isthmus.supervision FOLDER` exits with 0 where the
programs of a state folder are all running.
"""

import contextlib
import fcntl
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO

from isthmus.durable import write_durably
from isthmus.errors import RunError

_LOG = logging.getLogger(__name__)

_TICK = 0.1  # seconds between two looks at the programs
_READY_SECONDS = 120.0  # that a program may take until it is ready, on a busy machine
_STOP_SECONDS = 10.0  # between being asked to end and being killed
_LONGEST_STOP = 60.0  # seconds, of all of them
_FIRST_DELAY = 0.5  # seconds before a program that died is started again; doubles each time
_SETTLED = 60.0  # seconds after which a program counts as healthy again
_LOG_BYTES = 20_000_000  # above which a log is put aside when its program is started

OPEN = re.compile(r"PATH|LANG|LC_\w+|TZ|TMPDIR|LD_\w+|PYTHON\w+|FLWR_\w+|SSL_CERT_\w+|(https?|no)_proxy", re.IGNORECASE)
"""Variables that a program of another user inherits: of the others, one may be the passphrase of the ledger's key."""

STATE, LOCK, LOGS = "up.json", "up.lock", "logs"
OWN_LOG = "supervisor.log"
"""Of whoever watches, among the logs of what is watched."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One program.

    Attributes:
        name: Of the part.
        command: Program and arguments; it runs in the state folder.
        listening: Where, and for whom, for people to read.
        ready: Whether it answers as it should.
        environment: Variables that it gets besides this process's own; another user's program gets `OPEN` of these.
        files: Most files and connections that it may have open; 0 for no limit of ours.
        reload: Whether SIGHUP starts it again, for what it read when it started.
        user: Ids of the user and the group that it runs as; this process's where absent.
        most_deaths: In a row, after which it is started again; one more ends the whole.
        longest_delay: Before it is started again, in seconds.
    """

    name: str
    command: tuple[str, ...]
    listening: str
    ready: Callable[[], bool]
    environment: Mapping[str, str] = field(default_factory=dict)
    files: int = 0
    reload: bool = False
    user: tuple[int, int] | None = None
    most_deaths: int = 8
    longest_delay: float = 30.0


@dataclass
class _Child:
    """A part, and the process that is running it at the moment."""

    part: Part
    log: Path
    process: "subprocess.Popen[bytes] | None" = None
    started: float = 0.0  # seconds, of the monotonic clock
    due: float = 0.0
    deaths: int = 0  # in a row
    restarts: int = 0

    def start(self) -> None:
        """Start the process, tethered to this one; its output goes to the end of its log."""
        if self.log.exists() and self.log.stat().st_size > _LOG_BYTES:
            self.log.replace(self.log.with_name(self.log.name + ".1"))
        inherited = {name: text for name, text in os.environ.items() if self.part.user is None or OPEN.fullmatch(name)}
        tether = (sys.executable, "-m", "isthmus.tether", str(os.getpid()), str(self.part.files))
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(  # noqa: S603 - our own command
                (*tether, *self.part.command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**inherited, **self.part.environment},
                user=self.part.user and self.part.user[0],
                group=self.part.user and self.part.user[1],
                extra_groups=None if self.part.user is None else [],
                cwd=self.log.parent.parent,  # the state folder: paths that every node sees are relative to it
                start_new_session=True,  # Ctrl-C is for the supervisor, which ends them in order
            )
        self.started = time.monotonic()
        _LOG.info("%s: started, process %d", self.part.name, self.process.pid)

    def stop(self) -> None:
        """End the process and whatever it has started; returns when it is gone."""
        if self.process is None:
            return
        group = self.process.pid
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                _LOG.warning("%s: did not end in %g s and is killed", self.part.name, _STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        self.process.wait()


@dataclass
class _Signals:
    """What the supervisor was told from outside."""

    stop: bool = False
    reload: bool = False

    def __call__(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self.reload = True
        else:
            self.stop = True


def supervise(make: Callable[[], Sequence[Part]], *, state: Path, started: Callable[[Sequence[Part]], None]) -> None:
    """Run programs until SIGTERM or Ctrl-C.

    Args:
        make: The programs, asked for once the state folder is held; each is started when the one before is ready, and
            they are ended in the other order.
        state: Folder of logs, and of what says that they are running.
        started: Called once, when every program is ready.

    Raises:
        RunError: If they are running already, or one does not come up or keeps dying.
    """
    with alone(state):
        (state / LOGS).mkdir(exist_ok=True)
        children = [_Child(part, state / LOGS / f"{part.name}.log") for part in make()]
        signals = _Signals()
        before = {number: signal.signal(number, signals) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
        try:
            for child in children:
                _bring_up(child, signals)
            if not signals.stop:
                _note(state, children)
                started([child.part for child in children])
            while not signals.stop:
                _look_after(children, signals, lambda: _note(state, children))
                time.sleep(_TICK)
        finally:
            for child in reversed(children):
                child.stop()
            (state / STATE).unlink(missing_ok=True)
            for number, handler in before.items():
                signal.signal(number, handler)
            _LOG.info("ended")


def _bring_up(child: _Child, signals: _Signals) -> None:
    """Start a program and wait until it is ready."""
    child.start()
    deadline = time.monotonic() + _READY_SECONDS
    while not signals.stop:
        assert child.process is not None  # noqa: S101 - just started
        code = child.process.poll()
        if code is not None:
            raise RunError(f"{child.part.name} ended at once with code {code}. The end of {child.log}:\n{_end(child)}")
        if child.part.ready():
            _LOG.info("%s: ready after %.1f s", child.part.name, time.monotonic() - child.started)
            return
        if time.monotonic() > deadline:
            raise RunError(
                f"{child.part.name} was not ready after {_READY_SECONDS:g} s. The end of {child.log}:\n{_end(child)}"
            )
        time.sleep(_TICK)


def _look_after(children: Sequence[_Child], signals: _Signals, note: Callable[[], None]) -> None:
    """Start again what died, when its time has come."""
    if signals.reload:
        signals.reload = False
        _LOG.info("told to start again what holds certificates")
        for child in children:
            if child.part.reload:
                child.stop()
                child.start()
                child.restarts += 1
        note()
    now = time.monotonic()
    for child in children:
        if child.process is not None:
            code = child.process.poll()
            if code is None:
                if child.deaths and now - child.started > _SETTLED:
                    child.deaths = 0
                continue
            child.stop()  # what it started and left behind
            child.process = None
            child.deaths += 1
            if child.deaths > child.part.most_deaths:
                raise RunError(
                    f"{child.part.name} died {child.deaths} times in a row, the last time with code {code}. The end of "
                    f"{child.log}:\n{_end(child)}"
                )
            delay = min(_FIRST_DELAY * 2 ** (child.deaths - 1), child.part.longest_delay)
            child.due = now + delay
            _LOG.warning("%s: ended with code %d; starting it again in %.1f s", child.part.name, code, delay)
            note()
        elif now >= child.due:
            child.start()
            child.restarts += 1
            note()


def _note(state: Path, children: Sequence[_Child]) -> None:
    """Write down what is running, for whoever asks for its status."""
    parts = [
        {
            "name": child.part.name,
            "pid": None if child.process is None else child.process.pid,
            "restarts": child.restarts,
            "listening": child.part.listening,
        }
        for child in children
    ]
    write_durably(state / STATE, json.dumps({"pid": os.getpid(), "parts": parts}, indent=1).encode())


@contextlib.contextmanager
def alone(state: Path) -> Iterator[None]:
    """Hold a state folder, so that nobody else uses it; the lock ends with the process, however it ends.

    Raises:
        RunError: If another process holds it.
    """
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (state / LOCK).open("a+", encoding="ascii") as file:
        if not try_lock(file):
            raise RunError(f"{state} is in use: what runs there is process {running_pid(state)}; stop it first")
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def stop(state: Path) -> bool:
    """Tell whoever holds a state folder to end, and wait until it has; False if nobody does.

    Raises:
        RunError: If it does not end.
    """
    pid = running_pid(state)
    if pid is None:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + _LONGEST_STOP
    while running_pid(state) == pid:
        if time.monotonic() > until:
            raise RunError(f"{state}: process {pid} did not end in {_LONGEST_STOP:g} s; look at its log")
        time.sleep(_TICK)
    return True


def try_lock(file: IO[str]) -> bool:
    """Take the lock of a server, if nobody has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def running_pid(state: Path) -> int | None:
    """Process id of whoever holds a state folder, if one does."""
    try:
        with (state / LOCK).open("r+", encoding="ascii") as file:
            return None if try_lock(file) else int(file.read() or 0) or None
    except FileNotFoundError:
        return None


def free_port() -> int:
    """A port of loopback that nobody listens on, at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def find_program(name: str) -> str:
    """A program that comes with a package: beside this interpreter, or on the path.

    Raises:
        RunError: If it is not there.
    """
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise RunError(f"{name} is not installed beside isthmus; it comes with flwr. `pip install isthmus` again.")
    return found


def all_running(state: Path) -> bool:
    """Whether somebody holds a state folder, and every program in it has a process."""
    try:
        parts = json.loads((state / STATE).read_text(encoding="utf-8"))["parts"]
    except (OSError, ValueError, KeyError):
        return False
    return running_pid(state) is not None and all(part["pid"] is not None for part in parts)


def _end(child: _Child, lines: int = 8) -> str:
    """The last lines of a program's log."""
    try:
        text = child.log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


if __name__ == "__main__":
    sys.exit(0 if all_running(Path(sys.argv[1])) else 1)
