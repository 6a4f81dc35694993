"""The private head of a domain: which local signals and which backbone make its recommendations, and how much.

    head = fit_head(data, features=features, backbone=frozen, local_backbone=None, seed=0)
    signals = Signals.fit(data.before_test, features=features, backbone=frozen)
    ranks = rank_users(head.scorer(signals), data.before_test, users, data.test[users])
    save_head(head, folder)

A head is fitted without noise, so it is fitted after the last release, on a frozen backbone, and never leaves the
domain. Nothing that is released may depend on it: the trainer, the server, the strategies and the ledger do not
import this file.

Every method is a blend: signals brought to one scale, weighted, added up. The weights are chosen on validation
NDCG@10. With few users they are shrunk towards what is safe without tuning (the text prior; in the federated blend
the shipped backbone): with n users the chosen weights count n / (n + 100). The blend with the backbone is served only
where it is ahead of the domain's best local method, and, unless other domains have vetted the backbone, by more than
noise explains; else the best local method is served and the verdict is "no transfer".

Below the verdict lies `isthmus.clients.blend`, which scores; this file only chooses.
"""

import enum
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from isthmus.clients.blend import Blend, Signal, Signals, check_weights
from isthmus.clients.data import DomainData, Histories
from isthmus.clients.scorers import Scorer, chunk_users
from isthmus.errors import RunError
from isthmus.metrics import ndcg_at_k, paired_bootstrap_ci

CUTOFF = 10
"""Weights are chosen on NDCG at this cut-off, in items."""

MIN_USERS = 30
"""With fewer validation users nothing is compared: what other domains have vetted serves, or else the text prior."""

MAX_USERS = 2000
"""Validation users looked at, drawn with the seed."""

SHRINK_USERS = 100
"""Validation users that weigh as much as the text prior."""

# Weights tried for one signal while the others stand still; a blend's own weights add up to 1.
_GRID = (0.0, 0.03, 0.06, 0.12, 0.25, 0.5, 1.0, 2.0, 4.0)
_PASSES = 3
# An item that is in no signal's first hundred is taken not to reach the first ten of a blend.
_TOP = 100
# Stands for "no candidate here": below any difference of scaled scores, finite so that weight 0 keeps it harmless.
_NOBODY = np.float32(-1e6)
_FORMAT = 1


class Method(enum.StrEnum):
    """What is compared, in order of trust: of two equal methods the earlier one is preferred."""

    TEXT_KNN = "text_knn"
    ITEM_CF = "item_cf"
    POPULARITY = "popularity"
    LOCAL_ONLY = "local_only"
    FEDERATED = "federated"


class Verdict(enum.StrEnum):
    """Whether the federation improved on what the domain can do alone."""

    TRANSFER = "transfer"
    NO_TRANSFER = "no transfer"


# What a blend is shrunk towards. The shipped backbone is a safe prior too: it contains the text prior, and it is only
# shipped where the domains' released gains say that it is the better of the two.
_SAFE = {Method.LOCAL_ONLY: Signal.TEXT, Method.FEDERATED: Signal.BACKBONE}

_SINGLE = {
    Method.TEXT_KNN: Signal.TEXT,
    Method.ITEM_CF: Signal.ITEM_CF,
    Method.POPULARITY: Signal.POPULARITY,
}


@dataclass(frozen=True, kw_only=True)
class Head:
    """What a domain serves, and what it was compared with. Private: derived from data without noise.

    Attributes:
        method: Whose blend is served.
        verdict: `transfer` if that is the federated one.
        best_local: The local method with the best validation NDCG@10.
        blends: Weights of every method, by signal; each adds up to 1. `federated` here is the blend with the
            backbone, served or not; absent where there is no backbone.
        validation: NDCG@10 of each method on `validation_users` users; empty below `MIN_USERS`, where nothing
            was compared.
        validation_users: Users with a validation item that were looked at.
    """

    method: Method
    verdict: Verdict
    best_local: Method
    blends: Mapping[Method, Mapping[Signal, float]]
    validation: Mapping[Method, float]
    validation_users: int

    @property
    def weights(self) -> Mapping[Signal, float]:
        """Weights of the served method, by signal."""
        return self.blends[self.method]

    def scorer(self, signals: Signals, method: Method | None = None) -> Blend:
        """The scorer of a method; of the served one when none is named."""
        return Blend(signals=signals, weights=self.blends[method or self.method])


