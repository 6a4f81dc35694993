"""The reference run without noise: exact, without books, and nowhere that a policy or a deployment does not want it."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tests.conftest import TinyFederation

from isthmus.backbone import Backbone, load_shared
from isthmus.clients.trainer import make_training_set, train_round
from isthmus.clients.vault import open_vault
from isthmus.config import UpdateFormat, load_domain, load_federation, seeded_run
from isthmus.errors import PolicyRefused, Refused
from isthmus.features import Whitening
from isthmus.packing import arrays_digest
from isthmus.privacy.ledger import Ledger
from isthmus.privacy.noise import SeededRandomness
from isthmus.privacy.plan import plan_for
from isthmus.records import Kind, RoundRequest, recipe_of
from isthmus.server.checkpoint import RunState, load_checkpoint
from isthmus.simulation.noise_free import MARK, NoiseFreeDomain, run_noise_free

POLICY = 'approved_by = "us"\napproved_on = 2026-11-24\n[budget]\nepsilon = 8.0\ndelta = 1e-6\n[allow]\n'


def ignore(state: RunState) -> None:
    """Nobody watches."""


@dataclass
class WithoutNoise:
    """The batches of a run, and its sums as they are: a second writing of what is claimed."""

    draws: SeededRandomness
    private = False

    def noisy(self, values: NDArray[np.float32], *, stddev: float, sensitivity: float) -> NDArray[np.float32]:
        """The sum."""
        assert stddev > 0
        return values * 1

    def bernoulli(self, count: int, probability: float) -> NDArray[np.bool_]:
        """Who is in a batch."""
        return self.draws.bernoulli(count, probability)

    def uniform(self, count: int) -> NDArray[np.float64]:
        """Not needed where nothing is rounded."""
        raise AssertionError


def test_a_round_without_noise_is_the_mean_of_the_clipped_sums(tiny_federation: TinyFederation, tmp_path: Path) -> None:
    """Against the trainer called by hand in each domain; to float32's rounding."""
    file = tiny_federation(rounds=2, evaluate_every=1, update_format=UpdateFormat.FLOAT32)
    run_noise_free(file, seed=3, rounds=1, out=tmp_path / "start", listener=ignore)
    run_noise_free(file, seed=3, rounds=2, out=tmp_path / "out", listener=ignore)
    federation = load_federation(file).model_copy(update={"seed": 3})
    run = f"{seeded_run(federation)}-noise-free"
    before, after = (
        load_checkpoint(tmp_path / name / "checkpoint.safetensors", run=run, digest=federation.digest())
        for name in ("start", "out")
    )
    assert before is not None
    assert after is not None
    whitening = Whitening(mean=before.whitening["mean"], matrix=before.whitening["matrix"])
    recipe = recipe_of(federation, arrays_digest(before.whitening).hex())
    updates = []
    for folder in federation.domain_folders():
        domain = load_domain(folder)
        vault = open_vault(domain, ledger=tmp_path / f"{domain.name}.db", seed=3)
        backbone = Backbone(whitening.matrix.shape[1], federation.backbone)
        load_shared(backbone, before.arrays)
        updates.append(
            train_round(
                backbone,
                make_training_set(vault.data.train, vault.features(federation.features, whitening), recipe),
                training=federation.training,
                policy=domain.privacy,
                plan=plan_for(domain.privacy),
                proximal_mu=0.0,
                randomness=WithoutNoise(SeededRandomness(3, domain.name, run, 2, "update")),
            )
        )
        vault.close()
    for name, array in before.arrays.items():
        expected = array + np.mean([update[name] for update in updates], axis=0)
        np.testing.assert_allclose(after.arrays[name], expected, atol=1e-5)


def test_a_run_without_noise_has_no_books_and_says_what_it_is(tiny_federation: TinyFederation, tmp_path: Path) -> None:
    """No ledger in its folder or beside the data, no result that claims an epsilon, a mark that says no."""
    file = tiny_federation()
    run_noise_free(file, seed=0, rounds=1, out=tmp_path / "out", listener=ignore)
    assert [found for found in tmp_path.rglob("*.db") if found.parent.name != "cache"] == []
    assert not (tmp_path / "out" / "result.json").exists()
    said = json.loads((tmp_path / "out" / MARK).read_text())
    assert (said["private"], said["noise"], said["epsilon"]) == (False, "none", None)
    assert "head.weight" in load_file(tmp_path / "out" / "backbone.safetensors")


@pytest.mark.parametrize(
    ("rule", "words"), [("seeded = false", "private runs only"), ("least_noise = 0.1", "at least 0.1")]
)
def test_a_policy_can_forbid_it_before_a_table_is_opened(
    tiny_federation: TinyFederation, tmp_path: Path, rule: str, words: str
) -> None:
    """By either rule; the domain is named, and its table, which is gone, is not missed."""
    file = tiny_federation()
    (file.parent / "games" / "policy.toml").write_text(POLICY + rule + "\n")
    for name in ("books", "games"):
        (file.parent / name / "interactions.csv").unlink()
    with pytest.raises(PolicyRefused, match=f"games, without noise.*{words}"):
        run_noise_free(file, seed=0, rounds=1, out=tmp_path / "out", listener=ignore)
    assert not (tmp_path / "out").exists()


def test_what_has_no_noise_is_never_released(tiny_federation: TinyFederation, tmp_path: Path) -> None:
    """The gate's way out is closed, and nothing is charged for what came out beside it."""
    file = tiny_federation()
    federation = load_federation(file)
    ledger = Ledger(tmp_path / "books.db", name="books")
    domain = NoiseFreeDomain(load_domain(file.parent / "books"), ledger=ledger, seed=0)
    request = RoundRequest(run="r", round=0, recipe=recipe_of(federation, ""))
    assert domain.answer(Kind.CATALOGUE, request).arrays["mean"].size
    with pytest.raises(Refused, match="nothing is released"):
        domain.release(Kind.CATALOGUE, request)
    assert list(ledger.entries()) == []
    domain.close()
