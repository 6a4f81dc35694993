"""Full-ranking metrics and their intervals, against brute force and closed forms."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus import metrics
from isthmus.metrics import (
    bootstrap_ci,
    hr_at_k,
    ndcg_at_k,
    paired_bootstrap_ci,
    rank_targets,
    reciprocal_rank,
    summarise,
)


def rank_one_user(scores: list[float], target: int, history: list[int]) -> int:
    """The protocol, said slowly: sort what is in the race, put the target behind its equals."""
    masked = set() if target in history else set(history)
    race = [item for item in range(len(scores)) if item not in masked]

    def place(item: int) -> tuple[float, bool]:
        score = scores[item]
        if math.isnan(score):  # the target's own comes last, anybody else's first
            score = -math.inf if item == target else math.inf
        return -score, item == target

    return sorted(race, key=place).index(target) + 1


@given(st.data())
def test_ranks_equal_a_slow_reading_of_the_protocol(data: st.DataObject) -> None:
    """Few distinct scores, so that ties, repeats, long histories, infinities and NaN all occur."""
    users, items = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 9))
    score = st.sampled_from([0.0, 1.0, 2.0, math.inf, -math.inf, math.nan]) | st.floats(-2, 2, width=32)
    scores = [[data.draw(score) for _ in range(items)] for _ in range(users)]
    targets = [data.draw(st.integers(0, items - 1)) for _ in range(users)]
    seen = [data.draw(st.lists(st.integers(0, items - 1), max_size=12)) for _ in range(users)]
    for precision in (np.float32, np.float64):
        array = np.array(scores, dtype=precision)
        ranks = rank_targets(array, np.array(targets), [np.array(row, dtype=np.int32) for row in seen])
        assert ranks.tolist() == [rank_one_user(*user) for user in zip(scores, targets, seen, strict=True)]


@pytest.mark.parametrize("item", [-1, 3])
def test_a_seen_item_outside_the_catalogue_is_refused(item: int) -> None:
    """It would mask an item of another user."""
    with pytest.raises(ValueError, match=r"seen items must be in \[0, 3\)"):
        rank_targets(np.zeros((2, 3)), np.array([0, 1]), [np.array([2]), np.array([item])])


def test_a_constant_model_scores_as_the_worst_one() -> None:
    """Ties count against us: with 20 equal scores and 3 seen items the target comes 17th."""
    ranks = rank_targets(np.zeros((1, 20)), np.array([5]), [np.array([0, 1, 2])])
    assert ranks.tolist() == [17]
    assert ndcg_at_k(ranks, 10).tolist() == [0.0]


def test_a_repeated_target_unmasks_the_whole_history() -> None:
    """Item 0 scores best and was seen: it is out of the race for item 2, but in it for the repeat of item 1."""
    scores = np.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    ranks = rank_targets(scores, np.array([2, 1]), [np.array([0, 1]), np.array([0, 1])])
    assert ranks.tolist() == [1, 2]


def test_nan_never_helps() -> None:
    """A target that scores NaN comes last; a rival that scores NaN stands before the target."""
    scores = np.array([[math.nan, 1.0, 2.0], [0.5, math.nan, 0.1]])
    ranks = rank_targets(scores, np.array([0, 0]), [np.array([], dtype=np.int32)] * 2)
    assert ranks.tolist() == [3, 2]


def test_ranking_leaves_the_scores_as_they_are() -> None:
    """Masking happens in the count, not in the caller's array."""
    scores = np.arange(6.0).reshape(2, 3)
    rank_targets(scores, np.array([0, 1]), [np.array([2]), np.array([0])])
    assert scores.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]


@pytest.mark.parametrize("target", [-1, 3])
def test_a_target_outside_the_catalogue_is_refused(target: int) -> None:
    """-1 means "no target" in the data and must not rank the last item instead."""
    with pytest.raises(ValueError, match=r"targets must be in \[0, 3\)"):
        rank_targets(np.zeros((1, 3)), np.array([target]), [np.array([0])])


