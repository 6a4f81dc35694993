"""A text encoder that is trained: users' gradients are their own, and what is not changed reads as ever."""

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.clients.sensitivity import (
    EXACT,
    SHAPE,
    SINGLE,
    Served,
    assert_matches_brute_force,
    assert_user_moves_at_most_c,
    histories_of,
)
from tests.clients.test_sensitivity_choices import Inside
from tests.clients.text_cases import TEXT, text_case
from tests.tiny_bert import write_tiny_bert

from isthmus.backbone import Backbone, shared_parameters, trained_parameters
from isthmus.clients import text_tower, trainer
from isthmus.clients.backbone_scorer import BackboneScorer
from isthmus.clients.requested import requested_backbone
from isthmus.clients.text_tower import TextTower, history_features
from isthmus.clients.trainer import make_batch, user_losses
from isthmus.config import Augment, Clipping, EngineName, FeatureConfig, Precision, Trained, TrainingConfig
from isthmus.errors import ConfigError, EngineError, Refused
from isthmus.records import Recipe
from isthmus.text_changes import Rows, TextChanges, TextShape, fixed_factor

LENGTHS = [6, 3, 0, 9, 1, 5]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tiny one is written by the first case."""
    return tmp_path_factory.mktemp("models") / "tiny"


def choosing(**choices: object) -> TrainingConfig:
    """The recipe of these tests, with some choices made."""
    return TrainingConfig.model_validate({**TEXT.model_dump(), **choices})


@pytest.mark.parametrize("engine", EngineName)
def test_the_sum_is_the_loop_over_users(encoder: Path, engine: EngineName) -> None:
    """Against a merged model by plain autograd, text by text: padding, passes and rows change nothing."""
    case = text_case(encoder, LENGTHS, seed=2)
    assert_matches_brute_force(Served(training=TEXT, engine=engine), case, tolerance=EXACT, training=TEXT)


@pytest.mark.parametrize(
    "training",
    [
        TEXT,
        choosing(clipping=Clipping.AUTOMATIC),
        *(choosing(augment=one) for one in Augment if one is not Augment.NONE),
    ],
    ids=lambda training: f"{training.clipping} {training.augment}",
)
def test_one_user_moves_the_sum_by_at_most_c(encoder: Path, training: TrainingConfig) -> None:
    """Every user is removed once; C is below most users' norms."""
    case = text_case(encoder, LENGTHS, seed=1)
    case = dataclasses.replace(case, clip=case.clip / 4)
    mechanism = Inside(training=training)
    assert_user_moves_at_most_c(mechanism, case, tolerance=EXACT)
    assert float(mechanism(case).norm()) > 0.5 * case.clip, "nobody adds anything: the bound was not tried"


class Halved(TextTower):
    """Computes in bfloat16, as all other layers do where that is asked for."""

    def _encode(self, changes: TextChanges, items: NDArray[np.int64], rows: Rows) -> torch.Tensor:
        """Padded by others' texts, with eight bits."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super()._encode(changes, items, rows)


@pytest.mark.parametrize(("tower", "sound"), [(TextTower, True), (Halved, False)])
def test_half_precision_moves_neither_the_bound_nor_anybody_else(
    encoder: Path, tower: type[TextTower], sound: bool
) -> None:
    """Without a user the sum has exactly that user's part less, and no part is above C; a mutant's others change."""
    case = text_case(encoder, np.random.default_rng(0).integers(2, 12, 24).tolist(), seed=1)
    case = dataclasses.replace(case, backbone=case.backbone.float(), clip=case.clip / 4, tower=tower)
    half = Served(training=TEXT, precision=Precision.BFLOAT16)
    everyone, others = half(case), []
    for user in range(0, len(case.rows), 3):
        alone = half(dataclasses.replace(case, chosen=tuple(at == user for at in range(len(case.rows)))))
        assert float(alone.norm()) <= case.clip * (1 + 1e-3)
        others.append(float((everyone - half(case.without(user)) - alone).norm()) / case.clip)
    assert (max(others) < 1e-4) == sound, others


def test_nothing_but_the_changes_and_the_weights_by_age_is_trained(encoder: Path) -> None:
    """The encoder's own weights are no parameters of a backbone."""
    case = text_case(encoder, LENGTHS, seed=1)
    shared = shared_parameters(case.backbone)
    trained = trained_parameters(shared, Trained.TEXT)
    changes = {f"text.layer.{layer}.{matrix}.up.weight" for layer in (0, 1) for matrix in ("query", "value")}
    assert set(trained) == {"recency.weight"} | changes
    assert {name for name in shared if name.startswith("text.")} == changes
    plain = Backbone(16, case.backbone.config)
    assert set(shared) - changes == set(shared_parameters(plain))


