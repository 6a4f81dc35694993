"""Audit (a): canaries on coordinates of their own, through the optimizer that trains.

    evidence = audit_canaries(AUDIT_POLICY, BackboneConfig(), features=64)

A canary is a user whose gradient is far longer than C and lies on one coordinate that nobody else touches. Each is
included by a fair coin. They run through the real `PrivateOptimizer`: Poisson batches, micro-batches, clipping, noise,
divisor and step, over parameters of the backbone's names and shapes, for the steps that the policy plans. What is
looked at is what leaves: how far each parameter moved. A canary's score is the movement of its coordinate.

Canaries lie in every parameter tensor, and every tensor keeps coordinates without one, where there must be nothing but
noise. No data and no model are needed: for a mechanism that adds Gaussian noise to a clipped sum, a user with a
coordinate of his own is the worst there can be, so on full batches the bound comes near to the truth.

Power: with `AUDIT_POLICY` and 4000 canaries the Gaussian bound of an honest build exceeds the claim in none of 2000
simulated runs; with half of the noise it exceeds it in all 2000 (`test_canaries.py`).

Reference: Nasr et al., "Adversary Instantiation", IEEE S&P 2021, and Andrew et al., "One-shot Empirical Privacy
Estimation for Federated Learning", ICLR 2024 (canary gradients); the bounds are in `isthmus.privacy.empirical`.
"""

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from isthmus.backbone import shared_parameters
from isthmus.clients import private_optimizer
from isthmus.clients.audit.evidence import (
    Check,
    Evidence,
    bound_check,
    contribution_check,
    freshness_check,
    measure_noise,
    noise_checks,
)
from isthmus.clients.gradients import Samples
from isthmus.config import BackboneConfig, PrivacyPolicy
from isthmus.custom_backbone import make_backbone
from isthmus.errors import ConfigError
from isthmus.privacy.accounting import epsilon
from isthmus.privacy.empirical import area_under_curve, audit_scores, operating_point
from isthmus.privacy.noise import Randomness, SecureRandomness, SeededRandomness
from isthmus.privacy.plan import DpSgdPlan, plan_for

AUDIT_POLICY = PrivacyPolicy(
    epsilon=5.0,
    delta=1e-6,
    clip=1.0,
    sample_rate=1.0,
    expected_batch=100.0,
    steps_per_round=2,
    rounds=2,
    evaluations=0,
    metric_noise_multiplier=1.0,
)
"""Full batches and few steps: where the bound is tight, so that a small mistake shows."""

CANARIES = 4000
"""Where there is room for so many."""
LENGTH = 100.0
"""Norm of a canary's gradient before clipping / C."""
_MICRO_BATCH = 128

_SEES = (
    "Too little noise anywhere or in one tensor, noise that is not fresh in each step, a user who adds more than C, "
    "clipping that is absent or comes after averaging, more steps or larger batches than are accounted for."
)
_BLIND_TO = (
    "Gradients themselves (whether a user's gradient depends on other users), clipping of each tensor on its own, "
    "whatever leaves besides updates, a noise generator that somebody else can predict, and mistakes in the accounting "
    "of a correct mechanism that are smaller than the gap between bound and claim."
)


@dataclass(frozen=True, kw_only=True)
class _Canaries:
    """Where the canaries are.

    Attributes:
        tensor: (canaries,) which parameter.
        place: (canaries,) which coordinate of it.
        included: (canaries,) fair coins.
    """

    tensor: NDArray[np.int64]
    place: NDArray[np.int64]
    included: NDArray[np.bool_]


def audit_canaries(  # noqa: PLR0913 - keyword-only, each with a default that is used
    policy: PrivacyPolicy,
    shape: BackboneConfig,
    *,
    features: int,
    canaries: int | None = None,
    steps: int = 100,
    share: float = 0.2,
    confidence: float = 0.95,
    seed: int | None = None,
) -> Evidence:
    """Run the optimizer on canaries for a policy's horizon, and bound its epsilon from below.

    Args:
        policy: Its rate, clip, divisor, steps and budget; `AUDIT_POLICY` for the tightest bound, a domain's own for
            what the domain claims. Evaluations are left out: only updates are run, and claimed.
        shape: Of the backbone whose tensors are used.
        features: Dimensions of item features.
        canaries: How many; more give a better bound and take longer. At most a quarter of the parameters; where absent,
            `CANARIES`, or as many as there is room for.
        steps: Of the policy's that are run, at most. The noise is the whole horizon's, the claim is for what was run.
        share: Of the canaries that is guessed on.
        confidence: Of the bounds.
        seed: For a repeatable audit; fresh secure randomness where absent.

    Raises:
        ConfigError: If there are more canaries than coordinates for them.

    Guarantees:
        - An honest build passes: the bounds hold together with `confidence`, the other checks fail with a chance of
          at most `evidence.FALSE_ALARM` each.
        - Noise of half the size, in all tensors or in one, noise missing in one tensor, no clipping, and clipping after
          averaging are findings.
    """
    started = time.process_time()
    plan = plan_for(policy)
    parameters = {
        name: nn.Parameter(torch.zeros(tuple(tensor.shape)))
        for name, tensor in shared_parameters(make_backbone(features, shape)).items()
    }
    randomness: Randomness = SecureRandomness() if seed is None else SeededRandomness(seed, "audit", "canaries")
    coins = np.random.default_rng(seed)
    sizes = [tensor.numel() for tensor in parameters.values()]
    canaries = min(CANARIES, _room(sizes)) if canaries is None else canaries
    placed = _place(canaries, sizes, coins)
    steps = min(steps, policy.rounds * policy.steps_per_round)
    moved = _run(parameters, placed, policy=policy, plan=plan, randomness=randomness, steps=steps)
    stddev = plan.noise_multiplier * policy.clip
    scores = np.zeros(canaries)
    for tensor in range(len(moved)):
        mine = placed.tensor == tensor
        scores[mine] = moved[tensor][:, placed.place[mine]].sum(axis=0)
    free = [np.delete(one, placed.place[placed.tensor == tensor], axis=1) for tensor, one in enumerate(moved)]
    noise = tuple(measure_noise(name, one, stddev) for name, one in zip(parameters, free, strict=True))
    claimed = epsilon([plan.update_event(steps)], policy.delta)
    bounds = audit_scores(scores, placed.included, delta=policy.delta, confidence=confidence, share=share)
    return Evidence(
        name="canaries",
        claimed_epsilon=claimed,
        delta=policy.delta,
        confidence=confidence,
        bounds=bounds,
        checks=(
            bound_check(bounds, claimed=claimed, confidence=confidence),
            *noise_checks(noise),
            *([freshness_check(np.concatenate(free, axis=1), stddev)] if steps > 1 else []),
            _contribution_check(scores[placed.included], policy=policy, steps=steps, stddev=stddev),
        ),
        sees=_SEES,
        blind_to=_BLIND_TO,
        area=area_under_curve(scores, placed.included),
        roc=tuple(
            operating_point(scores, placed.included, false_positives=rate, confidence=confidence)
            for rate in (0.001, 0.01, 0.1)
        ),
        noise=noise,
        settings=(
            ("steps", steps),
            ("sample_rate", policy.sample_rate),
            ("noise_multiplier", plan.noise_multiplier),
            ("clip", policy.clip),
            ("parameters", sum(sizes)),
            ("canaries", canaries),
        ),
        cpu_seconds=time.process_time() - started,
    )