def test_users_targets_and_histories_must_match() -> None:
    """A short list of histories would leave users unmasked."""
    with pytest.raises(ValueError, match="do not match"):
        rank_targets(np.zeros((2, 3)), np.array([0, 1]), [np.array([0])])


def test_no_users_have_no_ranks() -> None:
    """An empty chunk is allowed."""
    assert rank_targets(np.zeros((0, 3)), np.zeros(0, dtype=np.int32), []).tolist() == []


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 12))
def test_metrics_equal_their_definitions(ranks: list[int], k: int) -> None:
    """Gains over a relevance list with a single 1, ideal gain 1."""
    array = np.array(ranks)
    relevance = [[int(place == rank) for place in range(1, 41)] for rank in ranks]
    dcg = [sum(r / math.log2(place + 2) for place, r in enumerate(row[:k])) for row in relevance]
    assert ndcg_at_k(array, k).tolist() == pytest.approx(dcg)
    assert hr_at_k(array, k).tolist() == [float(any(row[:k])) for row in relevance]
    assert reciprocal_rank(array).tolist() == pytest.approx([1 / rank for rank in ranks])


@pytest.mark.parametrize("metric", [hr_at_k, ndcg_at_k])
def test_a_cut_off_below_one_is_refused(metric) -> None:
    """A cut-off of 0 would silently score 0."""
    with pytest.raises(ValueError, match="k must be at least 1"):
        metric(np.array([1]), 0)


def test_interval_equals_the_normal_one_on_many_users() -> None:
    """With 5,000 users the percentile interval is the mean -+ 1.96 standard errors."""
    values = ndcg_at_k(np.random.default_rng(1).integers(1, 60, size=5000), 10)
    low, high = bootstrap_ci(values, resamples=4000, seed=0)
    error = values.std() / math.sqrt(values.size)
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.12 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.12 * error)


def test_interval_equals_drawing_users_one_by_one() -> None:
    """The multinomial short cut against an ordinary bootstrap, on few and skewed users."""
    values = np.random.default_rng(2).exponential(size=23)
    drawn = np.random.default_rng(3).integers(0, 23, size=(40_000, 23))
    expected = np.quantile(values[drawn].mean(axis=1), [0.05, 0.95])
    found = bootstrap_ci(values, resamples=40_000, seed=4, level=0.9)
    assert found == pytest.approx(expected, abs=0.01)


def test_interval_does_not_depend_on_the_order_of_users() -> None:
    """Bit for bit: users come in any order from any number of chunks."""
    rng = np.random.default_rng(5)
    values = ndcg_at_k(rng.integers(1, 30, size=400), 10)
    first = bootstrap_ci(values, resamples=300, seed=6)
    assert bootstrap_ci(rng.permutation(values), resamples=300, seed=6) == first
    assert bootstrap_ci(values, resamples=300, seed=7) != first


def test_interval_does_not_depend_on_how_many_draws_fit_in_memory(monkeypatch) -> None:
    """A block is a matter of memory only."""
    values = np.random.default_rng(8).random(50)
    whole = bootstrap_ci(values, resamples=101, seed=9)
    monkeypatch.setattr(metrics, "_DRAWS_AT_ONCE", 7 * 50)
    assert bootstrap_ci(values, resamples=101, seed=9) == whole


def test_a_constant_lead_is_certain_when_users_are_paired() -> None:
    """However different the users are, the interval has no width."""
    base = np.random.default_rng(10).random(200)
    low, high = paired_bootstrap_ci(base + 0.25, base, resamples=200, seed=0)
    assert (low, high) == pytest.approx((0.25, 0.25))


def test_paired_interval_changes_sign_with_the_order_of_the_methods() -> None:
    """Swapping the methods mirrors the interval, up to the draw."""
    rng = np.random.default_rng(11)
    first, second = rng.random(300), rng.random(300)
    low, high = paired_bootstrap_ci(first, second, resamples=4000, seed=0)
    other_low, other_high = paired_bootstrap_ci(second, first, resamples=4000, seed=0)
    assert (-other_high, -other_low) == pytest.approx((low, high), abs=0.005)


