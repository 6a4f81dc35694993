"""After the last release: fit the private head, and see what everything was worth on the test items.

    finished = finish_domain(data, users, shipped, recipe, evaluation=..., seed=0, folder=Path("run/heads/books"))

Everything in here is computed from private data without noise. It stays in the domain: in a simulation the
report may show it, marked as raw, and no release can depend on it, because none follows.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from isthmus.backbone import learned_axes
from isthmus.backbone_file import ShippedBackbone, save_backbone
from isthmus.clients.backbone_scorer import BackboneScorer
from isthmus.clients.blend import Signals, rank_blends
from isthmus.clients.data import DomainData
from isthmus.clients.head import Head, Method, fit_head, save_head
from isthmus.clients.local_training import train_alone
from isthmus.clients.text_tower import shipped_reading
from isthmus.clients.trainer import TrainingSet
from isthmus.config import EvaluationConfig
from isthmus.features import own_axes
from isthmus.packing import arrays_digest
from isthmus.records import Recipe

LOCAL_BACKBONE = "local.safetensors"
"""The backbone that was trained on the domain alone, beside its head, with the whitening that both were fitted with."""


@dataclass(frozen=True, kw_only=True)
class FinishedDomain:
    """One domain at the end of a run; all of it raw.

    Attributes:
        head: What the domain serves from now on.
        ranks: (test users,) rank of the held-out item under each method; empty if no user can be tested.
            `federated` is what the head serves: the best local method where there was no transfer.
    """

    head: Head
    ranks: dict[Method, NDArray[np.int64]]


def to_serve(shipped: ShippedBackbone, recipe: Recipe, encoded: NDArray[np.float32]) -> tuple[ShippedBackbone, Recipe]:
    """A run's backbone and recipe as a member serves with them: in its own axes, where the run learned nothing of axes.

    Rounds are trained and judged in pooled axes (ADR 23); this looks at public text only. A run that began with what
    others had learned in the open may have their axes, which fit nobody here, so its members' local methods get their
    own as well; what the backbone reads says `read_by`.

    Args:
        shipped: The federation's backbone.
        recipe: What it was trained under.
        encoded: (items, dimensions) of the member's catalogue, unwhitened.

    Returns:
        Both, with the whitening and its digest exchanged; as they are where the axes are part of what was learned.
    """
    if recipe.training.learns_axes and shipped.start is None:
        return shipped, recipe
    axes = own_axes(shipped.whitening, encoded)
    named = recipe.model_copy(update={"whitening": arrays_digest(axes.arrays()).hex()})
    return replace(shipped, whitening=axes), named


def read_by(shipped: ShippedBackbone, encoded: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """(items, features) in the axes that a run's backbone learned in, where `to_serve` gives its members others.

    Args:
        shipped: The federation's backbone, as it was shipped.
        encoded: (items, dimensions) of the member's catalogue, unwhitened.
    """
    apart = shipped.start is not None and learned_axes(shipped.backbone)
    return shipped.whitening.apply(encoded) if apart else None


def finish_domain(  # noqa: PLR0913 - keyword-only after what is fitted
    data: DomainData,
    users: TrainingSet,
    shipped: ShippedBackbone,
    recipe: Recipe,
    *,
    evaluation: EvaluationConfig,
    seed: int,
    folder: Path,
    shared: NDArray[np.float32] | None = None,
) -> FinishedDomain:
    """Fit and save a domain's private head, and rank the test items under every method.

    Args:
        data: The domain.
        users: What the domain trained on.
        shipped: The federation's backbone, with the whitening that made the features of `users`.
        recipe: What it was trained under; the local-only backbone follows it too.
        evaluation: How many users are looked at.
        seed: Of every draw in here.
        folder: Where the head is kept.
        shared: (items, features) in the axes that the shipped backbone reads; those of `users` when absent.
    """
    alone = train_alone(users, data, backbone_config=recipe.backbone, training=recipe.training, seed=seed)
    scorer = BackboneScorer(
        shipped.backbone,
        users.features if shared is None else torch.from_numpy(shared),
        read=shipped_reading(shipped, data.catalogue.texts),
    )
    local_scorer = BackboneScorer(alone, users.features)
    features = users.features.numpy()
    vetted = shipped.round > 0  # no released gain of round 0, the text prior or a start, was above the prior's
    head = fit_head(data, features=features, backbone=scorer, local_backbone=local_scorer, seed=seed, vetted=vetted)
    save_head(head, folder)
    save_backbone(folder / LOCAL_BACKBONE, replace(shipped, backbone=alone, round=0, start=None))
    tested = np.flatnonzero(data.test >= 0)
    if len(tested) > evaluation.max_users:
        tested = np.sort(np.random.default_rng(0).choice(tested, evaluation.max_users, replace=False))
    if not len(tested):
        return FinishedDomain(head=head, ranks={})
    signals = Signals.fit(data.before_test, features=features, backbone=scorer, local_backbone=local_scorer)
    served = {method: method for method in Method} | {Method.FEDERATED: head.method}
    blends = {method: head.blends[serves] for method, serves in served.items()}
    ranks = rank_blends(signals, blends, data.before_test, tested, data.test[tested])
    return FinishedDomain(head=head, ranks=ranks)
