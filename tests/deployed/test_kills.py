"""`kill -9` of everything that a deployed federation consists of, each in the middle of a round that is going on.

One coordinator and two domains live through all of it, a run of its own for each fault. The moment of a kill is read
off a ledger: the round is charged and not released yet, so its training is going on.
"""

import os
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tests.clients.test_delivery import Silent
from tests.conftest import TinyDomain, TinyFederation
from tests.deployed.deployment import Deployment, eventually
from tests.server.deploy.running import alive

from isthmus.config import load_federation, seeded_run
from isthmus.privacy.entries import LedgerEntry
from isthmus.privacy.reading import read_ledger
from isthmus.server.checkpoint import RunState, load_checkpoint
from isthmus.server.deploy.settings import ServerConfig
from isthmus.simulation import prepare, run

SEED = 5
ROUNDS = 2
DEADLINE, JOINING = 120, 150  # longer than Flower takes to miss a node
USERS = {"books": 500, "games": 500}
LATER = {"music": 500}
PRIVACY = {
    "epsilon": 50.0,
    "sample_rate": 0.5,
    "expected_batch": 250.0,
    "rounds": 40,  # of all the runs below
    "evaluations": 0,
}
QUICK, SLOW = {**PRIVACY, "steps_per_round": 30}, {**PRIVACY, "steps_per_round": 200}  # a second, and some
POLICIES = {"books": QUICK, "games": SLOW, "music": SLOW}

pytestmark = [pytest.mark.slow, pytest.mark.deployed]


@dataclass(frozen=True)
class Federation:
    """A coordinator and its domains.

    Attributes:
        deployed: Their processes.
        template: The federation file that each run's is made from.
    """

    deployed: Deployment
    template: Path

    @property
    def config(self) -> ServerConfig:
        """Of the coordinator."""
        assert self.deployed.config is not None
        return self.deployed.config

    def domain(self, name: str) -> Path:
        """Its folder."""
        return self.template.parent / name

    def join(self, name: str, kit: Path | None = None) -> None:
        """Start a domain, with noise that can be repeated."""
        ledger = self.domain(name) / "ledger.db"
        self.deployed.join(name, self.domain(name), "--seed", str(SEED), "--ledger", str(ledger), kit=kit)

    def need(self, *, domains: int) -> None:
        """Change how many domains the next run needs."""
        file = self.config.folder / "server.toml"
        file.write_text(file.read_text().replace("domains = 2", f"domains = {domains}"))

    def file(self, name: str) -> Path:
        """A federation of its own for one run."""
        file = self.template.with_name(f"{name}.toml")
        file.write_text(self.template.read_text().replace('name = "tiny"', f'name = "{name}"'))
        return file

    def asked(self, name: str, file: Path, round_: int) -> list[LedgerEntry]:
        """What a domain's ledger says of its update in one round of a run."""
        key = (seeded_run(load_federation(file)), round_, "update")
        entries = self.deployed.books(self.domain(name)).entries
        return [entry for entry in entries if (entry.run, entry.round, entry.kind) == key]

    def training(self, name: str, file: Path, round_: int) -> bool:
        """Whether a domain is at work on a round: paid for, and not finished."""
        return any(not entry.released for entry in self.asked(name, file, round_))

    def until_training(self, name: str, file: Path, round_: int) -> None:
        """Wait for the middle of a round: every domain has the question, and this one is at work on it.

        A node that is cut off between taking a message and saying so is another story: see docs/deploy.md.
        """
        eventually(
            lambda: all(self.asked(other, file, round_) for other in USERS) and self.training(name, file, round_),
            120,
            f"{name} works on round {round_}",
        )

    def state(self, file: Path, folder: Path | None = None) -> RunState:
        """What the last finished round of a run left behind."""
        federation = load_federation(file)
        name = seeded_run(federation)
        folder = folder or self.config.state_folder / "runs" / name
        state = load_checkpoint(folder / "checkpoint.safetensors", run=name, digest=federation.digest())
        assert state is not None
        return state

    def must_have_ended_well(self, file: Path, *, missed: tuple[tuple[int, str], ...] = ()) -> RunState:
        """Every round is there, whoever missed one is named, and the books say no less than what left.

        Args:
            file: Of the run.
            missed: Round and name of the domains whose update may be absent.
        """
        state = self.state(file)
        assert [record.round for record in state.history] == [*range(1, ROUNDS + 1)]
        outcomes = {(one.round, name): outcome for one in state.history for name, outcome in one.outcomes.items()}
        members = {name for _, name in outcomes}
        assert members >= USERS.keys()
        assert len(outcomes) == ROUNDS * len(members)
        assert {key for key, outcome in outcomes.items() if outcome.status != "ok"} == set(missed)
        for name in members:
            books = self.deployed.books(self.domain(name))
            assert books.findings == ()
            charges = Counter((entry.run, entry.round, entry.kind) for entry in books.entries)
            assert set(charges.values()) == {1}, "a round was charged twice"
            released = {
                (entry.run, entry.round) for entry in books.entries if entry.kind == "update" and entry.released
            }
            counted = {
                (state.run, round_)
                for (round_, who), outcome in outcomes.items()
                if who == name and outcome.status == "ok"
            }
            assert counted <= released, "an update was counted that is not in the books"
        return state

    def must_be_undisturbed(self, file: Path, out: Path) -> None:
        """Backbone, bit for bit, and charges are those of the same federation where nothing is killed."""
        simulation = prepare(file, out=out, backend="in-process")
        run(simulation, Silent())
        here, alone = self.must_have_ended_well(file), self.state(file, out)
        assert here.arrays.keys() == alone.arrays.keys()
        assert all(np.array_equal(here.arrays[name], array) for name, array in alone.arrays.items())
        for name in USERS:
            charges = (
                self.deployed.books(self.domain(name)).entries,
                read_ledger(out / "ledgers" / f"{name}.db").entries,
            )
            ours, theirs = ([(e.round, e.kind, e.event) for e in some if e.run == here.run] for some in charges)
            assert ours == theirs
        assert any(np.any(here.arrays[name] != first) for name, first in here.best.items()), "nothing was learnt"


