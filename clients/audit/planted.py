"""Audit (b): planted users through the whole pipeline, judged by every update that leaves.

    evidence = audit_planted(load_domain("dining"), load_federation("federation.toml"))

Users with random histories over the domain's public catalogue are written down as a domain; each is included by a
fair coin. Tables, vault, ledger, gate, sampling, the model's own gradients, clipping and noise are the real ones. The
onlooker knows everybody's history, the shared parameters of each round and every update, and computes what each user
would have added to it: the user's clipped gradient. How much of it is in the update, with the other users'
gradients taken out by least squares, is the score.

The domain's policy is kept but for two things: a round is one step (the onlooker sees every step, as the accountant
assumes), and the divisor fits the number of planted users (it changes no guarantee). Of the recipe, clipping is kept;
optimizer, augmentation and choice of trained parameters are not: the onlooker knows plain gradients of all of them.

Reference: Nasr et al., "Tight Auditing of Differentially Private Machine Learning", USENIX Security 2023 (white box).
"""

import functools
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from isthmus.clients.audit.evidence import (
    Evidence,
    TensorNoise,
    bound_check,
    contribution_check,
    measure_noise,
    noise_checks,
    release_check,
)
from isthmus.clients.audit.made_up import Transcript, make_up_users, public_titles, run_vault
from isthmus.clients.gradients import OpacusHooks
from isthmus.clients.trainer import TrainingSet, make_batch, user_losses
from isthmus.config import (
    Clipping,
    DomainConfig,
    FederationConfig,
    PrivacyPolicy,
    Trained,
    TrainingConfig,
)
from isthmus.custom_backbone import AnyBackbone
from isthmus.privacy.empirical import area_under_curve, audit_scores, operating_point

_CHUNK = 128
_SEES = (
    "Anything in the real path of an update that gives a user away: too little noise in what is released, in any "
    "tensor; gradients that are not clipped, or clipped after averaging; a user who enters more often than is charged."
)
_BLIND_TO = (
    "What only shows in a history that was made for it: users here are random, not the worst case, and share "
    "directions with each other, so the bound stays well below the claim. Metrics, counts and heads are not attacked. "
    "The recipe's optimizer, augmentation and choice of trained parameters are not used: all are trained, by SGD."
)


