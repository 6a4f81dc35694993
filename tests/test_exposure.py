"""Lists, coverage and novelty against slow readings of their definitions."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus.exposure import coverage, novelty, top_items


@given(st.data())
def test_lists_hold_the_best_unseen_items(data: st.DataObject) -> None:
    """Against a sort by score and place; few distinct scores, so that ties occur."""
    items, k = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 6))
    scores = [data.draw(st.sampled_from([0.0, 1.0, 2.0])) for _ in range(items)]
    seen = data.draw(st.lists(st.integers(0, items - 1), max_size=10))
    unseen = sorted(set(range(items)) - set(seen), key=lambda item: (-scores[item], item))
    found = top_items(np.array([scores], dtype=np.float32), [np.array(seen, dtype=np.int32)], k)[0].tolist()
    assert found == (unseen + [-1] * k)[:k]


def test_coverage_and_novelty_are_what_their_definitions_say() -> None:
    """Counted by hand: 3 of 5 items are shown; information of a share with one event added to each item."""
    lists, counts = np.array([[0, 1], [1, 4], [-1, -1]]), np.array([6, 1, 0, 0, 3])
    assert coverage(lists, items=5) == pytest.approx(3 / 5)
    bits = [-math.log2((count + 1) / (10 + 5)) for count in counts]
    assert novelty(lists, counts) == pytest.approx([(bits[0] + bits[1]) / 2, (bits[1] + bits[4]) / 2, 0.0])


def test_showing_everybody_the_famous_item_is_neither_wide_nor_new() -> None:
    """Popularity covers less and tells less than lists that differ."""
    counts = np.array([90, 5, 3, 2])
    famous, varied = np.zeros((4, 1), dtype=np.int64), np.arange(4)[:, None]
    assert coverage(famous, items=4) < coverage(varied, items=4)
    assert novelty(famous, counts).mean() < novelty(varied, counts).mean()


def test_an_index_outside_the_catalogue_is_refused() -> None:
    """It would be counted as an item."""
    with pytest.raises(ValueError, match=r"items in \[0, 3\)"):
        coverage(np.array([[3]]), items=3)
    with pytest.raises(ValueError, match=r"items in \[0, 3\)"):
        novelty(np.array([[-2]]), np.ones(3, dtype=np.int64))
