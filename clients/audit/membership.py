"""Audit (c): does the final backbone remember who it was trained on? Offline likelihood-ratio attack (LiRA).

    evidence = audit_membership(load_domain("dining"), load_federation("federation.toml"))

The attacker has the final backbone and nothing of the run, knows the histories of all candidates, and trains *shadow*
backbones by the same code, each on a random half of the candidates. The shadows that a candidate was not in tell how
well a backbone fits that history by chance (mean of the loss, one spread for all); a target that fits it much better
has probably seen it. For the ROC every backbone is the target once and the others are its shadows; the bounds with
their confidence come from the first target alone, whose candidates were drawn by fair coins.

This is the weakest of the three attackers and the one that people mean by "can it be told that I was in the data": an
area of 0.5 and a true-positive rate of about the false-positive rate say that it cannot, by this attack.

Reference: Carlini et al., "Membership Inference Attacks From First Principles", IEEE S&P 2022, section VI-A (the
offline form; one variance for all as they advise for few shadows) and its figure of merit, the true-positive rate at
0.1 % false positives.
"""

import math
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special

from isthmus.clients.audit.evidence import FALSE_ALARM, Check, Evidence, bound_check, release_check
from isthmus.clients.audit.made_up import Transcript, make_up_users, public_titles, run_vault
from isthmus.clients.trainer import make_batch, user_losses
from isthmus.config import DomainConfig, FederationConfig, PrivacyPolicy
from isthmus.privacy.empirical import (
    Form,
    LowerBound,
    area_under_curve,
    attack_epsilon,
    audit_scores,
    gaussian_area,
    operating_point,
    rates_at,
    threshold_for,
)

_RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7)
"""False-positive rates at which the attack is looked at."""
_THRESHOLD_RATE = 0.05
"""False-positive rate, on the other targets, of the threshold at which the first target's error rates are taken."""

_SEES = (
    "Whether somebody who holds the final backbone can tell who was trained on: memorisation that noise and clipping "
    "should have prevented, whatever its cause."
)
_BLIND_TO = (
    "Onlookers who see every update (they are stronger), better attacks and made-to-measure histories. Noise that is "
    "too small can pass here: a backbone that learned little gives little away. Its figures never prove privacy."
)