def fit_head(  # noqa: PLR0913 - keyword-only after the data
    data: DomainData,
    *,
    features: NDArray[np.float32],
    backbone: Scorer | None,
    local_backbone: Scorer | None,
    seed: int,
    vetted: bool = False,
) -> Head:
    """Choose weights and method on the domain's own validation items.

    Args:
        data: The domain; only `train` and `validation` are read.
        features: (items, dim) whitened text features, rows of length 1 or 0.
        backbone: The federation's, frozen; absent means that there is nothing to transfer.
        local_backbone: One trained on this domain alone, if there is one.
        seed: Of the draw of validation users and of the paired bootstrap.
        vetted: Whether the gains that domains released say that the backbone is above the text prior.

    Guarantees:
        - The served method's validation NDCG@10 is at least that of every local method, wherever any was
          compared.
        - With fewer than `MIN_USERS` validation users nothing of their data decides: a vetted backbone serves, or else
          the text prior.
        - The same data and seed give the same head.
    """
    users = np.flatnonzero(data.validation >= 0)
    if len(users) > MAX_USERS:
        users = np.sort(np.random.default_rng(seed).choice(users, MAX_USERS, replace=False))
    blends = {method: {signal: 1.0} for method, signal in _SINGLE.items()}
    if len(users) < MIN_USERS:
        blends[Method.LOCAL_ONLY] = {Signal.TEXT: 1.0}
        served = backbone is not None and vetted
        if backbone is not None:
            blends[Method.FEDERATED] = {Signal.BACKBONE if served else Signal.TEXT: 1.0}
        return Head(
            method=Method.FEDERATED if served else Method.TEXT_KNN,
            verdict=Verdict.TRANSFER if served else Verdict.NO_TRANSFER,
            best_local=Method.TEXT_KNN,
            blends=blends,
            validation={},
            validation_users=len(users),
        )
    signals = Signals.fit(data.train, features=features, backbone=backbone, local_backbone=local_backbone)
    contest = Contest.hold(signals, data.train, users, data.validation[users])
    # Where histories have no order that means anything, pairs are counted without regard to it.
    pairs = max((Signal.TRANSITIONS, Signal.ITEM_CF), key=lambda signal: _mean(contest.ndcg({signal: 1.0})))
    local = [Signal.TEXT, *([] if local_backbone is None else [Signal.LOCAL_BACKBONE]), pairs, Signal.POPULARITY]
    tuned = {Method.LOCAL_ONLY: local}
    if backbone is not None:
        tuned[Method.FEDERATED] = [Signal.TEXT, Signal.BACKBONE, *local[1:]]  # all that is known, shared and local
    blends |= {
        method: shrink(search_weights(contest, names), len(users), towards=_SAFE[method])
        for method, names in tuned.items()
    }
    ndcg = {method: contest.ndcg(weights) for method, weights in blends.items()}
    method, best_local = choose(ndcg, seed=seed, vetted=vetted)
    return Head(
        method=method,
        verdict=Verdict.TRANSFER if method is Method.FEDERATED else Verdict.NO_TRANSFER,
        best_local=best_local,
        blends=blends,
        validation={name: _mean(values) for name, values in ndcg.items()},
        validation_users=len(users),
    )


