"""The local methods against slow readings of their definitions and against the published baseline figures."""

import gzip
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from isthmus.clients.blend import peak_scale
from isthmus.clients.data import Histories
from isthmus.clients.scorers import (
    ItemCf,
    Popularity,
    Scorer,
    TextNeighbours,
    Transitions,
    rank_users,
    recency_weights,
)
from isthmus.metrics import RankingSummary, rank_targets, summarise

REAL = Path(__file__).parents[2] / ".." / "shared" / "data"
REAL_FIGURES = {  # hr@10, ndcg@10 of popularity and of item-CF; no popularity figure where there is none
    "amazon14_beauty": ((0.0152, 0.0068), (0.0788, 0.0492)),
    "amazon14_sports": ((0.0094, 0.0053), (0.0455, 0.0280)),
    "yelp": ((0.0099, 0.0051), (0.0622, 0.0329)),
    "amazon18_office": (None, (0.1399, 0.1089)),
    "amazon18_industrial": (None, (0.1102, 0.0816)),
}


def histories(*rows: list[int]) -> Histories:
    """Rows to Histories."""
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    return Histories(offsets=offsets, items=np.array([item for row in rows for item in row], dtype=np.int32))


def random_histories(users: int, items: int, *, seed: int) -> Histories:
    """Rows of 0 to 14 items with repeats."""
    rng = np.random.default_rng(seed)
    return histories(*(rng.integers(0, items, size=rng.integers(0, 15)).tolist() for _ in range(users)))


def unit_rows(items: int, dim: int, *, seed: int) -> NDArray[np.float32]:
    """Random directions."""
    features = np.random.default_rng(seed).normal(size=(items, dim))
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


def slow_item_cf(rows: Histories, items: int, user: int) -> list[float]:
    """Item-CF as its definition reads, in float64 and loops."""
    sets = [set(rows.row(u).tolist()) for u in range(len(rows))]
    events = [rows.items.tolist().count(item) for item in range(items)]
    scores = []
    for item in range(items):
        total = 1e-9 * events[item]
        for age, own in enumerate(reversed(rows.row(user).tolist()[-10:])):
            if own != item:
                both = sum(own in s and item in s for s in sets)
                total += 0.8**age * both / math.sqrt(max(events[own], 1) * max(events[item], 1))
        scores.append(total)
    return scores


def test_item_cf_equals_its_definition_in_loops() -> None:
    """Repeats count once in the pairs, fully in the sizes and in the recency."""
    rows = random_histories(25, 12, seed=0)
    found = ItemCf.fit(rows, items=12).score(rows, np.arange(25))
    assert found == pytest.approx(np.array([slow_item_cf(rows, 12, user) for user in range(25)]), abs=1e-6)
    assert found.dtype == np.float32


def slow_transitions(rows: Histories, items: int, user: int) -> list[float]:
    """Transitions as their definition reads, in float64 and loops."""
    near = np.zeros((items, items))
    for row in (rows.row(u).tolist() for u in range(len(rows))):
        for at, first in enumerate(row):
            for gap, second in enumerate(row[at + 1 : at + 11]):
                if first != second:
                    near[first, second] += 0.8**gap
                    near[second, first] += 0.3 * 0.8**gap
    events = [max(rows.items.tolist().count(item), 1) for item in range(items)]
    scores = 1e-9 * np.bincount(rows.items, minlength=items)
    for age, own in enumerate(reversed(rows.row(user).tolist()[-10:])):
        scores += 0.8**age * near[own] / np.sqrt(events[own] * np.array(events))
    return [float(score) for score in scores]


def test_transitions_equal_their_definition_in_loops() -> None:
    """Order, distance and repeats count; an item is no neighbour of itself."""
    rows = random_histories(25, 12, seed=0)
    found = Transitions.fit(rows, items=12).score(rows, np.arange(25))
    assert found == pytest.approx(np.array([slow_transitions(rows, 12, user) for user in range(25)]), abs=1e-6)


def test_transitions_know_what_comes_next() -> None:
    """Item 2 follows 1 and 0 comes before it: the mutant, item-CF, cannot tell them apart."""
    rows = histories([0, 1, 2], [1])
    ordered, mutant = (kind.fit(rows, items=3).score(rows, np.array([1]))[0] for kind in (Transitions, ItemCf))
    assert ordered[2] > 3 * ordered[0] > 0
    assert mutant[2] == pytest.approx(mutant[0])


@pytest.mark.parametrize("kind", [ItemCf, Transitions])
@given(rows=st.lists(st.lists(st.integers(0, 7), max_size=14), min_size=1, max_size=6))
def test_a_stranger_has_the_scores_of_one_who_was_there(kind: type[ItemCf], rows: list[list[int]]) -> None:
    """Counted in when scored, the same as counted before: with repeats and an empty history, whatever others did."""
    together = histories(*rows)
    others = kind.fit(histories(*rows[1:]), items=8)
    there = kind.fit(together, items=8).score(together, np.array([0]))
    company = replace(histories(*rows, *rows), strangers=True)  # each is counted in alone
    found = others.score(company, np.arange(len(company)))
    assert found[0] == pytest.approx(there[0], rel=1e-5, abs=1e-12)
    assert found[len(rows)] == pytest.approx(there[0], rel=1e-5, abs=1e-12)


