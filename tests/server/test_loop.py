"""The round loop goes on from wherever it was stopped, without whoever refuses, and ships what noisy figures favour."""

import logging
import shutil
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import pytest
from tests.clients.test_connection import write_plan
from tests.conftest import TinyFederation
from tests.server.scripted import EMPTY, MOMENTS, BadContact, Gains, OneName, run_script

from isthmus.clients.app import app as client_app
from isthmus.clients.connection import leave_simulation
from isthmus.config import UpdateFormat, load_domain, load_federation
from isthmus.errors import RunError
from isthmus.grid import InProcessGrid
from isthmus.privacy.budget import PrivacyBudget
from isthmus.privacy.entries import Charge, Limits
from isthmus.privacy.ledger import Ledger
from isthmus.privacy.plan import plan_for
from isthmus.records import RoundReply
from isthmus.server.checkpoint import RunState
from isthmus.server.heads import HeadLog
from isthmus.server.loop import Listener, run_rounds
from isthmus.server.shipping import shipped_backbone
from isthmus.strategies.guarded import EXHAUSTED, OK


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """Somebody pulled the plug."""


@dataclass
class Watch:
    """A listener that remembers, and pulls the plug after a round."""

    stop: int = -1
    heard: list[RunState] = field(default_factory=list)

    def __call__(self, state: RunState) -> None:
        """Remember and perhaps stop."""
        self.heard.append(state)
        if state.round == self.stop:
            raise Stopped


@dataclass
class Vaults:
    """Runs a federation over its real vaults; every start is a fresh process as far as vaults can tell."""

    file: Path
    root: Path

    def start(self, name: str, listener: Listener, *, rounds: int = 4, run: str = "r1") -> RunState:
        """Run in the folder `name`, from its checkpoint if there is one."""
        folder = self.root / name
        plan = str(write_plan(self.file, folder))
        federation = load_federation(self.file)
        heads = HeadLog(folder / "heads.db")
        try:
            with InProcessGrid(
                client_app, nodes=len(federation.domains), run_config={}, node_config={"simulation": plan}
            ) as grid:
                return run_rounds(
                    grid, federation, run=run, rounds=rounds, folder=folder, heads=heads, listener=listener
                )
        finally:
            heads.close()
            leave_simulation(plan)

    def charged(self, name: str, domain: str) -> list[tuple[int, str]]:
        """What is in a domain's ledger, as (round, kind)."""
        ledger = Ledger(self.root / name / f"{domain}.db")
        entries = [(entry.round, entry.kind) for entry in ledger.entries()]
        ledger.close()
        return entries


def assert_equal(left: RunState, right: RunState) -> None:
    """Every field of two states, tensors bit for bit; a restart may have sent the whitening again."""
    for each in fields(RunState):
        if each.name == "bytes_down":
            continue
        one, other = getattr(left, each.name), getattr(right, each.name)
        if isinstance(one, dict):
            assert one.keys() == other.keys()
            assert all(one[name].tobytes() == other[name].tobytes() for name in one), each.name
        else:
            assert one == other, each.name


ALL_CHARGES = [
    (0, "catalogue"),
    (1, "update"),
    (2, "update"),
    (2, "metric"),
    (3, "update"),
    (4, "update"),
    (4, "metric"),
]


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam", "fedprox"])
def test_a_run_stopped_after_any_round_ends_as_the_uninterrupted_one(
    tiny_federation: TinyFederation, tmp_path: Path, strategy: str
) -> None:
    """Stopped after round 0, 1, 2 and 3 of one run: state, history and byte counts equal, nobody charged twice."""
    vaults = Vaults(tiny_federation(strategy=strategy), tmp_path)
    whole = vaults.start("whole", Watch())
    assert whole.round == 4
    assert all(record.update_norm > 0 for record in whole.history)
    for stop in range(4):
        watch = Watch(stop)
        with pytest.raises(Stopped):
            vaults.start("stopped", watch)
        assert watch.heard[-1].round == stop
    last = Watch()
    assert_equal(vaults.start("stopped", last), whole)
    assert [state.round for state in last.heard] == [3, 4]
    assert vaults.charged("stopped", "books") == ALL_CHARGES == vaults.charged("whole", "books")


