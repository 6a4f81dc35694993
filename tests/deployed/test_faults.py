"""What goes wrong around a federation, with real processes: the round goes on, the books are right, a reason is said.

Killed programs are in `test_kills`. Of the rest, what has a test elsewhere is not here: a slow domain at its deadline
(`tests/server/deploy/test_runs.py`), plain text on the public port (`test_proxy.py` there), expired certificates
(`test_certs.py` there), a flood and 200 MB at a vault (`tests/clients/test_serving.py`), a second answer to
one message (`tests/server/test_waiting.py`: a node's program sends one only, so here a reply is replayed in a later
round). A coordinator whose clock is off is to its nodes what nodes are whose clocks are off to it, and is not tried.
"""

import contextlib
import os
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.conftest import TinyDomain, TinyFederation
from tests.deployed.deployment import Deployment, eventually
from tests.other_user import ROOT, needs_root
from tests.server.deploy import running
from tests.server.deploy.conftest import free_ports
from tests.server.deploy.test_runs import Nodes

from isthmus.server.deploy.bundle import Bundle, make_bundle
from isthmus.server.deploy.certs import AUTHORITY, make_certificates, make_node_key
from isthmus.server.deploy.runs import DeployedRun, Progress, begin_run, progress_of
from isthmus.server.deploy.settings import ServerConfig, load_server, write_server
from isthmus.strategies.guarded import EXHAUSTED, OK, REFUSED, Outcome

pytestmark = [pytest.mark.slow, pytest.mark.deployed, needs_root]

CUT_SECONDS = 60.0
HERE = Path(__file__).parent


def faulty() -> Bundle:
    """A bundle with the tests' own ClientApp."""
    code = (HERE / "faulty_client.py").read_bytes()
    return make_bundle({"faulty_client.py": code}, clientapp="faulty_client:app")


def of(deployed: Deployment) -> ServerConfig:
    """Of the coordinator, which is up."""
    assert deployed.config is not None
    return deployed.config


def finished(deployed: Deployment, run: DeployedRun, rounds: int) -> bool:
    """Whether so many rounds are on disk."""
    return progress_of(of(deployed), run, ask=False).round >= rounds


def over(deployed: Deployment, run: DeployedRun, seconds: float = 180) -> Progress:
    """A run, once it is over."""
    found: list[Progress] = []

    def looked() -> bool:
        found.append(progress_of(of(deployed), run))
        return found[-1].over

    eventually(looked, seconds, "the run is over")
    return found[-1]


def outcomes(progress: Progress) -> list[dict[str, Outcome]]:
    """What became of each domain in each round."""
    assert progress.state is not None
    return [dict(record.outcomes) for record in progress.state.history]


def updates(deployed: Deployment, name: str) -> list[int]:
    """Rounds for which a domain was charged."""
    return [entry.round for entry in deployed.books(deployed.folder / name).entries if entry.kind == "update"]


def online(deployed: Deployment, name: str) -> bool:
    """Whether a node is connected."""
    return name in running.online(of(deployed))


def refusals(deployed: Deployment) -> int:
    """How often the SuperLink has refused to let a node in."""
    log = of(deployed).state_folder / "logs" / "superlink.log"
    return len(re.findall(r'"POST /v1/fleet/activate-node HTTP/1.1" 4\d\d', log.read_text()))


def refused(deployed: Deployment, nodes: Nodes, name: str, before: int) -> None:
    """Wait until a SuperNode was refused and has ended (with any exit code, and not always with a reason)."""
    eventually(lambda: refusals(deployed) > before, 60, f"{name} is refused")
    nodes.processes[name].wait(timeout=60)
    assert not online(deployed, name)


@dataclass
class Party:
    """A coordinator with `books`, a real unit, and `mallory`, a domain that follows no rule."""

    deployed: Deployment
    nodes: Nodes
    file: Path

    @property
    def gate(self) -> Path:
        """Beginning of the paths that `mallory` waits for."""
        return self.deployed.folder / "go"

    def open_gate(self, round_: int) -> None:
        """Let `mallory` answer."""
        Path(f"{self.gate}{round_}").touch()


