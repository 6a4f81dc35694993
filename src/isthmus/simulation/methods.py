"""The methods that a study compares in one domain, ready to score.

    methods = methods_of(known, shipped=shipped, head=run / "heads" / "books", seed=0, centralised=ceiling)
    methods["federated"].score(histories, users)

Everything local is fitted on what training knew. The private head and the backbone trained alone are those that the
run has left in its folder, so "federated" is what the domain would serve, and not a second opinion.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from isthmus.backbone_file import ShippedBackbone, load_backbone
from isthmus.clients.backbone_scorer import BackboneScorer
from isthmus.clients.blend import Blend, Signal, Signals
from isthmus.clients.data import DomainData
from isthmus.clients.finish import LOCAL_BACKBONE
from isthmus.clients.head import (
    MAX_USERS,
    MIN_USERS,
    Contest,
    Head,
    Method,
    fit_head,
    load_head,
    search_weights,
    shrink,
)
from isthmus.clients.scorers import Scorer
from isthmus.clients.text_tower import shipped_reading
from isthmus.custom_backbone import AnyBackbone
from isthmus.simulation.measuring import OncePerChunk

LOCAL = ("popularity", "item_cf", "text_knn", "text_item_cf", "local_backbone", "local_only")
"""What a domain can do without anybody, the most modest first."""

_TEXT_ITEM_CF: Sequence[Signal] = (Signal.TEXT, Signal.ITEM_CF)


@dataclass(frozen=True, kw_only=True, eq=False)
class Known:
    """What is known of one domain when its methods are fitted.

    Attributes:
        data: Users and events that training may know of.
        features: (items, dim) whitened text features, as the domain would have them by itself.
        shared: The same in the axes that the shipped backbone reads.
        pooled: The same in axes that are every member's: what is compared or trained across domains sees these.
    """

    data: DomainData
    features: NDArray[np.float32]
    shared: NDArray[np.float32]
    pooled: NDArray[np.float32]


def methods_of(
    known: Known, *, shipped: ShippedBackbone, head: Path, seed: int, centralised: AnyBackbone | None = None
) -> dict[str, Scorer]:
    """Every method by name, local ones first.

    Args:
        known: The domain.
        shipped: The federation's backbone.
        head: Folder of the private head and of the backbone that was trained alone.
        seed: Of every draw in here.
        centralised: The ceiling, if it was trained; alone, and with a private head of its own.

    Raises:
        RunError: If the folder holds no head.
    """
    private = load_head(head)
    features, shared = torch.from_numpy(known.features), torch.from_numpy(known.shared)
    alone = OncePerChunk(BackboneScorer(load_backbone(head / LOCAL_BACKBONE).backbone, features))
    read = shipped_reading(shipped, known.data.catalogue.texts)
    backbone = OncePerChunk(BackboneScorer(shipped.backbone, shared, read=read))
    signals = _shared(known, backbone, alone)
    methods: dict[str, Scorer] = {
        "popularity": private.scorer(signals, Method.POPULARITY),
        "item_cf": private.scorer(signals, Method.ITEM_CF),
        "text_knn": private.scorer(signals, Method.TEXT_KNN),
        "text_item_cf": Blend(signals=signals, weights=_text_item_cf(known, seed)),
        "local_backbone": alone,
        "local_only": private.scorer(signals, Method.LOCAL_ONLY),
        "backbone": backbone,
        "federated": private.scorer(signals),
    }
    if centralised is not None:
        ceiling = OncePerChunk(BackboneScorer(centralised, torch.from_numpy(known.pooled)))
        served = fit_head(known.data, features=known.features, backbone=ceiling, local_backbone=alone, seed=seed)
        methods["centralised_backbone"] = ceiling
        methods["centralised"] = _served(served, known, ceiling, alone)
    return methods


def _served(head: Head, known: Known, backbone: Scorer, alone: Scorer) -> Scorer:
    return head.scorer(_shared(known, backbone, alone))


def _shared(known: Known, backbone: Scorer, alone: Scorer) -> Signals:
    """Signals as they serve, each scored once for all methods."""
    signals = Signals.fit(known.data.before_test, features=known.features, backbone=backbone, local_backbone=alone)
    scorers = {
        signal: scorer if isinstance(scorer, OncePerChunk) else OncePerChunk(scorer)
        for signal, scorer in signals.scorers.items()
    }
    return Signals(scorers=scorers, items=signals.items)


def _text_item_cf(known: Known, seed: int) -> dict[Signal, float]:
    """Weights of text and item-CF, chosen as a head chooses: on validation, shrunk towards text."""
    data = known.data
    users = np.flatnonzero(data.validation >= 0)
    if len(users) < MIN_USERS:
        return {Signal.TEXT: 1.0}
    if len(users) > MAX_USERS:
        users = np.sort(np.random.default_rng(seed).choice(users, MAX_USERS, replace=False))
    fitted = Signals.fit(data.train, features=known.features)
    signals = Signals(scorers={name: fitted.scorers[name] for name in _TEXT_ITEM_CF}, items=fitted.items)
    contest = Contest.hold(signals, data.train, users, data.validation[users])
    return shrink(search_weights(contest, _TEXT_ITEM_CF), len(users), towards=Signal.TEXT)
