"""Train the same backbone on one domain alone, without noise: what the federation has to beat.

    backbone = train_alone(users, data, backbone_config=..., training=..., seed=0)

Nothing of it leaves the domain, so it needs no privacy; it stops where the domain's own validation items say so.
It is a baseline and a signal of the private head, and like the head it is trained after the last release.
"""

import copy
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from isthmus.clients.backbone_scorer import BackboneScorer
from isthmus.clients.data import DomainData
from isthmus.clients.scorers import rank_users
from isthmus.clients.trainer import TrainingSet, make_batch, user_losses
from isthmus.config import BackboneConfig, TrainingConfig
from isthmus.custom_backbone import AnyBackbone, make_backbone
from isthmus.metrics import ndcg_at_k

EPOCHS = 8
"""Most passes over the users."""
PATIENCE = 2
"""Passes without a better validation NDCG@10 after which training stops."""
BATCH = 128
LEARNING_RATE = 1e-3
MAX_VALIDATION_USERS = 2000


def train_alone(
    users: TrainingSet, data: DomainData, *, backbone_config: BackboneConfig, training: TrainingConfig, seed: int
) -> AnyBackbone:
    """Train with Adam and early stopping; starts, like the federation, from the text prior.

    Args:
        users: What is trained on.
        data: Its validation items decide when to stop.
        backbone_config: Same shape as the federation's.
        training: Same loss as the federation's.
        seed: Of initialisation and order.

    Returns:
        The backbone of the best pass, in evaluation mode; the untrained one if no pass was better, and wherever
        there is no validation item to tell.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = make_backbone(users.features.shape[1], backbone_config)
    generator = np.random.default_rng(seed)
    judges = np.flatnonzero(data.validation >= 0)
    if len(judges) > MAX_VALIDATION_USERS:
        judges = np.sort(generator.choice(judges, MAX_VALIDATION_USERS, replace=False))
    best, best_value, since = copy.deepcopy(backbone), _value(backbone, users, data, judges), 0
    optimizer = torch.optim.Adam(backbone.parameters(), lr=LEARNING_RATE)
    for _ in range(EPOCHS if len(judges) else 0):
        for chosen in _batches(len(users.histories), generator):
            batch = make_batch(users, chosen, positions=backbone_config.positions, losses=training.positions)
            loss = user_losses(backbone, users, batch, training).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        value = _value(backbone, users, data, judges)
        since += 1
        if value > best_value:
            best, best_value, since = copy.deepcopy(backbone), value, 0
        if since >= PATIENCE:
            break
    return best.eval()


def _value(backbone: AnyBackbone, users: TrainingSet, data: DomainData, judges: NDArray[np.int64]) -> float:
    """Mean validation NDCG@10, exact."""
    if not len(judges):
        return 0.0
    scorer = BackboneScorer(backbone, users.features)
    ranks = rank_users(scorer, data.train, judges, data.validation[judges], within=10)
    return float(ndcg_at_k(ranks, 10).mean())


def _batches(users: int, generator: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    order = generator.permutation(users)
    for start in range(0, users, BATCH):
        yield order[start : start + BATCH]
