"""The vault takes its limits from domain.toml, charges before it computes, and answers a round once."""

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.conftest import TinyDomain

from isthmus.backbone import Backbone, shared_parameters
from isthmus.clients import vault as module
from isthmus.clients.backbone_scorer import BackboneScorer
from isthmus.clients.evaluation import validation_ndcg
from isthmus.clients.vault import Vault
from isthmus.config import (
    Align,
    Augment,
    BackboneConfig,
    Clipping,
    FeatureConfig,
    OptimizerName,
    PublicDomain,
    StartedFrom,
    Trained,
    TrainingConfig,
    UpdateFormat,
    load_domain,
)
from isthmus.encoding import DTYPES, Encoded, decode
from isthmus.errors import BudgetExhausted, ConfigError, Refused
from isthmus.features import Whitening, encode_texts, fit_whitening, own_axes, text_moments
from isthmus.packing import arrays_digest
from isthmus.privacy.accounting import encode_event
from isthmus.privacy.gate import Payload, Release
from isthmus.privacy.ledger import Ledger
from isthmus.records import Arrays, Kind, Recipe, RoundRequest

USERS, ITEMS = 24, 16
FEATURES = FeatureConfig(encoder="hash:64")
SHAPE = BackboneConfig(width=8, heads=2, layers=1, feedforward=8, positions=6)
TRAINING = TrainingConfig(train=Trained.ALL, learning_rate=0.5, rivals=10)

ONE_ROUND = {"rounds": 1, "evaluations": 0}

Opener = Callable[..., Vault]


@pytest.fixture
def open_vault(tmp_path: Path) -> Opener:
    """Open a vault: `at` names its folder, so that the same words open the same ledger again."""
    return lambda at="one", seed=7, **changes: opened(tmp_path, at, seed, changes)


def opened(root: Path, at: str, seed: int | None, changes: dict[str, Any]) -> Vault:
    folder = root / at / "books"
    if not folder.exists():
        name = changes.pop("name", "books")
        TinyDomain(root / at)(name="books", users=USERS, items=ITEMS, **changes)
        file = folder / "domain.toml"
        file.write_text(file.read_text().replace('name = "books"', f'name = "{name}"'))
    config = load_domain(folder)
    return Vault(config, ledger=Ledger(config.ledger_path), seed=seed, cache=root / f"cache-{at}")


@pytest.fixture(scope="module")
def request_one(tmp_path_factory: pytest.TempPathFactory) -> RoundRequest:
    """Round 1 of run `r`, with an untrained backbone and a whitening."""
    encoded = encode_texts(
        [f"item {number}" for number in range(20)], FEATURES.encoder, cache_dir=tmp_path_factory.mktemp("texts")
    )
    whitening = fit_whitening([text_moments(encoded)], eps=1e-3, dim=8)
    arrays: Arrays = {"mean": whitening.mean, "matrix": whitening.matrix}
    recipe = Recipe(features=FEATURES, backbone=SHAPE, training=TRAINING, whitening=arrays_digest(arrays).hex())
    parameters = shared_parameters(Backbone(8, SHAPE))
    return RoundRequest(
        run="r",
        round=1,
        recipe=recipe,
        arrays={name: parameter.detach().numpy().copy() for name, parameter in parameters.items()},
        whitening=arrays,
    )


def retrained(request: RoundRequest, **changes: Any) -> RoundRequest:
    """The request with other training settings."""
    training = request.recipe.training.model_copy(update=changes)
    return dataclasses.replace(request, recipe=request.recipe.model_copy(update={"training": training}))


def assert_nothing_happened(vault: Vault) -> None:
    """No charge, no table opened."""
    assert list(vault.ledger.entries()) == []
    assert "data" not in vars(vault)


def same(first: Release, second: Release) -> bool:
    """Equal to the last bit."""
    return first.payload.values == second.payload.values and arrays_digest(first.payload.arrays) == arrays_digest(
        second.payload.arrays
    )


def decoded(release: Release) -> Arrays:
    """The update in a release, as the server will read it."""
    return decode(Encoded(arrays=release.payload.arrays, scales=release.payload.values))