@contextlib.contextmanager
def small_disk(place: Path, megabytes: int) -> Iterator[Path]:
    """A file system of its own; yields the file that can fill it."""
    place.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=755", "none", str(place)], check=True)
    try:
        yield place / "filler"
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(filler: Path) -> None:
    """Leave no room."""
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_a_full_disk_at_a_domain_refuses_and_with_room_again_it_answers() -> None:
    """Nothing is charged that is not on disk, and the others go on."""
    with contextlib.ExitStack() as stack:
        deployed = stack.enter_context(Deployment())
        file = TinyFederation(TinyDomain(deployed.folder))(evaluate_every=0, seed=None, rounds=3)
        ledgers = stack.enter_context(small_disk(deployed.folder / "ledgers", 4))
        stack.callback(lambda: [deployed.stop(name) for name in reversed(list(deployed.processes))])
        deployed.up(domains=2, extra="deadline = 60\njoining = 60\n")
        deployed.join("books", deployed.folder / "books", "--ledger", ledgers.with_name("ledger.db"))
        nodes = Nodes(of(deployed))
        stack.callback(nodes.stop)
        party = Party(deployed, nodes, file)
        nodes.start("games", acts='"honest"', gate=f'"{party.gate}"')
        eventually(lambda: online(deployed, "games") and online(deployed, "books"), 90, "both are there")
        run = begin_run(of(deployed), file, rounds=3, seed=None, bundle=faulty())
        released = [1]

        # 1. Once books has answered round 1, its disk is full: it refuses round 2 without its words, at no cost.
        eventually(lambda: _released(ledgers) == released, 120, "books has answered round 1")
        fill(ledgers)
        party.open_gate(1)
        eventually(lambda: finished(deployed, run, 1), 60, "round 1")
        party.open_gate(2)
        eventually(lambda: finished(deployed, run, 2), 90, "round 2")
        second = outcomes(progress_of(of(deployed), run, ask=False))[1]
        assert (second["books"].status, second["games"].status) == (REFUSED, OK)
        assert "an error in the domain" in second["books"].reason
        assert "full" in (deployed.folder / "units" / "books" / "logs" / "vault.log").read_text()

        # 2. Room again: it answers the next round, and the run ends.
        ledgers.unlink()
        party.open_gate(3)
        ended = over(deployed, run)
        assert ended.flower is not None
        assert (ended.flower.result, ended.round) == ("completed", 3), deployed.logs()
        assert {name: one.status for name, one in outcomes(ended)[2].items()} == {"books": OK, "games": OK}
        assert _released(ledgers) == [1, 3]
        assert deployed.stop("books") == 0


def _released(filler: Path) -> list[int]:
    from isthmus.privacy.reading import read_ledger  # noqa: PLC0415

    books = read_ledger(filler.with_name("ledger.db"))
    assert books.findings == ()
    return [entry.round for entry in books.entries if entry.kind == "update" and entry.released]


@contextlib.contextmanager
def veth(name: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """A network of two machines: this one's address, the words of a command on the other, those of its link."""
    here, there = f"{name}-a", f"{name}-b"
    number = os.getpid() % 250 + 1
    for words in (
        f"netns add {name}",
        f"link add {here} type veth peer name {there} netns {name}",
        f"address add 10.199.{number}.1/24 dev {here}",
        f"link set {here} up",
        f"-n {name} address add 10.199.{number}.2/24 dev {there}",
        f"-n {name} link set {there} up",
        f"-n {name} link set lo up",
    ):
        subprocess.run(["ip", *words.split()], check=True)
    try:
        yield f"10.199.{number}.1", ["ip", "netns", "exec", name], ["ip", "link", "set", here]
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)
        subprocess.run(["ip", "link", "delete", here], check=False, capture_output=True)


@pytest.mark.skipif(shutil.which("ip") is None, reason="needs `ip` (Debian: apt-get install iproute2)")
def test_a_network_cut_of_a_minute_costs_one_round_at_most() -> None:
    """At most one round goes on without the unit; it comes back by itself, and nothing is charged twice."""
    with veth(f"isth{os.getpid() % 10000}") as (address, there, link), Deployment() as deployed:
        file = TinyFederation(TinyDomain(deployed.folder))(evaluate_every=0, seed=None, rounds=3)
        folder = deployed.folder / "coordinator"
        make_certificates(folder / "certs", [address])
        port, loopback = free_ports(2)
        where = {"address": address, "bind": address, "port": port, "loopback_port": loopback}
        write_server(folder / "server.toml", certificates="certs", domains=2, **where)
        with (folder / "server.toml").open("a") as end:
            end.write("deadline = 150\njoining = 150\n")
        deployed.config = load_server(folder / "server.toml")
        deployed.up(domains=2)
        deployed.join("books", deployed.folder / "books")
        deployed.join("games", deployed.folder / "games", before=there)
        eventually(lambda: online(deployed, "games") and online(deployed, "books"), 90, "both are there")
        run = begin_run(of(deployed), file, rounds=3, seed=None)
        eventually(lambda: finished(deployed, run, 1), 120, "round 1")
        subprocess.run([*link, "down"], check=True)
        began = time.monotonic()
        eventually(lambda: time.monotonic() - began > CUT_SECONDS, CUT_SECONDS + 5, "the cut is over")
        assert not finished(deployed, run, 3)
        subprocess.run([*link, "up"], check=True)
        ended = over(deployed, run)
        assert ended.flower is not None
        assert (ended.flower.result, ended.round) == ("completed", 3), deployed.logs()
        rounds = outcomes(ended)
        assert [one["books"].status for one in rounds] == [OK] * 3
        answered = [number for number, one in enumerate(rounds, start=1) if one["games"].status == OK]
        assert answered in ([1, 3], [1, 2, 3])  # a node counts as lost 60 s after its last heartbeat
        if len(answered) == 2:
            assert "Node Unavailable" in rounds[1]["games"].reason
        charged = updates(deployed, "games")
        assert set(answered) <= set(charged)
        assert len(charged) == len(set(charged))
        assert updates(deployed, "books") == [1, 2, 3]
        for name in ("books", "games"):
            assert deployed.books(deployed.folder / name).findings == ()
            assert deployed.stop(name) == 0


