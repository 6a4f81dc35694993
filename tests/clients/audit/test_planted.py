"""Planted users through the real vault: an honest build passes, broken ones are caught in what is released."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from tests.clients.audit.mutants import Bursting, HalvedNoise, LateClipping, Noiseless, SilentTensor, Unclipped, served

from isthmus.clients.audit import AUDIT_POLICY, Evidence, audit_planted
from isthmus.clients.audit.made_up import make_up_users, run_vault
from isthmus.clients.private_optimizer import PrivateOptimizer
from isthmus.config import DomainConfig, FederationConfig, UpdateFormat
from isthmus.errors import ConfigError, DataError
from isthmus.privacy.accounting import epsilon
from isthmus.privacy.plan import plan_for


def failed(evidence: Evidence) -> set[str]:
    """Names of the checks that are findings."""
    return {check.name for check in evidence.findings}


@pytest.mark.slow
def test_an_honest_build_passes_ten_runs_in_a_row(domain: DomainConfig, federation: FederationConfig) -> None:
    """Ten seeds; the claim is the ledger's, and the bound, which is not empty, stays below it."""
    runs = [audit_planted(domain, federation, policy=AUDIT_POLICY, users=150, seed=seed) for seed in range(10)]
    assert [failed(run) for run in runs] == [set()] * 10
    assert all(run.lower_bound <= run.claimed_epsilon for run in runs)
    assert np.median([run.lower_bound for run in runs]) > 0.5
    plan = plan_for(AUDIT_POLICY)
    assert runs[0].claimed_epsilon == pytest.approx(epsilon([plan.update_event(4)], AUDIT_POLICY.delta))


def test_an_honest_build_passes_under_the_domains_own_policy(
    domain: DomainConfig, federation: FederationConfig
) -> None:
    """Poisson batches, several steps a round, secure noise: every step is looked at, the claim is for all of them."""
    run = audit_planted(domain, federation, users=200)
    assert failed(run) == set()
    assert dict(run.settings)["steps"] == domain.privacy.rounds * domain.privacy.steps_per_round
    json.dumps(run.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("mutant", "caught_by"),
    [
        (HalvedNoise, {"noise", "noise in every tensor"}),
        (SilentTensor, {"noise", "noise in every tensor"}),
        (Unclipped, {"contribution"}),
        (LateClipping, {"contribution"}),
    ],
)
def test_broken_optimizers_are_caught_in_what_is_released(
    mutant: type[PrivateOptimizer],
    caught_by: set[str],
    domain: DomainConfig,
    federation: FederationConfig,
) -> None:
    """Each mutant fails the checks that are meant for it, through tables, vault, gate and ledger."""
    with served(mutant):
        run = audit_planted(domain, federation, policy=AUDIT_POLICY, users=200, seed=0)
    assert failed(run) >= caught_by


def test_the_domains_users_and_ledger_are_left_alone(domain: DomainConfig, federation: FederationConfig) -> None:
    """With its interactions gone an audit gives the same figures: they are not read. No ledger appears beside them."""
    before = audit_planted(domain, federation, policy=AUDIT_POLICY, users=60, seed=3)
    domain.interactions_path.unlink()
    after = audit_planted(domain, federation, policy=AUDIT_POLICY, users=60, seed=3)
    assert (after.bounds, after.noise, after.area) == (before.bounds, before.noise, before.area)
    assert not domain.ledger_path.exists()


def test_a_part_of_the_horizon_is_claimed_as_such(domain: DomainConfig, federation: FederationConfig) -> None:
    """Two of four steps: the noise is that of all four, the ledger's claim is for two."""
    run = audit_planted(domain, federation, policy=AUDIT_POLICY, users=60, steps=2, seed=0)
    plan = plan_for(AUDIT_POLICY)
    assert dict(run.settings)["steps"] == 2
    assert dict(run.settings)["noise_multiplier"] == plan.noise_multiplier
    assert run.claimed_epsilon == pytest.approx(epsilon([plan.update_event(2)], AUDIT_POLICY.delta))
    assert failed(run) == set()


def test_a_refused_round_is_a_finding(domain: DomainConfig, federation: FederationConfig) -> None:
    """An update that overflows is stopped by the gate: the audit says so, and judges what was released before."""
    with served(type("Burst", (Bursting,), {"counter": itertools.count()})):
        run = audit_planted(domain, federation, policy=AUDIT_POLICY, users=60, seed=0)
    assert failed(run) == {"released"}
    assert dict(run.settings)["steps"] == 2
    accountant = [plan_for(AUDIT_POLICY).update_event(3)]
    assert run.claimed_epsilon == pytest.approx(epsilon(accountant, AUDIT_POLICY.delta)), "charged, never sent"


def test_what_cannot_be_made_up_is_refused(domain: DomainConfig, federation: FederationConfig) -> None:
    """A history longer than the catalogue, and a domain without a catalogue."""
    with pytest.raises(ConfigError, match="a made-up history has from 4 to 60 events, got 61"):
        audit_planted(domain, federation, length=61)
    domain.items_path.unlink()
    with pytest.raises(DataError):
        audit_planted(domain, federation)


def test_made_up_histories_hold_different_items() -> None:
    """Nobody meets an item twice, every item is met, and two users are not alike."""
    rows = make_up_users(300, items=20, length=8, generator=np.random.default_rng(0))
    assert rows.shape == (300, 8)
    assert all(len(set(row)) == 8 for row in rows.tolist())
    assert set(rows.ravel().tolist()) == set(range(20))
    assert len({tuple(row) for row in rows.tolist()}) == 300


def test_the_auditors_view_is_what_the_vault_trains_on(
    domain: DomainConfig, federation: FederationConfig, tmp_path: Path
) -> None:
    """Without noise, updates of full batches are the sums of the users' clipped gradients; the rows are the tables'."""
    unrounded = federation.training.model_copy(update={"update_format": UpdateFormat.FLOAT32})
    federation = federation.model_copy(update={"training": unrounded})
    with served(Noiseless):
        run = audit_planted(domain, federation, policy=AUDIT_POLICY, users=60, seed=1)
    assert failed(run) >= {"noise", "noise in every tensor"}
    assert max(one.ratio for one in run.noise) < 1e-4, "nothing is left once the users' gradients are taken out"
    rows = make_up_users(30, items=60, length=8, generator=np.random.default_rng(2))
    transcript = run_vault(
        tmp_path / "one",
        [f"text {i}" for i in range(60)],
        rows,
        federation=federation,
        policy=AUDIT_POLICY,
        rounds=2,
        seed=0,
    )
    assert np.array_equal(transcript.training_set(rows).histories.items.reshape(30, 6), rows[:, :6])
    backbone = transcript.backbone(transcript.final)
    assert all(np.array_equal(transcript.final[name], p.detach()) for name, p in backbone.named_parameters())
