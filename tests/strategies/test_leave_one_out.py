"""What others gain by a domain is asked for as the paper has it, and its weight follows by a test of known level."""

import math
from collections.abc import Mapping

import numpy as np
import pytest
from flwr.app import Message
from flwr.clientapp import ClientApp
from numpy.typing import NDArray
from safetensors.numpy import load, save
from scipy import stats

from isthmus.config import (
    BackboneConfig,
    FeatureConfig,
    StrategyConfig,
    StrategyName,
    TrainingConfig,
    UpdateFormat,
)
from isthmus.errors import Refused
from isthmus.grid import InProcessGrid
from isthmus.packing import to_array_record
from isthmus.privacy.keys import fresh_keys
from isthmus.privacy.requests import require_asker
from isthmus.records import Arrays, Kind, Recipe, RoundReply, RoundRequest
from isthmus.strategies.choice import GuardedLeaveOneOut, make_strategy, restore_strategy, strategy_state
from isthmus.strategies.guarded import Guarded
from isthmus.strategies.leave_one_out import ALARM, LEAST, Standing

DOMAINS = ("books", "games", "music")
ROSTER = dict(enumerate(DOMAINS, start=2))
WEIGHTS = {"books": 3.0, "games": 0.5, "music": 1.0}
RECIPE = Recipe(
    features=FeatureConfig(encoder="hash:64"), backbone=BackboneConfig(), training=TrainingConfig(), whitening="ab" * 32
)
TRAINED = ("a",)

Exact = dict[str, NDArray[np.float64]]


def draw(seed: int) -> Arrays:
    """Two tensors of random numbers."""
    generator = np.random.default_rng(seed)
    return {"a": generator.normal(size=(5, 3)).astype(np.float32), "b": generator.normal(size=7).astype(np.float32)}


SHARED = draw(99)


def make(name: StrategyName = StrategyName.LEAVE_ONE_OUT, weights: Mapping[str, float] = WEIGHTS) -> Guarded:
    """A strategy over three domains."""
    compare = 1 if name is StrategyName.LEAVE_ONE_OUT else None
    config = StrategyConfig(name=name, weights=dict(weights), compare_every=compare)
    return make_strategy(config, trained=TRAINED, form=UpdateFormat.FLOAT32, run="r1", roster=ROSTER, keys=fresh_keys())


def strict() -> GuardedLeaveOneOut:
    """The strategy under test."""
    strategy = make()
    assert isinstance(strategy, GuardedLeaveOneOut)
    return strategy


def grid() -> InProcessGrid:
    """Three nodes."""
    return InProcessGrid(ClientApp(), nodes=3, run_config={})


def update(domain: str, round_: int) -> Arrays:
    """What a domain sends in a round."""
    return {"a": draw(10 * round_ + DOMAINS.index(domain))["a"]}


def one_round(strategy: Guarded, round_: int, shared: Arrays, *came: str) -> Arrays:
    """What some domains answering a round makes of the shared parameters."""
    request = RoundRequest(run="r1", round=round_, recipe=RECIPE)
    replies = []
    for message in strategy.configure_train(round_, to_array_record(shared), request.config(), grid()):
        domain = strategy.roster[message.metadata.dst_node_id]
        message.metadata.__dict__["_message_id"] = domain
        if domain in (came or DOMAINS):
            reply = RoundReply(domain=domain, run="r1", round=round_, arrays=update(domain, round_))
            replies.append(Message(reply.to_records(), reply_to=message))
    arrays, _ = strategy.aggregate_train(round_, replies)
    assert arrays is not None
    return {name: each.numpy().astype(np.float32) for name, each in arrays.items()}


def mean(round_: int, weights: Mapping[str, float]) -> NDArray[np.float64]:
    """The mean update of a round under some weights, in double precision; 0 of nobody."""
    total = sum(weights.values())
    return sum(
        (weight / total * update(name, round_)["a"].astype(np.float64) for name, weight in weights.items()),
        np.zeros((5, 3)),
    )


def but(name: str) -> dict[str, float]:
    """Declared weights of the others."""
    return {other: weight for other, weight in WEIGHTS.items() if other != name}


def test_with_nothing_known_it_is_fedavg_to_the_bit() -> None:
    """Factors of 1 change nothing."""
    one, other = make(), make(StrategyName.FEDAVG)
    left = right = SHARED
    for round_ in (1, 2, 3):
        left, right = one_round(one, round_, left), one_round(other, round_, right)
    assert all(left[name].tobytes() == right[name].tobytes() for name in left)


