"""Blend what is known of a user: signals brought to one scale, weighted and added up.

    signals = Signals.fit(data.before_test, features=features, backbone=frozen)
    blend = Blend(signals=signals, weights={Signal.TEXT: 0.7, Signal.ITEM_CF: 0.3})
    ranks = rank_users(blend, data.before_test, users, data.test[users])

Signals are fitted on `train` to choose weights and again on `before_test` to serve; weights carry over because
every signal is scaled user by user. Item-CF and popularity learn from histories without noise, so a blend is as
private as a head: it never leaves the domain. Which weights to take is the business of `isthmus.clients.head`.
"""

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from isthmus.clients.data import Histories
from isthmus.clients.scorers import ItemCf, Popularity, Scorer, TextNeighbours


class Signal(enum.StrEnum):
    """What a blend may add up."""

    TEXT = "text"
    BACKBONE = "backbone"
    LOCAL_BACKBONE = "local_backbone"
    ITEM_CF = "item_cf"
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
    """
    highest = scores.max(axis=1, keepdims=True)
    # In float64: a row that is not flat has its average below its best.
    height = highest - scores.mean(axis=1, keepdims=True, dtype=np.float64)
    flat = highest == scores.min(axis=1, keepdims=True)
    factor = np.where(flat, 0.0, 1.0 / np.where(flat, 1.0, height)).astype(np.float32)  # (users, 1)
    return scores * factor


@dataclass(frozen=True, kw_only=True)
class Signals:
    """The scorers that blends draw on.

    Attributes:
        scorers: One per available signal.
    """

    scorers: Mapping[Signal, Scorer]

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
            Signal.POPULARITY: Popularity.fit(histories, items=items),
        }
        if backbone is not None:
            scorers[Signal.BACKBONE] = backbone
        if local_backbone is not None:
            scorers[Signal.LOCAL_BACKBONE] = local_backbone
        return cls(scorers=scorers)

    def score(self, signal: Signal, histories: Histories, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """(len(users), items) scaled scores of one signal.

        Raises:
            ValueError: If a score is not finite: it would rank as anything.
        """
        scores = self.scorers[signal].score(histories, users)
        if not np.isfinite(scores).all():
            raise ValueError(f"signal {signal} gave scores that are not finite")
        return peak_scale(scores)


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
        parts = (
            np.float32(self.weights[signal]) * self.signals.score(signal, histories, users)
            for signal in Signal
            if self.weights.get(signal)
        )
        total = next(parts)
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