def test_a_server_that_lost_a_round_gets_it_again(tiny_federation: TinyFederation, tmp_path: Path) -> None:
    """Domains had answered round 3, the server died before its checkpoint: the same answers, paid once."""
    vaults = Vaults(tiny_federation(), tmp_path)
    whole = vaults.start("whole", Watch())
    checkpoint = tmp_path / "lost" / "checkpoint.safetensors"
    with pytest.raises(Stopped):
        vaults.start("lost", Watch(2))
    shutil.copy(checkpoint, tmp_path / "older")
    with pytest.raises(Stopped):
        vaults.start("lost", Watch(3))
    shutil.copy(tmp_path / "older", checkpoint)
    assert_equal(vaults.start("lost", Watch()), whole)
    assert vaults.charged("lost", "games") == ALL_CHARGES


def test_a_finished_run_asks_nothing_more(tiny_federation: TinyFederation, tmp_path: Path) -> None:
    """Started again at its last round, it returns the same state; with more rounds, it goes on."""
    vaults = Vaults(tiny_federation(evaluate_every=0), tmp_path)
    finished, again = vaults.start("a", Watch(), rounds=2), vaults.start("a", Watch(), rounds=2)
    assert_equal(again, finished)
    assert vaults.start("a", Watch(), rounds=3).round == 3
    assert vaults.charged("a", "books") == [(0, "catalogue"), (1, "update"), (2, "update"), (3, "update")]


def test_another_runs_folder_is_refused(tiny_federation: TinyFederation, tmp_path: Path) -> None:
    """Another id, or the same id under another configuration: no domain is asked for an update."""
    vaults = Vaults(tiny_federation(evaluate_every=0), tmp_path)
    vaults.start("a", Watch(), rounds=1)
    with pytest.raises(RunError, match="belongs to run 'r1'"):
        vaults.start("a", Watch(), run="r2")
    vaults.file.write_text(vaults.file.read_text().replace("seed = 5", "seed = 6"))
    with pytest.raises(RunError, match="another configuration"):
        vaults.start("a", Watch())
    assert [kind for _, kind in vaults.charged("a", "books")].count("update") == 1


def test_a_run_ends_when_every_budget_is_exhausted(tiny_federation: TinyFederation, tmp_path: Path) -> None:
    """Long before its last round; the state says why, and keeps what was learned."""
    vaults = Vaults(tiny_federation(), tmp_path)
    watch = Watch()
    state = vaults.start("a", watch, rounds=50)
    assert 4 < state.round < 50
    assert {outcome.status for outcome in state.history[-1].outcomes.values()} == {EXHAUSTED}
    assert "of 8 is spent" in state.history[-1].outcomes["books"].reason
    assert state.history[-1].update_norm == 0.0
    assert all(OK in {each.status for each in record.outcomes.values()} for record in state.history[:-1])
    before = watch.heard[-2]
    assert all(state.arrays[name].tobytes() == array.tobytes() for name, array in before.arrays.items())
    assert len(state.history) == state.round


def spend_all(ledger: Path, domain: Path) -> None:
    """Charge everything that a domain's policy allows to an earlier run."""
    policy = load_domain(domain).privacy
    plan = plan_for(policy)
    books = Ledger(ledger)
    for event in plan.events:
        books.charge(
            Charge(
                dataset=b"\0" * 32,
                run="earlier",
                round=plan.events.index(event),
                kind="update" if event == plan.events[0] else "metric",
                request=b"\0" * 32,
                event=event,
                private=False,
            ),
            Limits(lifetime=PrivacyBudget(policy.epsilon, policy.delta)),
        )
    books.close()


def test_a_domain_whose_ledger_went_back_is_not_asked(tiny_federation: TinyFederation, tmp_path: Path) -> None:
    """An older copy put back between two starts: the coordinator remembers, says so, and goes on with the others."""
    vaults = Vaults(tiny_federation(evaluate_every=0), tmp_path)
    with pytest.raises(Stopped):
        vaults.start("a", Watch(1))
    older = shutil.copy(tmp_path / "a" / "books.db", tmp_path / "older.db")
    with pytest.raises(Stopped):
        vaults.start("a", Watch(3))
    shutil.copy(older, tmp_path / "a" / "books.db")
    state = vaults.start("a", Watch())
    assert [sorted(record.outcomes) for record in state.history] == [["books", "games"]] * 3 + [["games"]]
    (tmp_path / "a" / "games.db").unlink()
    (tmp_path / "a" / "games.key").unlink()  # a second ledger, with a key of its own
    with pytest.raises(RunError, match=r"(?s)books: its ledger stood at line .*games: its ledger stood at line .*"):
        vaults.start("a", Watch(), rounds=5)