def test_what_is_compared_are_the_parameters_with_and_without_a_domains_updates() -> None:
    """Song, Tong and Wei: rebuilt from the updates of the one training, in double precision here; each in its turn."""
    strategy, shared = strict(), SHARED
    for round_ in (1, 2):
        shared = one_round(strategy, round_, shared)
    since = dict.fromkeys(DOMAINS, 1)
    for round_, domain in enumerate([*DOMAINS, *DOMAINS], start=3):
        shared = one_round(strategy, round_, shared)
        about = strategy.comparison(shared)
        assert about is not None
        assert about.domain == domain
        assert about.shared.keys() == shared.keys()
        assert all(about.shared[name].tobytes() == shared[name].tobytes() for name in shared)
        assert list(about.reference) == ["a"]
        rounds = range(since[domain], round_ + 1)
        gone = sum((mean(each, WEIGHTS) - mean(each, but(domain)) for each in rounds), np.zeros(()))
        np.testing.assert_allclose(about.reference["a"], shared["a"] - gone, atol=2e-5)
        strategy.heed(domain, {"nobody": (0.0, 1.0)})
        since[domain] = round_ + 1


def test_a_domain_that_counts_for_little_is_compared_at_its_declared_weight() -> None:
    """So that it is seen as clearly as before; the others count as they do."""
    strategy = strict()
    shared = one_round(strategy, 1, SHARED)
    for _ in range(3):
        strategy.heed("games", {"books": (-1.0, 0.01), "music": (-1.0, 0.01)})
    assert strategy.standings["games"].factor == 1 / 8
    start = shared
    for round_ in (2, 3):
        shared = one_round(strategy, round_, shared)
    lowered = {**WEIGHTS, "games": WEIGHTS["games"] / 8}
    moved = sum((mean(round_, lowered) for round_ in (2, 3)), np.zeros(()))
    np.testing.assert_allclose(shared["a"], start["a"] + moved, atol=2e-5)
    strategy.last = "books"
    about = strategy.comparison(shared)
    assert about is not None
    assert about.domain == "games"
    with_it, without = (
        sum((mean(round_, weights) for round_ in (2, 3)), np.zeros(())) for weights in (WEIGHTS, but("games"))
    )
    np.testing.assert_allclose(about.shared["a"], start["a"] + with_it, atol=2e-5)
    np.testing.assert_allclose(about.reference["a"], start["a"] + without, atol=2e-5)
    assert about.shared["b"].tobytes() == SHARED["b"].tobytes()


def test_a_round_with_one_update_would_have_moved_nothing_without_it() -> None:
    """And of a domain that sent nothing there is nothing to ask."""
    strategy = strict()
    shared = one_round(strategy, 1, SHARED, "games")
    about = strategy.comparison(shared)
    assert about is not None
    assert about.domain == "games"
    np.testing.assert_allclose(about.reference["a"], SHARED["a"], atol=1e-6)
    strategy.heed("games", {"books": (0.0, 1.0)})
    assert strategy.comparison(shared) is None
    assert strict().comparison(SHARED) is None


def test_the_weight_follows_what_the_others_said_so_far() -> None:
    """Halved while the sum is 2 deviations of its noise below 0, to a floor; doubled again, up to 1, when it is not."""
    standing = Standing()
    standing.heed({"books": (-1.9, 1.0)}, {})
    assert standing.factor == 1.0
    standing.heed({"books": (-1.9, 1.0)}, {})  # -3.8 with a deviation of 1.41
    assert standing.factor == 0.5
    for _ in range(10):
        standing.heed({"books": (-1.9, 1.0)}, {})
    assert standing.factor == LEAST
    for factor in (LEAST, LEAST, 2 * LEAST, 4 * LEAST, 8 * LEAST, 1.0, 1.0):
        standing.heed({"books": (6.0, 1.0)}, {})
        assert standing.factor == factor


@pytest.mark.parametrize(
    ("gains", "weights", "factor"),
    [
        ({"books": -9.0, "music": 9.0}, {}, 1.0),  # one loses by it, one gains by it
        ({"books": -9.0, "music": -9.0}, {}, 0.5),
        ({"books": -1e9, "music": 0.0}, {}, 1.0),  # one alone, whatever it says, is not two
        ({"books": -1e9, "music": 0.0}, {"books": 9.0}, 1.0),
        ({"books": -1e9, "music": -0.5}, {"books": 9.0}, 0.5),  # unless it is declared to be most of the federation
        ({"books": -9.0, "music": 9.0}, {"music": 0.0}, 0.5),
        ({"books": -9.0}, {"books": 0.0}, 1.0),
        ({"books": -9.0}, {}, 0.5),
        ({}, {}, 1.0),
    ],
)
def test_the_word_of_one_domain_is_bounded(gains: dict[str, float], weights: dict[str, float], factor: float) -> None:
    """Each counts with its declared weight and at most two deviations, so that one liar of several decides nothing."""
    standing = Standing()
    standing.heed({name: (gain, 1.0) for name, gain in gains.items()}, weights)
    assert standing.factor == factor
    assert Standing(said=dict.fromkeys(gains, (-1.0, 0.25))).balance(weights) == pytest.approx(
        -2 * sum(weights.get(name, 1.0) for name in gains) / norm
        if (norm := math.hypot(*(weights.get(name, 1.0) for name in gains)))
        else 0.0
    )


