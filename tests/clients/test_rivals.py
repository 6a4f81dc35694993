"""Rivals are the top of the text prior's own ranking, seen items out, from one user's history and public text."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from isthmus.clients import rivals as module
from isthmus.clients.data import Histories
from isthmus.clients.rivals import RivalFinder, Rivals, find_rivals
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
    looked = [range(max(1, len(row) - positions), len(row)) for row in rows]
    assert found.items.shape == (sum(map(len, looked)), min(count, items))
    assert found.offsets.tolist() == np.cumsum([0, *map(len, looked)]).tolist()
    event = 0
    for row, own in zip(rows, looked, strict=True):
        for at in own:
            expected = ranking(row[:at], row[at], features.double().numpy())[:count]
            # A small catalogue is filled up with seen items; they come last.
            assert found.items[event, : len(expected)].tolist() == expected
            assert found.place[event] == (expected.index(row[at]) if row[at] in expected else -1)
            event += 1
    return found


def test_rivals_are_the_top_of_the_priors_ranking() -> None:
    """Ragged histories, repeats among them: seen items are out, unless the seen item is the next one again."""
    rng = np.random.default_rng(1)
    rows = [rng.integers(0, 30, length).tolist() for length in [0, 1, 2, 9, 5, 12, 3]]
    rows.append([4, 7, 4, 4, 7])
    found = assert_brute_force(rows, items=30, count=8, positions=6)
    assert (found.place >= 0).any()
    assert (found.place == -1).any(), "some next items are not among their rivals"


def test_only_the_last_positions_are_looked_at() -> None:
    """Earlier events, and first ones, have no rivals."""
    rng = np.random.default_rng(2)
    found = assert_brute_force([rng.permutation(12)[:8].tolist(), [4], []], items=12, count=12, positions=3)
    assert found.offsets.tolist() == [0, 3, 3, 3]


@pytest.mark.parametrize("scores", [1, 40, 1 << 20])
def test_pieces_of_memory_change_nothing(monkeypatch: pytest.MonkeyPatch, scores: int) -> None:
    """A piece may hold one event, or events of many users."""
    monkeypatch.setattr(module, "_SCORES", scores)
    assert_brute_force([[1], [], [3, 5, 2], [0, 9], [7], [4, 4]], items=15, count=4, positions=5, seed=3)


@pytest.mark.parametrize("kept", [0, 300, 1 << 28])
def test_a_finder_gives_each_user_the_same_rivals_whenever_asked(monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
    """Batch after batch, whatever fits into memory: those that all users get at once."""
    monkeypatch.setattr(module, "_KEPT", kept)
    rng = np.random.default_rng(8)
    rows = [rng.integers(0, 30, length).tolist() for length in (5, 0, 3, 7, 1, 12)]
    features, histories = random_features(30, seed=9), histories_of(rows)
    whole = find_rivals(histories, features, CONFIG, count=6, positions=4)
    finder = RivalFinder(histories, features, CONFIG, count=6, positions=4)
    for batch in ([3, 0, 1], [], [5, 3, 2], [0, 1, 2, 3, 4, 5], [1]):
        found = finder.of(np.array(batch, dtype=np.int64))
        expected = [np.arange(whole.offsets[user], whole.offsets[user + 1]) for user in batch]
        assert np.diff(found.offsets).tolist() == [len(own) for own in expected]
        at = torch.from_numpy(np.concatenate([*expected, np.zeros(0, np.int64)]))
        assert torch.equal(found.items, whole.items[at])
        assert torch.equal(found.place, whole.place[at])


def test_what_a_finder_keeps_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Users beyond the room are found again; those within it are not."""
    monkeypatch.setattr(module, "_KEPT", 2 * 4 * (6 * 4 + 8))  # four events each
    histories = histories_of([[user, 1, 2, 3, 4] for user in range(5)])
    finder = RivalFinder(histories, random_features(10, seed=1), CONFIG, count=6, positions=4)
    finder.of(np.arange(5))
    assert sorted(finder._kept) == [0, 1]


def test_a_catalogue_smaller_than_the_rivals_is_taken_whole() -> None:
    """Every next item then has a place, a repeated one too."""
    found = assert_brute_force([[0, 1, 2, 3, 4], [2, 2, 0]], items=5, count=50, positions=10, seed=4)
    assert (found.place >= 0).tolist() == [True] * 6


def test_a_users_rivals_depend_on_nobody_else() -> None:
    """Alone and in company, a user's rivals are the same: the loss stays the user's own."""
    features = random_features(20, seed=5)
    rng = np.random.default_rng(6)
    rows = [rng.integers(0, 20, length).tolist() for length in (5, 3, 7)]
    together = find_rivals(histories_of(rows), features, CONFIG, count=6, positions=6)
    for user, row in enumerate(rows):
        alone = find_rivals(histories_of([row]), features, CONFIG, count=6, positions=6)
        own = slice(*together.offsets[user : user + 2].tolist())
        assert torch.equal(together.items[own], alone.items)
        assert torch.equal(together.place[own], alone.place)


@pytest.mark.parametrize("mutant", [False, True])
def test_items_with_the_same_text_change_no_places_in_company(monkeypatch: pytest.MonkeyPatch, mutant: bool) -> None:
    """Scores that all but tie are told apart by their last bits: these must not hang on who else is ranked.

    The mutant's products have as many rows as there are events, three for a user and 300 for all of them.
    """
    rng = np.random.default_rng(11)
    bases = np.repeat(rng.normal(size=(40, 384)), 50, axis=0)
    features = torch.from_numpy((bases + rng.normal(size=bases.shape) * 1e-7).astype(np.float32))
    features = features / features.norm(dim=1, keepdim=True)
    rows = [rng.integers(0, 2000, 4).tolist() for _ in range(100)]

    def rivals(some: list[list[int]]) -> torch.Tensor:
        if mutant:
            monkeypatch.setattr(module, "_EVENTS", 3 * len(some))
        return find_rivals(histories_of(some), features, CONFIG, count=7, positions=3).items

    alone = torch.cat([rivals([row]) for row in rows])
    assert torch.equal(rivals(rows), alone) is not mutant


def test_rivals_of_an_event_are_distinct() -> None:
    """No item twice: the loss multiplies whole catalogues and relies on it."""
    found = find_rivals(histories_of([[0, 1, 1, 0, 2]]), random_features(6, seed=7), CONFIG, count=6, positions=5)
    assert all(len(set(found.items[event].tolist())) == 6 for event in range(4))


@pytest.mark.parametrize("items", [60, 64, 200, 263])
def test_the_top_of_a_large_catalogue_is_that_of_a_sort(monkeypatch: pytest.MonkeyPatch, items: int) -> None:
    """On both sides of the switch to blocks, with a tail that fills no block, and with blocks full of high scores."""
    monkeypatch.setattr(module, "_BLOCK", 4)
    generator = torch.Generator().manual_seed(items)
    scores = torch.rand(6, items, generator=generator)
    scores[1, 8:12] += 1.0  # the top stands in one block
    scores[2, -3:] += 1.0  # and in the tail
    scores[3, ::9] = -torch.inf  # some are out of the race
    assert torch.equal(module._top(scores, 5), scores.sort(dim=1, descending=True).indices[:, :5])