def test_an_update_is_charged_as_the_domains_own_policy_says(open_vault: Opener, request_one: RoundRequest) -> None:
    """Rate, noise and steps of the entry are the plan's; the update has the shared parameters' shapes."""
    vault = open_vault()
    release = vault.release(Kind.UPDATE, request_one)
    (entry,) = vault.ledger.entries()
    assert encode_event(entry.event) == encode_event(vault.plan.update_event(2))
    assert entry.dataset == vault.ledger.chain.keys.fingerprint(vault.data.fingerprint)
    assert entry.dataset != vault.data.fingerprint  # which could be guessed at
    assert entry.released
    assert vault.epsilon() < 8.0
    assert {name: array.shape for name, array in release.payload.arrays.items()} == {
        name: array.shape for name, array in request_one.arrays.items()
    }
    assert release.payload.values.keys() == release.payload.arrays.keys()  # a scale for each int8 tensor


@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate": 1e6, "momentum": 0.99},
        {"rivals": 1000, "positions": 1000, "temperature": 1e-9},
        {"clipping": Clipping.AUTOMATIC, "optimizer": OptimizerName.ADAM_BC, "augment": Augment.MASK},
        {"train": Trained.LORA, "rank": 2, "augment": Augment.CROP},
        {"optimizer": OptimizerName.PER_FEDAVG, "inner_learning_rate": 1e6},
    ],
)
def test_nothing_in_a_recipe_changes_what_a_round_costs(
    open_vault: Opener, request_one: RoundRequest, changes: dict[str, float]
) -> None:
    """Hostile settings train badly; the charge, and so the guarantee, is the domain's own."""
    vault = open_vault()
    release = vault.release(Kind.UPDATE, retrained(request_one, **changes))
    assert encode_event(release.entry.event) == encode_event(vault.plan.update_event(2))


def test_steps_that_come_in_pairs_are_refused_where_one_would_be_left_over(
    open_vault: Opener, request_one: RoundRequest
) -> None:
    """Before anything is charged; the domain's steps stay what its own policy says."""
    vault = open_vault()
    policy = vault.config.privacy.model_copy(update={"steps_per_round": 3})
    vault.config = vault.config.model_copy(update={"privacy": policy})
    pairs = retrained(request_one, optimizer=OptimizerName.PER_FEDAVG, inner_learning_rate=0.1)
    with pytest.raises(Refused, match="in pairs, and this domain takes 3 a round"):
        vault.release(Kind.UPDATE, pairs)
    assert_nothing_happened(vault)


def test_a_domain_that_an_aligned_recipe_does_not_know_is_refused_unpaid(
    open_vault: Opener, request_one: RoundRequest
) -> None:
    """Of an update and of an evaluation: it has no label. One that is known must get the classifier along."""
    vault = open_vault()
    names = {"align": Align.DANN, "align_weight": 1.0}
    for kind in (Kind.UPDATE, Kind.METRIC):
        with pytest.raises(Refused, match="no domain 'books', only films, games; a domain that takes part must be in"):
            vault.release(kind, retrained(request_one, **names, align_domains=("films", "games")))
        with pytest.raises(Refused, match="not those of its recipe"):
            vault.release(kind, retrained(request_one, **names, align_domains=("books", "games")))
    assert_nothing_happened(vault)


@pytest.mark.parametrize(
    "key", ["steps_per_round", "clip", "noise_multiplier", "sample_rate", "expected_batch", "epsilon"]
)
def test_a_request_has_no_field_for_a_limit(request_one: RoundRequest, key: str) -> None:
    """A recipe that tries to bring one is refused while it is parsed, and a message's own such key is not read."""
    content = request_one.to_records()
    content.config_records["config"][key] = 1000.0
    assert not hasattr(RoundRequest.from_records(content), key)
    for table in ("", '"training":'):
        content = request_one.to_records()
        recipe = request_one.recipe.model_dump_json()
        content.config_records["config"]["recipe"] = recipe.replace(table + "{", f'{table}{{"{key}": 1000.0,', 1)
        with pytest.raises(Refused, match="recipe"):
            RoundRequest.from_records(content)


def test_a_domain_without_budget_opens_no_table(open_vault: Opener, request_one: RoundRequest) -> None:
    """The tables are gone, and a round that does not fit is still told so; what was spent stays."""
    vault = open_vault(privacy=ONE_ROUND)
    vault.release(Kind.UPDATE, request_one)
    spent = vault.epsilon()
    vault.close()
    again = open_vault()
    for table in (again.config.items_path, again.config.interactions_path):
        table.unlink()
    with pytest.raises(BudgetExhausted, match=r"of 8 is spent"):
        again.release(Kind.UPDATE, dataclasses.replace(request_one, run="another"))
    assert "data" not in vars(again)
    assert again.epsilon() == spent
    assert len(list(again.ledger.entries())) == 1


