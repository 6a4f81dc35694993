"""A vault builds a custom backbone only if its operator installed it, its policy names it, and it is as it must be.

Every refusal comes before a charge and before a table is opened, and is written down.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.clients.sensitivity import (
    DIM,
    EXACT,
    SHAPE,
    Served,
    assert_matches_brute_force,
    assert_user_moves_at_most_c,
    make_case,
    randomise,
    user_gradient,
)
from tests.conftest import TinyDomain
from tests.custom_backbones import Mixing, example_entry_points, forget_telltale, installed, telltale

from isthmus.backbone import shared_parameters
from isthmus.clients.backbone_check import require_protocol
from isthmus.clients.backbone_scorer import BackboneScorer
from isthmus.clients.data import Histories
from isthmus.clients.vault import Vault
from isthmus.config import (
    BackboneConfig,
    EngineName,
    FeatureConfig,
    Trained,
    TrainingConfig,
    UpdateFormat,
    load_domain,
)
from isthmus.custom_backbone import custom_backbone, make_backbone
from isthmus.errors import EngineError, PolicyRefused, Refused
from isthmus.features import encode_texts, fit_whitening, text_moments
from isthmus.packing import arrays_digest
from isthmus.privacy.ledger import Ledger
from isthmus.privacy.policy import Policy, load_policy
from isthmus.privacy.program import backbone_hash
from isthmus.privacy.reading import read_ledger
from isthmus.records import Kind, Recipe, RoundRequest

HEAD = 'approved_by = "Ada"\napproved_on = 2026-01-31\n\n[budget]\nepsilon = 8.0\ndelta = 1e-6\n'
FEATURES = FeatureConfig(encoder="hash:64")
NAMES = ("gru4rec", "gated", "foreseeing", "normalised", "broken")

Opener = Callable[..., Vault]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The example, another good one, and some that are not."""
    more = {name: f"tests.custom_backbones:{name.title()}" for name in ("gated", "foreseeing", "normalised")}
    place = installed(tmp_path / "site", {**example_entry_points(), **more, "broken": "no_such_module:Thing"})
    monkeypatch.syspath_prepend(str(place))
    yield place
    require_protocol.cache_clear()


@pytest.fixture
def open_vault(tiny_domain: TinyDomain, tmp_path: Path) -> Iterator[Opener]:
    """Open the vault of one seeded domain under these rules; None for no policy.toml."""
    folder = tiny_domain(users=24, items=16)
    with ExitStack() as stack:
        yield lambda rules: stack.enter_context(closing(opened(folder, rules, tmp_path / "cache")))


def opened(folder: Path, rules: str | None, cache: Path) -> Vault:
    """A vault as it is started."""
    if rules is not None:
        (folder / "policy.toml").write_text(HEAD + rules)
    config = load_domain(folder)
    return Vault(config, ledger=Ledger(config.ledger_path), seed=3, cache=cache)


def allowing(*names: str) -> str:
    """Rules that name backbones."""
    return f"[allow]\nbackbones = {list(names)}\n".replace("'", '"')


