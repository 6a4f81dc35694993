"""After the last release: ranks are those of what is served, and everything stays in the domain's folder."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.clients.test_head import toy_domain

from isthmus.backbone import Backbone
from isthmus.backbone_file import ShippedBackbone, load_backbone
from isthmus.clients.backbone_scorer import BackboneScorer
from isthmus.clients.blend import Signals
from isthmus.clients.data import DomainData
from isthmus.clients.finish import LOCAL_BACKBONE, FinishedDomain, finish_domain, read_by, to_serve
from isthmus.clients.head import Head, Method, Verdict, load_head
from isthmus.clients.scorers import ItemCf, Popularity, TextNeighbours, rank_users
from isthmus.clients.trainer import make_training_set
from isthmus.config import (
    BackboneConfig,
    EvaluationConfig,
    FeatureConfig,
    PublicDomain,
    StartedFrom,
    Trained,
    TrainingConfig,
)
from isthmus.features import Whitening, own_axes
from isthmus.packing import arrays_digest
from isthmus.records import Recipe

SHAPE = BackboneConfig(width=8, heads=2, layers=1, feedforward=8, positions=6)
RECIPE = Recipe(
    features=FeatureConfig(encoder="hash:64"),
    backbone=SHAPE,
    training=TrainingConfig(train=Trained.ALL, rivals=20, positions=2),
    whitening="",
)


def shipped_backbone() -> ShippedBackbone:
    """A federation's backbone: the prior with a little learned."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        backbone = Backbone(16, SHAPE)
        torch.nn.init.normal_(backbone.head.weight, std=0.02)
    whitening = Whitening(mean=np.zeros(16, np.float32), matrix=np.eye(16, dtype=np.float32))
    return ShippedBackbone(backbone=backbone.eval(), whitening=whitening, features=RECIPE.features, round=3)


def finish(
    data: DomainData, features: np.ndarray, folder: Path, *, max_users: int = 4000, seed: int = 0
) -> FinishedDomain:
    """Finish under the test's recipe."""
    return finish_domain(
        data,
        make_training_set(data.train, features, RECIPE),
        shipped_backbone(),
        RECIPE,
        evaluation=EvaluationConfig(max_users=max_users),
        seed=seed,
        folder=folder,
    )


@pytest.mark.parametrize("train", list(Trained))
def test_only_what_learns_nothing_about_axes_is_served_in_a_members_own(train: Trained) -> None:
    """The recipe then names these; everything else is served as it was trained."""
    training = TrainingConfig(train=train, rank=2 if train in {Trained.LORA, Trained.TEXT} else None)
    recipe, shipped = RECIPE.model_copy(update={"training": training, "whitening": "ab" * 32}), shipped_backbone()
    encoded = np.random.default_rng(0).normal(size=(50, 16)).astype(np.float32) * np.geomspace(1, 9, 16, dtype="f4")
    served, named = to_serve(shipped, recipe, encoded)
    if train is not Trained.RECENCY:
        assert (served, named) == (shipped, recipe)
        return
    own = own_axes(shipped.whitening, encoded)
    np.testing.assert_array_equal(served.whitening.matrix, own.matrix)
    assert not np.allclose(own.matrix, shipped.whitening.matrix, atol=0.1)
    assert named == recipe.model_copy(update={"whitening": arrays_digest(own.arrays()).hex()})
    assert served.backbone is shipped.backbone


@pytest.mark.parametrize("train", [Trained.ALL, Trained.RECENCY])
@pytest.mark.parametrize("axes", [True, False])
def test_who_began_with_others_axes_has_own_ones_for_local_methods(train: Trained, axes: bool) -> None:
    """And its backbone reads those that it learned in, if it has learned anything about axes."""
    recipe = RECIPE.model_copy(update={"training": TrainingConfig(train=train), "whitening": "ab" * 32})
    start = StartedFrom(digest="cd" * 32, domains=(PublicDomain(name="there", users=9, fingerprint="ef" * 32),))
    shipped = dataclasses.replace(shipped_backbone(), start=start)
    if not axes:
        torch.nn.init.zeros_(shipped.backbone.head.weight)
    encoded = np.random.default_rng(0).normal(size=(50, 16)).astype(np.float32) * np.geomspace(1, 9, 16, dtype="f4")
    served, _ = to_serve(shipped, recipe, encoded)
    np.testing.assert_array_equal(served.whitening.matrix, own_axes(shipped.whitening, encoded).matrix)
    read = read_by(shipped, encoded)
    assert (read is not None) == axes
    if read is not None:
        np.testing.assert_array_equal(read, shipped.whitening.apply(encoded))
    assert read_by(dataclasses.replace(shipped, start=None), encoded) is None