def choose(ndcg: Mapping[Method, NDArray[np.float64]], *, seed: int, vetted: bool = False) -> tuple[Method, Method]:
    """Which method is served, and which local one is best.

    A federated blend must be ahead of the best local method. If nobody has vetted its backbone, the 90 % paired
    bootstrap interval of its lead must lie above 0, too: a lead that chance gives one time in twenty. That is too much
    to ask of a few users about a backbone that others have found to be better.

    Args:
        ndcg: (users,) validation NDCG@10 of each method, the same users in the same order.
        seed: Of the bootstrap.
        vetted: As for `fit_head`.

    Returns:
        The served method and the best local one.
    """
    local = [method for method in Method if method in ndcg and method is not Method.FEDERATED]
    best = max(local, key=lambda method: _mean(ndcg[method]))  # the first of equals
    if Method.FEDERATED not in ndcg:
        return best, best
    federated = ndcg[Method.FEDERATED]
    low, _ = paired_bootstrap_ci(federated, ndcg[best], resamples=2000, seed=seed, level=0.9)
    ahead = _mean(federated) > _mean(ndcg[best])
    return (Method.FEDERATED if ahead and (vetted or low > 0) else best), best


def shrink(weights: Mapping[Signal, float], users: int, *, towards: Signal) -> dict[Signal, float]:
    """Pull chosen weights towards a signal that is safe without tuning: the fewer users chose them, the more.

    Args:
        weights: By signal, adding up to 1.
        users: Validation users they were chosen on.
        towards: The safe signal.

    Returns:
        Weights that add up to 1, zeros left out.

    >>> shrink({Signal.TEXT: 0.5, Signal.ITEM_CF: 0.5}, users=100, towards=Signal.TEXT)[Signal.TEXT]
    0.75
    """
    trust = users / (users + SHRINK_USERS)
    pulled = {signal: trust * weights.get(signal, 0.0) for signal in Signal}
    pulled[towards] += 1.0 - trust
    return {signal: weight for signal, weight in pulled.items() if weight > 0}


@dataclass(frozen=True, kw_only=True)
class Contest:
    """Everything the search needs to know of the scores: by how much rivals lead each user's target.

    Attributes:
        signals: Order of the first axis.
        leads: (signals, users, rivals) float32 scaled score of a rival minus that of the target.
    """

    signals: tuple[Signal, ...]
    leads: NDArray[np.float32]

    @classmethod
    def hold(cls, signals: Signals, histories: Histories, users: NDArray[np.int64], targets: NDArray[np.int32]) -> Self:
        """Score each signal once, a chunk of users at a time, and keep the rivals that matter.

        Args:
            signals: Fitted on what the targets are not in.
            histories: What the users did before the target.
            users: (users,) rows of `histories`.
            targets: (users,) held-out items.
        """
        names = tuple(signal for signal in Signal if signal in signals.scorers)
        found: list[NDArray[np.float32]] = []
        size = chunk_users(signals.items)
        for start in range(0, len(users), size):
            some = users[start : start + size]
            scores = [signals.score(name, histories, some) for name in names]
            found.extend(_leads(scores, targets[start : start + size], [histories.row(int(u)) for u in some]))
        rivals = max((lead.shape[1] for lead in found), default=0)
        leads = np.full((len(names), len(users), rivals), _NOBODY, dtype=np.float32)
        for user, lead in enumerate(found):
            leads[:, user, : lead.shape[1]] = lead
        return cls(signals=names, leads=leads)

    def ndcg(self, weights: Mapping[Signal, float]) -> NDArray[np.float64]:
        """(users,) NDCG@10 of a blend."""
        vector = np.array([weights.get(signal, 0.0) for signal in self.signals], dtype=np.float32)
        return _ndcg(np.tensordot(vector, self.leads, axes=1))


def search_weights(contest: Contest, names: Sequence[Signal]) -> dict[Signal, float]:
    """Coordinate ascent on mean NDCG@10, from each signal alone; the result is never below the best of them.

    Args:
        contest: Validation users.
        names: Signals that may get weight, the most trusted first: a later start must be strictly better.

    Returns:
        Weights by signal, adding up to 1.
    """
    places = [contest.signals.index(name) for name in names]
    best_value, best = -1.0, np.zeros(len(contest.signals), dtype=np.float32)
    for first in places:
        weights = np.zeros_like(best)
        weights[first] = 1.0
        value, weights = _ascend(contest.leads, weights, places)
        if value > best_value:
            best_value, best = value, weights
    total = float(best.sum())
    return {name: float(best[place]) / total for name, place in zip(names, places, strict=True)}


