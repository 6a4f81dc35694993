"""Updates of a part move that part alone; an average is evaluated and the next round goes on without it."""

import pytest
from flwr.app import Message
from tests.strategies.test_guarded import (
    AVERAGING,
    DOMAINS,
    ROUND,
    SHARED,
    UPDATES,
    aggregate,
    asked,
    encoded_answers,
    evaluation,
    requested,
    same_bits,
    start,
)

from isthmus.config import StrategyName, UpdateFormat
from isthmus.encoding import changed
from isthmus.records import RoundRequest


@pytest.mark.parametrize("strategy_name", AVERAGING)
def test_an_update_of_a_part_moves_that_part_alone(strategy_name: StrategyName) -> None:
    """The other tensor stays to the bit, round after round, and is not sent."""
    strategy, sent = start(name=strategy_name)
    strategy.trained = ("a",)
    parts = {domain: {"a": update["a"]} for domain, update in UPDATES.items()}
    shared = SHARED
    for _ in range(2):
        shared = aggregate(strategy, encoded_answers(sent, UpdateFormat.FLOAT32, *DOMAINS, updates=parts))
        assert shared["b"].tobytes() == SHARED["b"].tobytes()
        assert (shared["a"] != SHARED["a"]).any()
        sent = asked(strategy, shared)
        assert {name: requested(message) for name, message in sent.items()} == {name: ["a"] for name in DOMAINS}


def test_an_average_is_evaluated_whole_and_the_next_round_goes_on_by_a_step() -> None:
    """What is sent is what the server has, to the bit; whoever answered needs only the round's change afterwards."""
    strategy, sent = start(form=UpdateFormat.INT8)
    shared = aggregate(strategy, encoded_answers(sent, UpdateFormat.INT8, *DOMAINS))
    average = {name: (SHARED[name] + array) / 2 for name, array in shared.items()}
    evaluated = asked(strategy, average, evaluate=True)
    for message in evaluated.values():
        request = RoundRequest.from_records(message.content)
        assert not request.base
        assert same_bits(request.arrays, average)
    figures = [evaluation(domain, gain=1.0, users=100.0, stddev=1.0) for domain in ("books", "games")]
    strategy.aggregate_evaluate(
        ROUND, [Message(figure.to_records(), reply_to=evaluated[figure.domain]) for figure in figures]
    )
    for name, message in asked(strategy, shared).items():
        request = RoundRequest.from_records(message.content)
        assert bool(request.base) == (name != "music")  # which did not answer, so nobody knows what it holds
        assert same_bits(changed(SHARED if request.base else {}, request.sent), shared)
