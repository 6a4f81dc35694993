"""What a run ended with reaches every domain, from the coordinator alone, and a head is fitted on it there."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import TinyFederation

from isthmus.backbone_file import load_backbone
from isthmus.clients.delivery import Delivered, delivered_path, load_delivered
from isthmus.clients.fitting import fit_delivered
from isthmus.clients.head import Method
from isthmus.clients.vault import Vault, open_vault
from isthmus.config import load_domain
from isthmus.errors import RunError
from isthmus.privacy.keys import Keys, fresh_keys
from isthmus.privacy.ledger import Ledger
from isthmus.privacy.policy import load_policy
from isthmus.privacy.requests import sign_request
from isthmus.records import DELIVERY, Kind, RoundRequest
from isthmus.server.checkpoint import RunState
from isthmus.simulation import prepare, run
from isthmus.simulation.recommend import recommend_items


class Silent:
    """Nobody watches."""

    def stage(self, what: str) -> None:
        """Say nothing."""

    def texts(self, done: int, total: int) -> None:
        """Say nothing."""

    def round(self, state: RunState, rounds: int, spent: dict[str, float]) -> None:
        """Say nothing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ended:
    """A run that has ended.

    Attributes:
        folder: Of the run.
        domain: Folder of its domain `books`.
        ledger: Of that domain.
    """

    folder: Path
    domain: Path
    ledger: Path


@pytest.fixture
def ended(tiny_federation: TinyFederation, tmp_path: Path) -> Ended:
    """Two rounds of a private run with two domains."""
    file = tiny_federation(rounds=2, seed=None)
    simulation = prepare(file, out=tmp_path / "run", backend="in-process")
    run(simulation, Silent())
    domain = file.parent / "books"
    return Ended(folder=simulation.out, domain=domain, ledger=load_domain(domain).ledger_path)


def delivered_to(ended: Ended) -> Delivered:
    """What lies beside the ledger of `books`."""
    return load_delivered(delivered_path(ended.ledger, "books"), load_policy(load_domain(ended.domain)))


def test_every_domain_gets_the_backbone_that_is_shipped(ended: Ended) -> None:
    """The file beside its ledger has the bytes of the run's; it says of which run it is."""
    for name in ("books", "games"):
        folder = delivered_path(ended.domain.parent / name / "ledger.db", name)
        assert (folder / "backbone.safetensors").read_bytes() == (ended.folder / "backbone.safetensors").read_bytes()
    delivered = delivered_to(ended)
    assert delivered.shipped.round == load_backbone(ended.folder / "backbone.safetensors").round
    ledger = Ledger(ended.ledger)
    assert {entry.run for entry in ledger.entries()} == {delivered.run}
    ledger.close()


def test_a_head_is_fitted_on_it_and_serves(ended: Ended, tmp_path: Path) -> None:
    """Every method is ranked, `recommend` reads the folder, and the ledger was charged nothing for any of it."""
    ledger = Ledger(ended.ledger)
    before = ledger.epsilon(1e-6)
    ledger.close()
    fitted = fit_delivered(load_domain(ended.domain), out=tmp_path / "serving")
    assert set(fitted.scores) == set(Method)
    items = recommend_items(tmp_path / "serving", domain="books", user="books-user-003", count=5)
    assert len(items) == 5
    ledger = Ledger(ended.ledger)
    assert ledger.epsilon(1e-6) == before
    ledger.close()


def test_a_domain_that_took_no_part_is_told_so(tiny_federation: TinyFederation, tmp_path: Path) -> None:
    """One error, and nothing is written."""
    folder = tiny_federation().parent / "books"
    with pytest.raises(RunError, match="no run has ended with this domain in it"):
        fit_delivered(load_domain(folder), out=tmp_path / "serving")
    assert not (tmp_path / "serving").exists()


def delivery(ended: Ended, keys: Keys, **changes: object) -> RoundRequest:
    """The same backbone once more, changed, and signed."""
    delivered = delivered_to(ended)
    shipped = delivered.shipped
    parameters = shipped.backbone.named_parameters()
    request = RoundRequest(
        run=delivered.run,
        round=2,
        recipe=delivered.recipe,
        arrays={name: value.detach().numpy() + np.float32(1) for name, value in parameters},
        whitening=shipped.whitening.arrays(),
    )
    request = dataclasses.replace(request, **changes)  # type: ignore[arg-type]
    signature = sign_request(request.digest(DELIVERY), keys)
    return dataclasses.replace(request, coordinator=keys.public.hex(), signature=signature)


def wrong_shape(request: RoundRequest) -> RoundRequest:
    name = next(iter(request.arrays))
    return dataclasses.replace(request, arrays={**request.arrays, name: np.zeros((3, 3), np.float32)})


def not_finite(request: RoundRequest) -> RoundRequest:
    name = next(iter(request.arrays))
    return dataclasses.replace(request, arrays={**request.arrays, name: request.arrays[name] * np.float32("nan")})


def other_run(request: RoundRequest) -> RoundRequest:
    return dataclasses.replace(request, run="a run that never was")


BAD: dict[str, Callable[[RoundRequest], RoundRequest]] = {
    "must be finite and of shape": wrong_shape,
    "must be finite": not_finite,
    "gave no update to run": other_run,
}


def opened(ended: Ended) -> Vault:
    return open_vault(load_domain(ended.domain))


@pytest.mark.parametrize("words", list(BAD))
def test_what_is_no_backbone_of_a_run_it_took_part_in_is_refused(ended: Ended, words: str) -> None:
    """The reason is in the reply and in the ledger; the backbone that was there stays."""
    folder, keys = delivered_path(ended.ledger, "books"), fresh_keys()
    before = (folder / "backbone.safetensors").read_bytes()
    bad = BAD[words](delivery(ended, keys))
    bad = dataclasses.replace(bad, signature=sign_request(bad.digest(DELIVERY), keys))
    vault = opened(ended)
    reply = vault.receive(bad)
    vault.close()
    assert words in reply.refusal
    assert (folder / "backbone.safetensors").read_bytes() == before
    assert delivered_to(ended).run != "a run that never was"


def test_only_who_may_ask_may_deliver(ended: Ended) -> None:
    """Another coordinator, and a signature of something else, are refused by rule."""
    ours, theirs = fresh_keys(), fresh_keys()
    (ended.domain / "policy.toml").write_text(
        'approved_by = "Ada"\napproved_on = 2026-01-01\n[budget]\nepsilon = 8.0\ndelta = 1e-6\n'
        f'[allow]\ncoordinators = ["{ours.public.hex()}"]\n'
    )
    vault = opened(ended)
    assert vault.receive(delivery(ended, ours)).refusal == ""
    assert "rule `coordinators`" in vault.receive(delivery(ended, theirs)).refusal
    forged = dataclasses.replace(delivery(ended, theirs), coordinator=ours.public.hex())
    assert "is not signed by the coordinator" in vault.receive(forged).refusal
    as_a_question = delivery(ended, ours)
    signature = sign_request(as_a_question.digest(Kind.UPDATE), ours)
    assert "is not signed" in vault.receive(dataclasses.replace(as_a_question, signature=signature)).refusal
    vault.close()


def test_a_recipe_without_its_whitening_is_refused(ended: Ended) -> None:
    """A whitening that nobody sent is named."""
    delivered = delivered_to(ended)
    recipe = delivered.recipe.model_copy(update={"whitening": "ab" * 32})
    vault = opened(ended)
    reply = vault.receive(delivery(ended, fresh_keys(), recipe=recipe, whitening={}))
    vault.close()
    assert "is not known here" in reply.refusal
