"""A spending is a value: however its events came, it costs the same to the last bit, and it is quick."""

import functools
import math
import time
from collections import Counter
from statistics import median

import pytest

from isthmus.privacy import accounting, losses
from isthmus.privacy.accounting import NOTHING, Spending, encode_event, epsilon, gaussian, poisson_gaussian

DELTA = 1e-5
EVENTS = [
    poisson_gaussian(0.01, 1.0, 1000),
    gaussian(3.0, 4),
    poisson_gaussian(0.05, 2.0, 300),
    gaussian(20.0, 5),
    NOTHING,
    poisson_gaussian(0.02, 0.9, 10),
    gaussian(6.0),
] * 3


def test_a_spending_costs_what_its_events_cost_to_the_last_bit() -> None:
    """Merged at once, one by one, from texts with counts or in two halves: equal values, and the events' float."""
    whole = Spending.of(EVENTS)
    texts = Counter(encode_event(event) for event in reversed(EVENTS))
    halves = Spending.of(EVENTS[:5]).and_also(Spending.of(EVENTS[5:]))
    assert whole == functools.reduce(Spending.plus, EVENTS, Spending()) == Spending.of_texts(texts) == halves
    assert hash(whole) == hash(halves)
    assert Spending.of(EVENTS[:7]).times(3) == whole
    assert epsilon(whole, DELTA) == epsilon(EVENTS, DELTA)
    assert Spending.of(whole.events) == whole
    assert whole.count == sum(accounting._parts(event)[3] for event in EVENTS)


@pytest.mark.parametrize(
    "parts",
    [
        ((1.0, 2.0, 3), (0.5, 2.0, 3)),
        ((0.5, 2.0, 3), (0.5, 2.0, 1)),
        ((0.0, 2.0, 3),),
        ((0.5, 0.0, 3),),
        ((0.5, 2.0, 0),),
        ((1.5, 2.0, 1),),
    ],
)
def test_a_spending_that_is_not_merged_is_refused(parts: tuple[tuple[float, float, int], ...]) -> None:
    """Unsorted, repeated or impossible parts would be a second value for the same events, or none."""
    with pytest.raises(ValueError, match="must be"):
        Spending(parts)


def test_texts_must_occur() -> None:
    """A count of zero or less in a merged ledger is a mistake, never a refund."""
    for times in (0, -1):
        with pytest.raises(ValueError, match="at least once"):
            Spending.of_texts({encode_event(gaussian(4.0)): times})


MIX = tuple(poisson_gaussian(0.01 + 0.002 * i, 1 + 0.05 * i, 20) for i in range(15)) + tuple(
    gaussian(9.0 + i) for i in range(5)
)


def test_a_long_ledger_is_answered_in_two_seconds_and_grows_in_constant_time() -> None:
    """10,000 entries of 20 mechanisms, nothing cached; a spending of 100,000 takes an entry as fast as one of 1,000."""
    for cache in (losses._few, losses._many, losses._moments, accounting._epsilon):
        cache.cache_clear()
    entries = [MIX[(7 * i) % len(MIX)] for i in range(10_000)]
    began = time.process_time()
    assert 0 < epsilon(Spending.of(entries), 1e-6) < math.inf
    assert time.process_time() - began < 2.0
    short, long = Spending.of(entries[:1000]), Spending.of(entries * 10)
    times: dict[int, list[float]] = {short.count: [], long.count: []}
    for _ in range(15):
        for spending in (short, long):
            began = time.process_time()
            for _ in range(100):
                spending.plus(MIX[3])
            times[spending.count].append(time.process_time() - began)
    assert median(times[long.count]) < 2 * median(times[short.count])
