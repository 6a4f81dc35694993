"""The same backbone, trained on all domains' histories in one place, with Adam and without noise.

    pooled = train_centralised(pool, backbone_config=..., training=..., seed=0)
    pooled.backbone

No privacy of any kind, and no federation. Of private histories it is the ceiling of `isthmus evaluate`: what a company
could reach if it pooled everything; a reference to measure against, that must go nowhere else. Of histories that are
declared public it is pre-training (`isthmus.simulation.pretraining`).
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from isthmus.backbone import shared_parameters, trained_parameters
from isthmus.clients.backbone_scorer import BackboneScorer
from isthmus.clients.data import DomainData
from isthmus.clients.evaluation import validation_ndcg
from isthmus.clients.local_training import BATCH, EPOCHS, LEARNING_RATE, PATIENCE
from isthmus.clients.trainer import TrainingSet, make_batch, user_losses
from isthmus.config import BackboneConfig, Trained, TrainingConfig
from isthmus.custom_backbone import AnyBackbone, make_backbone


@dataclass(frozen=True, kw_only=True)
class Pooled:
    """One domain's part of the pool.

    Attributes:
        users: What is trained on.
        data: Its validation items help to decide when to stop.
    """

    users: TrainingSet
    data: DomainData


@dataclass(frozen=True, kw_only=True)
class Centralised:
    """What came of a pool.

    Attributes:
        backbone: Of the best pass, in evaluation mode; the untrained one, which is the text prior, if none was better.
        passes: Until then; 0 if none was better.
        gain: In mean validation NDCG@10, each domain counted alike, over the untrained one; at least 0.
    """

    backbone: AnyBackbone
    passes: int
    gain: float


def train_centralised(  # noqa: PLR0913 - keyword-only
    pool: Sequence[Pooled],
    *,
    backbone_config: BackboneConfig,
    training: TrainingConfig,
    seed: int,
    train: Trained = Trained.ALL,
    passes: int = EPOCHS,
) -> Centralised:
    """Train as `train_alone` does, on all domains together; a batch holds users of one domain.

    Args:
        pool: At least one domain, features in the same axes.
        backbone_config: Same shape as the federation's.
        training: Same loss as the federation's.
        seed: Of initialisation and order.
        train: Which parameters move; `lora` moves the matrices themselves.
        passes: At most so many, over all users.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = make_backbone(pool[0].users.features.shape[1], backbone_config)
    generator = np.random.default_rng(seed)
    prior = _value(backbone, pool)
    best, best_value, best_pass = copy.deepcopy(backbone), prior, 0
    shared = shared_parameters(backbone)
    moving = set(trained_parameters(shared, train))
    for name, parameter in shared.items():
        parameter.requires_grad_(name in moving)
    optimizer = torch.optim.Adam((shared[name] for name in shared if name in moving), lr=LEARNING_RATE)
    for number in range(1, passes + 1):
        for part, chosen in _batches(pool, generator):
            batch = make_batch(part.users, chosen, positions=backbone_config.positions, losses=training.positions)
            loss = user_losses(backbone, part.users, batch, training).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        value = _value(backbone, pool)
        if value > best_value:
            best, best_value, best_pass = copy.deepcopy(backbone), value, number
        if number - best_pass >= PATIENCE:
            break
    return Centralised(backbone=best.requires_grad_().eval(), passes=best_pass, gain=best_value - prior)


def _value(backbone: AnyBackbone, pool: Sequence[Pooled]) -> float:
    """Mean over domains of mean validation NDCG@10, exact; domains without a validation item left out."""
    each = [validation_ndcg(BackboneScorer(backbone, part.users.features), part.data) for part in pool]
    means = [float(ndcg.mean()) for ndcg in each if len(ndcg)]
    return float(np.mean(means)) if means else 0.0


def _batches(pool: Sequence[Pooled], generator: np.random.Generator) -> Iterator[tuple[Pooled, NDArray[np.int64]]]:
    """Every user once, domains mixed batch by batch."""
    batches = []
    for part in pool:
        order = generator.permutation(len(part.users.histories))
        batches += [(part, order[start : start + BATCH]) for start in range(0, len(order), BATCH)]
    for at in generator.permutation(len(batches)):
        yield batches[at]
