"""Rivals are the top of the text prior's own ranking, seen items out, from one user's history and public text."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from isthmus.clients import rivals as module
from isthmus.clients.data import Histories
from isthmus.clients.rivals import Rivals, find_rivals
from isthmus.config import BackboneConfig

CONFIG = BackboneConfig(width=4, heads=1, layers=1, feedforward=4, positions=6, prior_items=3, prior_decay=0.7)


def histories_of(rows: list[list[int]]) -> Histories:
    """Rows as histories."""
    return Histories(
        offsets=np.cumsum([0, *map(len, rows)], dtype=np.int64),
        items=np.array([item for row in rows for item in row], dtype=np.int32),
    )


def random_features(items: int, *, seed: int) -> torch.Tensor:
    """Rows of length 1."""
    features = np.random.default_rng(seed).normal(size=(items, 6))
    return torch.from_numpy((features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32))


def ranking(past: list[int], target: int, features: NDArray[np.float64]) -> list[int]:
    """The race before an event: unseen items and the target, best of the decayed sum of the last items first."""
    query = sum(CONFIG.prior_decay**age * features[item] for age, item in enumerate(past[::-1][: CONFIG.prior_items]))
    racing = [item for item in range(len(features)) if item == target or item not in past]
    return sorted(racing, key=lambda item: -float(features[item] @ query))


def assert_brute_force(rows: list[list[int]], *, items: int, count: int, positions: int, seed: int = 0) -> Rivals:
    """Every event against the loop over events."""
    features = random_features(items, seed=seed)
    histories = histories_of(rows)
    found = find_rivals(histories, features, CONFIG, count=count, positions=positions)
    assert found.items.shape == (len(histories.items), min(count, items))
    event = 0
    for row in rows:
        for at, target in enumerate(row):
            if at == 0 or at < len(row) - positions:
                assert found.place[event] == -1, "nothing is predicted here"
            else:
                expected = ranking(row[:at], target, features.double().numpy())[:count]
                # A small catalogue is filled up with seen items; they come last.
                assert found.items[event, : len(expected)].tolist() == expected
                assert found.place[event] == (expected.index(target) if target in expected else -1)
            event += 1
    return found


def test_rivals_are_the_top_of_the_priors_ranking() -> None:
    """Ragged histories, repeats among them: seen items are out, unless the seen item is the next one again."""
    rng = np.random.default_rng(1)
    rows = [rng.integers(0, 30, length).tolist() for length in [0, 1, 2, 9, 5, 12, 3]]
    rows.append([4, 7, 4, 4, 7])
    found = assert_brute_force(rows, items=30, count=8, positions=6)
    assert (found.place >= 0).any()
    assert (found.place == -1).sum() > len(rows), "some next items are not among their rivals"


def test_only_the_last_positions_are_looked_at() -> None:
    """Earlier events, and first ones, have no place."""
    rng = np.random.default_rng(2)
    found = assert_brute_force([rng.permutation(12)[:8].tolist()], items=12, count=12, positions=3)
    assert (found.place >= 0).tolist() == [False] * 5 + [True] * 3


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_chunks_of_users_change_nothing(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """A piece may hold users without an event to predict, or nobody else."""
    monkeypatch.setattr(module, "_CHUNK", chunk)
    assert_brute_force([[1], [], [3, 5, 2], [0, 9], [7], [4, 4]], items=15, count=4, positions=5, seed=3)


def test_a_catalogue_smaller_than_the_rivals_is_taken_whole() -> None:
    """Every next item then has a place, a repeated one too."""
    found = assert_brute_force([[0, 1, 2, 3, 4], [2, 2, 0]], items=5, count=50, positions=10, seed=4)
    assert (found.place >= 0).tolist() == [False, True, True, True, True, False, True, True]


def test_a_users_rivals_depend_on_nobody_else() -> None:
    """Alone and in company, a user's rivals are the same: the loss stays the user's own."""
    features = random_features(20, seed=5)
    rng = np.random.default_rng(6)
    rows = [rng.integers(0, 20, length).tolist() for length in (5, 3, 7)]
    together = find_rivals(histories_of(rows), features, CONFIG, count=6, positions=6)
    start = 0
    for row in rows:
        alone = find_rivals(histories_of([row]), features, CONFIG, count=6, positions=6)
        own = slice(start, start + len(row))
        assert torch.equal(together.items[own], alone.items)
        assert torch.equal(together.place[own], alone.place)
        start += len(row)


def test_rivals_of_an_event_are_distinct() -> None:
    """No item twice: the loss multiplies whole catalogues and relies on it."""
    found = find_rivals(histories_of([[0, 1, 1, 0, 2]]), random_features(6, seed=7), CONFIG, count=6, positions=5)
    assert all(len(set(found.items[event].tolist())) == 6 for event in range(1, 5))