@pytest.mark.parametrize("users", [30, 300])
def test_federated_ranks_are_those_of_the_method_that_is_served(tmp_path: Path, users: int) -> None:
    """A head read back from disk ranks the test items as reported; a local method it serves has the same ranks."""
    data, features = toy_domain(users, 80, seed=1)
    finished = finish(data, features, tmp_path / "head")
    head = load_head(tmp_path / "head")
    assert head == finished.head
    tensor = torch.from_numpy(features)
    signals = Signals.fit(
        data.before_test,
        features=features,
        backbone=BackboneScorer(shipped_backbone().backbone, tensor),
        local_backbone=BackboneScorer(load_backbone(tmp_path / "head" / LOCAL_BACKBONE).backbone, tensor),
    )
    served = rank_users(head.scorer(signals, head.method), data.before_test, np.arange(users), data.test)
    np.testing.assert_array_equal(finished.ranks[Method.FEDERATED], served)
    np.testing.assert_array_equal(finished.ranks[head.method], served)
    assert set(finished.ranks) == set(Method)
    assert all(len(ranks) == users for ranks in finished.ranks.values())


def test_local_ranks_are_those_of_the_local_methods(tmp_path: Path) -> None:
    """Fitted on everything before the test item, scored alone."""
    data, features = toy_domain(60, 80, seed=2)
    ranks = finish(data, features, tmp_path / "head").ranks
    alone = {
        Method.TEXT_KNN: TextNeighbours(features=features),
        Method.ITEM_CF: ItemCf.fit(data.before_test, items=80),
        Method.POPULARITY: Popularity.fit(data.before_test, items=80),
    }
    for method, scorer in alone.items():
        expected = rank_users(scorer, data.before_test, np.arange(60), data.test)
        np.testing.assert_array_equal(ranks[method], expected)


def test_no_test_item_no_ranks_but_a_head(tmp_path: Path) -> None:
    """A domain that cannot be measured is still served."""
    data, features = toy_domain(30, 80, seed=3)
    data = dataclasses.replace(data, test=np.full(30, -1, dtype=np.int32))
    finished = finish(data, features, tmp_path / "head")
    assert finished.ranks == {}
    assert load_head(tmp_path / "head") == finished.head


def test_only_as_many_users_as_asked_are_tested_and_always_the_same(tmp_path: Path) -> None:
    """The draw has its own seed, so that methods, runs and seeds are compared on the same users."""
    data, features = toy_domain(60, 80, seed=4)
    every = finish(data, features, tmp_path / "every").ranks[Method.ITEM_CF]
    some, again = (
        finish(data, features, tmp_path / f"{seed}", max_users=20, seed=seed).ranks[Method.ITEM_CF] for seed in (0, 1)
    )
    assert len(some) == 20
    np.testing.assert_array_equal(some, again)
    drawn = np.sort(np.random.default_rng(0).choice(60, 20, replace=False))
    np.testing.assert_array_equal(some, every[drawn])


def test_nothing_is_written_outside_the_domains_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From an empty working folder, with an empty home and cache: only the head's own files appear."""
    for name in ("work", "home"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "home"))
    monkeypatch.setenv("ISTHMUS_CACHE", str(tmp_path / "home" / "cache"))
    data, features = toy_domain(30, 80, seed=5)
    finish(data, features, tmp_path / "run" / "heads" / "toy")
    written = {path.relative_to(tmp_path).parent.as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {"run/heads/toy"}


def test_finishing_changes_neither_the_shipped_backbone_nor_the_data(tmp_path: Path) -> None:
    """What the federation made stays what it was; the local backbone is a file of its own."""
    data, features = toy_domain(40, 80, seed=6)
    shipped, before = shipped_backbone(), features.copy()
    items = data.train.items.copy()
    finish_domain(
        data,
        make_training_set(data.train, features, RECIPE),
        shipped,
        RECIPE,
        evaluation=EvaluationConfig(),
        seed=0,
        folder=tmp_path / "head",
    )
    fresh = shipped_backbone().backbone
    pairs = zip(shipped.backbone.parameters(), fresh.parameters(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)
    np.testing.assert_array_equal(features, before)
    np.testing.assert_array_equal(data.train.items, items)
    local = load_backbone(tmp_path / "head" / LOCAL_BACKBONE)
    assert local.round == 0
    assert local.features == RECIPE.features


def test_the_same_seed_finishes_the_same_way(tmp_path: Path) -> None:
    """Head, files and ranks."""
    data, features = toy_domain(50, 80, seed=7)
    one, two = (finish(data, features, tmp_path / name) for name in ("one", "two"))
    assert isinstance(one.head, Head)
    assert one.head == two.head
    assert one.head.verdict in set(Verdict)
    for method in Method:
        np.testing.assert_array_equal(one.ranks[method], two.ranks[method])
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()