def test_the_charge_is_on_disk_before_training_starts(
    open_vault: Opener, request_one: RoundRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training that dies leaves its charge; the same request then trains under it and pays no more."""
    vault = open_vault()
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(module, "train_round", lambda *_, **__: seen.append(look(vault)) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            vault.release(Kind.UPDATE, request_one)
    assert seen == [[("r", 1, "update", False)]]
    spent = vault.epsilon()
    assert vault.release(Kind.UPDATE, request_one).payload.arrays
    assert look(vault) == [("r", 1, "update", True)]
    assert vault.epsilon() == spent


def look(vault: Vault) -> list[tuple[str, int, str, bool]]:
    """What another reader finds in the ledger's file."""
    other = Ledger(vault.ledger.path)
    found = [(entry.run, entry.round, entry.kind, entry.released) for entry in other.entries()]
    other.close()
    return found


def test_a_repeated_request_gets_the_same_bytes_for_one_charge(open_vault: Opener, request_one: RoundRequest) -> None:
    """With noise that cannot be repeated; whether the whitening comes along or not, and after a restart."""
    vault = open_vault(seed=None)
    first = vault.release(Kind.UPDATE, request_one)
    again = vault.release(Kind.UPDATE, dataclasses.replace(request_one, whitening={}))
    vault.close()
    restarted = open_vault(seed=None).release(Kind.UPDATE, request_one)
    assert {array.dtype for array in first.payload.arrays.values()} == {np.dtype(np.int8)}  # what crosses was kept
    assert same(first, again)
    assert same(first, restarted)
    assert restarted.entry.seq == first.entry.seq == again.entry.seq


def test_another_request_for_the_same_round_is_refused(open_vault: Opener, request_one: RoundRequest) -> None:
    """Other parameters or settings under a round that was answered are a replay; nothing more is charged."""
    vault = open_vault()
    vault.release(Kind.UPDATE, request_one)
    moved = {name: array + np.float32(0.01) for name, array in request_one.arrays.items()}
    for other in (
        dataclasses.replace(request_one, arrays=moved),
        retrained(request_one, learning_rate=0.25),
        dataclasses.replace(request_one, proximal_mu=0.1),
    ):
        with pytest.raises(Refused, match="already asked for another update"):
            vault.release(Kind.UPDATE, other)
    assert len(list(vault.ledger.entries())) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_parameters_that_are_not_finite_are_refused_unpaid(
    open_vault: Opener, request_one: RoundRequest, value: float
) -> None:
    """One entry is enough; nothing is charged and no table opened."""
    arrays = {name: array.copy() for name, array in request_one.arrays.items()}
    arrays["norm.weight"][3] = value
    vault = open_vault()
    for kind in (Kind.UPDATE, Kind.METRIC):
        with pytest.raises(Refused, match=r"norm\.weight.*finite"):
            vault.release(kind, dataclasses.replace(request_one, arrays=arrays))
    assert_nothing_happened(vault)


@pytest.mark.parametrize("wrong", ["missing", "extra", "shape", "none"])
def test_parameters_of_another_model_are_refused_unpaid(
    open_vault: Opener, request_one: RoundRequest, wrong: str
) -> None:
    """Names and shapes must be exactly the recipe's."""
    arrays = dict(request_one.arrays)
    if wrong == "missing":
        del arrays["norm.bias"]
    elif wrong == "extra":
        arrays["norm.other"] = arrays["norm.bias"]
    elif wrong == "shape":
        arrays["norm.bias"] = arrays["norm.bias"][:, None]
    else:
        arrays = {}
    vault = open_vault()
    with pytest.raises(Refused, match="parameter"):
        vault.release(Kind.UPDATE, dataclasses.replace(request_one, arrays=arrays))
    assert_nothing_happened(vault)


@pytest.mark.parametrize("form", list(UpdateFormat))
def test_an_update_leaves_in_the_format_of_the_recipe_rounded_after_the_noise(
    open_vault: Opener, request_one: RoundRequest, form: UpdateFormat
) -> None:
    """Within a step of what the same noise gives unrounded, everywhere; the charge is the same."""
    exact = open_vault("one").release(Kind.UPDATE, retrained(request_one, update_format=UpdateFormat.FLOAT32))
    release = open_vault("two").release(Kind.UPDATE, retrained(request_one, update_format=form))
    assert {array.dtype for array in release.payload.arrays.values()} == {DTYPES[form]}
    for name, array in decoded(release).items():
        largest = np.abs(exact.payload.arrays[name]).max()
        assert np.abs(array - exact.payload.arrays[name]).max() <= (
            0 if form is UpdateFormat.FLOAT32 else largest / 126
        )
    assert encode_event(release.entry.event) == encode_event(exact.entry.event)


class CountingVault(Vault):
    """Mutant: how finely an update is rounded depends on how many users there are."""

    def _train(self, request: RoundRequest, *rest: Any) -> Payload:
        """Scales with a count in them."""
        payload = super()._train(request, *rest)
        users = len(self.data.users)
        return dataclasses.replace(payload, values={name: s * (1 + users / 1000) for name, s in payload.values.items()})


def depends_on_data(
    vault_type: type[Vault], root: Path, request: RoundRequest, monkeypatch: pytest.MonkeyPatch
) -> bool:
    """Whether the same noisy update leaves in other bytes when the users are others."""
    generator = np.random.default_rng(3)
    update = {name: generator.normal(size=array.shape).astype(np.float32) for name, array in request.arrays.items()}
    monkeypatch.setattr(module, "train_round", lambda *_, **__: update)
    payloads = []
    for users in (20, 40):
        folder = TinyDomain(root / str(users))(name="books", users=users, items=ITEMS, seed=users)
        config = load_domain(folder)
        vault = vault_type(config, ledger=Ledger(config.ledger_path), seed=7, cache=root / "cache")
        payloads.append(vault.release(Kind.UPDATE, request).payload)
    one, other = payloads
    same_bytes = all(array.tobytes() == other.arrays[name].tobytes() for name, array in one.arrays.items())
    return not (same_bytes and one.values == other.values)


def test_rounding_looks_at_the_noisy_update_and_nothing_else(
    tmp_path: Path, request_one: RoundRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Post-processing: what the noise let through decides every byte. A vault that peeks is caught."""
    assert not depends_on_data(Vault, tmp_path / "real", request_one, monkeypatch)
    assert depends_on_data(CountingVault, tmp_path / "mutant", request_one, monkeypatch)


def stepped(request: RoundRequest, round_: int) -> tuple[RoundRequest, RoundRequest]:
    """The next round's question after a step of 0.25 everywhere: as a change, and with everything sent along."""
    shared = request.arrays
    moved = {name: array + np.float32(0.25) for name, array in shared.items()}
    change = Encoded(
        arrays={name: np.ones(array.shape, np.int8) for name, array in shared.items()},
        scales=dict.fromkeys(shared, 0.25),
    )
    whole = dataclasses.replace(request, round=round_, arrays=moved)
    base, after = arrays_digest(shared).hex(), arrays_digest(moved).hex()
    return dataclasses.replace(
        whole, arrays=change.arrays, scales=change.scales, base=base, parameters=after, whitening={}
    ), whole


def test_a_change_of_parameters_is_the_same_question_as_all_of_them(
    open_vault: Opener, request_one: RoundRequest
) -> None:
    """Sent as a change, then not at all, then whole, to a vault that was started again in between: one answer each."""
    change, whole = stepped(request_one, 2)
    vault = open_vault(seed=None)
    vault.release(Kind.UPDATE, request_one)
    vault.close()
    vault = open_vault(seed=None)
    release = vault.release(Kind.METRIC, change)
    known = dataclasses.replace(change, base=change.parameters, arrays={}, scales={})
    assert same(vault.release(Kind.METRIC, known), release)
    assert same(vault.release(Kind.METRIC, whole), release)
    update = vault.release(Kind.UPDATE, known)
    assert same(vault.release(Kind.UPDATE, whole), update)
    assert len(list(vault.ledger.entries())) == 3


def test_parameters_that_a_vault_does_not_have_are_refused_unpaid(
    open_vault: Opener, request_one: RoundRequest
) -> None:
    """It asks for them; whole, they are taken. So are those that were damaged on its disk."""
    change, whole = stepped(request_one, 1)
    vault = open_vault()
    with pytest.raises(Refused, match="not known here; send them along"):
        vault.release(Kind.UPDATE, change)
    assert_nothing_happened(vault)
    vault.release(Kind.UPDATE, dataclasses.replace(whole))
    (file,) = vault.ledger.path.parent.glob("parameters/*/*.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(Refused, match="not known here; send them along"):
        vault.release(Kind.UPDATE, dataclasses.replace(whole, round=2, base=file.stem, parameters=file.stem, arrays={}))


@pytest.mark.parametrize(
    "what", ["another step", "a surplus tensor", "a tensor less", "a bad scale", "whole but encoded"]
)
def test_a_change_that_does_not_make_the_named_parameters_is_refused_unpaid(
    open_vault: Opener, request_one: RoundRequest, what: str
) -> None:
    """Only the digest is signed, so what came must hash to it."""
    vault = open_vault()
    vault.release(Kind.UPDATE, request_one)
    change, _ = stepped(request_one, 2)
    name = next(iter(change.arrays))
    bent, words = {
        "another step": (dataclasses.replace(change, scales={**change.scales, name: 0.5}), "does not make"),
        "a surplus tensor": (
            dataclasses.replace(change, arrays={**change.arrays, "x": np.ones(2, np.float32)}),
            "does not make",
        ),
        "a tensor less": (
            dataclasses.replace(
                change,
                arrays={key: array for key, array in change.arrays.items() if key != name},
                scales={key: scale for key, scale in change.scales.items() if key != name},
            ),
            "does not make",
        ),
        "a bad scale": (dataclasses.replace(change, scales={**change.scales, name: np.inf}), "must be in"),
        "whole but encoded": (dataclasses.replace(change, base="", parameters=""), "is a difference"),
    }[what]
    with pytest.raises(Refused, match=words):
        vault.release(Kind.UPDATE, bent)
    assert len(list(vault.ledger.entries())) == 1


def test_parameters_that_are_sent_along_do_not_fill_the_disk(open_vault: Opener, request_one: RoundRequest) -> None:
    """The latest ones are kept."""
    vault = open_vault()
    for number in range(module.MOST_PARAMETERS + 3):
        moved = {name: array + np.float32(number) for name, array in request_one.arrays.items()}
        vault.release(Kind.METRIC, dataclasses.replace(request_one, arrays=moved, run=f"r{number}"))
    kept = {file.stem for file in vault.ledger.path.parent.glob("parameters/*/*")}
    assert len(kept) == module.MOST_PARAMETERS
    assert arrays_digest(moved).hex() in kept


@pytest.mark.parametrize("digest", ["0" * 64, "", "../../../etc/passwd", "A" * 64, "é" * 64])
def test_an_unknown_whitening_is_refused_unpaid(open_vault: Opener, request_one: RoundRequest, digest: str) -> None:
    """Not sent and not kept, or a name that is no digest (and so no file name)."""
    vault = open_vault()
    recipe = request_one.recipe.model_copy(update={"whitening": digest})
    with pytest.raises(Refused, match="whitening"):
        vault.release(Kind.UPDATE, dataclasses.replace(request_one, recipe=recipe, whitening={}))
    assert_nothing_happened(vault)


def test_whitenings_that_are_sent_along_do_not_fill_the_disk(open_vault: Opener, request_one: RoundRequest) -> None:
    """Whoever may ask can send any number; the latest are kept, and the one in use is among them."""
    vault = open_vault()
    for number in range(module.MOST_WHITENINGS + 5):
        arrays = {name: array + np.float32(number) for name, array in request_one.whitening.items()}
        recipe = request_one.recipe.model_copy(update={"whitening": arrays_digest(arrays).hex()})
        bad = {"not": np.zeros(1, np.float32)}
        with pytest.raises(Refused, match="parameters"):  # before anything is charged or computed
            vault.release(Kind.UPDATE, dataclasses.replace(request_one, whitening=arrays, recipe=recipe, arrays=bad))
    kept = list((vault._cache / "whitening").glob("*.safetensors"))
    assert len(kept) == module.MOST_WHITENINGS
    assert recipe.whitening in {file.stem for file in kept}
    assert_nothing_happened(vault)


@pytest.mark.parametrize("wrong", ["other", "not finite", "missing", "flat", "lengths", "nothing kept"])
def test_a_whitening_that_is_not_one_is_refused_unpaid(
    open_vault: Opener, request_one: RoundRequest, wrong: str
) -> None:
    """Other values than the recipe names, NaN, a missing part, or shapes that do not fit, under a correct digest."""
    mean, matrix = request_one.whitening["mean"], request_one.whitening["matrix"]
    arrays = {
        "other": {"mean": mean + 1, "matrix": matrix},
        "not finite": {"mean": np.full_like(mean, np.nan), "matrix": matrix},
        "missing": {"matrix": matrix},
        "flat": {"mean": mean, "matrix": matrix[:, 0]},
        "lengths": {"mean": mean[1:], "matrix": matrix},
        "nothing kept": {"mean": mean, "matrix": matrix[:, :0]},
    }[wrong]
    request = dataclasses.replace(request_one, whitening=arrays)
    if wrong != "other":
        recipe = request_one.recipe.model_copy(update={"whitening": arrays_digest(arrays).hex()})
        request = dataclasses.replace(request, recipe=recipe)
    vault = open_vault()
    with pytest.raises(Refused, match="whitening"):
        vault.release(Kind.UPDATE, request)
    assert_nothing_happened(vault)


def test_a_catalogue_that_is_not_public_is_not_spoken_of(open_vault: Opener, request_one: RoundRequest) -> None:
    """Its moments are refused unread, and no round is charged for it either."""
    vault = open_vault(public=False)
    with pytest.raises(Refused, match=r"items\.public"):
        vault.release(Kind.CATALOGUE, request_one)
    assert_nothing_happened(vault)
    with pytest.raises(ConfigError, match=r"items\.public"):
        vault.release(Kind.UPDATE, request_one)
    assert_nothing_happened(vault)


def test_the_catalogues_moments_cost_nothing_and_are_written_down(
    open_vault: Opener, request_one: RoundRequest
) -> None:
    """They are a function of public text: epsilon stays 0, the ledger has the line."""
    vault = open_vault()
    payload = vault.release(Kind.CATALOGUE, dataclasses.replace(request_one, round=0)).payload
    moments = text_moments(vault.encoded(FEATURES.encoder))
    assert payload.values == {"count": ITEMS}
    np.testing.assert_allclose(payload.arrays["mean"], moments.mean, rtol=1e-6)
    np.testing.assert_allclose(payload.arrays["second"], moments.second, rtol=1e-6)
    assert look(vault) == [("r", 0, "catalogue", True)]
    assert vault.epsilon() == 0


def test_an_evaluation_leaves_as_two_noisy_sums(open_vault: Opener, request_one: RoundRequest) -> None:
    """Charged as one Gaussian event of the policy's multiplier; an untrained backbone gains nothing but noise."""
    vault = open_vault()
    release = vault.release(Kind.METRIC, request_one)
    assert encode_event(release.entry.event) == encode_event(vault.plan.metric_event)
    assert release.payload.values.keys() == {"gain", "users", "noise_stddev"}
    stddev = release.payload.values["noise_stddev"]
    assert stddev == pytest.approx(10.0 * 2**0.5)
    assert 0 < abs(release.payload.values["gain"]) < 6 * stddev
    assert 0 < abs(release.payload.values["users"] - USERS) < 6 * stddev


def begun(request: RoundRequest) -> RoundRequest:
    """The same request of a run that says that it began with something trained in the open."""
    start = StartedFrom(digest="ab" * 32, domains=(PublicDomain(name="there", users=9, fingerprint="cd" * 32),))
    return dataclasses.replace(request, recipe=request.recipe.model_copy(update={"start": start}))


def test_a_gain_over_the_prior_is_one_over_what_the_domain_has_by_itself(
    open_vault: Opener, request_one: RoundRequest
) -> None:
    """In axes of others' texts the prior is worse than in its own; a run that has such axes gains nothing by that."""
    head = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    request = dataclasses.replace(request_one, arrays={**request_one.arrays, "head.weight": head})
    plain, started = open_vault("one"), open_vault("two")
    exact = {}
    whitening = Whitening(mean=request.whitening["mean"], matrix=request.whitening["matrix"])
    encoded = plain.encoded(FEATURES.encoder)
    for name, axes in (("pooled", whitening), ("own", own_axes(whitening, encoded))):
        scorer = BackboneScorer(Backbone(8, SHAPE), torch.from_numpy(axes.apply(encoded)))
        exact[name] = float(validation_ndcg(scorer, plain.data).sum())
    assert exact["pooled"] != exact["own"]
    # The noise is the same: it follows from seed, name, run, round and kind.
    gains = [
        vault.release(Kind.METRIC, asked).payload.values["gain"]
        for vault, asked in ((plain, request), (started, begun(request)))
    ]
    assert gains[0] - gains[1] == pytest.approx(exact["own"] - exact["pooled"], abs=1e-6)


def test_a_ledger_says_what_a_run_began_with_before_it_is_charged(
    open_vault: Opener, request_one: RoundRequest
) -> None:
    """Once; not for what takes nothing from a user, and not where the budget is gone. It is part of the request."""
    vault = open_vault(privacy=ONE_ROUND)
    assert begun(request_one).digest(Kind.UPDATE) != request_one.digest(Kind.UPDATE)
    asked = dataclasses.replace(begun(request_one), round=0, arrays={}, whitening={})
    vault.release(Kind.CATALOGUE, asked)
    vault.release(Kind.UPDATE, begun(request_one))
    for run in ("s", "t"):
        with pytest.raises(BudgetExhausted):
            vault.release(Kind.UPDATE, dataclasses.replace(begun(request_one), run=run))
    lines = [vault.ledger.chain.read(link) for link in vault.ledger.chain.links()]
    said = [(line.type, getattr(line, "run", "")) for line in lines if line.type in {"started", "charged"}]
    assert said == [("charged", "r"), ("started", "r"), ("charged", "r")]


def moved(request: RoundRequest, seed: int) -> Arrays:
    """A head of other numbers, so that the backbone ranks otherwise."""
    shape = request.arrays["head.weight"].shape
    return {"head.weight": np.random.default_rng(seed).normal(0, 0.5, shape).astype(np.float32)}


def test_an_evaluation_may_be_against_parameters_that_come_along(open_vault: Opener, request_one: RoundRequest) -> None:
    """The difference of the two against the text prior, under the same noise; one charge of the same event."""
    ours = dataclasses.replace(request_one, arrays=request_one.arrays | moved(request_one, 1))
    theirs = dataclasses.replace(request_one, arrays=request_one.arrays | moved(request_one, 2))
    compared = dataclasses.replace(ours, reference=moved(request_one, 2))
    found = {}
    for name, request in (("ours", ours), ("theirs", theirs), ("compared", compared), ("prior", request_one)):
        vault = open_vault(name)
        release = vault.release(Kind.METRIC, request)
        found[name] = release.payload.values
        assert encode_event(release.entry.event) == encode_event(vault.plan.metric_event)
        assert look(vault) == [("r", 1, "metric", True)]
    noise = found["prior"]["gain"]
    gains = {name: values["gain"] - noise for name, values in found.items()}
    assert gains["ours"] != gains["theirs"]
    assert gains["compared"] == pytest.approx(gains["ours"] - gains["theirs"], abs=1e-9)
    assert len({values["noise_stddev"] for values in found.values()}) == 1


def test_one_round_answers_one_of_an_evaluation_and_a_comparison(open_vault: Opener, request_one: RoundRequest) -> None:
    """They are one kind of release, so a second one of a round is another request, and refused."""
    vault = open_vault()
    vault.release(Kind.METRIC, request_one)
    with pytest.raises(Refused, match="round 1"):
        vault.release(Kind.METRIC, dataclasses.replace(request_one, reference=moved(request_one, 2)))
    assert len(look(vault)) == 1


@pytest.mark.parametrize(
    ("kind", "reference", "privacy", "words"),
    [
        (Kind.UPDATE, {"head.weight": np.zeros((8, 8), np.float32)}, {}, "a reference belongs to an evaluation"),
        (Kind.METRIC, {"head.weight": np.zeros((8, 9), np.float32)}, {}, "of shape"),
        (Kind.METRIC, {"head.weight": np.full((8, 8), np.nan, np.float32)}, {}, "must be finite"),
        (Kind.METRIC, {"tail.weight": np.zeros((8, 8), np.float32)}, {}, "not those of its recipe"),
        (Kind.METRIC, {"head.weight": np.zeros((8, 8), np.float32)}, ONE_ROUND, "releases no evaluations"),
    ],
)
def test_a_reference_that_is_none_is_refused_unpaid(  # noqa: PLR0917 - cases
    open_vault: Opener,
    request_one: RoundRequest,
    kind: Kind,
    reference: Arrays,
    privacy: dict[str, float],
    words: str,
) -> None:
    """Before any table is opened; a domain that plans no evaluations answers no comparison either."""
    vault = open_vault(privacy=privacy)
    with pytest.raises(Refused, match=words):
        vault.release(kind, dataclasses.replace(request_one, reference=reference))
    assert_nothing_happened(vault)


def test_a_policy_without_evaluations_releases_none(open_vault: Opener, request_one: RoundRequest) -> None:
    """Zero is a limit like any other."""
    vault = open_vault(privacy=ONE_ROUND)
    with pytest.raises(Refused, match="evaluations"):
        vault.release(Kind.METRIC, request_one)
    assert_nothing_happened(vault)


def test_seeded_vaults_repeat_each_other_and_say_that_they_are_not_private(
    open_vault: Opener, request_one: RoundRequest
) -> None:
    """Two vaults on equal data give equal bytes; every entry carries the stamp."""
    one, two = open_vault("one"), open_vault("two")
    for kind in (Kind.UPDATE, Kind.METRIC):
        assert same(one.release(kind, request_one), two.release(kind, request_one))
    assert [entry.private for entry in one.ledger.entries()] == [False, False]


def assert_apart(ours: Arrays, theirs: Arrays) -> None:
    """Hardly a coordinate is the same; now and then both are rounded to zero."""
    same = {name: array == theirs[name] for name, array in ours.items()}
    assert np.concatenate([one.ravel() for one in same.values()]).mean() < 0.01
    assert all(one.mean() < 0.2 for one in same.values())


@pytest.mark.parametrize("changed", ["round", "run", "domain", "seed"])
def test_seeded_noise_is_another_for_each_round_run_domain_and_seed(
    open_vault: Opener, request_one: RoundRequest, changed: str
) -> None:
    """Same data, same parameters: only the noise can make the difference, and it makes it everywhere."""
    one = open_vault("one").release(Kind.UPDATE, request_one)
    other = {
        "round": lambda: open_vault("two").release(Kind.UPDATE, dataclasses.replace(request_one, round=2)),
        "run": lambda: open_vault("two").release(Kind.UPDATE, dataclasses.replace(request_one, run="s")),
        "domain": lambda: open_vault("two", name="shades").release(Kind.UPDATE, request_one),
        "seed": lambda: open_vault("two", seed=8).release(Kind.UPDATE, request_one),
    }[changed]()
    assert_apart(decoded(one), decoded(other))


def test_secure_noise_is_never_the_same_and_says_that_it_is_private(
    open_vault: Opener, request_one: RoundRequest
) -> None:
    """Without a seed two vaults on equal data differ in every coordinate."""
    one, two = (open_vault(at, seed=None).release(Kind.UPDATE, request_one) for at in ("one", "two"))
    assert_apart(decoded(one), decoded(two))
    assert one.entry.private
    assert two.entry.private


def test_threads_that_ask_at_once_get_one_answer_for_one_charge(open_vault: Opener, request_one: RoundRequest) -> None:
    """Five ask for round 1 together: one charge, and everybody gets its bytes."""
    vault = open_vault(seed=None)
    answers: list[Release] = []
    threads = [
        threading.Thread(target=lambda: answers.append(vault.release(Kind.UPDATE, request_one))) for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 5
    assert all(same(answers[0], answer) for answer in answers)
    assert look(vault) == [("r", 1, "update", True)]


@pytest.mark.parametrize("form", list(UpdateFormat))
def test_a_round_that_was_refused_as_not_finite_is_not_computed_again(
    open_vault: Opener, request_one: RoundRequest, monkeypatch: pytest.MonkeyPatch, form: UpdateFormat
) -> None:
    """Asking again would draw fresh noise under a charge that was already answered: with one refusal, one bit."""
    vault = open_vault(seed=None)
    computed = []
    spoiled = {name: np.full_like(array, np.inf) for name, array in request_one.arrays.items()}
    monkeypatch.setattr(module, "train_round", lambda *_, **__: computed.append(1) or spoiled)
    for _ in range(3):
        with pytest.raises(Refused, match="is not finite"):
            vault.release(Kind.UPDATE, retrained(request_one, update_format=form))
    assert computed == [1]