@pytest.fixture(scope="module")
def federation() -> Iterator[Federation]:
    """A coordinator that needs both of its domains, and they."""
    with Deployment() as deployed:
        write = TinyFederation(TinyDomain(deployed.folder / "tiny"))
        file = write(domains=USERS, seed=SEED, rounds=ROUNDS, evaluate_every=0, privacy=POLICIES)
        for name, users in LATER.items():
            write.domain(name=name, users=users, seed=len(USERS), privacy=POLICIES[name])
        made = Federation(deployed, file)
        deployed.up(domains=2, extra=f"deadline = {DEADLINE}\njoining = {JOINING}\n")
        for name in USERS:
            made.join(name)
        yield made


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run without faults borrows nothing from the vaults."""
    monkeypatch.setenv("ISTHMUS_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("cache")
def test_a_vault_and_a_superlink_that_are_killed_hold_up_a_run_and_no_more(
    federation: Federation, tmp_path: Path
) -> None:
    """The vault finishes its round under the charge that was paid before; the SuperLink finds its database."""
    file = federation.file("goes-on")
    command = federation.deployed.begin("server", "run", file)
    federation.until_training("games", file, 1)
    federation.deployed.kill("games", "vault")
    assert federation.training("games", file, 1), "it had finished already"
    federation.until_training("games", file, 2)
    federation.deployed.kill("coordinator", "superlink")
    assert f"{ROUNDS} of {ROUNDS} rounds" in federation.deployed.ended(command)
    federation.must_be_undisturbed(file, tmp_path / "alone")


@pytest.mark.usefixtures("cache")
def test_a_run_whose_serverapp_is_killed_says_so_and_is_resumed(federation: Federation, tmp_path: Path) -> None:
    """Flower misses its heartbeat within a minute; then the command ends, and says what is left to do."""
    file = federation.file("serverapp")
    command = federation.deployed.begin("server", "run", file)
    federation.until_training("games", file, 2)
    os.kill(federation.deployed.serverapp(), signal.SIGKILL)
    said = federation.deployed.ended(command, code=2)
    assert f"ended in round 1 of {ROUNDS}: failed" in said
    assert "`--resume` goes on" in said
    federation.deployed.call("server", "run", file, "--resume")
    federation.must_be_undisturbed(file, tmp_path / "alone")


@pytest.mark.usefixtures("cache")
def test_a_run_outlives_its_superexec_and_then_its_whole_coordinator(federation: Federation, tmp_path: Path) -> None:
    """The ServerApp dies with either; nobody waits until Flower has seen that, and no domain has to do a thing."""
    file = federation.file("resumed")
    first = federation.deployed.begin("server", "run", file)
    federation.until_training("games", file, 1)
    gone, before = federation.deployed.serverapp(), federation.deployed.pid("coordinator", "superexec")
    federation.deployed.kill("coordinator", "superexec")
    eventually(lambda: not alive(gone), 30, "the ServerApp is gone")
    eventually(lambda: federation.deployed.pid("coordinator", "superexec") != before, 30, "the SuperExec is back")
    second = federation.deployed.begin("server", "run", file, "--resume")
    said = federation.deployed.ended(first, code=2)
    assert f"ended in round 0 of {ROUNDS}: stopped" in said

    federation.until_training("games", file, 2)
    programs = [federation.deployed.pid("coordinator", part) for part in ("superlink", "superexec", "proxy")]
    federation.deployed.kill("coordinator")
    eventually(lambda: not any(map(alive, programs)), 30, "its programs are gone")
    said = federation.deployed.ended(second, code=2)
    assert "Is `isthmus server up` running?" in said
    federation.deployed.up(domains=2)
    assert f"{ROUNDS} of {ROUNDS} rounds" in federation.deployed.call("server", "run", file, "--resume")
    federation.must_be_undisturbed(file, tmp_path / "alone")


def test_a_node_and_a_whole_unit_that_are_killed_miss_one_round_and_come_back(federation: Federation) -> None:
    """The node's vault finishes what it was asked; the unit's books go on where they were; the third domain goes on."""
    federation.need(domains=3)
    federation.join("music")
    file = federation.file("missed")
    command = federation.deployed.begin("server", "run", file)
    federation.until_training("games", file, 1)
    federation.deployed.kill("games", "node")
    federation.until_training("music", file, 1)
    before = federation.deployed.books(federation.domain("music"))
    federation.deployed.kill("music")
    assert federation.training("music", file, 1), "it had finished already"
    federation.join("music", kit=federation.config.folder / "music.zip")
    assert f"{ROUNDS} of {ROUNDS} rounds" in federation.deployed.ended(command)
    federation.must_have_ended_well(file, missed=((1, "games"), (1, "music")))
    assert [entry.released for entry in federation.asked("games", file, 1)] == [True]
    assert [entry.released for entry in federation.asked("music", file, 1)] == [False]
    after = federation.deployed.books(federation.domain("music"))
    assert after.links[: len(before.links)] == before.links, "the ledger does not go on where it was"
