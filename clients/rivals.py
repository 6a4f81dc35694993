"""What a next item is told from: the items that the untrained text prior would have recommended instead.

    rivals = find_rivals(histories, features, backbone_config, count=50, positions=10)

    finder = RivalFinder(histories, features, backbone_config, count=50, positions=10)
    rivals = finder.of(np.array([7, 3]))          # of two users; found when they are first asked for

The softmax over a whole catalogue mostly learns to push down items that nobody would have recommended, and
lowers the top of the ranking while it does. The rivals of a position are the items at the top of the prior's own
ranking there, seen ones left out: learning to order them is learning to improve on the prior. They depend on the
user's own history and on public text, on nothing else, so a user's loss stays the user's own.

Ranking a catalogue before every event of every user is far more work than a round needs, whose batches are a sample
of the users. So rivals are found for the users of a batch, and kept for the next time as far as memory allows.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isthmus.backbone import text_prior
from isthmus.clients.data import Histories
from isthmus.config import BackboneConfig

_SCORES = 1 << 24
"""Most scores in memory at once while ranking (64 MiB)."""
_EVENTS = 256
"""Most events that are ranked at once: enough that their product with a large catalogue is fast."""
_BLOCK = 64
"""Items of a block; see `_top`."""
_KEPT = 1 << 28
"""Bytes of rivals that are kept for later batches."""


@dataclass(frozen=True, kw_only=True)
class Rivals:
    """The rivals of the events of some users that are looked at: the last few, first ones never.

    Attributes:
        items: (events, rivals) int32 item indices, best of the prior first.
        place: (events,) where the event's own item is among them; -1 if it is not.
        offsets: (users + 1,) events of the u-th user are the rows offsets[u] to offsets[u + 1], oldest first: the
            last `positions` of its history that have an item before them.
    """

    items: Tensor
    place: Tensor
    offsets: NDArray[np.int64]


class RivalFinder:
    """Finds rivals when they are asked for, and keeps what fits.

    Args:
        histories: Training events.
        features: (items, features) whitened text features.
        config: Says what the prior is.
        count: Rivals of a position.
        positions: Last events of a history that are looked at.
    """

    def __init__(
        self, histories: Histories, features: Tensor, config: BackboneConfig, *, count: int, positions: int
    ) -> None:
        self._histories = histories
        self._features = features
        self._config = config
        self._count = count
        self._positions = positions
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}
        self._room = _KEPT

    def of(self, users: NDArray[np.int64]) -> Rivals:
        """The same rivals as `find_rivals` gives these users, in their order; each user at most once."""
        missing = np.array([user for user in users.tolist() if user not in self._kept], dtype=np.int64)
        found = find_rivals(
            self._histories.take(missing),
            self._features,
            self._config,
            count=self._count,
            positions=self._positions,
        )
        fresh = {}
        for place, user in enumerate(missing.tolist()):
            own = slice(int(found.offsets[place]), int(found.offsets[place + 1]))
            fresh[user] = found.items[own], found.place[own]
        rows = [fresh[user] if user in fresh else self._kept[user] for user in users.tolist()]
        self._keep(fresh)
        return Rivals(
            items=torch.cat([items for items, _ in rows]) if rows else found.items,
            place=torch.cat([place for _, place in rows]) if rows else found.place,
            offsets=np.cumsum([0, *(len(place) for _, place in rows)], dtype=np.int64),
        )

    def _keep(self, fresh: dict[int, tuple[Tensor, Tensor]]) -> None:
        """Remember rivals while there is room."""
        for user, (items, place) in fresh.items():
            self._room -= items.nbytes + place.nbytes
            if self._room < 0:
                return
            self._kept[user] = items.clone(), place.clone()  # not a view, which would keep the whole batch


def find_rivals(
    histories: Histories, features: Tensor, config: BackboneConfig, *, count: int, positions: int
) -> Rivals:
    """Rank the catalogue by the text prior before each event that is looked at, and keep the top.

    Args:
        histories: Training events.
        features: (items, features) whitened text features.
        config: Says what the prior is.
        count: Rivals of a position; the whole catalogue where it is smaller.
        positions: Last events of a history that are looked at.

    Guarantees:
        - What a user is given is a function of its own history, the features and the settings, to the bit.
    """
    count = min(count, len(features))
    looked = np.clip(histories.lengths() - 1, 0, positions)  # (users,)
    offsets = np.concatenate([[0], np.cumsum(looked)])
    user = np.repeat(np.arange(len(histories)), looked)
    start = histories.offsets[user]  # (events,) where its user's history begins
    event = histories.offsets[user + 1] - offsets[user + 1] + np.arange(len(user))  # (events,) row in the histories
    items = torch.empty((len(event), count), dtype=torch.int32)
    place = torch.empty(len(event), dtype=torch.int64)
    # Every product has the same shape, whoever is in it: a library may add up in another order when there are few rows,
    # and items with the same text then change places, so that a user's rivals would hang on other users.
    step = min(max(_SCORES // len(features), 1), _EVENTS)
    buffer = torch.empty((step, len(features)), dtype=features.dtype)  # fresh memory would cost as much as the product
    with torch.inference_mode():
        for first in range(0, len(event), step):
            part = np.minimum(np.arange(first, first + step), len(event) - 1)  # the last event fills up
            latest = _latest(histories, start[part], event[part], features, config.prior_items)
            query = text_prior(latest, config)[:, -1]
            scores = torch.mm(query, features.T, out=buffer)  # (events, items)
            target = torch.from_numpy(histories.items[event[part]].astype(np.int64))[:, None]
            own = scores.gather(1, target)
            scores.view(-1)[_seen(histories, start[part], event[part], items=len(features))] = -torch.inf
            # An item that was seen may come again: then it stays in the race.
            scores.scatter_(1, target, own)
            top = _top(scores, count)  # (events, rivals)
            found = top == target
            whole = slice(first, min(first + step, len(event)))
            items[whole] = top[: len(items[whole])].to(torch.int32)
            place[whole] = torch.where(found.any(dim=1), found.int().argmax(dim=1), -1)[: len(items[whole])]
    return Rivals(items=items, place=place, offsets=offsets)


def _top(scores: Tensor, count: int) -> Tensor:
    """(events, count) places of the highest scores, highest first.

    In a large catalogue they are looked for in the `count` blocks of items with the highest peaks: an item elsewhere
    is below `count` peaks. Looking for peaks is much faster than sorting.
    """
    blocks = scores.shape[1] // _BLOCK
    if blocks < 8 * count:
        return scores.topk(count, dim=1).indices
    end = blocks * _BLOCK
    peaks = scores[:, :end].view(len(scores), blocks, _BLOCK).amax(dim=2)
    best = peaks.topk(count, dim=1, sorted=False).indices  # (events, count)
    near = (best[:, :, None] * _BLOCK + torch.arange(_BLOCK)).flatten(1)
    near = torch.cat([near, torch.arange(end, scores.shape[1]).expand(len(scores), -1)], dim=1)
    return near.gather(1, scores.gather(1, near).topk(count, dim=1).indices)


def _latest(
    histories: Histories, start: NDArray[np.int64], event: NDArray[np.int64], features: Tensor, count: int
) -> Tensor:
    """(events, count, features) of the latest items before each event, zeros before the first."""
    at = event[:, None] + np.arange(-count, 0)  # (events, count) rows in the histories
    before = at < start[:, None]
    found = features[torch.from_numpy(histories.items[np.where(before, start[:, None], at)].astype(np.int64))]
    found[torch.from_numpy(before)] = 0.0
    return found


def _seen(histories: Histories, start: NDArray[np.int64], event: NDArray[np.int64], *, items: int) -> Tensor:
    """Places of the items that came before each event, in the flattened (events, items)."""
    lengths = event - start
    ends = np.cumsum(lengths)
    row = np.repeat(np.arange(len(event)), lengths)
    at = np.arange(len(row)) + np.repeat(start - (ends - lengths), lengths)
    return torch.from_numpy(row * items + histories.items[at])