def audit_membership(  # noqa: PLR0913 - keyword-only, each with a default that is used
    domain: DomainConfig,
    federation: FederationConfig,
    *,
    policy: PrivacyPolicy | None = None,
    users: int = 400,
    shadows: int = 8,
    items: int = 200,
    length: int = 10,
    steps: int = 24,
    share: float = 0.2,
    confidence: float = 0.95,
    seed: int | None = None,
    cache: Path | None = None,
) -> Evidence:
    """Train a target and shadows on made-up users through real vaults, and attack the final backbones.

    Args:
        domain: Its public catalogue and its policy; neither its users nor its ledger are touched.
        federation: Encoder, shape and training settings.
        policy: Instead of the domain's.
        users: Candidates; about half are in each backbone.
        shadows: Backbones beside the target, at least 2; cost grows with them.
        items: Of the catalogue that are used, at most.
        length: Events of a candidate; the last two are held out.
        steps: Of the policy's that are run, at most, in whole rounds and at least one. The noise is the whole
            horizon's, the claim is the ledger's.
        share: Of the candidates that is guessed on for the bound.
        confidence: Of the bounds, and of the intervals of the ROC. The latter take candidates for independent.
        seed: For a repeatable audit; fresh secure randomness where absent.
        cache: Of encoded texts.

    Guarantees:
        - Nothing private is read.
        - If the run is (epsilon, delta)-DP, the (epsilon, delta) bound is below epsilon with `confidence`.
    """
    started = time.process_time()
    asked = policy or domain.privacy
    audited = asked.model_copy(update={"expected_batch": users / 2 * asked.sample_rate})
    generator = np.random.default_rng(seed)
    titles = public_titles(domain, most=items)
    rows = make_up_users(users, items=len(titles), length=length, generator=generator)
    included = generator.random((shadows + 1, users)) < 0.5  # row 0 is the target
    losses, transcripts = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number, members in enumerate(included):
            transcript = run_vault(
                Path(folder) / f"backbone-{number}",
                titles,
                rows[members],
                federation=federation,
                policy=audited,
                rounds=max(1, steps // audited.steps_per_round),
                seed=None if seed is None else seed * (shadows + 1) + number,
                cache=cache,
            )
            transcripts.append(transcript)
            losses.append(_losses(transcript, rows))
    target = transcripts[0]
    scores = offline_scores(np.stack(losses), included)
    bounds = _bounds(scores, included, delta=audited.delta, confidence=confidence, share=share)
    everybody, truth = scores.ravel(), included.ravel()
    area = area_under_curve(everybody, truth)
    return Evidence(
        name="membership",
        claimed_epsilon=target.epsilon,
        delta=audited.delta,
        confidence=confidence,
        bounds=bounds,
        checks=(
            bound_check(bounds, claimed=target.epsilon, confidence=confidence),
            release_check(target.refusal),
            _area_check(area, users=users, claimed=target.epsilon, delta=audited.delta),
        ),
        sees=_SEES,
        blind_to=_BLIND_TO,
        area=area,
        roc=tuple(operating_point(everybody, truth, false_positives=rate, confidence=confidence) for rate in _RATES),
        settings=(
            ("steps", len(target.rounds) * audited.steps_per_round),
            ("sample_rate", audited.sample_rate),
            ("noise_multiplier", target.noise_multiplier),
            ("clip", audited.clip),
            ("users", users),
            ("shadows", shadows),
        ),
        cpu_seconds=time.process_time() - started,
    )


def offline_scores(losses: NDArray[np.float64], included: NDArray[np.bool_]) -> NDArray[np.float64]:
    """How much lower a candidate's loss is than backbones that never saw it let expect, in standard deviations.

    Args:
        losses: (backbones, users) of each candidate under each final backbone.
        included: (backbones, users) who was trained on.

    Returns:
        (backbones, users); in row b, backbone b is the target and the others are shadows. 0 for a candidate that
        every shadow was trained on.
    """
    scores = np.zeros(losses.shape)
    for target in range(len(losses)):
        outside = ~included
        outside[target] = False  # the target's own loss is what is judged
        count = outside.sum(axis=0)
        known = count > 0
        mean = np.where(outside, losses, 0.0).sum(axis=0) / np.maximum(count, 1)
        errors = np.where(outside, losses - mean, 0.0)
        freedom = max(int((count[known] - 1).sum()), 1)
        spread = np.sqrt(np.square(errors).sum() / freedom)
        scores[target, known] = (mean - losses[target])[known] / max(float(spread), 1e-12)
    return scores


def _bounds(
    scores: NDArray[np.float64], included: NDArray[np.bool_], *, delta: float, confidence: float, share: float
) -> tuple[LowerBound, ...]:
    """Three bounds from the first target, each at a third of the allowed error."""
    each = 1 - (1 - confidence) / 3
    one_run = audit_scores(scores[0], included[0], delta=delta, confidence=1 - 2 * (1 - each), share=share)
    # The threshold is fixed on other targets, so that the first target's rates are a fresh sample.
    threshold = threshold_for(scores[1:][~included[1:]], _THRESHOLD_RATE)
    point = rates_at(scores[0], included[0], threshold=threshold, confidence=each)
    rates = LowerBound(
        form=Form.ERROR_RATES,
        epsilon=attack_epsilon(point, delta=delta),
        confidence=each,
        canaries=len(scores[0]),
        guesses=len(scores[0]),
        correct=point.true_positives.successes + point.false_positives.trials - point.false_positives.successes,
    )
    return (*one_run, rates)


def _area_check(area: float, *, users: int, claimed: float, delta: float) -> Check:
    """Is the attack no better than the claim allows any attack to be?"""
    most = gaussian_area(claimed, delta)
    # Scores of the same user under many targets are not independent: count users, not scores.
    limit = most - float(special.ndtri(FALSE_ALARM)) * math.sqrt(most * (1 - most) / (users / 2))
    return Check(
        name="area",
        passed=area <= limit,
        detail=f"area {area:.3f} under the ROC; the claim allows {most:.3f}, and up to {limit:.3f} may be chance",
    )


def _losses(transcript: Transcript, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """(users,) loss of every candidate under the final backbone."""
    users, training = transcript.training_set(rows), transcript.recipe.training
    backbone = transcript.backbone(transcript.final)
    batch = make_batch(users, np.arange(len(rows)), positions=backbone.config.positions, losses=training.positions)
    with torch.inference_mode():
        return user_losses(backbone, users, batch, training).double().numpy()
