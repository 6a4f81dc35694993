"""Membership inference on final backbones: nothing to find in an honest build, nearly everybody without noise."""

import json

import numpy as np
import pytest
from tests.clients.audit.mutants import Noiseless, served

from isthmus.clients.audit import AUDIT_POLICY, Evidence, audit_membership
from isthmus.clients.audit.membership import offline_scores
from isthmus.config import DomainConfig, FederationConfig
from isthmus.privacy.empirical import area_under_curve

POLICY = AUDIT_POLICY.model_copy(update={"rounds": 6, "epsilon": 3.0})


def failed(evidence: Evidence) -> set[str]:
    """Names of the checks that are findings."""
    return {check.name for check in evidence.findings}


def test_an_honest_backbone_gives_nobody_away(domain: DomainConfig, federation: FederationConfig) -> None:
    """The attack does little better than guessing, and its bounds are below the claim."""
    run = audit_membership(domain, federation, policy=POLICY, users=200, shadows=3, seed=0)
    assert failed(run) == set()
    assert 0.4 < run.area < 0.65
    assert run.lower_bound <= run.claimed_epsilon
    assert len(run.bounds) == 3
    low = run.roc[0]
    assert low.false_positives.successes == 0, "fewer than 1000 non-members: 0.1 % of them is nobody"
    assert low.true_positives.high < 0.1
    json.dumps(run.to_dict(), allow_nan=False)


def test_a_backbone_trained_without_noise_is_caught(domain: DomainConfig, federation: FederationConfig) -> None:
    """The same attack on the same code without noise: bound and area are above what is claimed."""
    with served(Noiseless):
        run = audit_membership(domain, federation, policy=POLICY, users=200, shadows=3, seed=0)
    assert failed(run) >= {"bound", "area"}
    assert run.roc[0].true_positives.low > 3 * run.roc[0].false_positives.high


@pytest.mark.slow
def test_an_honest_build_passes_ten_runs_in_a_row(domain: DomainConfig, federation: FederationConfig) -> None:
    """Ten seeds, none of them a finding."""
    for seed in range(10):
        run = audit_membership(domain, federation, policy=POLICY, users=200, shadows=3, seed=seed)
        assert failed(run) == set()


def test_offline_scores_are_the_papers_with_one_variance_for_all() -> None:
    """By hand for each target: mean of the backbones that a user was not in, over the pooled deviation from it."""
    generator = np.random.default_rng(1)
    included = generator.random((5, 12)) < 0.5
    included[:, 0] = True  # in every backbone: nothing is known of this one
    included[:, 1] = False
    losses = generator.normal(size=(5, 12)) - 2.0 * included
    scores = offline_scores(losses, included)
    for target in range(5):
        means, squares, freedom = {}, 0.0, 0
        for user in range(12):
            outside = [losses[b, user] for b in range(5) if b != target and not included[b, user]]
            if outside:
                means[user] = np.mean(outside)
                squares += float(np.square(outside - means[user]).sum())
                freedom += len(outside) - 1
        for user in range(12):
            expected = (means[user] - losses[target, user]) / np.sqrt(squares / freedom) if user in means else 0.0
            assert scores[target, user] == pytest.approx(expected)
    assert area_under_curve(scores[:, 1:].ravel(), included[:, 1:].ravel()) > 0.7


def test_the_domains_users_and_ledger_are_left_alone(domain: DomainConfig, federation: FederationConfig) -> None:
    """Its interactions are gone, and the audit runs all the same; no ledger appears beside them."""
    domain.interactions_path.unlink()
    run = audit_membership(domain, federation, policy=AUDIT_POLICY, users=40, shadows=2, seed=1)
    assert run.claimed_epsilon > 0
    assert not domain.ledger_path.exists()
