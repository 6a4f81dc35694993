"""Measure several methods on the same users: ranks in the whole catalogue, and what their lists show.

    task = Task(histories=..., users=..., targets=..., counts=...)
    measured = measure({"text_knn": scorer, ...}, task)
    keep_measured(measured, folder / "books.safetensors")       # raw: it stays where the data may be

All of it is computed from private data without noise: only a simulation may look.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from isthmus.clients.data import Histories
from isthmus.clients.scorers import Scorer, chunk_users
from isthmus.durable import write_durably
from isthmus.errors import RunError
from isthmus.exposure import coverage, novelty, top_items
from isthmus.metrics import race_sizes, rank_targets

LIST = 10
"""Length of a list of recommendations, for coverage and novelty."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """Whom methods are measured on.

    Attributes:
        histories: What users did before the held-out item.
        users: (users,) rows of `histories`.
        targets: (users,) held-out items.
        counts: (items,) events that training knew of, of each item.
    """

    histories: Histories
    users: NDArray[np.int64]
    targets: NDArray[np.int32]
    counts: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """What each method did on the users of a task, in their order.

    Attributes:
        races: (users,) items that a held-out item competed with, itself included.
        ranks: By method, (users,) ranks from 1.
        novelty: By method, (users,) bits.
        coverage: By method, share of the catalogue that anybody was shown.
    """

    races: NDArray[np.int64]
    ranks: Mapping[str, NDArray[np.int64]]
    novelty: Mapping[str, NDArray[np.float64]]
    coverage: Mapping[str, float]


class OncePerChunk:
    """A scorer that several methods share: the same users asked for again cost nothing."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._asked: tuple[Histories, NDArray[np.int64]] | None = None
        self._scores = np.empty((0, 0), np.float32)

    def score(self, histories: Histories, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """As `Scorer.score`."""
        if self._asked is None or self._asked[0] is not histories or not np.array_equal(self._asked[1], users):
            self._scores, self._asked = self._scorer.score(histories, users), (histories, users.copy())
        return self._scores.copy()


def measure(methods: Mapping[str, Scorer], task: Task) -> Measured:
    """Rank every held-out item and list every user's best items, under each method; a chunk of users at a time.

    Args:
        methods: At least one.
        task: At least one user.
    """
    items, size = len(task.counts), chunk_users(len(task.counts))
    races = np.empty(len(task.users), np.int64)
    ranks = {name: np.empty(len(task.users), np.int64) for name in methods}
    lists = {name: np.empty((len(task.users), LIST), np.int64) for name in methods}
    for start in range(0, len(task.users), size):
        some = slice(start, start + size)
        users, targets = task.users[some], task.targets[some]
        seen = [task.histories.row(int(user)) for user in users]
        races[some] = race_sizes(seen, targets, items=items)
        for name, scorer in methods.items():
            scores = scorer.score(task.histories, users)
            ranks[name][some] = rank_targets(scores, targets, seen)
            lists[name][some] = top_items(scores, seen, LIST)
    return Measured(
        races=races,
        ranks=ranks,
        novelty={name: novelty(shown, task.counts) for name, shown in lists.items()},
        coverage={name: coverage(shown, items=items) for name, shown in lists.items()},
    )


def keep_measured(measured: Measured, path: Path) -> None:
    """Write what was measured, whole or not at all."""
    tensors: dict[str, NDArray[np.generic]] = {"races": measured.races}
    for name, ranks in measured.ranks.items():
        tensors |= {f"ranks/{name}": ranks, f"novelty/{name}": measured.novelty[name]}
    write_durably(path, save(tensors, metadata={"coverage": json.dumps(dict(measured.coverage))}))


def kept_measured(path: Path) -> Measured | None:
    """What `keep_measured` wrote; None if it has not.

    Raises:
        RunError: If the file is something else.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="np") as file:
            shown: dict[str, float] = json.loads(file.metadata()["coverage"])
            return Measured(
                races=file.get_tensor("races"),
                ranks={name: file.get_tensor(f"ranks/{name}") for name in shown},
                novelty={name: file.get_tensor(f"novelty/{name}") for name in shown},
                coverage=shown,
            )
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path}: not a measurement that can be read ({error}). Delete it; it is made again.") from None
