"""The ceiling: the same backbone, trained on all domains' histories in one place, with Adam and without noise.

    backbone = train_centralised(pooled, backbone_config=..., training=..., seed=0)

No privacy of any kind, and no federation: what a company could reach if it pooled everything. Only a simulation, which
holds all data anyway, can make it. It is a reference to measure against, and must go nowhere else.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from isthmus.backbone import Backbone
from isthmus.clients.backbone_scorer import BackboneScorer
from isthmus.clients.data import DomainData
from isthmus.clients.evaluation import validation_ndcg
from isthmus.clients.local_training import BATCH, EPOCHS, LEARNING_RATE, PATIENCE
from isthmus.clients.trainer import TrainingSet, make_batch, user_losses
from isthmus.config import BackboneConfig, TrainingConfig


@dataclass(frozen=True, kw_only=True)
class Pooled:
    """One domain's part of the pool.

    Attributes:
        users: What is trained on.
        data: Its validation items help to decide when to stop.
    """

    users: TrainingSet
    data: DomainData


def train_centralised(
    pool: Sequence[Pooled], *, backbone_config: BackboneConfig, training: TrainingConfig, seed: int
) -> Backbone:
    """Train as `train_alone` does, on all domains together; a batch holds users of one domain.

    Args:
        pool: At least one domain, features in the same axes.
        backbone_config: Same shape as the federation's.
        training: Same loss as the federation's.
        seed: Of initialisation and order.

    Returns:
        The backbone of the pass with the best mean validation NDCG@10, each domain counted alike, in evaluation
        mode; the untrained one, which is the text prior, if no pass was better.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = Backbone(pool[0].users.features.shape[1], backbone_config)
    generator = np.random.default_rng(seed)
    best, best_value, since = copy.deepcopy(backbone), _value(backbone, pool), 0
    optimizer = torch.optim.Adam(backbone.parameters(), lr=LEARNING_RATE)
    for _ in range(EPOCHS):
        for part, chosen in _batches(pool, generator):
            batch = make_batch(part.users, chosen, positions=backbone_config.positions, losses=training.positions)
            loss = user_losses(backbone, part.users, batch, training).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        value = _value(backbone, pool)
        since += 1
        if value > best_value:
            best, best_value, since = copy.deepcopy(backbone), value, 0
        if since >= PATIENCE:
            break
    return best.eval()


def _value(backbone: Backbone, pool: Sequence[Pooled]) -> float:
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