def audit_planted(  # noqa: PLR0913 - keyword-only, each with a default that is used
    domain: DomainConfig,
    federation: FederationConfig,
    *,
    policy: PrivacyPolicy | None = None,
    users: int = 400,
    items: int = 200,
    length: int = 8,
    steps: int = 24,
    share: float = 0.2,
    confidence: float = 0.95,
    seed: int | None = None,
    cache: Path | None = None,
) -> Evidence:
    """Run planted users through a vault for a policy's horizon, and bound its epsilon from below.

    Args:
        domain: Its public catalogue and its policy; neither its users nor its ledger are touched.
        federation: Encoder, shape and training settings.
        policy: Instead of the domain's.
        users: Planted users; about half are included.
        items: Of the catalogue that are used, at most.
        length: Events of a planted user; the last two are held out.
        steps: Of the policy's that are run, at most. The noise is the whole horizon's, the claim is the ledger's.
        share: Of the users that is guessed on.
        confidence: Of the bounds.
        seed: For a repeatable audit; fresh secure randomness where absent.
        cache: Of encoded texts.

    Guarantees:
        - Nothing private is read.
        - An honest build passes, but for a chance of 1 - `confidence` (bounds) and `evidence.FALSE_ALARM` (each other
          check).
    """
    started = time.process_time()
    asked = policy or domain.privacy
    audited = asked.model_copy(
        update={
            "rounds": asked.rounds * asked.steps_per_round,
            "steps_per_round": 1,
            "expected_batch": users / 2 * asked.sample_rate,
        }
    )
    generator = np.random.default_rng(seed)
    titles = public_titles(domain, most=items)
    rows = make_up_users(users, items=len(titles), length=length, generator=generator)
    included = generator.random(users) < 0.5
    recipe = federation.training
    plain = TrainingConfig(
        train=Trained.ALL,
        learning_rate=recipe.learning_rate,
        rivals=recipe.rivals,
        positions=recipe.positions,
        clipping=recipe.clipping,
        update_format=recipe.update_format,
    )
    federation = federation.model_copy(update={"training": plain})
    with tempfile.TemporaryDirectory() as folder:
        transcript = run_vault(
            Path(folder) / "planted",
            titles,
            rows[included],
            federation=federation,
            policy=audited,
            rounds=steps,
            seed=seed,
            cache=cache,
        )
    seen = _watch(transcript, rows, included, policy=audited)
    bounds = audit_scores(seen.scores, included, delta=audited.delta, confidence=confidence, share=share)
    return Evidence(
        name="planted",
        claimed_epsilon=transcript.epsilon,
        delta=audited.delta,
        confidence=confidence,
        bounds=bounds,
        checks=(
            bound_check(bounds, claimed=transcript.epsilon, confidence=confidence),
            release_check(transcript.refusal),
            *noise_checks(seen.noise),
            contribution_check(seen.contribution, deviation=seen.deviation),
        ),
        sees=_SEES,
        blind_to=_BLIND_TO,
        area=area_under_curve(seen.scores, included),
        roc=tuple(
            operating_point(seen.scores, included, false_positives=rate, confidence=confidence)
            for rate in (0.001, 0.01, 0.1)
        ),
        noise=seen.noise,
        settings=(
            ("steps", len(transcript.rounds)),
            ("sample_rate", audited.sample_rate),
            ("noise_multiplier", transcript.noise_multiplier),
            ("clip", audited.clip),
            ("parameters", sum(array.size for array in transcript.final.values())),
            ("users", users),
        ),
        cpu_seconds=time.process_time() - started,
    )


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What the onlooker makes of a run.

    Attributes:
        scores: (users,) higher means more likely included.
        noise: Of each tensor: updates less what the included users should have added.
        contribution: What they did add, in units of what they should have.
        deviation: Standard deviation of it in an honest run.
    """

    scores: NDArray[np.float64]
    noise: tuple[TensorNoise, ...]
    contribution: float
    deviation: float


def _watch(
    transcript: Transcript, rows: NDArray[np.int64], included: NDArray[np.bool_], *, policy: PrivacyPolicy
) -> _Seen:
    """Score every user over all rounds, then measure noise and contribution knowing who was included."""
    training, rate = transcript.recipe.training, policy.sample_rate
    stddev = transcript.noise_multiplier * policy.clip
    planted = transcript.training_set(rows)
    names = list(transcript.final)  # in the order of the backbone's parameters, and so of its gradients
    scores, residuals, found, accounted, variance = np.zeros(len(rows)), [], 0.0, 0.0, 0.0
    before = np.zeros(1)
    for one in transcript.rounds:
        gradients = _clipped_gradients(transcript.backbone(one.arrays), planted, training, clip=policy.clip)
        moved = np.concatenate([one.update[name].ravel() for name in names]).astype(np.float64)
        moved *= -policy.expected_batch / training.learning_rate  # with momentum, a sum over steps
        total, before = moved - training.momentum * before, moved
        scores += _log_odds(gradients, total, rate=rate, stddev=stddev)
        expected = rate * gradients[included].sum(axis=0)
        residuals.append(total - expected)
        # Regress what was seen on what should be there; noise and sampling make it vary.
        norm = float(expected @ expected)
        sampling = rate * (1 - rate) * float(np.square(gradients[included] @ expected).sum())
        found, accounted = found + float(total @ expected), accounted + norm
        variance += stddev**2 * norm + sampling
    ends = np.cumsum([transcript.final[name].size for name in names])
    columns = np.split(np.stack(residuals), ends[:-1], axis=1)
    return _Seen(
        scores=scores,
        noise=tuple(measure_noise(name, column, stddev) for name, column in zip(names, columns, strict=True)),
        contribution=found / accounted if accounted else 0.0,
        deviation=math.sqrt(variance) / accounted if accounted else 0.0,
    )


def _clipped_gradients(
    backbone: AnyBackbone, users: TrainingSet, training: TrainingConfig, *, clip: float
) -> NDArray[np.float64]:
    """(users, parameters): what each user adds to the sum if drawn."""
    raw = np.concatenate(
        [
            _raw_gradients(backbone, users, training, np.arange(start, min(start + _CHUNK, len(users.histories))))
            for start in range(0, len(users.histories), _CHUNK)
        ]
    )
    raw[~np.isfinite(raw).all(axis=1)] = 0.0  # a user without a usable gradient adds nothing
    norms = np.linalg.norm(raw, axis=1, keepdims=True)
    if training.clipping is Clipping.AUTOMATIC:
        factors = clip / (norms + 0.01)
    else:
        factors = np.minimum(1.0, clip / (norms + 1e-6))
    clipped: NDArray[np.float64] = raw * factors
    return clipped


def _raw_gradients(
    backbone: AnyBackbone, users: TrainingSet, training: TrainingConfig, chosen: NDArray[np.int64]
) -> NDArray[np.float64]:
    """(chosen, parameters) gradients of users' losses, unclipped."""
    batch = make_batch(users, chosen, positions=backbone.config.positions, losses=training.positions)
    with OpacusHooks(backbone) as engine:
        found = engine.gradients(functools.partial(user_losses, backbone, users, batch, training))
    return torch.cat([sample.flatten(1) for sample in found.samples], dim=1).double().numpy()


def _log_odds(
    gradients: NDArray[np.float64], seen: NDArray[np.float64], *, rate: float, stddev: float
) -> NDArray[np.float64]:
    """(users,) how much more likely the noisy sum is with the user than without, all else being Gaussian.

    The least-squares estimate of who was drawn, shrunk by the noise, with each user's error divided out. A user is
    drawn with chance rate / 2, as far as the onlooker knows.
    """
    mean, variance = rate / 2, rate / 2 * (1 - rate / 2)
    gram = gradients @ gradients.T
    ridge = stddev**2 / variance
    inverse = np.linalg.inv(gram + ridge * np.eye(len(gram)))
    estimate = inverse @ (gradients @ seen - gram.sum(axis=1) * mean)
    error = ridge * np.diag(inverse)  # share of a user's variance that is left
    odds: NDArray[np.float64] = estimate / error
    return odds