def save_head(head: Head, folder: Path) -> Path:
    """Write `head.json` into a folder, which is made if need be; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "head.json"
    content = {
        "format": _FORMAT,
        "method": head.method,
        "verdict": head.verdict,
        "best_local": head.best_local,
        "blends": {method: dict(weights) for method, weights in head.blends.items()},
        "validation": dict(head.validation),
        "validation_users": head.validation_users,
    }
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return file


def load_head(folder: Path) -> Head:
    """Read what `save_head` wrote.

    Raises:
        RunError: If the file is absent or does not hold a head.
    """
    file = folder / "head.json"
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        if raw["format"] != _FORMAT:
            raise RunError(f"{file}: a head of format {raw['format']}, this version reads {_FORMAT}; fit it again.")
        return _head_from(raw)
    except FileNotFoundError:
        raise RunError(f"{file}: no such file; the run has not fitted this domain's head.") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{file}: not a head that can be read ({error!r}); fit it again.") from None


def _head_from(raw: Any) -> Head:
    """A head from parsed JSON; raises what a wrong key, type or value raises."""
    blends: dict[Method, dict[Signal, float]] = {
        Method(method): {Signal(signal): float(weight) for signal, weight in weights.items()}
        for method, weights in raw["blends"].items()
    }
    for weights in blends.values():
        check_weights(weights)
    head = Head(
        method=Method(raw["method"]),
        verdict=Verdict(raw["verdict"]),
        best_local=Method(raw["best_local"]),
        blends=blends,
        validation={Method(method): float(value) for method, value in raw["validation"].items()},
        validation_users=int(raw["validation_users"]),
    )
    if head.method not in blends:
        raise ValueError(f"no weights for the served method {head.method}")
    return head


def _leads(
    scores: Sequence[NDArray[np.float32]], targets: NDArray[np.int32], seen: Sequence[NDArray[np.int32]]
) -> list[NDArray[np.float32]]:
    """Per user, (signals, rivals): leads over the target of the items that are on top in any signal."""
    top = min(_TOP, scores[0].shape[1])
    leads = []
    for user, (target, history) in enumerate(zip(targets, seen, strict=True)):
        out_of_race = [target] if target in history else [*history, target]  # a repeat masks nothing
        firsts = []
        for signal in scores:
            racing = signal[user].copy()
            racing[out_of_race] = -np.inf
            firsts.append(np.argpartition(racing, racing.size - top)[racing.size - top :])
        rivals = np.setdiff1d(np.concatenate(firsts), out_of_race)  # sorted, each once
        leads.append(np.stack([signal[user, rivals] - signal[user, target] for signal in scores]))
    return leads


def _ascend(
    leads: NDArray[np.float32], weights: NDArray[np.float32], places: Sequence[int]
) -> tuple[float, NDArray[np.float32]]:
    """Improve one weight after the other until none improves; returns the value and the weights."""
    value = _mean(_ndcg(np.tensordot(weights, leads, axes=1)))
    for _ in range(_PASSES):
        before = value
        for place in places:
            others = weights.copy()
            others[place] = 0.0
            rest = np.tensordot(others, leads, axes=1)  # (users, rivals)
            for weight in _GRID:
                if weight == 0.0 and not others.any():
                    continue
                tried = _mean(_ndcg(rest + np.float32(weight) * leads[place]))
                if tried > value:
                    value, weights = tried, others.copy()
                    weights[place] = weight
        if value == before:
            break
    return value, weights


def _ndcg(leads: NDArray[np.float32]) -> NDArray[np.float64]:
    """(users,) NDCG@10 from (users, rivals) leads over the target; a tie counts against us."""
    return ndcg_at_k(1 + np.count_nonzero(leads >= 0, axis=1).astype(np.int64), CUTOFF)


def _mean(values: NDArray[np.float64]) -> float:
    """Mean by an exact sum, so that no order of the users changes a choice."""
    return math.fsum(values.tolist()) / len(values)