def test_without_changes_a_history_reads_as_ever(encoder: Path) -> None:
    """U = 0: the same losses, and to score the very same features; a blank text stays zero."""
    case = text_case(encoder, LENGTHS, seed=4, start=True)
    users = case.users()
    batch = make_batch(users, np.arange(len(LENGTHS)), positions=5, losses=3)
    plain = copy.deepcopy(case.backbone)
    plain.text = None
    ours, theirs = (user_losses(one, users, batch, TEXT) for one in (case.backbone, plain))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert history_features(case.backbone, case.texts, case.encoder, case.whitening, cache_dir=None) is None
    history = torch.tensor([[3, 5, 7]])
    read = users.tower.read(case.backbone.text, history, torch.ones(1, 3, dtype=torch.bool))
    torch.testing.assert_close(read.detach(), users.features[history], rtol=0, atol=1e-5)
    assert not read[0, 0].any()


def test_training_and_serving_read_alike(encoder: Path, tmp_path: Path) -> None:
    """The whole catalogue at once, and user by user: the same features, by the digest of the changes in the cache."""
    case = text_case(encoder, LENGTHS, seed=5)
    backbone = case.backbone.float()
    served = history_features(backbone, case.texts, case.encoder, case.whitening, cache_dir=tmp_path)
    tower, history = TextTower(case.texts, case.encoder, case.whitening), torch.arange(len(case.texts)).view(4, -1)
    trained = tower.read(backbone.text, history, torch.ones_like(history, dtype=torch.bool))
    torch.testing.assert_close(trained.detach().flatten(0, 1), served, rtol=0, atol=1e-5)
    again = history_features(backbone, case.texts, case.encoder, case.whitening, cache_dir=tmp_path)
    assert torch.equal(served, again)
    with torch.no_grad():
        backbone.text.layer[0].query.up.weight += 1
    other = history_features(backbone, case.texts, case.encoder, case.whitening, cache_dir=tmp_path)
    assert float((other - served).abs().max()) > 1e-3


def test_a_scorer_reads_histories_by_the_changed_encoder_and_scores_frozen_features(encoder: Path) -> None:
    """Its query is that of the backbone's own forward pass."""
    case = text_case(encoder, [4, 2], seed=6)
    case.backbone.float()
    features = torch.from_numpy(case.features)
    read = history_features(case.backbone, case.texts, case.encoder, case.whitening, cache_dir=None)
    scores = BackboneScorer(case.backbone, features, read=read).score(histories_of(case.rows), np.arange(2))
    for user, row in enumerate(case.rows):
        query = case.backbone(features[list(row)][None], read[list(row)][None])[0, -1]
        np.testing.assert_allclose(scores[user], (features @ query).detach().numpy(), rtol=1e-4, atol=1e-4)


def test_only_what_a_loss_looks_at_is_encoded(encoder: Path) -> None:
    """The prior reads four items and the last event alone counts: four texts of five. Who has no event has no text."""
    case = text_case(encoder, [9, 9, 0, 1], seed=7)
    case = dataclasses.replace(case, tower=Watched)
    users = case.users()
    batch = make_batch(users, np.arange(4), positions=5, losses=1)
    user_losses(case.backbone, users, batch, TEXT)
    (needed,) = users.tower.seen
    counts = [4 if learns else 0 for learns in (batch.weight.sum(dim=1) > 0).tolist()]
    assert needed.sum(dim=1).tolist() == counts
    assert max(counts) == 4
    assert not needed[:, 0].any()


