"""Keep a coordinator's programs running until it is told to stop, and leave none of them behind.

    supervise(config, started=print_listening)      # returns after SIGTERM or Ctrl-C

A program that dies is started again, later each time; one that keeps dying ends the whole. If the supervisor itself
is killed, its programs die with it (see `tether`), and the next `supervise` finds its state where it was.
SIGHUP starts the programs that hold certificates again.
"""

import contextlib
import fcntl
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO

from isthmus.durable import write_durably
from isthmus.errors import RunError
from isthmus.server.deploy.certs import check_certificates
from isthmus.server.deploy.parts import Part, parts_of, prepare_state
from isthmus.server.deploy.settings import ServerConfig

_LOG = logging.getLogger(__name__)

_TICK = 0.1  # seconds between two looks at the programs
_READY_SECONDS = 120.0  # that a program may take until it is ready, on a busy machine
_STOP_SECONDS = 10.0  # between being asked to end and being killed
_FIRST_DELAY, _LONGEST_DELAY = 0.5, 30.0  # seconds before a program that died is started again; doubles each time
_SETTLED = 60.0  # seconds after which a program counts as healthy again
_MOST_DEATHS = 8  # in a row
_LOG_BYTES = 20_000_000  # above which a log is put aside when its program is started

STATE, LOCK = "server.json", "up.lock"


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
    last_words: list[str] = field(default_factory=list)

    def start(self) -> None:
        """Start the process, tethered to this one; its output goes to the end of its log."""
        if self.log.exists() and self.log.stat().st_size > _LOG_BYTES:
            self.log.replace(self.log.with_name(self.log.name + ".1"))
        tether = (sys.executable, "-m", "isthmus.server.deploy.tether", str(os.getpid()), str(self.part.files))
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(  # noqa: S603 - our own command
                (*tether, *self.part.command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.part.environment},
                cwd=self.log.parent.parent,  # a run's paths, which every node sees, are relative to the state folder
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


def supervise(config: ServerConfig, started: Callable[[Sequence[Part]], None]) -> None:
    """Run a coordinator until SIGTERM or Ctrl-C.

    Args:
        config: Of the server.
        started: Called once, when every program is ready.

    Raises:
        ConfigError: If the certificates cannot be used.
        RunError: If the server is up already, a port is taken, or a program does not come up or keeps dying.
    """
    state, logs = config.state_folder, logs_folder(config)
    with _alone(state):
        certificate = check_certificates(config.certificates_folder, config.address)
        _LOG.info("the server's certificate ends on %s", f"{certificate.expires:%Y-%m-%d}")
        _check_port("127.0.0.1", config.loopback_port, "loopback_port")
        _check_port(config.bind, config.port, "port")
        prepare_state(config)
        health_port = _free_port()
        children = [_Child(part, logs / f"{part.name}.log") for part in parts_of(config, health_port)]
        signals = _Signals()
        before = {number: signal.signal(number, signals) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
        try:
            for child in children:
                _bring_up(child, signals)
            if not signals.stop:
                _note(state, health_port, children)
                started([child.part for child in children])
            while not signals.stop:
                _look_after(children, signals, lambda: _note(state, health_port, children))
                time.sleep(_TICK)
        finally:
            # The SuperExec goes before the SuperLink, so that a run that is stopped can still say so.
            for name in ("proxy", "superexec", "superlink"):
                next(child for child in children if child.part.name == name).stop()
            (state / STATE).unlink(missing_ok=True)
            for number, handler in before.items():
                signal.signal(number, handler)
            _LOG.info("ended")


def logs_folder(config: ServerConfig) -> Path:
    """Where the programs' words go; made, with the state folder, if absent, and for nobody else to read."""
    config.state_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder = config.state_folder / "logs"
    folder.mkdir(exist_ok=True)
    return folder


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
            if child.part.name in {"superlink", "proxy"}:
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
            if child.deaths > _MOST_DEATHS:
                raise RunError(
                    f"{child.part.name} died {child.deaths} times in a row, the last time with code {code}. The end of "
                    f"{child.log}:\n{_end(child)}"
                )
            delay = min(_FIRST_DELAY * 2 ** (child.deaths - 1), _LONGEST_DELAY)
            child.due = now + delay
            _LOG.warning("%s: ended with code %d; starting it again in %.1f s", child.part.name, code, delay)
            note()
        elif now >= child.due:
            child.start()
            child.restarts += 1
            note()


def _note(state: Path, health_port: int, children: Sequence[_Child]) -> None:
    """Write down what is running, for `isthmus server status`."""
    parts = [
        {
            "name": child.part.name,
            "pid": None if child.process is None else child.process.pid,
            "restarts": child.restarts,
            "listening": child.part.listening,
        }
        for child in children
    ]
    write_durably(
        state / STATE, json.dumps({"pid": os.getpid(), "health_port": health_port, "parts": parts}, indent=1).encode()
    )


@contextlib.contextmanager
def _alone(state: Path) -> Iterator[None]:
    """Hold the state folder, so that no second server uses it; the lock ends with the process, however it ends."""
    with (state / LOCK).open("a+", encoding="ascii") as file:
        if not try_lock(file):
            raise RunError(
                f"a server is up with {state} already. `isthmus server status` shows it, `isthmus server stop` ends it."
            )
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def try_lock(file: IO[str]) -> bool:
    """Take the lock of a server, if nobody has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def running_pid(state: Path) -> int | None:
    """Process id of the supervisor that holds a state folder, if one does."""
    try:
        with (state / LOCK).open("r+", encoding="ascii") as file:
            return None if try_lock(file) else int(file.read() or 0) or None
    except FileNotFoundError:
        return None


def _check_port(host: str, port: int, key: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        raise RunError(
            f"`{key}` = {port} on {host} cannot be used: {error.strerror}. End what listens there (`ss -ltnp`), or "
            f"change server.toml."
        ) from None


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _end(child: _Child, lines: int = 8) -> str:
    """The last lines of a program's log."""
    try:
        text = child.log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])
