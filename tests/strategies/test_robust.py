"""The robust strategies are the published rules, computed here a second time in numpy, and keep their promise."""

from collections.abc import Mapping

import numpy as np
import pytest
from flwr.app import Message
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedMedian, FedTrimmedAvg, Krum
from numpy.typing import NDArray

from isthmus.config import (
    BackboneConfig,
    FeatureConfig,
    StrategyConfig,
    StrategyName,
    TrainingConfig,
    UpdateFormat,
)
from isthmus.grid import InProcessGrid
from isthmus.packing import to_array_record
from isthmus.privacy.keys import fresh_keys
from isthmus.records import Arrays, Recipe, RoundReply, RoundRequest
from isthmus.strategies.choice import make_strategy
from isthmus.strategies.guarded import OK, Guarded

RECIPE = Recipe(
    features=FeatureConfig(encoder="hash:64"), backbone=BackboneConfig(), training=TrainingConfig(), whitening="ab" * 32
)
DOMAINS = ("ads", "books", "food", "games", "hotels", "music", "travel")
ROBUST = [StrategyName.MEDIAN, StrategyName.TRIMMED_MEAN, StrategyName.KRUM]
LARGEST = 50.0
TENSORS = ("a", "b")


def draw(seed: int, scale: float = 1.0) -> Arrays:
    """Two tensors of random numbers."""
    generator = np.random.default_rng(seed)
    parts = {"a": generator.normal(size=(5, 3)), "b": generator.normal(size=7)}
    return {name: (scale * array).astype(np.float32) for name, array in parts.items()}


SHARED = draw(100)
UPDATES = {name: draw(number) for number, name in enumerate(DOMAINS)}


def aggregate(
    name: StrategyName, updates: Mapping[str, Arrays], *, outliers: int = 2, backwards: bool = False
) -> tuple[Guarded, dict[str, NDArray[np.float64]] | None]:
    """The step that a round with these updates takes, and the strategy that took it."""
    config = StrategyConfig(name=name, max_update_norm=LARGEST, outliers=outliers)
    roster = dict(enumerate(DOMAINS, start=2))
    strategy = make_strategy(
        config, trained=TENSORS, form=UpdateFormat.FLOAT32, run="r1", roster=roster, keys=fresh_keys()
    )
    grid = InProcessGrid(ClientApp(), nodes=len(DOMAINS), run_config={})
    request = RoundRequest(run="r1", round=1, recipe=RECIPE)
    replies = []
    for message in strategy.configure_train(1, to_array_record(SHARED), request.config(), grid):
        domain = roster[message.metadata.dst_node_id]
        message.metadata.__dict__["_message_id"] = domain
        if domain in updates:
            reply = RoundReply(domain=domain, run="r1", round=1, arrays=updates[domain])
            replies.append(Message(reply.to_records(), reply_to=message))
    arrays, _ = strategy.aggregate_train(1, replies[::-1] if backwards else replies)
    if arrays is None:
        return strategy, None
    return strategy, {key: each.numpy().astype(np.float64) - SHARED[key] for key, each in arrays.items()}


def stacked(updates: Mapping[str, Arrays]) -> dict[str, NDArray[np.float64]]:
    """(updates, ...) of each tensor."""
    return {key: np.stack([each[key].astype(np.float64) for each in updates.values()]) for key in SHARED}


def expected(name: StrategyName, updates: Mapping[str, Arrays], outliers: int) -> dict[str, NDArray[np.float64]]:
    """The rule, from its paper."""
    tensors = stacked(updates)
    if name is StrategyName.MEDIAN:  # Yin et al. 2018, definition 1
        return {key: np.median(tensor, axis=0) for key, tensor in tensors.items()}
    if name is StrategyName.TRIMMED_MEAN:  # definition 2
        return {key: np.sort(tensor, axis=0)[outliers:-outliers].mean(axis=0) for key, tensor in tensors.items()}
    flat = np.concatenate([tensor.reshape(len(tensor), -1) for tensor in tensors.values()], axis=1)
    apart = np.square(flat[:, None] - flat[None]).sum(axis=2)  # Blanchard et al. 2017, section 4
    scores = [np.sort(np.delete(row, i))[: len(flat) - outliers - 2].sum() for i, row in enumerate(apart)]
    return {key: tensor[int(np.argmin(scores))] for key, tensor in tensors.items()}


@pytest.mark.parametrize("name", ROBUST)
@pytest.mark.parametrize(("outliers", "came"), [(1, 5), (1, 6), (2, 7)])
def test_the_step_is_the_published_rule(name: StrategyName, outliers: int, came: int) -> None:
    """For odd and even numbers of updates."""
    updates = dict(list(UPDATES.items())[:came])
    _, step = aggregate(name, updates, outliers=outliers)
    assert step is not None
    for key, array in expected(name, updates, outliers).items():
        np.testing.assert_allclose(step[key], array, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", ROBUST)
@pytest.mark.parametrize("direction", [1.0, -1.0])
def test_outliers_move_no_coordinate_beyond_the_honest_ones(name: StrategyName, direction: float) -> None:
    """Two of seven send as much as passes validation, in concert; the mean would follow them, the step does not."""
    large = np.float32(direction * 0.99 * LARGEST / np.sqrt(22))
    outlier = {key: np.full_like(array, large) for key, array in SHARED.items()}
    updates = {**UPDATES, "music": outlier, "travel": outlier}
    strategy, step = aggregate(name, updates)
    assert {outcome.status for outcome in strategy.outcomes.values()} == {OK}  # nothing gives them away
    honest = stacked({key: each for key, each in UPDATES.items() if key not in {"music", "travel"}})
    assert step is not None
    for key, array in step.items():
        assert (array <= honest[key].max(axis=0) + 1e-5).all()
        assert (array >= honest[key].min(axis=0) - 1e-5).all()
        assert not (np.abs(stacked(updates)[key].mean(axis=0)) <= np.abs(honest[key]).max(axis=0)).all()


@pytest.mark.parametrize(("name", "needed"), [("median", 5), ("trimmed_mean", 5), ("krum", 7)])
def test_with_too_few_updates_nothing_moves(name: str, needed: int) -> None:
    """Two outliers: fewer than 2 f + 1 updates (2 f + 3 for Krum) keep no promise, so the round changes nothing."""
    enough = dict(list(UPDATES.items())[:needed])
    assert aggregate(StrategyName(name), enough)[1] is not None
    del enough["ads"]
    strategy, step = aggregate(StrategyName(name), enough)
    assert step is None
    assert {outcome.status for outcome in strategy.outcomes.values()} == {OK}


@pytest.mark.parametrize("name", ROBUST)
def test_the_order_of_replies_changes_no_bit(name: StrategyName) -> None:
    """Forwards and backwards."""
    _, step = aggregate(name, UPDATES)
    _, other = aggregate(name, UPDATES, backwards=True)
    assert step is not None
    assert other is not None
    assert all(step[key].tobytes() == other[key].tobytes() for key in step)


@pytest.mark.parametrize(
    ("name", "kind"),
    [(StrategyName.MEDIAN, FedMedian), (StrategyName.TRIMMED_MEAN, FedTrimmedAvg), (StrategyName.KRUM, Krum)],
)
def test_it_is_flowers_own_behind_the_guard(name: StrategyName, kind: type) -> None:
    """Nothing is aggregated by code of ours."""
    strategy, _ = aggregate(name, UPDATES)
    assert isinstance(strategy, Guarded)
    assert isinstance(strategy, kind)
