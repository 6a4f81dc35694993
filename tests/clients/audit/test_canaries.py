"""Canaries through the real optimizer: an honest build passes, and each kind of broken one fails a named check."""

import dataclasses
import json
import math

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant
from scipy import stats
from tests.clients.audit.mutants import (
    HalvedNoise,
    HalvedTensor,
    LateClipping,
    SilentTensor,
    StaleNoise,
    Unclipped,
    served,
)

from isthmus.backbone import Backbone, shared_parameters
from isthmus.clients.audit import AUDIT_POLICY, Evidence, audit_canaries
from isthmus.clients.audit.evidence import FALSE_ALARM
from isthmus.clients.private_optimizer import PrivateOptimizer
from isthmus.config import BackboneConfig
from isthmus.errors import ConfigError
from isthmus.privacy.empirical import clopper_pearson, gaussian_epsilon, gaussian_ruled_out, right_guesses
from isthmus.privacy.plan import plan_for

SHAPE = BackboneConfig(width=32, feedforward=64, layers=1)
SMALL = BackboneConfig(width=16, heads=2, feedforward=16, layers=1)
TENSORS = [name for name, _ in shared_parameters(Backbone(16, SMALL)).items()]
SAMPLED = AUDIT_POLICY.model_copy(update={"sample_rate": 0.5, "rounds": 6, "epsilon": 3.0})
"""Poisson batches of half of the users, 12 steps."""


def failed(evidence: Evidence) -> set[str]:
    """Names of the checks that are findings."""
    return {check.name for check in evidence.findings}


def test_an_honest_build_passes_ten_runs_in_a_row() -> None:
    """Every check, and the lower bound below the claim, with ten seeds; the bound is far from empty each time."""
    runs = [audit_canaries(AUDIT_POLICY, SHAPE, features=64, canaries=2000, seed=seed) for seed in range(10)]
    assert [failed(run) for run in runs] == [set()] * 10
    assert all(0.3 * run.claimed_epsilon < run.lower_bound <= run.claimed_epsilon for run in runs)


def test_an_honest_build_passes_with_poisson_batches_and_secure_noise() -> None:
    """Nothing seeded, every user in a batch by a coin: the claim is that of the sampled mechanism."""
    run = audit_canaries(SAMPLED, SHAPE, features=64, canaries=2000)
    assert failed(run) == set()
    assert 0 < run.lower_bound <= run.claimed_epsilon


