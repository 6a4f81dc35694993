"""Each named strategy is the published rule, computed here a second time in numpy, and survives a restart."""

from collections.abc import Mapping

import numpy as np
import pytest
from flwr.app import Message
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam, FedAvg, FedProx
from numpy.typing import NDArray
from safetensors.numpy import load, save

from isthmus.config import BackboneConfig, FeatureConfig, StrategyConfig, StrategyName, TrainingConfig, UpdateFormat
from isthmus.grid import InProcessGrid
from isthmus.packing import to_array_record
from isthmus.privacy.keys import fresh_keys
from isthmus.records import Arrays, Recipe, RoundReply, RoundRequest
from isthmus.strategies.choice import make_strategy, restore_strategy, strategy_state
from isthmus.strategies.guarded import Guarded

WEIGHTS = {"books": 3.0, "games": 0.5}
RECIPE = Recipe(
    features=FeatureConfig(encoder="hash:64"), backbone=BackboneConfig(), training=TrainingConfig(), whitening="ab" * 32
)
RATE = 0.05
AVERAGING = [StrategyName.FEDAVG, StrategyName.FEDADAM, StrategyName.FEDPROX, StrategyName.REPTILE]
"""Of the others, tests/strategies/test_robust.py."""

Exact = dict[str, NDArray[np.float64]]
TENSORS = ("a", "b")


def draw(seed: int) -> Arrays:
    """Two tensors of random numbers."""
    generator = np.random.default_rng(seed)
    return {"a": generator.normal(size=(5, 3)).astype(np.float32), "b": generator.normal(size=7).astype(np.float32)}


def make(
    name: StrategyName, weights: Mapping[str, float] = WEIGHTS, form: UpdateFormat = UpdateFormat.FLOAT32
) -> Guarded:
    """A strategy over two domains."""
    config = StrategyConfig(name=name, weights=dict(weights), server_learning_rate=RATE, proximal_mu=0.25)
    return make_strategy(
        config, trained=TENSORS, form=form, run="r1", roster={2: "books", 3: "games"}, keys=fresh_keys()
    )


def one_round(strategy: Guarded, round_: int, shared: Arrays) -> Arrays:
    """What both domains answering a round makes of the shared parameters; their updates follow from the round."""
    grid = InProcessGrid(ClientApp(), nodes=2, run_config={})
    request = RoundRequest(run="r1", round=round_, recipe=RECIPE)
    replies = []
    for message in strategy.configure_train(round_, to_array_record(shared), request.config(), grid):
        domain = strategy.roster[message.metadata.dst_node_id]
        message.metadata.__dict__["_message_id"] = domain
        reply = RoundReply(domain=domain, run="r1", round=round_, arrays=update(domain, round_))
        replies.append(Message(reply.to_records(), reply_to=message))
    arrays, _ = strategy.aggregate_train(round_, replies)
    assert arrays is not None
    return {name: each.numpy().astype(np.float32) for name, each in arrays.items()}


def update(domain: str, round_: int) -> Arrays:
    """What a domain sends in a round."""
    return draw(10 * round_ + list(WEIGHTS).index(domain))


def mean_of(round_: int) -> Exact:
    """The weighted mean update of a round, in double precision."""
    total = sum(WEIGHTS.values())
    return {
        name: sum((w / total * update(d, round_)[name].astype(np.float64) for d, w in WEIGHTS.items()), np.zeros(()))
        for name in draw(0)
    }


def adam(start: Arrays, rounds: int) -> Exact:
    """Reddi et al., algorithm 2, with Kingma and Ba's corrected step size at time t + 1, as Flower counts."""
    x = {name: array.astype(np.float64) for name, array in start.items()}
    m, v = ({name: np.zeros_like(array) for name, array in x.items()} for _ in range(2))
    for t in range(1, rounds + 1):
        step = RATE * np.sqrt(1 - 0.99 ** (t + 1)) / (1 - 0.9 ** (t + 1))
        for name, delta in mean_of(t).items():
            m[name] = 0.9 * m[name] + 0.1 * delta
            v[name] = 0.99 * v[name] + 0.01 * delta**2
            x[name] = x[name] + step * m[name] / (np.sqrt(v[name]) + 1e-3)
    return x


@pytest.mark.parametrize("name", [StrategyName.FEDAVG, StrategyName.FEDPROX])
def test_fedavg_and_fedprox_add_the_weighted_mean_of_the_updates(name: StrategyName) -> None:
    """Three rounds against the closed form: the start plus the three weighted means."""
    strategy, shared = make(name), draw(99)
    expected = {key: array.astype(np.float64) for key, array in shared.items()}
    for round_ in (1, 2, 3):
        shared = one_round(strategy, round_, shared)
        expected = {key: array + mean_of(round_)[key] for key, array in expected.items()}
    for key, array in expected.items():
        np.testing.assert_allclose(shared[key], array, rtol=1e-5, atol=2e-6)