@pytest.fixture(scope="module")
def party() -> Iterator[Party]:
    """Five rounds are within the budget of `books`; `games`, which comes late, has one.

    It lives to the end of this file, so whoever needs none comes first: a coordinator that waits is not for nothing.
    """
    with Deployment() as deployed:
        privacy = {"books": {"rounds": 8}, "games": {"rounds": 1, "evaluations": 0}}
        file = TinyFederation(TinyDomain(deployed.folder))(evaluate_every=0, seed=None, rounds=5, privacy=privacy)
        deployed.up(domains=2, extra="deadline = 150\njoining = 60\n")
        deployed.join("books", deployed.folder / "books")
        nodes = Nodes(of(deployed))
        try:
            yield Party(deployed, nodes, file)
        finally:
            nodes.stop()


def test_a_round_goes_on_amid_a_hostile_domain_idle_connections_and_strangers(party: Party) -> None:
    """1e38, NaN, a replay and 200 MB are refused with the reason; who is late takes part, who is spent leaves."""
    deployed = party.deployed
    config = of(deployed)
    acts = '"honest 1e38 nan replay 200MB"'
    party.nodes.start("mallory", acts=acts, gate=f'"{party.gate}"')
    for number in (1, 4, 5):
        party.open_gate(number)
    eventually(lambda: online(deployed, "mallory") and online(deployed, "books"), 90, "both are there")
    run = begin_run(config, party.file, rounds=5, seed=None, bundle=faulty())
    eventually(lambda: finished(deployed, run, 1), 120, "round 1")

    # Round 2, while mallory has not answered: the public port is crowded, strangers try, and games comes.
    with contextlib.ExitStack() as crowd:
        context = ssl.create_default_context(cafile=str(config.certificates_folder / AUTHORITY))
        for number in range(500):
            line = crowd.enter_context(socket.create_connection(("127.0.0.1", config.port), timeout=10))
            if number % 10 == 0:
                crowd.enter_context(context.wrap_socket(line, server_hostname="localhost"))
        deployed.join("games", deployed.folder / "games")
        eventually(lambda: online(deployed, "games"), 60, "games is there")
    make_certificates(deployed.folder / "foreign", ["localhost"])
    party.nodes.start("misled", authority=deployed.folder / "foreign" / AUTHORITY)
    before = refusals(deployed)
    make_node_key(config.folder / "unregistered")
    party.nodes.start("unregistered")  # a key that is there is not added
    refused(deployed, party.nodes, "unregistered", before)
    said = config.folder / "misled.log"
    eventually(lambda: "Connection attempt failed" in said.read_text(), 60, "misled trusts somebody else")
    assert not online(deployed, "misled")
    assert not finished(deployed, run, 2)
    party.open_gate(2)

    # Round 3: games introduces itself beside it.
    node = deployed.folder / "units" / "games" / "logs" / "node.log"
    eventually(lambda: "Sent successfully" in node.read_text(), 60, "games has introduced itself")
    party.open_gate(3)

    ended = over(deployed, run)
    assert ended.flower is not None
    assert (ended.flower.result, ended.round) == ("completed", 5), deployed.logs()
    rounds = outcomes(ended)
    assert [one["books"].status for one in rounds] == [OK] * 5
    assert [one["mallory"].status for one in rounds] == [OK, *[REFUSED] * 4]
    reasons = [one["mallory"].reason for one in rounds]
    assert "norm" in reasons[1]
    assert "above the limit" in reasons[1]
    assert "scale" in reasons[2]
    assert "got inf" in reasons[2]
    assert "asked for round 4" in reasons[3]
    assert "has shape (50000000,)" in reasons[4]
    assert ["games" in one for one in rounds] == [False, False, False, True, True]
    assert [one["games"].status for one in rounds[3:]] == [OK, EXHAUSTED]
    assert "is spent" in rounds[4]["games"].reason
    assert (updates(deployed, "books"), updates(deployed, "games")) == ([1, 2, 3, 4, 5], [4])
    for name in ("books", "games"):
        assert deployed.books(deployed.folder / name).findings == ()
    assert "budget" in {line.rule for line in deployed.books(deployed.folder / "games").refusals}
    assert deployed.stop("games") == 0


@pytest.mark.parametrize("off", [600, -600])
def test_a_node_whose_clock_is_ten_minutes_off_is_not_let_in(
    party: Party, monkeypatch: pytest.MonkeyPatch, off: int
) -> None:
    """Fast or slow: it signs the time, and Flower takes 5 s ahead and 305 s behind. It is answered 401."""
    name = "ahead" if off > 0 else "behind"
    party.nodes.register(name)
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{HERE / 'clock_off'}{os.pathsep}{ROOT / 'src'}")
        patch.setenv("CLOCK_OFF", str(off))
        before = refusals(party.deployed)
        party.nodes.start(name)
    refused(party.deployed, party.nodes, name, before)
    party.nodes.start(name)  # the same node, its clock mended
    eventually(lambda: online(party.deployed, name), 60, f"{name} is there")
