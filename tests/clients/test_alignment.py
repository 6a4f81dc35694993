"""DANN does what its paper says, on the shared and noisy path that everything else takes."""

import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.clients.sensitivity import DIM, LABEL, PLAN, SHAPE, Silent, make_case, policy_of
from tests.clients.test_sensitivity_choices import DANN, choosing
from tests.clients.test_trainer import run_round
from torch.nn import functional

from isthmus.backbone import (
    Backbone,
    load_shared,
    shared_arrays,
    shared_parameters,
    trained_parameters,
    without_classifier,
)
from isthmus.clients.alignment import domain_losses, own_label, reversed_gradient
from isthmus.clients.data import Histories
from isthmus.clients.trainer import TrainingSet, make_batch, make_training_set, train_round, user_losses
from isthmus.config import Align, BackboneConfig, FeatureConfig, Trained, TrainingConfig
from isthmus.discrepancy import proxy_a_distance
from isthmus.errors import Refused
from isthmus.privacy.noise import SeededRandomness
from isthmus.records import Recipe

CLASSIFIER = {"domain_classifier.weight", "domain_classifier.bias"}


def test_a_reversed_gradient_is_minus_the_gradient_and_the_values_are_the_same() -> None:
    """Ganin et al., section 4.2: R(x) = x and dR/dx = -I, whatever comes back."""
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.equal(reversed_gradient(x), x)
    upstream = torch.linspace(-3, 4, 35).view(5, 7)
    (back,) = torch.autograd.grad(reversed_gradient(x), x, upstream)
    assert torch.equal(back, -upstream)


def test_the_classifier_learns_what_the_encoder_unlearns() -> None:
    """The loss is a user's mean cross-entropy over positions; only what lies before the reversal has the other sign."""
    generator = torch.Generator().manual_seed(1)
    represented = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.tensor([[0.0, 0.5, 0.5], [0.0, 0.0, 0.0]], dtype=torch.float64)
    classifier = torch.nn.Linear(4, 3).double()
    losses = domain_losses(classifier, represented, weight, LABEL)
    plain = functional.cross_entropy(classifier(represented[0, 1:]), torch.tensor([LABEL, LABEL]))
    torch.testing.assert_close(losses, torch.stack([plain, torch.zeros_like(plain)]))
    wanted = [represented, *classifier.parameters()]
    back, *of_classifier = torch.autograd.grad(losses.sum(), wanted)
    plain_back, *plain_of_classifier = torch.autograd.grad(plain, wanted)
    torch.testing.assert_close(back, -plain_back)
    torch.testing.assert_close(of_classifier, plain_of_classifier)


def test_a_backbone_starts_as_it_does_without_a_classifier() -> None:
    """To the bit, and the classifier, which comes last, at zero."""
    made = []
    for domains in (0, 3):
        torch.manual_seed(4)
        made.append(shared_parameters(Backbone(DIM, SHAPE, domains=domains)))
    plain, aligned = made
    assert list(aligned) == [*plain, "domain_classifier.weight", "domain_classifier.bias"]
    assert all(torch.equal(aligned[name], parameter) for name, parameter in plain.items())
    assert not any(aligned[name].any() for name in CLASSIFIER)


def test_a_classifier_that_knows_nothing_moves_nothing_but_itself() -> None:
    """At zero no gradient goes through it: a first step moves the backbone as it does without one, to the last bit."""
    unclipped = 1e9
    case = make_case([6, 3, 9, 5], seed=1, single=True, domains=3, clip=unclipped)
    for name in CLASSIFIER:
        shared_parameters(case.backbone)[name].detach().zero_()
    plain = make_case([6, 3, 9, 5], seed=1, single=True, clip=unclipped)
    load_shared(plain.backbone, without_classifier(shared_arrays(case.backbone)))
    moved = run_round(case, Silent(case.chosen), training=DANN)
    without = run_round(plain, Silent(case.chosen), training=choosing())
    assert all(moved[name].any() for name in CLASSIFIER)
    assert set(moved) == set(without) | CLASSIFIER
    assert all(np.array_equal(moved[name], update) for name, update in without.items())


@pytest.mark.parametrize("train", [Trained.ALL, Trained.ENDS, Trained.LORA])
def test_the_classifier_is_trained_and_released_like_any_other_parameter(train: Trained) -> None:
    """Whole, beside whatever part is trained."""
    aligned = {**DANN.model_dump(), "train": train, "rank": 2 if train is Trained.LORA else None}
    case = make_case([6, 3, 9, 5], seed=2, single=True, domains=3)
    update = run_round(case, Silent(case.chosen), training=TrainingConfig.model_validate(aligned))
    assert set(update) == set(trained_parameters(shared_parameters(case.backbone), train)) > CLASSIFIER
    assert all(update[name].any() for name in CLASSIFIER)
    assert set(without_classifier(update)) == set(update) - CLASSIFIER


