"""The vault takes its limits from domain.toml, charges before it computes, and answers a round once."""

import dataclasses
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.clients.vaults import (
    ITEMS,
    ONE_ROUND,
    Opener,
    assert_nothing_happened,
    decoded,
    look,
    retrained,
    same,
)
from tests.conftest import TinyDomain

from isthmus.clients import vault as module
from isthmus.clients.vault import Vault
from isthmus.config import (
    Align,
    Augment,
    Clipping,
    OptimizerName,
    Trained,
    UpdateFormat,
    load_domain,
)
from isthmus.encoding import DTYPES
from isthmus.errors import BudgetExhausted, Refused
from isthmus.privacy.accounting import encode_event
from isthmus.privacy.gate import Payload, Release
from isthmus.privacy.ledger import Ledger
from isthmus.records import Arrays, Kind, RoundRequest


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