def test_a_domain_has_no_say_about_itself_and_without_others_nothing_changes() -> None:
    """Neither its weight, nor what was added up for the comparison."""
    strategy = strict()
    shared = one_round(strategy, 1, SHARED)
    before = strategy_state(strategy)
    for gains in ({}, {"books": (-9.0, 1.0)}):
        strategy.heed("books", gains)
    after = strategy_state(strategy)
    assert before.keys() == after.keys()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    assert strategy.comparison(shared) is not None


@pytest.mark.parametrize("others", [1, 2, 5])
def test_a_domain_that_changes_nothing_is_halved_as_seldom_as_the_test_says(others: int) -> None:
    """In at most Phi(-2) of comparisons, first or later ones, whatever the noise; with one other, in as many."""
    generator, looks = np.random.default_rng(7), 4
    runs, alarms = 3000, np.zeros(looks)
    for _ in range(runs):
        standing = Standing()
        for look in range(looks):
            before, stddevs = standing.factor, generator.uniform(0.5, 20, others)
            gains = {str(each): (float(generator.normal(0.0, stddev)), stddev) for each, stddev in enumerate(stddevs)}
            standing.heed(gains, {})
            alarms[look] += standing.factor < before
    level = stats.norm.cdf(-ALARM)
    error = 5 * math.sqrt(level * (1 - level) / runs)
    assert (alarms / runs).max() < level + error
    if others == 1:
        assert (alarms / runs).min() > level - error
    assert alarms.sum() > 0


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5])
def test_a_restored_strategy_goes_on_as_the_uninterrupted_one(stop: int) -> None:
    """State through bytes after any round: the same parameters, comparisons and state, bit for bit."""
    results = []
    for interrupted in (False, True):
        strategy, shared, told = strict(), SHARED, []
        for round_ in range(1, 7):
            shared = one_round(strategy, round_, shared)
            about = strategy.comparison(shared)
            assert about is not None
            told.append((about.domain, about.shared["a"].tobytes(), about.reference["a"].tobytes()))
            gain = -0.1 if about.domain == "games" else 0.1
            strategy.heed(about.domain, dict.fromkeys(DOMAINS, (gain, 0.03)))
            if interrupted and round_ == stop:
                kept = load(save(strategy_state(strategy)))
                strategy = strict()
                restore_strategy(strategy, kept)
        state = strategy_state(strategy)
        results.append((told, {name: array.tobytes() for name, array in state.items()}, shared["a"].tobytes()))
        assert strategy.standings["games"].factor == 0.25
    assert results[0] == results[1]


def test_all_but_one_are_asked_by_a_signature_that_covers_the_reference() -> None:
    """One question to all of them; who was not asked keeps what it has, and needs only the change next time."""
    strategy = strict()
    shared = one_round(strategy, 1, SHARED)
    assert sorted(strategy.holds) == sorted(ROSTER)
    about = strategy.comparison(shared)
    assert about is not None
    request = RoundRequest(run="r1", round=1, recipe=RECIPE)
    asked = list(
        strategy.configure_comparison(1, about.shared, about.reference, about.domain, request.config(), grid())
    )
    assert sorted(ROSTER[message.metadata.dst_node_id] for message in asked) == ["games", "music"]
    replies = []
    for message in asked:
        question = RoundRequest.from_records(message.content)
        signed = {"coordinator": question.coordinator, "signature": question.signature}
        assert require_asker(question.digest(Kind.METRIC), **signed) == strategy.keys.public.hex()
        assert question.reference["a"].tobytes() == about.reference["a"].tobytes()
        assert question.base  # the parameters themselves are known there, but for a step
        for other in ({"a": np.zeros((5, 3), np.float32)}, {}):
            changed = RoundRequest(
                run="r1", round=1, recipe=RECIPE, reference=other, base=question.base, parameters=question.parameters
            )
            with pytest.raises(Refused, match="not signed"):
                require_asker(changed.digest(Kind.METRIC), **signed)
        message.metadata.__dict__["_message_id"] = str(message.metadata.dst_node_id)
        name = ROSTER[message.metadata.dst_node_id]
        values = {"gain": 4.0, "users": 100.0, "noise_stddev": 1.0}
        replies.append(
            Message(RoundReply(domain=name, run="r1", round=1, values=values).to_records(), reply_to=message)
        )
    assert strategy.gains(1, replies) == {"games": (4.0, 1.0), "music": (4.0, 1.0)}
    assert strategy.passed_over == {"books"}
    assert sorted(strategy.holds) == sorted(ROSTER)


def test_other_files_keep_their_digest() -> None:
    """The key is not in what is hashed unless it is set."""
    assert "compare_every" not in StrategyConfig().model_dump(mode="json")