def test_a_domain_without_the_encoder_refuses_before_anything(
    encoder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With the name that was asked for and no word about this machine, so nobody can look around on it by asking.

    With another model under the name, or another rank, the parameters are none of the recipe's.
    """
    case = text_case(encoder, LENGTHS, seed=1)
    case.backbone.float()
    arrays = {name: one.detach().numpy() for name, one in shared_parameters(case.backbone).items()}
    longer = {"text.layer.2.query.up.weight": np.zeros((16, 2), np.float32)}
    (tmp_path / "empty").mkdir()
    for named, training, sent, words in (
        (str(tmp_path / "nowhere"), TEXT, arrays, "nowhere' cannot be trained in this domain"),
        (str(tmp_path / "empty"), TEXT, arrays, "empty' cannot be trained in this domain"),
        (str(encoder), choosing(rank=17), arrays, "cannot be trained in this domain"),
        (str(encoder), choosing(rank=3), arrays, "must be finite and of shape"),
        (str(encoder), TEXT, arrays | longer, "the text encoder of this domain is another model"),
    ):
        recipe = Recipe(features=FeatureConfig(encoder=named), backbone=SHAPE, training=training, whitening="")
        caplog.clear()
        with pytest.raises(Refused, match=words) as refusal:
            requested_backbone(recipe, sent, case.whitening, domains=0)
        if "in this domain;" in str(refusal.value):
            (record,) = caplog.records
            why = str(record.args[0])
            assert why not in str(refusal.value)
            assert any(word in why for word in ("neither a known name", "no config.json", "16 wide"))


def test_another_model_under_the_name_is_said_and_not_served(encoder: Path, tmp_path: Path) -> None:
    """One of another width, no BERT at all, and one in 8 bits, through which changes would not go."""
    case = text_case(encoder, LENGTHS, seed=1)
    backbone = case.backbone.float()
    wide = write_tiny_bert(tmp_path / "wide", ["red"])
    config = wide / "config.json"
    original = config.read_text()
    for named, text, words in (
        (str(wide), original.replace('"hidden_size": 16', '"hidden_size": 32'), "has 2 layers of width 32 here"),
        (str(wide), original.replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'), "has 3 layers of width 16"),
        (str(wide), original.replace('"model_type": "bert"', '"model_type": "gpt2"'), "of type 'gpt2'"),
        (f"{wide}:int8", original, "of width 16 in 8 bits here"),
    ):
        config.write_text(text)
        with pytest.raises(ConfigError, match="needs it to serve") as error:
            history_features(backbone, case.texts, named, case.whitening, cache_dir=None)
        assert words in str(error.value)


def test_a_piece_holds_as_many_users_as_its_tokens_and_positions_allow(encoder: Path) -> None:
    """Tokens where there are more of them than positions; a blank text has none, and its position counts."""
    case = text_case(encoder, [4, 1], seed=2)
    users = dataclasses.replace(case, rows=((0, 1, 2, 4), (3, 3, 3, 5), (5,), ())).users()
    sizes = trainer._sizes(users, np.arange(4), positions=2)
    assert sizes.tolist() == [users.tower.tokens[[1, 2]].sum(), 2, 1, 0]


@pytest.mark.parametrize("engine", EngineName)
def test_users_without_a_text_are_a_batch_like_any(encoder: Path, engine: EngineName) -> None:
    """A blank one, no event, nothing: no layer is used, and what is trained stays exactly as it is."""
    case = text_case(encoder, [4, 1], seed=2)
    case = dataclasses.replace(case, rows=((3, 3, 5), (5,), ()), chosen=(True,) * 3)
    assert not Served(training=TEXT, engine=engine)(case).any()


def test_the_fixed_factor_is_the_same_everywhere_and_no_other_is_like_it() -> None:
    """A number from it is part of the protocol: who draws another reads other changes."""
    one = fixed_factor("layer.0.query", rank=4, width=384)
    assert torch.equal(one, fixed_factor("layer.0.query", rank=4, width=384))
    np.testing.assert_allclose(one[0, :3].numpy(), FIRST, rtol=1e-6)
    for other in (fixed_factor("layer.0.value", rank=4, width=384), fixed_factor("layer.1.query", rank=4, width=384)):
        assert abs(float((one * other).mean())) < 0.05 / 64
    torch.testing.assert_close(one.var(), torch.tensor(1 / 4 / 64), rtol=0.1, atol=0)
    assert [p.requires_grad for p in TextChanges(TextShape(layers=1, width=8, rank=2)).buffers()] == [False, False]


class Watched(TextTower):
    """Notes what it is asked for."""

    seen: list[torch.Tensor]

    def read(self, changes: TextChanges, history: torch.Tensor, needed: torch.Tensor) -> torch.Tensor:
        """As it is."""
        self.seen = [needed]
        return super().read(changes, history, needed)


FIRST = [-0.43232048 / 8, -0.22622485 / 8, -0.2975589 / 8]


# What follows is wrong on purpose.


class Shared(TextTower):
    """Encodes an item once for all users of a batch, on a row of the first who has it."""

    def read(self, changes: TextChanges, history: torch.Tensor, needed: torch.Tensor) -> torch.Tensor:
        """Every other user's row is a copy."""
        items = history[needed]
        first = torch.tensor([int((items == item).nonzero()[0]) for item in items], dtype=torch.int64)
        alone = torch.zeros_like(needed)
        places = needed.nonzero()
        alone[tuple(places[first.unique()].T)] = True
        once = super().read(changes, history, alone)
        found = torch.zeros_like(once)
        return found.index_put(tuple(places.T), once[tuple(places[first].T)])


class Centred(TextTower):
    """Takes the mean of everybody's items off, as batch normalisation would."""

    def read(self, changes: TextChanges, history: torch.Tensor, needed: torch.Tensor) -> torch.Tensor:
        """Each row moves with every other."""
        found = super().read(changes, history, needed)
        return found - found[needed].mean(dim=0)


class Unmasked(TextTower):
    """Reads a text with the padding behind it, which is as long as the longest text of the pass, whosever that is."""

    def _encode(self, changes: TextChanges, items: NDArray[np.int64], rows: Rows) -> torch.Tensor:
        """As if all texts were as long."""
        tokens = self.tokens
        self.tokens = np.full_like(tokens, tokens[items].max())
        try:
            return super()._encode(changes, items, rows)
        finally:
            self.tokens = tokens


@pytest.mark.parametrize("wrong", [Shared, Centred, Unmasked])
def test_the_check_catches_what_is_shared_between_users(encoder: Path, wrong: type[TextTower]) -> None:
    """Items, a mean, the length of padding: one user moves the sum by more than C, and a round refuses."""
    case = text_case(encoder, [9] * 6, seed=8)
    case = dataclasses.replace(case, clip=case.clip / 4, tower=wrong)
    with pytest.raises(AssertionError, match="moves the sum by"):
        assert_user_moves_at_most_c(Served(training=TEXT, tried=False), case, tolerance=SINGLE)
    for engine in EngineName:
        with pytest.raises(EngineError, match="cannot be told apart"):
            Served(training=TEXT, engine=engine)(case)


def test_the_check_catches_rows_of_texts_where_rows_of_users_belong(
    encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each text as if it were a user: neither engine takes it."""
    case = text_case(encoder, [9, 5, 6], seed=9)

    def by_text(owners: NDArray[np.int64], *, users: int, device: torch.device) -> Rows:
        del users, device
        count = len(owners)
        return Rows(user=torch.arange(count), slot=torch.zeros(count, dtype=torch.int64), users=count, slots=1)

    monkeypatch.setattr(text_tower, "_rows", by_text)
    for engine in EngineName:
        with pytest.raises(EngineError):
            Served(training=TEXT, engine=engine)(case)
