"""How numbers are written, above all the rounding of guarantees."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus.report import numbers


@given(value=st.floats(min_value=0, max_value=1000))
def test_a_printed_epsilon_is_never_below_the_real_one(value: float) -> None:
    """Rounding goes up, by less than one unit of the second decimal."""
    printed = float(numbers.epsilon(value))
    assert value - 1e-8 <= printed < value + 0.01 + 1e-8


@given(value=st.floats(min_value=1e-12, max_value=1))
def test_a_printed_delta_is_never_below_the_real_one(value: float) -> None:
    """Rounding goes up, by at most a tenth of the value."""
    printed = float(numbers.delta(value))
    assert value * (1 - 1e-7) <= printed <= value * 1.1001


@given(value=st.floats(min_value=0, max_value=16))
def test_a_printed_factor_is_never_below_the_real_one(value: float) -> None:
    """exp(epsilon) is rounded up, so the bound that people read holds."""
    assert float(numbers.factor(value).replace(",", "")) >= math.exp(value)


def test_a_hopeless_factor_is_still_a_number() -> None:
    """Large epsilons neither overflow nor fill the line."""
    assert numbers.factor(100.0) == "2.7e+43"
    assert numbers.factor(5000.0) == "1.0e+304"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.01234, "+0.0123"), (-0.01234, "\u22120.0123"), (0.00004, "0.0000"), (-0.00004, "0.0000"), (0.0, "0.0000")],
)
def test_a_difference_shows_its_sign_unless_it_rounds_to_zero(value: float, text: str) -> None:
    """Minus zero would be read as a loss."""
    assert numbers.signed(value) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1 kB"), (999_600, "1 MB"), (16_840_000, "16.8 MB"),
     (3_000_000_000_000, "3,000 GB")],
)  # fmt: skip
def test_sizes_use_the_unit_that_fits(count: int, text: str) -> None:
    """Three digits, never 1000 of a unit that has a larger one."""
    assert numbers.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0.0 s"), (59.94, "59.9 s"), (59.96, "1 min 0 s"), (3599.7, "1 h 0 min")]
)
def test_durations_never_show_sixty_of_a_unit(seconds: float, text: str) -> None:
    """60.0 s is a minute."""
    assert numbers.duration(seconds) == text


@given(taken=st.lists(st.integers(1, 12), min_size=1))
def test_few_rounds_are_listed_exactly(taken: list[int]) -> None:
    """Expanding the printed ranges gives back the rounds."""
    text = numbers.rounds(taken)
    ranges = [[int(end) for end in part.split(" to ")] for part in text.split(", ")]
    assert [n for part in ranges for n in range(part[0], part[-1] + 1)] == sorted(set(taken))


def test_many_scattered_rounds_are_summarised() -> None:
    """A hundred evaluations do not fill a page."""
    assert numbers.rounds(list(range(5, 501, 5))) == "100 rounds from 5 to 500"


def test_control_and_direction_characters_become_visible() -> None:
    """Nothing that a terminal or a browser acts on is left; letters of any script are."""
    assert numbers.visible("a\x00b\x1b[31m\u202e\u200fé漢") == "a\ufffdb\ufffd[31m\ufffd\ufffdé漢"