def test_what_one_other_user_combined_is_no_louder_for_a_stranger() -> None:
    """On the scale of a blend. The mutant does not count the stranger in: then a lone neighbour is the peak."""
    known, stranger = histories([0, 5], [6, 7]), replace(histories([0, 1, 2, 3]), strangers=True)
    fitted = ItemCf.fit(known, items=8)
    there = histories([0, 5], [6, 7], [0, 1, 2, 3])
    member = peak_scale(ItemCf.fit(there, items=8).score(there, np.array([2])))[0, 5]
    assert peak_scale(fitted.score(stranger, np.array([0])))[0, 5] == pytest.approx(member, rel=1e-5)
    weights = recency_weights(stranger, np.array([0]), items=8)
    mutant = peak_scale((weights @ fitted.similarity).toarray())[0, 5]
    assert mutant > 3 * member


def test_item_cf_orders_strangers_by_popularity() -> None:
    """Items 2 and 3 share no user with item 0; 3 occurs more often."""
    rows = histories([0, 1], [2], [3], [3])
    scores = ItemCf.fit(rows, items=5).score(rows, np.array([0]))[0]
    assert scores[1] > scores[3] > scores[2] > scores[4]


def test_fitting_leaves_the_histories_in_their_order() -> None:
    """Merging repeats sorts rows; it must do so on a copy."""
    rows = histories([5, 3, 5, 1], [4, 0, 4])
    ItemCf.fit(rows, items=6)
    assert rows.items.tolist() == [5, 3, 5, 1, 4, 0, 4]
    assert rows.offsets.tolist() == [0, 4, 7]


def test_popularity_counts_events_for_everyone_alike() -> None:
    """An event counts each time it happens, and an untouched item counts 0."""
    rows = histories([0, 0, 1], [], [1, 0])
    assert Popularity.fit(rows, items=4).score(rows, np.array([1, 2])).tolist() == [[3, 2, 0, 0]] * 2


def test_text_neighbours_equal_decayed_sums_of_cosines() -> None:
    """Only the last ten items count, the latest most."""
    rows = random_histories(9, 20, seed=1)
    features = unit_rows(20, 6, seed=2)
    expected = np.zeros((9, 20))
    for user in range(9):
        for age, own in enumerate(reversed(rows.row(user)[-10:])):
            expected[user] += 0.8**age * (features @ features[own])
    found = TextNeighbours(features=features).score(rows, np.arange(9))
    assert found == pytest.approx(expected, abs=1e-5)


def test_recency_adds_up_repeats_and_forgets_what_is_old() -> None:
    """With last=3 and decay=0.5 the row 9 7 8 7 weighs 7: 1 + 1/4, 8: 1/2, 9: nothing."""
    weights = recency_weights(histories([9, 7, 8, 7], []), np.array([0, 1]), items=10, last=3, decay=0.5).toarray()
    assert weights.tolist() == [[0, 0, 0, 0, 0, 0, 0, 1.25, 0.5, 0], [0] * 10]


@pytest.mark.parametrize("name", ["text", "item_cf", "popularity"])
def test_a_scorer_gives_each_user_the_same_scores_in_any_company(name: str) -> None:
    """Order, repetition and chunks of users change nothing; no history is a valid history."""
    rows = random_histories(12, 15, seed=3)
    scorers: dict[str, Scorer] = {
        "text": TextNeighbours(features=unit_rows(15, 4, seed=4)),
        "item_cf": ItemCf.fit(rows, items=15),
        "popularity": Popularity.fit(rows, items=15),
    }
    scorer = scorers[name]
    together = scorer.score(rows, np.arange(12))
    mixed = scorer.score(rows, np.array([7, 0, 7]))
    assert mixed == pytest.approx(together[[7, 0, 7]], abs=1e-6)
    assert scorer.score(rows, np.zeros(0, dtype=np.int64)).shape == (0, 15)
    assert np.isfinite(together).all()


def test_ranks_do_not_depend_on_the_chunk() -> None:
    """Chunks bound memory and nothing else; the result is that of one matrix."""
    rows = random_histories(23, 30, seed=5)
    targets = np.random.default_rng(6).integers(0, 30, size=23).astype(np.int32)
    scorer = ItemCf.fit(rows, items=30)
    users = np.arange(23)
    whole = rank_targets(scorer.score(rows, users), targets, [rows.row(user) for user in range(23)])
    for chunk in (1, 5, 23, 100):
        assert rank_users(scorer, rows, users, targets, chunk=chunk).tolist() == whole.tolist()


