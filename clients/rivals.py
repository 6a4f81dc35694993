"""What a next item is told from: the items that the untrained text prior would have recommended instead.

    rivals = find_rivals(histories, features, backbone_config, count=50)

The softmax over a whole catalogue mostly learns to push down items that nobody would have recommended, and
lowers the top of the ranking while it does. The rivals of a position are the items at the top of the prior's own
ranking there, seen ones left out: learning to order them is learning to improve on the prior. They depend on the
user's own history and on public text, on nothing else, so a user's loss stays the user's own.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from isthmus.backbone import Backbone
from isthmus.clients.data import Histories
from isthmus.config import BackboneConfig

_CHUNK = 128


@dataclass(frozen=True, kw_only=True)
class Rivals:
    """The rivals of every event of a domain.

    Attributes:
        items: (events, rivals) item indices, best of the prior first.
        place: (events,) where the event's own item is among them; -1 if it is not, or has no history before it.
    """

    items: Tensor
    place: Tensor


def find_rivals(
    histories: Histories, features: Tensor, config: BackboneConfig, *, count: int, positions: int
) -> Rivals:
    """Rank the catalogue by the text prior before each event, and keep the top.

    Args:
        histories: Training events.
        features: (items, features) whitened text features.
        config: Says what the prior is.
        count: Rivals of a position; the whole catalogue where it is smaller.
        positions: Last events of a history that are looked at; the others get place -1.
    """
    prior = Backbone(features.shape[1], config)
    count = min(count, len(features))
    items = torch.zeros((len(histories.items), count), dtype=torch.int32)
    place = torch.full((len(histories.items),), -1)
    with torch.inference_mode():
        for start in range(0, len(histories), _CHUNK):
            events, past = _events(histories, range(start, min(start + _CHUNK, len(histories))), positions)
            if not len(events):
                continue
            query = prior.prior(_last(past, features, config.prior_items))[:, -1]  # (events, features)
            scores = query @ features.T  # (events, items)
            target = torch.from_numpy(histories.items[events].astype(np.int64))
            own = scores.gather(1, target[:, None])
            for i, seen in enumerate(past):
                scores[i, torch.from_numpy(seen.astype(np.int64))] = -torch.inf
            # An item that was seen may come again: then it stays in the race.
            scores.scatter_(1, target[:, None], own)
            top = scores.topk(count, dim=1).indices  # (events, rivals)
            found = top == target[:, None]
            items[events] = top.to(torch.int32)
            place[events] = torch.where(found.any(dim=1), found.int().argmax(dim=1), -1)
    return Rivals(items=items, place=place)


def _events(
    histories: Histories, users: range, positions: int
) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], list[np.ndarray[tuple[int], np.dtype[np.int32]]]]:
    """Rows of the events that have a history before them, and that history."""
    rows, past = [], []
    for user in users:
        start, stop = int(histories.offsets[user]), int(histories.offsets[user + 1])
        for row in range(max(start + 1, stop - positions), stop):
            rows.append(row)
            past.append(histories.items[start:row])
    return np.array(rows, dtype=np.int64), past


def _last(past: list[np.ndarray[tuple[int], np.dtype[np.int32]]], features: Tensor, count: int) -> Tensor:
    """(events, count, features) of the latest items, zeros before the first."""
    padded = torch.zeros((len(past), count, features.shape[1]))
    for i, seen in enumerate(past):
        latest = seen[-count:].astype(np.int64)
        padded[i, count - len(latest) :] = features[torch.from_numpy(latest)]
    return padded
