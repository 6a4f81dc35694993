"""Rounds that ask some of the domains: who is asked pays, nobody else is missed, and a run ends when all have given."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.conftest import TinyFederation
from tests.server.scripted import EMPTY, NAMES, Gains, run_script
from tests.server.test_loop import Stopped, Vaults, Watch, assert_equal
from tests.server.test_waiting import SHORT, flaky

from isthmus.errors import RunError
from isthmus.records import RoundReply, RoundRequest
from isthmus.strategies.guarded import EXHAUSTED, FAILED, OK

MEMBERS = {"books": 40, "games": 20, "music": 20}


@pytest.fixture
def file(tiny_federation: TinyFederation) -> Callable[[int, int], Path]:
    """A federation of three domains of which so many are drawn, evaluated every so many rounds."""

    def write(count: int, every: int) -> Path:
        path = tiny_federation(domains=MEMBERS, evaluate_every=every)
        path.write_text(path.read_text() + f"domains_per_round = {count}\ntemperature = 2.0\n")
        return path

    return write


@dataclass(frozen=True)
class Poor:
    """Domains of which each has budget for so many updates."""

    updates: dict[str, int]
    given: dict[str, int] = dataclasses.field(default_factory=dict)

    def __call__(self, partition: int, kind: str, request: RoundRequest) -> RoundReply:
        """An update, or that there is nothing left."""
        name = NAMES[partition]
        if kind == "update":
            if self.given.get(name, 0) >= self.updates[name]:
                return dataclasses.replace(EMPTY, refusal="spent", exhausted=True)
            self.given[name] = self.given.get(name, 0) + 1
        return Gains({})(partition, kind, request)


def test_whoever_is_not_drawn_pays_nothing_and_is_not_missed(file: Callable[[int, int], Path], tmp_path: Path) -> None:
    """Ledgers hold the updates of the rounds that drew the domain, and all evaluations; so does the record."""
    vaults = Vaults(file(2, 2), tmp_path)
    state = vaults.start("a", Watch())
    assert [len(record.outcomes) for record in state.history] == [2] * 4
    assert {outcome.status for record in state.history for outcome in record.outcomes.values()} == {OK}
    assert [sorted(record.evaluations) for record in state.history if record.evaluations] == [sorted(MEMBERS)] * 2
    for name in MEMBERS:
        rounds = [record.round for record in state.history if name in record.outcomes]
        updates = [round_ for round_, kind in vaults.charged("a", name) if kind == "update"]
        assert updates == rounds
        assert [round_ for round_, kind in vaults.charged("a", name) if kind == "metric"] == [2, 4]
    assert len({tuple(record.outcomes) for record in state.history}) > 1


def test_a_resumed_coordinator_draws_the_same(file: Callable[[int, int], Path], tmp_path: Path) -> None:
    """Stopped after each round: state, history and charges are those of a run that never was."""
    vaults = Vaults(file(1, 0), tmp_path)
    whole = vaults.start("whole", Watch())
    for stop in range(4):
        with pytest.raises(Stopped):
            vaults.start("stopped", Watch(stop))
    assert_equal(vaults.start("stopped", Watch()), whole)
    for name in MEMBERS:
        assert vaults.charged("stopped", name) == vaults.charged("whole", name)


def test_a_round_of_spent_domains_does_not_end_a_run_that_others_can_go_on_with(
    file: Callable[[int, int], Path], tmp_path: Path
) -> None:
    """Every update that anybody can pay for is given, whoever is drawn first; then the run ends."""
    budgets = {"books": 1, "games": 3, "music": 5}
    script = Poor(budgets)
    state = run_script(file(1, 0), script, tmp_path / "a", nodes=3, rounds=50)[-1]
    assert script.given == budgets
    statuses = [outcome.status for record in state.history for outcome in record.outcomes.values()]
    assert statuses.count(OK) == 9
    assert statuses.count(EXHAUSTED) == 3  # each is asked once in vain, and never again
    assert statuses[-1] == EXHAUSTED
    assert state.round == 12


def test_a_domain_that_nobody_has_asked_yet_keeps_a_run_going(file: Callable[[int, int], Path], tmp_path: Path) -> None:
    """The first ones drawn have nothing at all."""
    script = Poor({"books": 0, "games": 0, "music": 2})
    state = run_script(file(1, 0), script, tmp_path / "a", nodes=3, rounds=50)[-1]
    assert script.given == {"music": 2}
    assert state.round == 5


def test_a_drawn_domain_that_is_silent_fails_alone(file: Callable[[int, int], Path], tmp_path: Path) -> None:
    """In the rounds that draw it; the run goes on with the others, and they are not said to have failed."""
    mute = flaky(mute=lambda node, kind, round_: node == 3 and kind == "train")
    state = run_script(file(1, 0), Gains({}), tmp_path / "a", nodes=3, rounds=8, grid_type=mute, patience=SHORT)[-1]
    told = [(name, outcome.status) for record in state.history for name, outcome in record.outcomes.items()]
    assert len(told) == 8
    assert ("games", FAILED) in told
    assert set(told) == {("books", OK), ("games", FAILED), ("music", OK)}


def test_a_domain_that_is_away_is_said_to_be_and_another_is_drawn(
    file: Callable[[int, int], Path], tmp_path: Path
) -> None:
    """Who is not connected cannot be drawn; that is said in every round, whoever is."""
    away = flaky(away=lambda node, round_: node == 3 and round_ >= 2)
    state = run_script(file(2, 0), Gains({}), tmp_path / "a", nodes=3, grid_type=away, patience=SHORT)[-1]
    for record in state.history[2:]:
        assert {name: outcome.status for name, outcome in record.outcomes.items()} == {
            "books": OK,
            "games": FAILED,
            "music": OK,
        }
        assert record.outcomes["games"].reason == "not connected"


def test_when_nobody_answers_any_more_the_run_stops_to_be_resumed(
    file: Callable[[int, int], Path], tmp_path: Path
) -> None:
    """Not at the first silent one, but when the last that could be drawn has been silent, too."""
    deaf = flaky(mute=lambda node, kind, round_: kind == "train" and round_ >= 2)
    with pytest.raises(RunError, match="nobody's update came in: books: no answer within 0.3 s; games: no answer"):
        run_script(file(1, 0), Gains({}), tmp_path / "a", nodes=3, rounds=50, grid_type=deaf, patience=SHORT)
