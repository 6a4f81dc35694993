"""Ensemble distillation gives one backbone that predicts what several predict together, from public figures alone."""

import numpy as np
import pytest
import torch
from flwr.app import Message
from flwr.clientapp import ClientApp

from isthmus.backbone import Backbone, load_shared, shared_parameters
from isthmus.config import BackboneConfig, FeatureConfig, StrategyConfig, StrategyName, TrainingConfig, UpdateFormat
from isthmus.encoding import Arrays
from isthmus.grid import InProcessGrid
from isthmus.packing import to_array_record
from isthmus.privacy.keys import fresh_keys
from isthmus.records import Recipe, RoundReply, RoundRequest
from isthmus.strategies import distillation
from isthmus.strategies.choice import make_strategy
from isthmus.strategies.distillation import distance, distil, made_up_histories

FEATURES = 12
SHAPE = BackboneConfig(width=16, layers=1, heads=2, feedforward=32, positions=6)
RECIPE = Recipe(
    features=FeatureConfig(encoder="hash:64"), backbone=SHAPE, training=TrainingConfig(), whitening="ab" * 32
)
NAMES = tuple(shared_parameters(Backbone(FEATURES, SHAPE)))


def backbone_of(arrays: Arrays) -> Backbone:
    """A backbone with these parameters."""
    backbone = Backbone(FEATURES, SHAPE)
    load_shared(backbone, arrays)
    return backbone


def trained(seed: int) -> Arrays:
    """Parameters of a backbone that has learned something: none of it is where it starts."""
    generator = np.random.default_rng(seed)
    return {
        name: (parameter.detach().numpy() + 0.5 * generator.normal(size=parameter.shape)).astype(np.float32)
        for name, parameter in shared_parameters(Backbone(FEATURES, SHAPE)).items()
    }


def reordered(arrays: Arrays) -> Arrays:
    """The same function: hidden units of the feed-forward layer in another order."""
    order, layer = np.random.default_rng(1).permutation(SHAPE.feedforward), "blocks.0"
    return arrays | {
        f"{layer}.expand.weight": arrays[f"{layer}.expand.weight"][order],
        f"{layer}.expand.bias": arrays[f"{layer}.expand.bias"][order],
        f"{layer}.contract.weight": arrays[f"{layer}.contract.weight"][:, order],
    }


def mean(one: Arrays, other: Arrays) -> Arrays:
    """Of parameters."""
    return {name: (one[name] + other[name]) / 2 for name in one}


def predictions(arrays: Arrays, seed: int = 99) -> torch.Tensor:
    """After histories that nobody was moved by."""
    with torch.no_grad():
        return backbone_of(arrays)(made_up_histories(FEATURES, SHAPE, seed=seed))


def test_two_orders_of_the_same_hidden_units_become_one_function_again() -> None:
    """The paper's point: their mean says something else than either, and what is distilled from there does not."""
    one = trained(0)
    other = reordered(one)
    torch.testing.assert_close(predictions(one), predictions(other), rtol=1e-4, atol=1e-4)
    start, histories = mean(one, other), made_up_histories(FEATURES, SHAPE, seed=99)
    found = distil(start, [(1.0, one), (1.0, other)], config=SHAPE, trained=NAMES, seed=3)
    before, after = (distance(backbone_of(arrays), histories, predictions(one)) for arrays in (start, found))
    assert after < 0.6 * before


def test_weights_count() -> None:
    """With all of the weight on one teacher the student goes there, whatever the other says."""
    one, other = trained(0), trained(5)
    start, histories = mean(one, other), made_up_histories(FEATURES, SHAPE, seed=99)
    to_one, to_other = (
        backbone_of(distil(start, [(weight, one), (1 - weight, other)], config=SHAPE, trained=NAMES, seed=3))
        for weight in (1.0, 0.0)
    )
    assert distance(to_one, histories, predictions(one)) < distance(to_other, histories, predictions(one))
    assert distance(to_other, histories, predictions(other)) < distance(to_one, histories, predictions(other))


def test_what_is_not_trained_stays_and_the_same_arguments_give_the_same_bits() -> None:
    """To the bit; whatever torch's own generator was at."""
    one, other = trained(0), trained(5)
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(
            distil(mean(one, other), [(1.0, one), (2.0, other)], config=SHAPE, trained=["head.weight"], seed=3)
        )
    for name, array in mean(one, other).items():
        assert (found[0][name].tobytes() == array.tobytes()) == (name != "head.weight")
        assert found[0][name].tobytes() == found[1][name].tobytes()


