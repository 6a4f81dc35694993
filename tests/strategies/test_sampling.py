"""Domains are drawn by tempered weights, in public; whoever is not drawn is not asked and is told the rest later."""

import itertools
from collections import Counter

import numpy as np
import pytest
from tests.strategies.test_guarded import (
    DOMAINS,
    ROSTER,
    ROUND,
    SHARED,
    UPDATES,
    aggregate,
    answers,
    asked,
    encoded_answers,
    same_bits,
    with_whitening,
)

from isthmus.config import StrategyConfig, StrategyName, UpdateFormat
from isthmus.encoding import changed
from isthmus.packing import pack
from isthmus.privacy.keys import fresh_keys
from isthmus.records import RoundRequest
from isthmus.strategies.choice import make_strategy
from isthmus.strategies.guarded import Guarded
from isthmus.strategies.sampling import DomainSampling

SIZES = {"ads": 1000.0, "books": 100.0, "food": 10.0, "games": 1.0}
ROUNDS = 4000


def drawn(count: int, temperature: float, *, weights: dict[str, float] = SIZES) -> list[frozenset[str]]:
    """Who is drawn in each of many rounds."""
    sampling = DomainSampling(count=count, temperature=temperature, weights=weights)
    return [sampling.draw(SIZES, run="r1", round_=round_) for round_ in range(ROUNDS)]


def successive(count: int, temperature: float) -> dict[str, float]:
    """How often each is drawn one after the other without replacement, each time in proportion, by enumeration."""
    shares = {name: weight ** (1 / temperature) for name, weight in SIZES.items()}
    often = dict.fromkeys(SIZES, 0.0)
    for order in itertools.permutations(SIZES, count):
        left, chance = sum(shares.values()), 1.0
        for name in order:
            chance *= shares[name] / left
            left -= shares[name]
        for name in order:
            often[name] += chance
    return often


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0, 1e9])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_draws_follow_the_tempered_weights(count: int, temperature: float) -> None:
    """Weights to the power 1 / T, without replacement: frequencies within five standard errors of an enumeration."""
    found = Counter(name for names in drawn(count, temperature) for name in names)
    for name, chance in successive(count, temperature).items():
        error = np.sqrt(chance * (1 - chance) / ROUNDS)
        assert found[name] / ROUNDS == pytest.approx(chance, abs=5 * error + 1e-9)


def test_at_a_high_temperature_all_are_alike() -> None:
    """Arivazhagan et al.: T = 1 is proportional, T towards infinity uniform."""
    proportional, uniform = (Counter(name for names in drawn(1, t) for name in names) for t in (1.0, 1e9))
    assert proportional["ads"] / ROUNDS == pytest.approx(1000 / 1111, abs=0.03)
    assert all(uniform[name] / ROUNDS == pytest.approx(0.25, abs=0.04) for name in SIZES)


def test_exactly_so_many_are_drawn() -> None:
    """All of them where there are no more; nobody of weight 0, ever."""
    assert {len(names) for names in drawn(2, 2.0)} == {2}
    assert set(drawn(4, 2.0)) == set(drawn(9, 2.0)) == {frozenset(SIZES)}
    rounds = drawn(3, 2.0, weights={"ads": 0.0})
    assert set(rounds) == {frozenset({"books", "food", "games"})}


def test_a_draw_can_be_repeated_and_does_not_depend_on_who_else_is_there() -> None:
    """The same run and round, the same names, in any order; without somebody who was not drawn, the same."""
    sampling = DomainSampling(count=2, temperature=2.0, weights=SIZES)
    others = 0
    for round_ in range(50):
        names = sampling.draw(SIZES, run="r1", round_=round_)
        assert names == sampling.draw(list(SIZES)[::-1], run="r1", round_=round_)
        for absent in SIZES.keys() - names:
            assert sampling.draw(SIZES.keys() - {absent}, run="r1", round_=round_) == names
        others += sampling.draw(SIZES, run="r2", round_=round_) != names
    assert others  # another run draws others
    assert len(set(drawn(2, 2.0))) > 1