def _room(sizes: list[int]) -> int:
    """Canaries for which there is room: a quarter of each tensor's coordinates."""
    return sum(size // 4 for size in sizes)


def _place(canaries: int, sizes: list[int], coins: np.random.Generator) -> _Canaries:
    """Deal canaries to tensors alike, at most a quarter of a tensor's coordinates: small tensors get some too."""
    room = [size // 4 for size in sizes]
    most = _room(sizes)
    if not 2 <= canaries <= most:
        raise ConfigError(
            f"a backbone of {sum(sizes)} parameters has room for 2 to {most} canaries, {canaries} were asked for"
        )
    # The level at which the tensors are filled: small ones to the brim, large ones alike.
    level = 0
    while sum(min(space, level) for space in room) < canaries:
        level += 1
    tensor = np.repeat(np.arange(len(sizes)), [min(space, level) for space in room])[:canaries]
    place = np.concatenate(
        [coins.permutation(size)[: int((tensor == number).sum())] for number, size in enumerate(sizes)]
    )
    return _Canaries(tensor=tensor, place=place, included=coins.random(canaries) < 0.5)


def _run(  # noqa: PLR0913 - what a run of the optimizer needs, keyword-only
    parameters: dict[str, nn.Parameter],
    canaries: _Canaries,
    *,
    policy: PrivacyPolicy,
    plan: DpSgdPlan,
    randomness: Randomness,
    steps: int,
) -> list[NDArray[np.float64]]:
    """For each tensor (steps, coordinates): the noisy sum of each step, read off how far the tensor moved."""
    tensors = list(parameters.values())
    # A step of `divisor` moves a parameter by exactly the noisy sum: what leaves, in units of C.
    sgd = torch.optim.SGD(tensors, lr=policy.expected_batch)
    optimizer = private_optimizer.PrivateOptimizer(sgd, plan=plan, policy=policy, randomness=randomness)
    users = np.flatnonzero(canaries.included)
    moved: list[list[NDArray[np.float64]]] = [[] for _ in tensors]
    for _ in range(steps):
        chosen = users[randomness.bernoulli(len(users), policy.sample_rate)]
        for start in range(0, len(chosen), _MICRO_BATCH):
            batch = chosen[start : start + _MICRO_BATCH]
            optimizer.accumulate(_gradients(tensors, canaries, batch, length=LENGTH * policy.clip))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for tensor, log in zip(tensors, moved, strict=True):
            log.append(-tensor.detach().double().flatten().numpy())
            with torch.no_grad():
                tensor.zero_()
    return [np.stack(log) for log in moved]


def _gradients(tensors: list[nn.Parameter], canaries: _Canaries, batch: NDArray[np.int64], *, length: float) -> Samples:
    """Of each tensor (users, *shape) gradients: each canary's, on its own coordinate, is `length` long."""
    samples = []
    for number, tensor in enumerate(tensors):
        gradients = torch.zeros((len(batch), tensor.numel()))
        mine = np.flatnonzero(canaries.tensor[batch] == number)
        gradients[torch.from_numpy(mine), torch.from_numpy(canaries.place[batch[mine]])] = length
        samples.append(gradients.view(len(batch), *tensor.shape))
    return Samples(samples)


def _contribution_check(scores: NDArray[np.float64], *, policy: PrivacyPolicy, steps: int, stddev: float) -> Check:
    """Does an included canary add C, on average, in each step it is drawn for?"""
    rate, clip = policy.sample_rate, policy.clip
    accounted = steps * rate * clip
    spread = math.sqrt(steps * (stddev**2 + rate * (1 - rate) * clip**2) / max(len(scores), 1))
    return contribution_check(float(scores.sum()) / max(len(scores), 1) / accounted, deviation=spread / accounted)