def test_a_domain_classifier_stays_that_of_the_mean() -> None:
    """It predicts nothing that serves; whatever the teachers' classifiers say, the student is the same."""
    one, other = trained(0), trained(5)
    start = mean(one, other) | {"domain_classifier.weight": np.ones((2, SHAPE.width), np.float32)}
    plain = distil(mean(one, other), [(1.0, one), (2.0, other)], config=SHAPE, trained=NAMES, seed=3)
    teachers = [(1.0, one | {"domain_classifier.weight": start["domain_classifier.weight"] + 1}), (2.0, other)]
    found = distil(start, teachers, config=SHAPE, trained=(*NAMES, "domain_classifier.weight"), seed=3)
    assert found["domain_classifier.weight"].tobytes() == start["domain_classifier.weight"].tobytes()
    assert all(found[name].tobytes() == array.tobytes() for name, array in plain.items())


def test_a_student_that_cannot_come_nearer_stays_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A teacher that is nearer than a step is long: the student would overshoot, and without the check it does."""
    start, histories = trained(0), made_up_histories(FEATURES, SHAPE, seed=99)
    teacher = start | {"head.weight": start["head.weight"] + np.float32(1e-5)}
    found = distil(start, [(1.0, teacher)], config=SHAPE, trained=NAMES, seed=3)
    assert all(found[name].tobytes() == array.tobytes() for name, array in start.items())
    told = iter((1.0, 0.0))
    monkeypatch.setattr(distillation, "distance", lambda *_: next(told))
    blind = distil(start, [(1.0, teacher)], config=SHAPE, trained=NAMES, seed=3)
    before, after = (distance(backbone_of(arrays), histories, predictions(teacher)) for arrays in (start, blind))
    assert after > before


def test_made_up_items_are_of_length_one_and_those_of_a_history_alike() -> None:
    """And no two histories are."""
    histories = made_up_histories(FEATURES, SHAPE, seed=0)
    torch.testing.assert_close(histories.norm(dim=-1), torch.ones(histories.shape[:2]))
    assert float((histories[:, 0] * histories[:, 1]).sum(dim=-1).mean()) == pytest.approx(0.5, abs=0.05)
    assert abs(float((histories[:-1, 0] * histories[1:, 0]).sum(dim=-1).mean())) < 0.05


def test_a_federation_file_can_name_it() -> None:
    """A round through the strategy comes nearer to what two domains' backbones predict together than FedAvg does."""
    shared = trained(0)
    updates = {"books": reordered(shared), "games": trained(5)}
    updates = {domain: {name: end[name] - shared[name] for name in shared} for domain, end in updates.items()}
    ends = {}
    for kind in (StrategyName.FEDAVG, StrategyName.FEDDF):
        config = StrategyConfig(name=kind, weights={"books": 3.0})
        strategy = make_strategy(
            config,
            trained=NAMES,
            form=UpdateFormat.FLOAT32,
            run="r1",
            roster={2: "books", 3: "games"},
            keys=fresh_keys(),
        )
        grid = InProcessGrid(ClientApp(), nodes=2, run_config={})
        ask = RoundRequest(run="r1", round=1, recipe=RECIPE).config()
        replies = []
        for message in strategy.configure_train(1, to_array_record(shared), ask, grid):
            domain = strategy.roster[message.metadata.dst_node_id]
            message.metadata.__dict__["_message_id"] = domain
            reply = RoundReply(domain=domain, run="r1", round=1, arrays=updates[domain])
            replies.append(Message(reply.to_records(), reply_to=message))
        arrays, _ = strategy.aggregate_train(1, replies)
        assert arrays is not None
        ends[kind] = {name: each.numpy() for name, each in arrays.items()}
    target = sum(
        weight * predictions({name: shared[name] + updates[domain][name] for name in shared})
        for domain, weight in (("books", 0.75), ("games", 0.25))
    )
    histories = made_up_histories(FEATURES, SHAPE, seed=99)
    fedavg, feddf = (distance(backbone_of(end), histories, target) for end in ends.values())
    assert feddf < 0.9 * fedavg