@pytest.mark.parametrize(
    ("mutant", "caught_by"),
    [
        (HalvedNoise, {"bound", "noise", "noise in every tensor"}),
        (SilentTensor, {"noise", "noise in every tensor"}),
        (Unclipped, {"bound", "contribution"}),
        (LateClipping, {"bound", "contribution"}),
        (StaleNoise, {"fresh noise"}),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_broken_optimizers_are_caught(mutant: type[PrivateOptimizer], caught_by: set[str], seed: int) -> None:
    """Each mutant fails the checks that are meant for it."""
    with served(mutant):
        assert failed(audit_canaries(AUDIT_POLICY, SHAPE, features=64, canaries=2000, seed=seed)) >= caught_by


def test_halved_noise_is_caught_with_poisson_batches() -> None:
    """At the rate and the steps of a domain's own policy, too."""
    with served(HalvedNoise):
        assert failed(audit_canaries(SAMPLED, SHAPE, features=64, canaries=2000, seed=1)) >= {"bound", "noise"}


@pytest.mark.parametrize("tensor", range(len(TENSORS)), ids=TENSORS)
def test_every_tensor_is_watched(tensor: int) -> None:
    """Whichever parameter tensor gets no noise, it is found, and named."""
    silent = type("Silent", (SilentTensor,), {"silent": tensor})
    with served(silent):
        run = audit_canaries(AUDIT_POLICY, SMALL, features=16, canaries=400, seed=2)
    (finding,) = (check for check in run.findings if check.name == "noise in every tensor")
    assert f"least plausible in {TENSORS[tensor]}:" in finding.detail
    assert {one.name for one in run.noise if one.ratio == 0} == {TENSORS[tensor]}


def test_half_noise_in_the_smallest_tensor_is_caught() -> None:
    """A bias of 32: 96 samples of noise decide it, with a power that a chi-square table gives."""
    names = list(shared_parameters(Backbone(64, SHAPE)))
    smallest = names.index("adaptor.bias")
    with served(type("Quiet", (HalvedTensor,), {"quiet": smallest})):
        run = audit_canaries(AUDIT_POLICY, SHAPE, features=64, canaries=2000, seed=3)
    assert failed(run) == {"noise in every tensor"}
    samples = next(one.samples for one in run.noise if one.name == "adaptor.bias")
    limit = stats.chi2.ppf(FALSE_ALARM / len(names), samples)  # of the sum of squares that passes
    assert stats.chi2.cdf(limit * 4, samples) > 0.999


def test_the_claim_is_the_accountants() -> None:
    """Epsilon of the very steps that were run, by dp_accounting itself."""
    run = audit_canaries(SAMPLED, SMALL, features=16, canaries=400, steps=7, seed=4)
    accountant = PLDAccountant()
    settings = dict(run.settings)
    accountant.compose(
        PoissonSampledDpEvent(0.5, GaussianDpEvent(settings["noise_multiplier"])), int(settings["steps"])
    )
    assert (settings["steps"], settings["noise_multiplier"]) == (7, plan_for(SAMPLED).noise_multiplier)
    assert run.claimed_epsilon == pytest.approx(accountant.get_epsilon(run.delta), rel=1e-3)


def test_a_seeded_audit_can_be_repeated_and_written_down() -> None:
    """Same seed, same figures; the JSON says claim, bounds with assumptions, checks and what was not looked at."""
    one, two = (audit_canaries(AUDIT_POLICY, SMALL, features=16, canaries=400, seed=5) for _ in range(2))
    assert dataclasses.replace(one, cpu_seconds=0.0) == dataclasses.replace(two, cpu_seconds=0.0)
    other = audit_canaries(AUDIT_POLICY, SMALL, features=16, canaries=400, seed=6)
    assert other.noise != one.noise
    read = json.loads(json.dumps(one.to_dict(), allow_nan=False))
    assert read["passed"] is True
    assert read["lower_bound"] == one.lower_bound
    assert {bound["form"] for bound in read["bounds"]} == {"(epsilon, delta)", "f-DP, Gaussian"}
    assert all(bound["assumption"] for bound in read["bounds"])
    assert len(read["roc"]) == 3
    assert read["sees"]
    assert read["blind_to"]


def test_more_canaries_than_room_are_refused() -> None:
    """Three quarters of each tensor are kept for noise alone."""
    with pytest.raises(ConfigError, match="has room for 2 to"):
        audit_canaries(AUDIT_POLICY, SMALL, features=16, canaries=100_000)


def test_a_small_backbone_gets_as_many_canaries_as_there_is_room_for() -> None:
    """Unless their number is asked for; a quarter of each tensor."""
    shared = shared_parameters(Backbone(16, SMALL)).values()
    run = audit_canaries(AUDIT_POLICY, SMALL, features=16, seed=7)
    assert dict(run.settings)["canaries"] == sum(tensor.numel() // 4 for tensor in shared) < 4000
    assert failed(run) == set()


def test_power_and_false_alarms_of_the_default_setting() -> None:
    """In 2000 simulated audits the claim is never ruled out by an honest build, always with half of the noise.

    What is simulated is a canary's score, C from its own coordinate plus the noise of all steps; the rest is the
    audit's own statistics. The exact interval: power above 0.998, false alarms below 0.002, with 95 % confidence.
    """
    steps = AUDIT_POLICY.rounds * AUDIT_POLICY.steps_per_round
    mu = math.sqrt(steps) / plan_for(AUDIT_POLICY).noise_multiplier
    assert gaussian_epsilon(mu, AUDIT_POLICY.delta) == pytest.approx(AUDIT_POLICY.epsilon, abs=0.01)
    generator, runs, caught = np.random.default_rng(8), 2000, {1.0: 0, 0.5: 0}
    for share in caught:
        for _ in range(runs):
            included = generator.random(4000) < 0.5
            scores = mu * included + share * generator.standard_normal(4000)
            correct = right_guesses(scores, included, guesses=800)
            caught[share] += gaussian_ruled_out(canaries=4000, guesses=800, correct=correct, mu=mu, significance=0.025)
    assert caught == {1.0: 0, 0.5: runs}
    assert clopper_pearson(runs, runs, confidence=0.95).low > 0.998