def test_one_exhausted_domain_does_not_stop_the_others(tiny_federation: TinyFederation, tmp_path: Path) -> None:
    """It is named as such in every round; the backbone is what the others alone make of it."""
    vaults = Vaults(tiny_federation(evaluate_every=0), tmp_path)
    spend_all(tmp_path / "a" / "books.db", vaults.file.parent / "books")
    state = vaults.start("a", Watch(), rounds=3)
    assert state.round == 3
    for record in state.history:
        assert (record.outcomes["books"].status, record.outcomes["games"].status) == (EXHAUSTED, OK)
        assert record.update_norm > 0
    assert [kind for _, kind in vaults.charged("a", "games")].count("update") == 3


def test_a_domain_that_fails_inside_does_not_stop_the_others(tiny_federation: TinyFederation, tmp_path: Path) -> None:
    """One table breaks after the second round: refused without its words; the other domain finishes the run."""
    vaults = Vaults(tiny_federation(evaluate_every=0), tmp_path)
    with pytest.raises(Stopped):
        vaults.start("a", Watch(2))
    (vaults.file.parent / "books" / "interactions.csv").write_text("user,item\nprivate-person\n")
    state = vaults.start("a", Watch())
    assert state.round == 4
    assert [record.outcomes["games"].status for record in state.history] == [OK] * 4
    assert "private-person" not in str(state.history)


