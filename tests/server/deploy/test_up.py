"""`isthmus server up`: everything comes up, is watched, and is gone when it is over, however it ends."""

import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest
from tests.server.deploy.conftest import free_ports, new_server
from tests.server.deploy.running import Up, alive, call, eventually, running, status

from isthmus.server.deploy.certs import renew_server

pytestmark = pytest.mark.slow

_LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}  # as the kernel prints
PARTS = ("superlink", "superexec", "proxy")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A coordinator's folder; the tests use it one after the other, as a coordinator lives on."""
    folder = tmp_path_factory.mktemp("coordinator")
    new_server(folder)
    return folder


def test_it_says_what_listens_where_and_ends_everything(folder: Path) -> None:
    """On SIGTERM: exit code 0, and no process is left."""
    with running(folder) as up:
        printed = "".join(up.printed)
        assert [line.split()[0] for line in up.printed] == [*PARTS, "up;"]
        assert "POST /v1/fleet/NAME, nothing else" in printed
        found = status(folder)
        assert found["well"]
        assert [part["name"] for part in found["parts"]] == list(PARTS)
        processes = up.processes
        assert len(processes) == 4
        assert up.end() == 0
        assert not any(map(alive, processes))
    assert status(folder, well=False)["pid"] is None
    assert sorted(path.name for path in (folder / "state" / "logs").glob("*.log")) == [
        "proxy.log",
        "superexec.log",
        "superlink.log",
        "supervisor.log",
    ]


def test_a_second_server_on_the_same_state_is_refused(folder: Path) -> None:
    """It would write to the same database; `stop` ends the first one."""
    with running(folder) as up:
        assert "is in use: what runs there is process" in call(folder, "server", "up", code=2)
        assert "has ended" in call(folder, "server", "stop")
        up.process.communicate(timeout=30)
        assert up.process.returncode == 0
    assert "no server is up" in call(folder, "server", "stop", code=2)


def test_a_program_that_dies_is_started_again(folder: Path) -> None:
    """Each of them, after `kill -9`; the restart is counted and logged."""
    with running(folder) as up:
        before = {name: up.part(name)["pid"] for name in PARTS}
        for pid in before.values():
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: all(up.part(name)["restarts"] == 1 for name in PARTS), what="restarts")
        eventually(lambda: _well(folder), what="ready again")
        assert all(up.part(name)["pid"] != pid for name, pid in before.items())
    log = call(folder, "server", "log", "--part", "supervisor")
    assert "superlink: ended with code -9; starting it again in 0.5 s" in log


def test_nothing_outlives_a_killed_supervisor_and_the_next_one_finds_the_state(folder: Path, tmp_path: Path) -> None:
    """`kill -9` of the supervisor, and then of everything: nodes and secrets are still there."""
    call(tmp_path, "certs", "node", "books")
    with running(folder) as up:
        call(folder, "server", "nodes", "add", "books", "--key", tmp_path / "books.pub")
        secret = (folder / "state" / "superexec.secret").read_bytes()
        processes = up.processes
        up.kill()
        eventually(lambda: not any(map(alive, processes)), 10, "everything is gone")
    with running(folder) as up:
        for pid in up.processes - {up.process.pid}:
            os.kill(pid, signal.SIGKILL)
        up.kill()
    with running(folder):
        found = status(folder)
        assert found["well"]
        assert [node["name"] for node in found["nodes"]] == ["books"]
        assert (folder / "state" / "superexec.secret").read_bytes() == secret
        call(folder, "server", "nodes", "remove", "books")
        assert status(folder)["nodes"] == []


def test_secrets_can_be_read_by_their_owner_only(folder: Path) -> None:
    """What lets a process claim work, and the folder of all state."""
    assert (folder / "state" / "superexec.secret").stat().st_mode & 0o777 == 0o600
    assert (folder / "state").stat().st_mode & 0o077 == 0


def test_new_certificates_are_taken_into_use_on_sighup(folder: Path) -> None:
    """The public port shows the new one; the supervisor goes on."""
    with running(folder) as up:
        pid = up.part("superexec")["pid"]
        renew_server(folder / "certs")
        up.process.send_signal(signal.SIGHUP)
        eventually(lambda: up.part("proxy")["restarts"] == 1, what="restart")
        eventually(lambda: _well(folder), what="ready with the new certificate")
        assert up.part("superexec")["pid"] == pid


def test_only_the_proxy_can_be_reached_from_outside(tmp_path: Path) -> None:
    """With all interfaces bound, only the public port listens beyond loopback."""
    new_server(tmp_path)
    file = tmp_path / "server.toml"
    file.write_text(file.read_text().replace('bind = "127.0.0.1"', 'bind = "0.0.0.0"'))
    with running(tmp_path) as up:
        public = int(next(line for line in file.read_text().splitlines() if line.startswith("port")).split()[2])
        assert _listening_beyond_loopback(up) == {public}


def test_what_keeps_it_from_coming_up_is_one_sentence(tmp_path: Path) -> None:
    """A port that is taken, a certificate for elsewhere: exit code 2, nothing left running, no traceback."""
    config = new_server(tmp_path)
    with socket.create_server(("127.0.0.1", config.port)):
        said = call(tmp_path, "server", "up", code=2)
        assert f"`port` = {config.port} on 127.0.0.1 cannot be used: Address already in use" in " ".join(said.split())
    renew_server(tmp_path / "certs", ["elsewhere.example"])
    file = tmp_path / "server.toml"
    file.write_text(file.read_text().replace('"localhost"', '"coordinator.example"'))
    said = call(tmp_path, "server", "up", code=2)
    assert "not for the server's address 'coordinator.example'" in " ".join(said.split())
    assert "Traceback" not in said


def test_a_program_that_cannot_run_ends_the_start_with_its_own_words(tmp_path: Path) -> None:
    """Here a database that is none; the end of the program's log says so."""
    new_server(tmp_path)
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "superlink.db").write_bytes(b"no database" * 1000)
    started = time.monotonic()
    said = call(tmp_path, "server", "up", code=2)
    assert "superlink ended at once with code" in said
    assert "not a database" in said
    assert time.monotonic() - started < 60


def test_the_commands_of_the_guide_work_as_printed(tmp_path: Path) -> None:
    """From nothing to a server that is up and a node that may connect; only the ports are others."""
    blocks = re.findall(
        r"```console\n(.*?)```", (Path(__file__).parents[3] / "docs" / "deploy.md").read_text(), re.DOTALL
    )
    *first, up = blocks[0].splitlines()
    for line in first:
        call(tmp_path, *line.split()[1:])
    assert up == "isthmus server up server.toml"
    file, (port, loopback) = tmp_path / "server.toml", free_ports(2)
    file.write_text(file.read_text().replace("port = 8443", f"port = {port}").replace("= 8000", f"= {loopback}"))
    with running(tmp_path):
        for line in blocks[1].splitlines():
            assert call(tmp_path, *line.split()[1:]).strip(), line
        *_, stop = blocks[2].splitlines()
        assert "has ended" in call(tmp_path, *stop.split()[1:])


def _well(folder: Path) -> bool:
    try:
        return bool(status(folder)["well"])
    except AssertionError:
        return False


def _listening_beyond_loopback(up: Up) -> set[int]:
    """Ports on which any of its processes accepts connections from other machines."""
    inodes = set()
    for pid in up.processes:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            target = str(link.readlink())
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            address, _, port = words[1].partition(":")
            loopback = address in _LOOPBACK
            if words[3] == "0A" and words[9] in inodes and not loopback:
                found.add(int(port, 16))
    return found
