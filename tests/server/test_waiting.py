"""A run goes on without who is slow or gone, with who comes late, and stops where it can be resumed."""

import functools
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Error, Message, RecordDict
from flwr.clientapp import ClientApp
from tests.conftest import TinyFederation
from tests.server.scripted import Gains, run_script
from tests.server.test_loop import assert_equal

from isthmus.config import load_federation
from isthmus.errors import RunError
from isthmus.grid import InProcessGrid
from isthmus.records import RoundReply, RoundRequest
from isthmus.server import loop
from isthmus.server.checkpoint import load_checkpoint
from isthmus.server.waiting import Patience, exchange
from isthmus.strategies.guarded import FAILED, OK

SHORT = Patience(deadline=0.3, joining=0.3, again=0.05, poll=0.01)
FIRST, SECOND, THIRD = 2, 3, 4  # ids of the nodes


class Flaky(InProcessGrid):
    """Nodes that are not always there, and do not always answer.

    Args:
        away: Whether a node is not connected, by the last round that was asked for.
        mute: Whether a node's answer to a message does not arrive.
    """

    def __init__(
        self,
        client_app: ClientApp,
        *,
        away: Callable[[int, int], bool] = lambda node, round_: False,
        mute: Callable[[int, str, int], bool] = lambda node, kind, round_: False,
        **rest: Any,
    ) -> None:
        super().__init__(client_app, **rest)
        self._away, self._mute = away, mute
        self.round = 0
        self.lives: list[float] = []  # of each message, in seconds

    def get_node_ids(self) -> list[int]:
        """Whoever is connected."""
        return [node for node in super().get_node_ids() if not self._away(node, self.round)]

    def _deliver(self, message_id: str, message: Message) -> None:
        kind, node = message.metadata.message_type, message.metadata.dst_node_id
        self.round = max(self.round, RoundRequest.from_records(message.content).round)
        self.lives.append(message.metadata.ttl)
        super()._deliver(message_id, message)
        if self._mute(node, kind, self.round):
            self._replies.pop(message_id)


def flaky(**how: Any) -> Callable[..., InProcessGrid]:
    """A grid for `run_script`."""
    return functools.partial(Flaky, **how)


@pytest.fixture
def file(tiny_federation: TinyFederation) -> Path:
    """Two domains, no evaluations."""
    return tiny_federation(evaluate_every=0)


def test_a_round_goes_on_without_a_slow_domain(file: Path, tmp_path: Path) -> None:
    """At the deadline; the record says who did not answer, and the domain is back in the next round."""
    grid = flaky(mute=lambda node, kind, round_: (node, kind, round_) == (SECOND, "train", 2))
    started = time.monotonic()
    state = run_script(file, Gains({}), tmp_path, grid_type=grid, patience=SHORT)[-1]
    assert 0.3 < time.monotonic() - started < 10
    assert [record.outcomes["games"].status for record in state.history] == [OK, FAILED, OK, OK]
    assert state.history[1].outcomes["games"].reason == "no answer within 0.3 s"
    assert all(record.outcomes["books"].status == OK for record in state.history)


def test_a_message_lives_no_longer_than_its_answer_is_waited_for(file: Path, tmp_path: Path) -> None:
    """So that nobody trains, and pays, for a round that is over; a simulation's messages live as Flower says."""
    lives: list[list[float]] = []
    for patience in (SHORT, Patience()):
        made: list[Flaky] = []
        run_script(file, Gains({}), tmp_path / str(len(lives)), grid_type=_kept(made), patience=patience, rounds=1)
        lives.append(made[0].lives)
    assert set(lives[0]) == {0.3}
    assert all(life > 3600 for life in lives[1])


def _kept(made: list[Flaky]) -> Callable[..., Flaky]:
    def make(*args: Any, **rest: Any) -> Flaky:
        made.append(Flaky(*args, **rest))
        return made[0]

    return make