def start(count: int, *, temperature: float | None = None, weights: dict[str, float] | None = None) -> Guarded:
    """A strategy over three domains that asks some of them."""
    config = StrategyConfig(
        domains_per_round=count, temperature=temperature, weights=weights or {}, max_update_norm=50.0
    )
    strategy = make_strategy(
        config, trained=("a", "b"), form=UpdateFormat.INT8, run="r1", roster=ROSTER, keys=fresh_keys()
    )
    strategy.whitening = pack({"mean": np.ones(2, np.float32)})
    return strategy


def test_a_round_asks_those_that_are_drawn_and_an_evaluation_everybody() -> None:
    """The others are passed over; nobody is, where all are asked."""
    strategy = start(2)
    sent = asked(strategy, SHARED)
    assert len(sent) == 2
    assert strategy.passed_over == frozenset(DOMAINS) - sent.keys()
    assert sorted(asked(strategy, SHARED, evaluate=True)) == sorted(DOMAINS)
    assert strategy.passed_over == frozenset()


def test_whoever_has_spent_its_budget_is_not_drawn() -> None:
    """Another domain takes its place."""
    strategy = start(2)
    for name in DOMAINS:
        strategy.spent = frozenset({name})
        assert sorted(asked(strategy, SHARED)) == sorted(set(DOMAINS) - {name})
    strategy.spent = frozenset(DOMAINS)
    assert asked(strategy, SHARED) == {}


def test_updates_of_those_drawn_count_alike() -> None:
    """The draw has weighed them: weights of 3 and 0.5 do not weigh a second time."""
    strategy = start(3, temperature=2.0, weights={"books": 3.0, "games": 0.5})
    sent = asked(strategy, SHARED)
    found = aggregate(strategy, encoded_answers(sent, UpdateFormat.INT8, *DOMAINS))
    for name, shared in SHARED.items():
        mean = np.mean([UPDATES[domain][name] for domain in DOMAINS], axis=0)
        assert np.abs(found[name] - shared - mean).max() < 0.05


def test_a_domain_that_was_not_drawn_can_be_asked_again() -> None:
    """It has the whitening already; where rounds went by, all parameters go along, to the bit what the server has."""
    strategy, shared = start(1), SHARED
    held: dict[str, dict[str, np.ndarray]] = {}
    seen, whole, steps = set(), 0, 0
    for round_ in range(ROUND, ROUND + 20):
        sent = asked(strategy, shared, round_)
        ((name, message),) = sent.items()
        request = RoundRequest.from_records(message.content)
        assert with_whitening(sent) == ([] if name in seen else [name])
        if name in seen:
            whole, steps = whole + (not request.base), steps + bool(request.base)
        held[name] = changed(held[name] if request.base else {}, request.sent)
        assert same_bits(held[name], shared)
        replies = encoded_answers(sent, UpdateFormat.INT8, name)
        for reply in replies:
            reply.content.config_records["config"]["server-round"] = round_
        shared = aggregate(strategy, replies, round_)
        seen.add(name)
    assert seen == set(DOMAINS)
    assert whole > 0
    assert steps > 0


def test_without_the_keys_everybody_is_asked_by_weight() -> None:
    """And nobody is passed over, so nothing is kept of who did not answer."""
    config = StrategyConfig(weights={"books": 3.0}, max_update_norm=50.0)
    strategy = make_strategy(
        config, trained=("a", "b"), form=UpdateFormat.FLOAT32, run="r1", roster=ROSTER, keys=fresh_keys()
    )
    sent = asked(strategy, SHARED)
    assert sorted(sent) == sorted(DOMAINS)
    aggregate(strategy, answers(sent, "books"))
    assert strategy.passed_over == frozenset()
    assert list(strategy.holds) == [2]


def test_files_without_the_keys_keep_their_digest() -> None:
    """The keys are not in what is hashed unless they are set."""
    assert not {"domains_per_round", "temperature"} & StrategyConfig().model_dump(mode="json").keys()
    kept = StrategyConfig(name=StrategyName.FEDAVG, domains_per_round=2, temperature=3.0).model_dump(mode="json")
    assert (kept["domains_per_round"], kept["temperature"]) == (2, 3.0)