def test_a_backbone_without_a_classifier_has_the_usual_loss_under_an_aligned_recipe() -> None:
    """What a domain trains alone, and the ceiling, have nobody to be aligned with."""
    case = make_case([6, 3, 9, 5], seed=3)
    users = case.users()
    batch = make_batch(users, np.arange(4), positions=SHAPE.positions, losses=3)
    assert torch.equal(*(user_losses(case.backbone, users, batch, training) for training in (DANN, choosing())))


def test_a_domain_that_is_not_in_the_list_has_no_label() -> None:
    """The others' are their places; without alignment nobody has or needs one."""
    assert [own_label(DANN, name) for name in ("books", "games", "music")] == [0, 1, 2]
    assert own_label(choosing(), "films") is None
    with pytest.raises(Refused, match=r"`training\.align_domains` .* no domain 'films', only books, games, music"):
        own_label(DANN, "films")


# Two domains whose items differ by one direction, trained as a federation is, without noise.

WIDTH, ITEMS, USERS, LENGTH, ROUNDS = 12, 40, 60, 6, 20
SMALL = BackboneConfig(width=8, heads=2, layers=1, feedforward=16, positions=LENGTH, prior_items=4)


class Silence(SeededRandomness):
    """Batches are drawn, and no noise is added."""

    def noisy(self, values: NDArray[np.float32], *, stddev: float, sensitivity: float) -> NDArray[np.float32]:
        """The values."""
        return values


@dataclass(frozen=True, kw_only=True)
class Shop:
    """Features of items, and what some users bought: half of them train, half are looked at."""

    features: NDArray[np.float32]
    rows: NDArray[np.int64]

    def training_set(self, training: TrainingConfig, label: int) -> TrainingSet:
        """Of the first half."""
        recipe = Recipe(features=FeatureConfig(), backbone=SMALL, training=training, whitening="")
        rows = self.rows[:USERS]
        histories = Histories(offsets=np.arange(USERS + 1) * LENGTH, items=rows.astype(np.int32).ravel())
        return make_training_set(histories, self.features, recipe, label=label)

    def represented(self, backbone: Backbone) -> NDArray[np.float64]:
        """(users, width) of the second half, after their whole histories."""
        with torch.no_grad():
            found = backbone.represent(torch.from_numpy(self.features[self.rows[USERS:]]))
        return found[:, -1].double().numpy()


def shop(side: float, generator: np.random.Generator) -> Shop:
    """Items on one side of the first axis; users buy what is near to a taste, which knows nothing of that axis."""
    features = generator.normal(size=(ITEMS, WIDTH))
    features[:, 0] = side
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    tastes = generator.normal(size=(2 * USERS, WIDTH))
    tastes[:, 0] = 0.0
    liked = 3 * tastes @ features.T + generator.gumbel(size=(2 * USERS, ITEMS))
    return Shop(features=features, rows=generator.permuted(np.argsort(-liked, axis=1)[:, :LENGTH], axis=1))


def federated(shops: list[Shop], training: TrainingConfig, *, seed: int) -> Backbone:
    """What some rounds come to: every shop's update, averaged."""
    users = [one.training_set(training, label) for label, one in enumerate(shops)]
    policy = policy_of(make_case([], seed=0, clip=1.0)).model_copy(
        update={"expected_batch": USERS / 2, "steps_per_round": 2}
    )
    torch.manual_seed(seed)
    backbone = Backbone(WIDTH, SMALL, domains=training.classes)
    for round_ in range(ROUNDS):
        updates = [
            train_round(
                copy.deepcopy(backbone),
                some,
                training=training,
                policy=policy,
                plan=PLAN,
                proximal_mu=0.0,
                randomness=Silence(seed, str(label), str(round_)),
            )
            for label, some in enumerate(users)
        ]
        before = {name: parameter.detach().numpy() for name, parameter in shared_parameters(backbone).items()}
        load_shared(backbone, {name: array + sum(u[name] for u in updates) / 2 for name, array in before.items()})
    return backbone


@pytest.mark.parametrize("seed", [0, 1])
def test_domains_are_harder_to_tell_apart_by_what_an_aligned_encoder_makes_of_them(seed: int) -> None:
    """A new linear probe, on users that nobody was trained on: near to chance with DANN, and far from it without."""
    generator = np.random.default_rng(seed)
    shops = [shop(side, generator) for side in (1.0, -1.0)]
    recipe = {"train": "all", "rivals": 20}
    plain = TrainingConfig.model_validate(recipe)
    aligned = TrainingConfig.model_validate(
        {**recipe, "align": Align.DANN, "align_weight": 3.0, "align_domains": ("left", "right")}
    )
    apart = {
        name: proxy_a_distance(*(one.represented(federated(shops, training, seed=seed)) for one in shops), seed=0)
        for name, training in (("plain", plain), ("aligned", aligned))
    }
    assert apart["plain"] > 0.7
    assert apart["aligned"] < 0.5 * apart["plain"]