def test_reptile_goes_a_share_of_the_way_to_the_mean() -> None:
    """Nichol, Achiam and Schulman, algorithm 2, in double precision: x + share (mean of the ends - x), three rounds."""
    strategy, shared = make(StrategyName.REPTILE), draw(99)
    expected = {key: array.astype(np.float64) for key, array in shared.items()}
    for round_ in (1, 2, 3):
        shared = one_round(strategy, round_, shared)
        expected = {key: array + RATE * mean_of(round_)[key] for key, array in expected.items()}
    for key, array in expected.items():
        np.testing.assert_allclose(shared[key], array, rtol=1e-5, atol=2e-6)


def test_fedadam_is_adam_on_the_weighted_mean_update() -> None:
    """Four rounds against an independent computation in double precision."""
    strategy, shared = make(StrategyName.FEDADAM), draw(99)
    for round_ in (1, 2, 3, 4):
        shared = one_round(strategy, round_, shared)
    for key, array in adam(draw(99), 4).items():
        np.testing.assert_allclose(shared[key], array, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", AVERAGING)
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_restored_strategy_goes_on_as_the_uninterrupted_one(name: StrategyName, stop: int) -> None:
    """State to bytes and back after any round, into a fresh strategy: the same parameters and state, bit for bit."""
    whole, shared = make(name), draw(99)
    for round_ in (1, 2, 3, 4):
        shared = one_round(whole, round_, shared)
    strategy, resumed = make(name), draw(99)
    for round_ in (1, 2, 3, 4):
        resumed = one_round(strategy, round_, resumed)
        if round_ == stop:
            kept = load(save(strategy_state(strategy)))
            strategy = make(name)
            restore_strategy(strategy, kept)
    assert all(resumed[key].tobytes() == array.tobytes() for key, array in shared.items())
    left, right = strategy_state(whole), strategy_state(strategy)
    assert left.keys() == right.keys()
    assert all(left[key].tobytes() == right[key].tobytes() for key in left)


def test_forgetting_the_state_would_be_noticed() -> None:
    """FedAdam without what it remembers goes elsewhere; FedAvg and FedProx have nothing to remember."""
    whole, shared = make(StrategyName.FEDADAM), draw(99)
    first = one_round(whole, 1, shared)
    fresh = one_round(make(StrategyName.FEDADAM), 2, first)
    assert not np.allclose(one_round(whole, 2, first)["a"], fresh["a"], atol=1e-4)
    assert sorted(strategy_state(whole)) == ["m/a", "m/b", "v/a", "v/b"]
    for name in (StrategyName.FEDAVG, StrategyName.FEDPROX):
        strategy = make(name)
        one_round(strategy, 1, shared)
        assert strategy_state(strategy) == {}


def test_restoring_before_the_first_round_changes_nothing() -> None:
    """A checkpoint of round 0 holds no state."""
    strategy = make(StrategyName.FEDADAM)
    restore_strategy(strategy, {})
    assert strategy_state(strategy) == {}
    fresh = make(StrategyName.FEDADAM)
    left, right = (one_round(each, 1, draw(99)) for each in (strategy, fresh))
    assert all(left[key].tobytes() == right[key].tobytes() for key in left)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (StrategyName.FEDAVG, FedAvg),
        (StrategyName.FEDADAM, FedAdam),
        (StrategyName.FEDPROX, FedProx),
        (StrategyName.REPTILE, FedAvg),
    ],
)
def test_a_name_gives_flowers_own_strategy_behind_the_guard(name: StrategyName, kind: type) -> None:
    """One answering domain is enough, and only FedProx pulls."""
    strategy = make(name)
    assert isinstance(strategy, Guarded)
    assert isinstance(strategy, kind)
    assert strategy.min_train_nodes == strategy.min_available_nodes == strategy.min_evaluate_nodes == 1
    grid = InProcessGrid(ClientApp(), nodes=2, run_config={})
    request = RoundRequest(run="r1", round=1, recipe=RECIPE)
    pulls = {
        RoundRequest.from_records(message.content).proximal_mu
        for message in strategy.configure_train(1, to_array_record(draw(0)), request.config(), grid)
    }
    assert pulls == {0.25 if name is StrategyName.FEDPROX else 0.0}
