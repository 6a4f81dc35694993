"""`isthmus vault` as the process that a business unit runs, for tests.

with running(folder, socket=tmp_path / "v.sock", seed=5, ledger=tmp_path / "ledger.db") as process:
    vault = process.remote()
"""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.commands import Command, begin

from isthmus.clients.remote import RemoteVault, remote_vault


@dataclass(kw_only=True)
class VaultProcess:
    """A running vault.

    Attributes:
        process: It.
        address: Where it listens.
        log: What it says on stderr.
        settings: A client's, for an address with TLS.
    """

    process: Command
    address: str
    log: Path
    settings: dict[str, str]

    def remote(self) -> RemoteVault:
        """A client's connection."""
        return remote_vault({"vault": self.address, **self.settings})

    def healthy(self) -> bool:
        """What gRPC's health service says."""
        with grpc.insecure_channel(self.address) as channel:
            try:
                said = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
            except grpc.RpcError:
                return False
            return bool(said.status == health_pb2.HealthCheckResponse.SERVING)

    def said(self) -> str:
        """All of its stderr so far."""
        return self.log.read_text(encoding="utf-8")

    def kill(self) -> None:
        """-9."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)


def start(*arguments: str, log: Path, cwd: Path | None = None) -> Command:
    """The command, as a process."""
    log.touch()
    return begin("vault", *arguments, err=log, cwd=cwd)


def wait_until_listening(process: Command, log: Path, *, since: int = 0) -> str:
    """The address that it says."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        text = log.read_text(encoding="utf-8")[since:]
        if "listening at " in text:
            return text.split("listening at ", 1)[1].split()[0]
        if process.poll() is not None:
            raise AssertionError(f"the vault ended with {process.returncode}: {text}")
        time.sleep(0.05)
    raise AssertionError(f"no vault after a minute: {log.read_text(encoding='utf-8')}")


@contextmanager
def running(folder: Path, *options: str, log: Path, settings: dict[str, str] | None = None) -> Iterator[VaultProcess]:
    """A vault that listens; ended at the end, if it has not ended by then."""
    since = len(log.read_text(encoding="utf-8")) if log.exists() else 0
    process = start(str(folder), *options, log=log)
    try:
        address = wait_until_listening(process, log, since=since)
        yield VaultProcess(process=process, address=address, log=log, settings=settings or {})
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