@pytest.mark.parametrize(
    ("values", "resamples", "level"),
    [([], 10, 0.95), ([math.nan], 10, 0.95), ([1.0], 0, 0.95), ([1.0], 10, 1.0)],
)
def test_an_interval_of_nothing_is_refused(values: list[float], resamples: int, level: float) -> None:
    """No users, a NaN, no resamples or a coverage of 1 have no percentile interval."""
    with pytest.raises(ValueError, match=r"interval needs|must be at least"):
        bootstrap_ci(np.array(values), resamples=resamples, seed=0, level=level)


def test_pairs_must_be_of_the_same_users() -> None:
    """Different lengths would broadcast."""
    with pytest.raises(ValueError, match="same users"):
        paired_bootstrap_ci(np.ones(3), np.ones(1), resamples=10, seed=0)


def test_summary_holds_the_means_and_the_interval() -> None:
    """Four users at ranks 1, 3, 10 and 11."""
    result = summarise(np.array([1, 3, 10, 11]), k=10, resamples=500, seed=0)
    assert result.hr == 0.75
    assert result.ndcg == pytest.approx((1 + 0.5 + 1 / math.log2(11)) / 4)
    assert result.mrr == pytest.approx((1 + 1 / 3 + 1 / 10 + 1 / 11) / 4)
    assert 0 <= result.ndcg_ci95[0] < result.ndcg < result.ndcg_ci95[1] <= 1


@given(st.lists(st.integers(1, 40), min_size=1, max_size=20), st.integers(1, 20))
def test_cut_off_metrics_equal_counting_in_a_list(ranks: list[int], k: int) -> None:
    """Recall, precision and F1 from a list of k items of which the target is at its rank."""
    found = metrics.ranking_metrics(np.array(ranks), (k,))
    for user, rank in enumerate(ranks):
        hits = sum(place == rank for place in range(1, k + 1))
        precision, recall = hits / k, hits / 1
        f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
        assert found[f"recall@{k}"][user] == found[f"hr@{k}"][user] == recall
        assert found[f"precision@{k}"][user] == pytest.approx(precision)
        assert found[f"f1@{k}"][user] == pytest.approx(f1)
        assert found["mrr"][user] == 1 / rank


def test_sampled_ranks_follow_the_law_of_really_sampling_negatives() -> None:
    """Against 4,000 draws of 9 of 29 others: mean rank and hit rate within four standard errors."""
    rng, rank, others, draws = np.random.default_rng(0), 8, 29, 4000
    slow = np.array([1 + np.count_nonzero(rng.permutation(others)[:9] < rank - 1) for _ in range(draws)])
    fast = metrics.sampled_ranks(np.full(draws, rank), np.full(draws, others + 1), negatives=9, seed=1)
    error = 4 * slow.std() * math.sqrt(2 / draws)
    assert fast.mean() == pytest.approx(slow.mean(), abs=error)
    assert (fast <= 2).mean() == pytest.approx((slow <= 2).mean(), abs=4 * math.sqrt(0.5 / draws))
    assert fast.max() <= 10


def test_sampling_all_negatives_is_the_whole_catalogue_and_fewer_flatter() -> None:
    """With as many negatives as there are nothing changes; with fewer no rank is worse (Krichene and Rendle)."""
    ranks, races = np.array([1, 5, 900, 1000]), np.full(4, 1000)
    assert metrics.sampled_ranks(ranks, races, negatives=999, seed=0).tolist() == ranks.tolist()
    few = metrics.sampled_ranks(ranks, races, negatives=99, seed=0)
    assert (few <= ranks).all()
    assert few[2] < 100
    with pytest.raises(ValueError, match=r"in \[1, candidates"):
        metrics.sampled_ranks(np.array([11]), np.array([10]), negatives=5, seed=0)


def test_a_race_is_the_catalogue_without_what_is_masked() -> None:
    """Repeats in a history mask once; a target that was seen masks nothing, as in the ranks."""
    seen = [np.array([1, 1, 2]), np.array([3, 4]), np.array([], dtype=np.int32)]
    assert metrics.race_sizes(seen, np.array([0, 4, 0]), items=10).tolist() == [8, 10, 10]