def test_the_end_of_a_run_does_not_wait_for_a_slow_domain(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Receipts are handed out for a short time only, whatever the deadline of a round is."""
    monkeypatch.setattr(loop, "_LAST_SECONDS", 0.2)
    grid = flaky(mute=lambda node, kind, round_: kind == "query.receipt")
    started = time.monotonic()
    run_script(file, Gains({}), tmp_path, grid_type=grid, patience=replace(SHORT, deadline=60.0), rounds=1)
    assert time.monotonic() - started < 10


def test_a_domain_that_comes_late_takes_part_from_the_next_round_on(file: Path, tmp_path: Path) -> None:
    """With the axes that were there before it; one that goes away is missed, by name."""
    late = flaky(away=lambda node, round_: (node == THIRD and round_ < 2) or (node == FIRST and round_ >= 3))
    state = run_script(file, Gains({}), tmp_path, nodes=3, grid_type=late, patience=SHORT)[-1]
    assert [sorted(record.outcomes) for record in state.history] == [["books", "games"]] * 2 + [
        ["books", "games", "music"]
    ] * 2
    assert state.history[3].outcomes["books"].reason == "not connected"
    assert state.history[3].outcomes["music"].status == OK


def test_a_run_that_has_too_few_domains_stops_and_is_resumed_where_it_was(file: Path, tmp_path: Path) -> None:
    """It says who is missing; with everybody there again, the run ends as one that was never stopped."""
    patience = replace(SHORT, domains=2)
    gone = flaky(away=lambda node, round_: node == SECOND and round_ == 2)
    with pytest.raises(RunError, match="1 of the 2 domains that the run needs are there: games is not connected"):
        run_script(file, Gains({}), tmp_path / "a", grid_type=gone, patience=patience)
    stopped = load_checkpoint(
        tmp_path / "a" / "checkpoint.safetensors", run="r1", digest=load_federation(file).digest()
    )
    assert stopped is not None
    assert stopped.round == 2
    resumed = run_script(file, Gains({}), tmp_path / "a", patience=patience)
    assert [state.round for state in resumed] == [2, 3, 4]
    assert_equal(resumed[-1], run_script(file, Gains({}), tmp_path / "b")[-1])


def test_a_round_that_nobody_answers_is_not_counted(file: Path, tmp_path: Path) -> None:
    """The run stops with the reason and is resumed at that very round."""
    deaf = flaky(mute=lambda node, kind, round_: kind == "train" and round_ == 3)
    with pytest.raises(RunError, match=r"round 3: nobody's update came in: books: no answer within 0.3 s; games: no"):
        run_script(file, Gains({}), tmp_path / "a", grid_type=deaf, patience=SHORT)
    resumed = run_script(file, Gains({}), tmp_path / "a", patience=SHORT)
    assert [state.round for state in resumed] == [2, 3, 4]
    assert_equal(resumed[-1], run_script(file, Gains({}), tmp_path / "b")[-1])


def test_a_start_waits_for_as_many_domains_as_the_run_needs(file: Path, tmp_path: Path) -> None:
    """For so long; then it says what it knows of the others."""
    alone = flaky(away=lambda node, round_: node == SECOND)
    with pytest.raises(RunError, match="1 of the 2 domains that the run needs are there: no other node is connected"):
        run_script(file, Gains({}), tmp_path / "a", grid_type=alone, patience=replace(SHORT, domains=2))
    silent = flaky(mute=lambda node, kind, round_: kind == "query.catalogue" and node == SECOND)
    with pytest.raises(RunError, match="1 of the 2 domains .*: node 3 has not said who it is"):
        run_script(file, Gains({}), tmp_path / "b", grid_type=silent, patience=replace(SHORT, domains=2))
    arrives = time.monotonic() + 0.2
    later = flaky(away=lambda node, round_: node == SECOND and time.monotonic() < arrives)
    patience = replace(SHORT, domains=2, joining=5.0)
    state = run_script(file, Gains({}), tmp_path / "c", grid_type=later, patience=patience, rounds=1)[-1]
    assert sorted(state.history[0].outcomes) == ["books", "games"]


class Breaking(Flaky):
    """The second node cannot answer its first introduction: its vault is not up yet."""

    broken = 1

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Replies, one of them an error."""
        replies = super().pull_messages(message_ids)
        for number, reply in enumerate(replies):
            if reply.metadata.src_node_id == SECOND and self.broken:
                self.broken -= 1
                error = Message(RecordDict(), FIRST, "query.catalogue")
                error.metadata.__dict__.update(reply.metadata.__dict__)
                error.__dict__["_content"], error.__dict__["_error"] = None, Error(1, "the vault is not up")
                replies[number] = error
        return replies


def test_a_node_that_could_not_introduce_itself_is_asked_again(
    file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In a deployed run; in a simulation, once is enough."""
    patience = replace(SHORT, domains=2, joining=5.0)
    with caplog.at_level(logging.WARNING):
        state = run_script(file, Gains({}), tmp_path / "a", grid_type=Breaking, patience=patience, rounds=1)[-1]
    assert "did not join the run: node 3: the vault is not up" in caplog.text
    assert sorted(state.history[0].outcomes) == ["books", "games"]
    state = run_script(file, Gains({}), tmp_path / "b", grid_type=Breaking, rounds=2)[-1]
    assert [sorted(record.outcomes) for record in state.history] == [["books"], ["books"]]


@dataclass(frozen=True)
class SameName:
    """Two nodes of one unit: it lost its key and came back with another."""

    def __call__(self, partition: int, kind: str, request: RoundRequest) -> RoundReply:
        """What both say."""
        return replace(Gains({})(partition, kind, request), domain="books")


def test_a_unit_that_comes_back_as_another_node_takes_its_place(file: Path, tmp_path: Path) -> None:
    """Once its old node is gone, not while it is there."""
    moved = flaky(away=lambda node, round_: (node == FIRST) == (round_ >= 2))
    state = run_script(file, SameName(), tmp_path / "a", grid_type=moved, patience=SHORT)[-1]
    assert [record.outcomes["books"].status for record in state.history] == [OK] * 4
    both: list[Flaky] = []
    state = run_script(file, SameName(), tmp_path / "b", grid_type=_kept(both), patience=SHORT)[-1]
    assert [sorted(record.outcomes) for record in state.history] == [["books"]] * 4


def test_an_exchange_without_a_deadline_waits_for_everybody(file: Path, tmp_path: Path) -> None:
    """And returns the replies in the order of the messages."""
    with InProcessGrid(ClientApp(), nodes=3, run_config={}) as grid:
        messages = [Message(RecordDict(), node, "train") for node in (FIRST, SECOND, THIRD)]
        replies = exchange(grid, messages, Patience())
        assert [reply.metadata.src_node_id for reply in replies] == [FIRST, SECOND, THIRD]
        assert exchange(grid, [], Patience()) == []


def test_a_slow_domain_changes_nothing_in_the_sum_of_the_others(file: Path, tmp_path: Path) -> None:
    """A round without `games` is the round of `books` alone: the prior, moved by its update."""
    grid = flaky(mute=lambda node, kind, round_: node == SECOND and kind == "train")
    state = run_script(file, Gains({}), tmp_path, grid_type=grid, patience=SHORT, rounds=1)[-1]
    moved = {name: array - state.best[name] for name, array in state.arrays.items()}
    assert all(np.allclose(step, 0.01, atol=0.01 / 60) for step in moved.values())  # two roundings to int8


class Doubling(Flaky):
    """Every answer arrives twice."""

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Replies, doubled."""
        return [reply for reply in super().pull_messages(message_ids) for _ in range(2)]


def test_a_second_answer_to_one_message_is_dropped(file: Path, tmp_path: Path) -> None:
    """A run in which every reply is there twice is the run in which it is there once."""
    twice = run_script(file, Gains({}), tmp_path / "a", grid_type=Doubling, patience=SHORT)[-1]
    assert_equal(twice, run_script(file, Gains({}), tmp_path / "b")[-1])


class Lost(Flaky):
    """The SuperLink answers round 2 in the place of `games`, whose node does not report to it any more."""

    def _deliver(self, message_id: str, message: Message) -> None:
        super()._deliver(message_id, message)
        if self.round == 2 and message.metadata.dst_node_id == SECOND:
            said = Message(Error(code=3, reason="Node Unavailable"), reply_to=message)
            said.metadata.__dict__["_src_node_id"] = 1  # Flower's number of itself
            self._replies[message_id] = said


def test_a_node_that_is_lost_in_a_round_is_said_to_be(file: Path, tmp_path: Path) -> None:
    """At once and in the SuperLink's words: nobody waits for the deadline, and nobody says that it was waited for."""
    history = run_script(file, Gains({}), tmp_path, grid_type=Lost, patience=SHORT)[-1].history
    assert [record.outcomes["games"].status for record in history] == [OK, FAILED, OK, OK]
    assert history[1].outcomes["games"].reason == "Node Unavailable"