def request_of(module: str, cache: Path, *, start: str | None = None) -> RoundRequest:
    """Round 1 of a run with a custom backbone; `start` makes the parameters, where the module itself cannot."""
    encoded = encode_texts([f"item {number}" for number in range(20)], FEATURES.encoder, cache_dir=cache)
    whitening = fit_whitening([text_moments(encoded)], eps=1e-3, dim=8)
    shape = BackboneConfig(width=8, heads=2, layers=1, feedforward=8, positions=6, module=module)
    training = TrainingConfig(train=Trained.ALL, rivals=10, update_format=UpdateFormat.FLOAT32)
    recipe = Recipe(
        features=FEATURES, backbone=shape, training=training, whitening=arrays_digest(whitening.arrays()).hex()
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = make_backbone(8, shape.model_copy(update={"module": start or module}))
    arrays = {name: parameter.detach().numpy().copy() for name, parameter in shared_parameters(made).items()}
    return RoundRequest(run="r", round=1, recipe=recipe, arrays=arrays, whitening=whitening.arrays())


def assert_refused(vault: Vault, kind: Kind, asked: RoundRequest, *, rule: str, said: str) -> None:
    """Once in the books, however often it is asked; nothing is charged, no table is opened, and the reply says it."""
    for _ in range(2):
        with pytest.raises(Refused, match=said) as refusal:
            vault.release(kind, asked)
        assert refusal.value.rule == rule
    assert vault.answer(kind, asked).refusal == str(refusal.value)
    books = read_ledger(vault.ledger.path)
    assert books.findings == ()
    (line,) = books.refusals
    assert (line.run, line.round, line.kind, line.rule) == ("r", 1, kind.value, rule)
    assert list(vault.ledger.entries()) == []
    assert "data" not in vars(vault)


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize(
    ("rules", "limit"),
    [(None, "only the built-in one"), ("", "only the built-in one"), (allowing("gated"), "only gated")],
    ids=["no policy", "no rule", "another"],
)
def test_a_backbone_that_the_policy_does_not_name_is_never_run(  # noqa: PLR0917
    site: Path, open_vault: Opener, tmp_path: Path, rules: str | None, limit: str, kind: Kind
) -> None:
    """Installed is not allowed: whatever is asked, its code is not even imported."""
    asked = request_of("gru4rec", tmp_path / "cache")
    sys.modules.pop("isthmus_gru4rec")
    vault = open_vault(rules)
    assert_refused(vault, kind, asked, rule="backbones", said=f"custom backbone gru4rec: rule `backbones` says {limit}")
    assert "isthmus_gru4rec" not in sys.modules


@pytest.mark.parametrize("kind", list(Kind))
def test_a_backbone_that_is_not_installed_is_refused(
    site: Path, open_vault: Opener, tmp_path: Path, kind: Kind
) -> None:
    """Allowed is not installed: from the first question on."""
    asked = request_of("gru5rec", tmp_path / "cache", start="gru4rec")
    vault = open_vault(allowing("gru5rec"))
    assert_refused(vault, kind, asked, rule="backbone", said="'gru5rec' is not installed here")


@pytest.fixture
def encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Module file of a package that tells when it is imported, installed."""
    place = installed(tmp_path / "telling", {"telltale": "telltale.encoder:Encoder"})
    file = telltale(place)
    monkeypatch.syspath_prepend(str(place))
    yield file
    forget_telltale(place)
    require_protocol.cache_clear()


def change_a_byte(encoder: Path) -> None:
    """Of the encoder's file, which does the same as before."""
    encoder.write_text(encoder.read_text().replace("VERSION = 1", "VERSION = 2"))


def assert_changed_code_is_not_run(vault: Vault, encoder: Path, asked: RoundRequest, kind: Kind) -> None:
    """Approved is what was looked at: one byte later it is refused, with both hashes, before it is imported."""
    pinned = backbone_hash("telltale")
    change_a_byte(encoder)
    forget_telltale(encoder.parents[1])
    said = (
        f"custom backbone telltale@{backbone_hash('telltale')}: rule `backbones` says only telltale@{pinned}. Install "
    )
    try:
        assert_refused(vault, kind, asked, rule="backbones", said=said)
    finally:
        assert not (encoder.parents[1] / "ran").exists(), "its code was run"


@pytest.mark.parametrize("kind", list(Kind))
def test_a_backbone_whose_package_has_changed_is_never_run(
    encoder: Path, open_vault: Opener, tmp_path: Path, kind: Kind
) -> None:
    """Whatever is asked."""
    vault = open_vault(allowing(f"telltale@{backbone_hash('telltale')}"))
    assert_changed_code_is_not_run(vault, encoder, request_of("telltale", tmp_path / "cache"), kind)


def test_the_check_of_a_changed_package_catches_a_vault_that_looks_at_the_name_only(
    encoder: Path, open_vault: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mutant."""
    vault = open_vault(allowing(f"telltale@{backbone_hash('telltale')}"))
    asked = request_of("telltale", tmp_path / "cache")
    monkeypatch.setattr(Policy, "check_backbone", by_name_only)
    with pytest.raises(AssertionError, match="its code was run"):
        assert_changed_code_is_not_run(vault, encoder, asked, Kind.UPDATE)


def by_name_only(policy: Policy, module: str | None) -> None:
    """What the policy would say if a pin were only a longer name."""
    allowed = [entry.partition("@")[0] for entry in policy.allow.backbones]
    if module is not None and module not in allowed:
        raise PolicyRefused("backbones", module, str(allowed))


def test_a_backbone_with_the_hash_of_its_policy_is_trained(encoder: Path, open_vault: Opener, tmp_path: Path) -> None:
    """One of two that are allowed, as between two versions; a change while the vault is up is seen as well."""
    vault = open_vault(allowing(f"telltale@{'0' * 64}", f"telltale@{backbone_hash('telltale')}"))
    asked = request_of("telltale", tmp_path / "cache")
    assert vault.release(Kind.UPDATE, asked).payload.arrays.keys() == asked.arrays.keys()
    change_a_byte(encoder)
    with pytest.raises(Refused, match="custom backbone telltale@"):
        vault.release(Kind.METRIC, dataclasses.replace(asked, round=2))


def test_a_pinned_backbone_that_is_not_installed_is_refused(site: Path, open_vault: Opener, tmp_path: Path) -> None:
    """In the words for one that is not, of which there is no hash."""
    asked = request_of("gru5rec", tmp_path / "cache", start="gru4rec")
    vault = open_vault(allowing(f"gru5rec@{'0' * 64}"))
    assert_refused(vault, Kind.UPDATE, asked, rule="backbone", said="'gru5rec' is not installed here")


@pytest.mark.parametrize("kind", [Kind.UPDATE, Kind.METRIC])
@pytest.mark.parametrize(
    ("name", "said"),
    [("foreseeing", "line `causal`"), ("normalised", "line `users`"), ("broken", "cannot be imported")],
)
def test_a_backbone_that_breaks_its_protocol_is_refused(  # noqa: PLR0917
    site: Path, open_vault: Opener, tmp_path: Path, name: str, said: str, kind: Kind
) -> None:
    """Before anything is charged, by what it does on made-up histories."""
    asked = request_of(name, tmp_path / "cache", start="gru4rec")
    assert_refused(open_vault(allowing(*NAMES)), kind, asked, rule="backbone", said=said)


def test_parameters_that_are_not_its_own_are_refused(site: Path, open_vault: Opener, tmp_path: Path) -> None:
    """Another backbone's, under its name."""
    asked = request_of("gru4rec", tmp_path / "cache", start="gated")
    said = r"parameters are not those of its recipe: \['gated\."
    assert_refused(open_vault(allowing("gru4rec")), Kind.UPDATE, asked, rule="request", said=said)


@pytest.mark.parametrize("name", ["gru4rec", "gated"])
def test_an_allowed_backbone_is_trained_and_judged(site: Path, open_vault: Opener, tmp_path: Path, name: str) -> None:
    """A release of all of its parameters, charged by their names; untrained, its exact gain over the prior is 0."""
    asked = request_of(name, tmp_path / "cache")
    vault = open_vault(allowing(name))
    payload = vault.release(Kind.UPDATE, asked).payload
    assert {key.partition(".")[0] for key in payload.arrays} == {name}
    assert payload.arrays.keys() == asked.arrays.keys()
    assert all(np.isfinite(array).all() for array in payload.arrays.values())
    (entry,) = vault.ledger.entries()
    assert set(read_ledger(vault.ledger.path).layers.popitem()[1]) == asked.arrays.keys()
    assert entry.kind == "update"
    judged = vault.release(Kind.METRIC, dataclasses.replace(asked, round=2)).payload
    assert judged.values.keys() == {"gain", "users", "noise_stddev"}


@pytest.mark.parametrize("engine", list(EngineName))
@pytest.mark.parametrize("name", ["gru4rec", "gated"])
def test_the_clipped_sum_is_the_loop_over_users(site: Path, name: str, engine: EngineName) -> None:
    """Ragged histories, layers that are used at every position: the loop to 1e-10 in float64, and at most C a user."""
    case = make_case([6, 3, 0, 9, 1, 2, 5], seed=4)
    mine = randomise(make_backbone(DIM, SHAPE.model_copy(update={"module": name})), 4)
    case = dataclasses.replace(case, backbone=mine)
    norms = [norm for row in case.rows if (norm := float(user_gradient(case, row).norm())) > 0]
    case = dataclasses.replace(case, clip=float(np.median(norms)))
    served = Served(engine=engine)
    assert_matches_brute_force(served, case, tolerance=EXACT)
    assert_user_moves_at_most_c(served, case, tolerance=EXACT)


def test_a_round_is_not_trained_where_users_cannot_be_told_apart() -> None:
    """What the check on made-up histories would have said is found again on the domain's own users."""
    case = make_case([6, 3, 5], seed=4)
    mixing = randomise(custom_backbone(Mixing, DIM, SHAPE.model_copy(update={"module": "mine"})), 4)
    with pytest.raises(EngineError):
        Served()(dataclasses.replace(case, backbone=mixing))


def test_a_catalogue_is_scored_as_one_user_at_a_time(site: Path) -> None:
    """In a batch of ragged histories, of which the earliest items fall off; zeros for an empty one."""
    shape = BackboneConfig(width=8, heads=2, layers=2, feedforward=8, positions=4, module="gru4rec")
    backbone = make_backbone(8, shape)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.normal_(std=0.5, generator=torch.Generator().manual_seed(1))
    features = torch.nn.functional.normalize(torch.randn((12, 8), generator=torch.Generator().manual_seed(2)), dim=1)
    rows = [[3], [], [1, 5, 2, 7, 9, 11], [4, 4, 0]]
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    histories = Histories(offsets=offsets, items=np.concatenate([np.array(row, np.int32) for row in rows]))
    scores = BackboneScorer(backbone, features).score(histories, np.arange(len(rows)))
    residual = BackboneScorer(backbone, features, residual_only=True).score(histories, np.arange(len(rows)))
    for user, row in enumerate(rows):
        seen = features[row[-4:]][None]
        with torch.no_grad():
            query = backbone(seen)[0, -1] if row else torch.zeros(8)
        np.testing.assert_allclose(scores[user], (features @ query).numpy(), atol=1e-5)
    assert np.abs(scores[0] - residual[0]).max() > 0.1
    assert not residual[1].any()


def test_the_rule_is_in_the_books_only_where_it_is_set(tiny_domain: TinyDomain) -> None:
    """A policy without it has the text, and so the digest, that it had."""
    folder = tiny_domain(users=10)
    (folder / "policy.toml").write_text(HEAD)
    assert "backbones" not in load_policy(load_domain(folder)).text()
    (folder / "policy.toml").write_text(HEAD + allowing("gru4rec"))
    policy = load_policy(load_domain(folder))
    assert '"backbones":["gru4rec"]' in policy.text()
    policy.check_backbone("gru4rec")
    policy.check_backbone(None)
    with pytest.raises(PolicyRefused, match="only gru4rec"):
        policy.check_backbone("gated")