def naive_ranks(scorer: Scorer, rows: Histories, users: list[int], targets: list[int]) -> list[int]:
    """One user after the other: score all items, leave the seen ones out, sort, find the target behind its equals."""
    ranks = []
    for user, target in zip(users, targets, strict=True):
        scores = scorer.score(rows, np.array([user]))[0].astype(np.float64)
        seen = rows.row(user)
        if target not in seen:
            scores[seen] = -np.inf
        order = np.argsort(-scores, kind="stable")
        place = int(np.flatnonzero(order == target)[0])
        while place + 1 < len(order) and scores[order[place + 1]] == scores[target]:
            place += 1
        ranks.append(place + 1)
    return ranks


@given(st.data())
def test_ranks_equal_those_of_the_naive_loop(data: st.DataObject) -> None:
    """Every kind of scorer; features are small whole numbers, so that sums are exact in any order and ties abound."""
    items = data.draw(st.integers(1, 12))
    item = st.integers(0, items - 1)
    rows = histories(*data.draw(st.lists(st.lists(item, max_size=8), min_size=1, max_size=6)))
    users = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=8))
    targets = [data.draw(item) for _ in users]
    numbers = st.lists(st.integers(-2, 2), min_size=items * 2, max_size=items * 2)
    features = np.array(data.draw(numbers), dtype=np.float32).reshape(items, 2)
    chunk = data.draw(st.none() | st.integers(1, 5))
    scorers: list[Scorer] = [
        Popularity.fit(rows, items=items),
        ItemCf.fit(rows, items=items, decay=0.5),
        TextNeighbours(features=features, decay=0.5),
    ]
    for scorer in scorers:
        found = rank_users(scorer, rows, np.array(users, np.int64), np.array(targets, np.int32), chunk=chunk)
        assert found.tolist() == naive_ranks(scorer, rows, users, targets)


class Watched:
    """A scorer that notes how many scores were asked for at once."""

    def __init__(self, items: int) -> None:
        self.items = items
        self.most = 0

    def score(self, histories: Histories, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """Zeros."""
        self.most = max(self.most, len(users) * self.items)
        return np.zeros((len(users), self.items), np.float32)


@pytest.mark.parametrize(("items", "most"), [(50, 256 * 50), (40_000, 104 * 40_000), (500_000, 16 * 500_000)])
def test_ranking_never_holds_the_scores_of_all_users(items: int, most: int) -> None:
    """At most four million scores at once, or those of 16 users where a catalogue is larger still."""
    scorer, rows = Watched(items), histories(*[[0]] * 300)
    assert rank_users(scorer, rows, np.arange(300), np.ones(300, np.int32)).tolist() == [items - 1] * 300
    assert scorer.most == most


def test_each_user_needs_a_target() -> None:
    """A list that is too short is refused before anything is scored."""
    rows = histories([0], [1])
    with pytest.raises(ValueError, match="one target"):
        rank_users(Popularity.fit(rows, items=2), rows, np.arange(2), np.zeros(1, dtype=np.int32))


def baseline_domain(name: str) -> tuple[Histories, NDArray[np.int64], NDArray[np.int32], int]:
    """Histories without their last item, test users, their targets, and the catalogue's size, as the baseline has."""
    file = REAL / name / "seq.tsv.gz"
    if not file.is_file():
        pytest.skip(f"the real data set {name} is not beside this checkout")
    index: dict[str, int] = {}
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = [[index.setdefault(item, len(index)) for item in line.split("\t", 1)[1].split()] for line in lines]
    rows = [row for row in rows if len(row) >= 3]
    users = np.arange(len(rows))
    if len(rows) > 4000:
        users = np.random.default_rng(0).choice(len(rows), 4000, replace=False)
    targets = np.array([rows[user][-1] for user in users], dtype=np.int32)
    return histories(*(row[:-1] for row in rows)), users, targets, len(index)


def agrees(found: RankingSummary, published: tuple[float, float], users: int) -> bool:
    """Whether published HR@10 and NDCG@10 lie in the 95 % intervals of what was found."""
    hr_error = 1.96 * math.sqrt(found.hr * (1 - found.hr) / users)
    low, high = found.ndcg_ci95
    return abs(found.hr - published[0]) <= hr_error and low <= published[1] <= high


def check_real_domain(name: str) -> None:
    """Popularity and item-CF of one data set against its published figures."""
    rows, users, targets, items = baseline_domain(name)
    methods = (Popularity.fit(rows, items=items), ItemCf.fit(rows, items=items))
    for method, published in zip(methods, REAL_FIGURES[name], strict=True):
        found = summarise(rank_users(method, rows, users, targets), k=10, resamples=1000, seed=0)
        assert published is None or agrees(found, published, len(users)), f"{name}: {found} against {published}"


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["amazon18_office", "amazon18_industrial"])
def test_item_cf_reproduces_the_published_figures_on_small_sets(name: str) -> None:
    """Whole protocol, all users: the published figure lies in our interval."""
    check_real_domain(name)


@pytest.mark.realdata
@pytest.mark.slow
@pytest.mark.parametrize("name", ["amazon14_beauty", "amazon14_sports", "yelp"])
def test_local_methods_reproduce_the_published_figures_on_large_sets(name: str) -> None:
    """Whole protocol, 4,000 test users with seed 0: both methods agree with the published figures."""
    check_real_domain(name)