def test_a_domain_whose_vault_refuses_does_not_stop_the_others(
    tiny_federation: TinyFederation, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its catalogue is not public, so it stays out, with its reason in the log; the others run."""
    vaults = Vaults(tiny_federation(domains={"books": 30, "games": 20, "music": 20}, evaluate_every=0), tmp_path)
    toml = vaults.file.parent / "games" / "domain.toml"
    toml.write_text(toml.read_text().replace("public = true", "public = false"))
    with caplog.at_level(logging.WARNING):
        state = vaults.start("a", Watch(), rounds=2)
    assert state.round == 2
    assert [sorted(record.outcomes) for record in state.history] == [["books", "music"]] * 2
    assert "did not join the run: games: the catalogue is not public" in caplog.text
    assert vaults.charged("a", "games") == []


def test_when_nobody_joins_the_reasons_are_said(tiny_federation: TinyFederation, tmp_path: Path) -> None:
    """No round, no checkpoint."""
    vaults = Vaults(tiny_federation(domains={"books": 12}), tmp_path)
    toml = vaults.file.parent / "books" / "domain.toml"
    toml.write_text(toml.read_text().replace("public = true", "public = false"))
    with pytest.raises(RunError, match="no domain joined the run: books: the catalogue is not public"):
        vaults.start("a", Watch())
    assert not (tmp_path / "a" / "checkpoint.safetensors").exists()
    heads, federation = HeadLog(tmp_path / "b" / "heads.db"), load_federation(vaults.file)
    with (
        InProcessGrid(client_app, nodes=0, run_config={}) as grid,
        pytest.raises(RunError, match="no node is connected"),
    ):
        run_rounds(grid, federation, run="r", rounds=1, folder=tmp_path / "b", heads=heads, listener=Watch())
    heads.close()


@pytest.mark.parametrize(
    ("gains", "best"),
    [
        ({1: 2.0, 2: 9.0, 3: 5.0, 4: 8.9}, 2),
        ({1: -1.0, 2: -9.0, 3: -0.1, 4: -2.0}, 0),
        ({1: 0.0, 2: 0.0, 3: 0.0, 4: 0.0}, 0),
        ({1: 3.0, 2: 3.0, 3: -3.0, 4: 3.0}, 1),
        ({1: -1.0, 2: np.nan, 3: np.inf, 4: 0.5}, 4),
        ({1: np.nan, 2: np.nan, 3: np.nan, 4: np.nan}, 0),
    ],
)
def test_the_round_with_the_highest_positive_noisy_gain_is_shipped(
    tiny_federation: TinyFederation, tmp_path: Path, gains: dict[int, float], best: int
) -> None:
    """The first of equals; the text prior where no gain is positive; a gain that is no number never wins."""
    file = tiny_federation(evaluate_every=1)
    states = run_script(file, Gains(gains), tmp_path / "a")
    state = states[-1]
    assert state.best_round == best
    assert state.best_gain == pytest.approx(gains[best] / 100 if best else 0.0)
    at_best = states[best].arrays
    assert all(state.best[name].tobytes() == array.tobytes() for name, array in at_best.items())
    shipped = shipped_backbone(state, load_federation(file))
    assert shipped.round == best
    assert bool(shipped.backbone.head.weight.any()) == (best > 0)  # with a head of zeros it is the text prior


def test_without_evaluations_the_prior_is_shipped(tiny_federation: TinyFederation, tmp_path: Path) -> None:
    """Nobody said that the last round is better, so it is not believed to be."""
    state = run_script(tiny_federation(evaluate_every=0), Gains({}), tmp_path / "a")[-1]
    assert state.best_round == 0
    assert state.arrays["head.weight"].any()
    assert not state.best["head.weight"].any()
    assert all(record.gain is None and record.evaluations == {} for record in state.history)


def test_the_gain_of_a_round_and_its_noise_are_kept(tiny_federation: TinyFederation, tmp_path: Path) -> None:
    """Two domains with stddev 1 on 100 users: 0.01 each, and 0.01 / sqrt(2) for their mean."""
    file = tiny_federation(evaluate_every=2, update_format=UpdateFormat.FLOAT32)
    state = run_script(file, Gains({2: 4.0, 4: 2.0}), tmp_path / "a")[-1]
    assert [record.gain for record in state.history] == [None, pytest.approx(0.04), None, pytest.approx(0.02)]
    assert state.history[1].gain_stddev == pytest.approx(0.01 / np.sqrt(2))
    assert sorted(state.history[1].evaluations) == ["books", "games"]
    size = sum(array.size for array in state.arrays.values())
    assert all(record.update_norm == pytest.approx(0.01 * np.sqrt(size), rel=1e-4) for record in state.history)


BAD_CONTACTS: dict[str, RoundReply] = {
    "count is NaN": replace(MOMENTS, values={"count": float("nan")}),
    "count is infinite": replace(MOMENTS, values={"count": float("inf")}),
    "count is negative": replace(MOMENTS, values={"count": -3.0}),
    "no count": replace(MOMENTS, values={}),
    "no moments": replace(EMPTY, values={"count": 10.0}),
    "shapes that do not fit": replace(
        MOMENTS, arrays={"mean": np.zeros(4, np.float32), "second": np.eye(3, dtype=np.float32)}
    ),
    "moments with NaN": replace(
        MOMENTS, arrays={"mean": np.full(4, np.nan, np.float32), "second": np.eye(4, dtype=np.float32)}
    ),
    "a refusal": replace(EMPTY, refusal="not with you"),
}


@pytest.mark.parametrize("what", list(BAD_CONTACTS))
def test_a_bad_first_contact_keeps_one_domain_out_and_no_other(
    tiny_federation: TinyFederation, tmp_path: Path, what: str
) -> None:
    """The run starts without it; it is not asked for updates either."""
    file = tiny_federation(evaluate_every=0)
    state = run_script(file, BadContact(BAD_CONTACTS[what]), tmp_path / "a", nodes=3, rounds=1)[-1]
    assert sorted(state.history[0].outcomes) == ["games", "music"]
    with pytest.raises(RunError, match="no domain joined the run"):
        run_script(file, BadContact(BAD_CONTACTS[what]), tmp_path / "b", nodes=1)


def test_a_node_cannot_take_anothers_name(tiny_federation: TinyFederation, tmp_path: Path) -> None:
    """Of two nodes with one name, the first keeps it; the run is the one without the second, to the last byte sent."""
    file = tiny_federation(evaluate_every=0)
    both, alone = (run_script(file, OneName(), tmp_path / str(n), nodes=n, rounds=2)[-1] for n in (2, 1))
    assert sorted(both.history[0].outcomes) == ["books"]
    assert_equal(both, alone)
