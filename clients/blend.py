"""Blend what is known of a user: signals brought to one scale, weighted and added up.

    signals = Signals.fit(data.before_test, features=features, backbone=frozen)
    blend = Blend(signals=signals, weights={Signal.TEXT: 0.7, Signal.ITEM_CF: 0.3})
    ranks = rank_users(blend, data.before_test, users, data.test[users])
    ranks = rank_blends(signals, {"text": {Signal.TEXT: 1.0}, ...}, data.before_test, users, data.test[users])

Signals are fitted on `train` to choose weights and again on `before_test` to serve; weights carry over because
every signal is scaled user by user. Item-CF, transitions and popularity learn from histories without noise, so a blend
is as private as a head: it never leaves the domain. Which weights to take is the business of `isthmus.clients.head`.
"""

import enum
import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from isthmus.clients.data import Histories
from isthmus.clients.scorers import ItemCf, Popularity, Scorer, TextNeighbours, Transitions, chunk_users
from isthmus.metrics import rank_targets

Name = TypeVar("Name", bound=Hashable)


class Signal(enum.StrEnum):
    """What a blend may add up."""

    TEXT = "text"
    BACKBONE = "backbone"
    LOCAL_BACKBONE = "local_backbone"
    ITEM_CF = "item_cf"
    TRANSITIONS = "transitions"
    POPULARITY = "popularity"


def peak_scale(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Bring each user's scores to one scale: from the catalogue's average to the best item it is 1.

    The best item is often one of the user's own: an item with text or neighbours close to the history. That is
    meant: where nothing new comes near, the whole signal speaks softly. Scores are divided and not moved: a
    constant changes no ranking, and would drown the tie break of item-CF.

    Args:
        scores: (users, items), finite.

    Returns:
        (users, items), in the same order as `scores`; a row of equal scores becomes 0.

    Raises:
        ValueError: If a score is not finite: it would rank as anything.
    """
    highest, lowest = scores.max(axis=1, keepdims=True), scores.min(axis=1, keepdims=True)
    if not (np.isfinite(highest).all() and np.isfinite(lowest).all()):  # NaN goes through to both
        raise ValueError("scores that are not finite")
    # In float64: a row that is not flat has its average below its best.
    height = highest - scores.mean(axis=1, keepdims=True, dtype=np.float64)
    flat = highest == lowest
    factor = np.where(flat, 0.0, 1.0 / np.where(flat, 1.0, height)).astype(np.float32)  # (users, 1)
    return scores * factor


@dataclass(frozen=True, kw_only=True)
class Signals:
    """The scorers that blends draw on.

    Attributes:
        scorers: One per available signal.
        items: Size of the catalogue.
    """

    scorers: Mapping[Signal, Scorer]
    items: int

    @classmethod
    def fit(
        cls,
        histories: Histories,
        *,
        features: NDArray[np.float32],
        backbone: Scorer | None = None,
        local_backbone: Scorer | None = None,
    ) -> Self:
        """Fit what is local; a backbone comes frozen.

        Args:
            histories: `train` to choose weights, `before_test` to serve.
            features: (items, dim) whitened text features, rows of length 1 or 0.
            backbone: The federation's, if there is one.
            local_backbone: One trained on this domain alone, without noise, if there is one.
        """
        items = len(features)
        scorers: dict[Signal, Scorer] = {
            Signal.TEXT: TextNeighbours(features=features),
            Signal.ITEM_CF: ItemCf.fit(histories, items=items),
            Signal.TRANSITIONS: Transitions.fit(histories, items=items),
            Signal.POPULARITY: Popularity.fit(histories, items=items),
        }
        if backbone is not None:
            scorers[Signal.BACKBONE] = backbone
        if local_backbone is not None:
            scorers[Signal.LOCAL_BACKBONE] = local_backbone
        return cls(scorers=scorers, items=items)

    def score(self, signal: Signal, histories: Histories, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """(len(users), items) scaled scores of one signal.

        Raises:
            ValueError: If a score is not finite: it would rank as anything.
        """
        try:
            return peak_scale(self.scorers[signal].score(histories, users))
        except ValueError as error:
            raise ValueError(f"signal {signal} gave {error}") from None


@dataclass(frozen=True, kw_only=True)
class Blend:
    """A weighted sum of scaled signals; a `Scorer`.

    Attributes:
        signals: What is added up.
        weights: At least 0 each, not all 0; a signal that is absent weighs 0.

    Raises:
        ValueError: If a weight is negative or not finite, all are 0, or a weighted signal is not there.
    """

    signals: Signals
    weights: Mapping[Signal, float]

    def __post_init__(self) -> None:
        """Refuse weights that cannot rank."""
        check_weights(self.weights)
        missing = [signal for signal, weight in self.weights.items() if weight and signal not in self.signals.scorers]
        if missing:
            raise ValueError(f"the blend needs signals that were not given: {', '.join(missing)}")

    def score(self, histories: Histories, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """As `Scorer.score`: the blended scores; a signal of weight 0 is not computed."""
        needed = [signal for signal in Signal if self.weights.get(signal)]
        return _mixed({signal: self.signals.score(signal, histories, users) for signal in needed}, self.weights)


def rank_blends(
    signals: Signals,
    blends: Mapping[Name, Mapping[Signal, float]],
    histories: Histories,
    users: NDArray[np.int64],
    targets: NDArray[np.int32],
) -> dict[Name, NDArray[np.int64]]:
    """Rank each user's held-out item under several blends, each signal scored once: as `rank_users`, for each.

    Args:
        signals: What is added up.
        blends: Weights by name, as `Blend` takes them.
        histories: What the users did before the held-out item.
        users: Row numbers in `histories`.
        targets: (len(users),) held-out item of each of `users`.

    Returns:
        (len(users),) ranks from 1, by name.

    Raises:
        ValueError: As `Blend` and `rank_users` do.
    """
    for weights in blends.values():
        Blend(signals=signals, weights=weights)  # refuses what cannot rank
    if len(users) != len(targets):
        raise ValueError(f"each user needs one target, got {len(users)} users and {len(targets)} targets")
    needed = [signal for signal in Signal if any(weights.get(signal) for weights in blends.values())]
    ranks = {name: np.empty(len(users), dtype=np.int64) for name in blends}
    size = chunk_users(signals.items)
    for start in range(0, len(users), size):
        some = slice(start, start + size)
        scaled = {signal: signals.score(signal, histories, users[some]) for signal in needed}
        seen = [histories.row(int(user)) for user in users[some]]
        for name, weights in blends.items():
            ranks[name][some] = rank_targets(_mixed(scaled, weights), targets[some], seen)
    return ranks


def _mixed(scaled: Mapping[Signal, NDArray[np.float32]], weights: Mapping[Signal, float]) -> NDArray[np.float32]:
    """(users, items) weighted sum of the signals that weigh anything."""
    parts = (np.float32(weights[signal]) * scores for signal, scores in scaled.items() if weights.get(signal))
    total: NDArray[np.float32] = next(parts)
    for part in parts:
        total += part
    return total


def check_weights(weights: Mapping[Signal, float]) -> None:
    """Refuse weights that cannot rank.

    Raises:
        ValueError: If a weight is negative or not finite, or all are 0.
    """
    values = list(weights.values())
    if not all(math.isfinite(value) and value >= 0 for value in values) or not any(values):
        raise ValueError(f"weights must be finite, at least 0 and not all 0, got {dict(weights)}")
