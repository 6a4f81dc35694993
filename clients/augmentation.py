"""Show a step another view of each user's own history: a part of it, some items hidden, or a part in another order.

    draws = draw_views(randomness, Augment.CROP, users=len(chosen), positions=20)
    batch = augmented(batch, Augment.CROP, draws)

A view is made of one user's history and that user's draws alone, so a user's gradient stays the user's own, and
there is still one record per user. Rivals and weights belong to events, so a view only takes events away, and changes
what is seen before them; an event that a view would give away (its own item, moved to before it) carries no loss. Draws
are the release's own: a seeded round repeats, and both engines see the same.

Reference: Xie et al., "Contrastive Learning for Sequential Recommendation" (CL4SRec), ICDE 2022: the three operators
and their proportions. Its contrastive task is not here: a view takes the place of the history in the ordinary loss.
"""

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray

from isthmus.clients.batches import Batch
from isthmus.config import Augment
from isthmus.privacy.noise import Randomness

_SHARE = {Augment.CROP: 0.6, Augment.MASK: 0.3, Augment.REORDER: 0.6}
"""Of a history that is kept, hidden, or put in another order."""


def draw_views(randomness: Randomness, augment: Augment, *, users: int, positions: int) -> NDArray[np.float64]:
    """(users, 1 + positions) draws from [0, 1), the same number for each user; none where nothing is augmented."""
    if augment is Augment.NONE:
        return np.zeros((users, 0))
    return randomness.uniform(users * (1 + positions)).reshape(users, 1 + positions)


def augmented(batch: Batch, augment: Augment, draws: NDArray[np.float64]) -> Batch:
    """A view of each user of a batch.

    Args:
        batch: Some users, as `make_batch` makes them.
        augment: What is done.
        draws: (users, 1 + positions) of those users: where a part begins, and a key for each position.

    Guarantees:
        - A user's row depends on that user's row and draws alone.
        - An event that carries loss is one that did before, and its own item is among those seen before it only if it
          was there in the history.
        - A user's weights are equal and sum to 1, or to 0 where no event is left.
    """
    if augment is Augment.NONE:
        return batch
    history, event = batch.history.numpy().copy(), batch.event.numpy().copy()
    learnable, hidden = batch.weight.numpy() > 0, np.zeros(batch.history.shape, np.bool_)
    for i, length in enumerate(batch.lengths.tolist()):
        start, keys = draws[i, 0], draws[i, 1 : 1 + length]
        if augment is Augment.CROP and length:
            kept = max(int(_SHARE[augment] * (length + 1)), 2) - 1  # of `length + 1` items; the last is only predicted
            first = int(start * (length - kept + 1))
            for rows in (history, event, learnable):
                rows[i, :kept] = rows[i, first : first + kept].copy()
                rows[i, kept:] = 0
        elif augment is Augment.MASK:
            hidden[i, np.argsort(keys)[: int(_SHARE[augment] * length)]] = True
        elif augment is Augment.REORDER and (moved := int(_SHARE[augment] * length)) > 1:
            first = int(start * (length - moved + 1))
            part = slice(first, first + moved)
            history[i, part] = history[i, part][np.argsort(keys[part])]
            learnable[i, first : first + moved - 1] = False  # what is seen there may be what comes next
    weight = learnable / np.maximum(learnable.sum(axis=1, keepdims=True), 1)
    return dataclasses.replace(
        batch,
        history=torch.from_numpy(history),
        event=torch.from_numpy(event),
        weight=torch.from_numpy(weight),
        hidden=torch.from_numpy(hidden) if augment is Augment.MASK else None,
    )
