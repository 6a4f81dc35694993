"""Rounding is unbiased, moves nothing by a whole step, hides nothing that is not finite, decodes to the same bits."""

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from numpy.typing import NDArray

from isthmus.config import UpdateFormat
from isthmus.encoding import DTYPES, Encoded, Uniform, change, changed, decode, encode, finite
from isthmus.errors import Refused

ROUNDED = [UpdateFormat.BFLOAT16, UpdateFormat.INT8]
TENSORS = arrays_of.arrays(
    np.float32,
    arrays_of.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5),
    elements=st.floats(-(2.0**120), 2.0**120, width=32),
)


def coins(seed: int = 0) -> Uniform:
    """An honest source."""
    return np.random.default_rng(seed).random


def noise(size: int, seed: int = 1) -> NDArray[np.float32]:
    """What an update mostly is."""
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


def steps_of(values: NDArray[np.float32], form: UpdateFormat, scale: float) -> NDArray[np.float64]:
    """Width of the step at each value, by the format's definition."""
    if form is UpdateFormat.INT8:
        return np.full(values.shape, scale)
    with np.errstate(divide="ignore"):
        exponent = np.floor(np.log2(np.abs(values.astype(np.float64))))
    return np.exp2(np.maximum(exponent, -126) - 7)


def wrong_mean(form: UpdateFormat, source: Callable[[int], Uniform]) -> float:
    """How many standard errors the mean of 4,000 roundings is away from the worst value, at most."""
    values, rounds = noise(60) * np.float32(0.01), 4000
    total, scale = np.zeros(values.shape), 1.0
    for seed in range(rounds):
        encoded = encode({"w": values}, form, source(seed))
        total += decode(encoded)["w"]
        scale = encoded.scales.get("w", 1.0)
    step = steps_of(values, form, scale)
    error = np.abs(total / rounds - values) / (step / 2 / math.sqrt(rounds))  # a coin deviates by half a step at most
    return float(error.max())


@pytest.mark.parametrize("form", ROUNDED)
def test_rounding_is_unbiased(form: UpdateFormat) -> None:
    """The mean of 4,000 roundings of 60 values: within six standard errors each (one run in a million is not)."""
    assert wrong_mean(form, coins) < 6


@pytest.mark.parametrize("form", ROUNDED)
@pytest.mark.parametrize("coin", [0.5, 1 - 2**-53, 0.0], ids=["nearest", "down", "up"])
def test_rounding_that_is_not_by_chance_is_caught_as_biased(form: UpdateFormat, coin: float) -> None:
    """Mutants: to the nearest, always down, always up."""
    assert wrong_mean(form, lambda _: lambda count: np.full(count, coin)) > 6


@given(values=TENSORS, seed=st.integers(0, 100), form=st.sampled_from(ROUNDED))
def test_nothing_moves_by_a_whole_step(values: NDArray[np.float32], seed: int, form: UpdateFormat) -> None:
    """Of any tensor, from empty to huge to denormal; and rounding again moves nothing: all are whole steps then."""
    encoded = encode({"w": values}, form, coins(seed))
    assert encoded.arrays["w"].dtype == DTYPES[form]
    assert encoded.arrays["w"].shape == values.shape
    back = decode(encoded)["w"]
    assert back.dtype == np.float32
    moved = np.abs(back.astype(np.float64) - values)
    assert (moved < steps_of(values, form, encoded.scales.get("w", 1.0))).all()
    if form is UpdateFormat.BFLOAT16:
        assert np.array_equal(decode(encode({"w": back}, form, coins(seed + 1)))["w"], back)


@given(values=TENSORS, seed=st.integers(0, 100))
def test_a_decoded_int8_value_is_exact(values: NDArray[np.float32], seed: int) -> None:
    """It is the number of steps times the step, as fractions; the step is 1/127 to 1/126 of the largest value."""
    encoded = encode({"w": values}, UpdateFormat.INT8, coins(seed))
    scale, largest = encoded.scales["w"], float(np.abs(values).max(initial=0.0))
    assert scale == 2.0**-126 or largest / 127 * (1 - 2**-52) <= scale <= largest / 126
    for steps, value in zip(encoded.arrays["w"].ravel(), decode(encoded)["w"].ravel(), strict=True):
        assert abs(int(steps)) <= 127
        assert Fraction(float(value)) == int(steps) * Fraction(scale)


@pytest.mark.parametrize("form", list(UpdateFormat))
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_not_finite_afterwards(form: UpdateFormat, value: float) -> None:
    """So that the gate sees it: in the tensor or, as int8, in its scale; the NaN whose bits are all ones, too."""
    for bad in (np.float32(value), np.array([0xFFFFFFFF], np.uint32).view(np.float32)[0]):
        values = noise(9)
        values[4] = bad
        encoded = encode({"w": values}, form, coins())
        assert not (finite(encoded.arrays["w"]) and all(map(math.isfinite, encoded.scales.values())))
    good = encode({"w": noise(9)}, form, coins())
    assert finite(good.arrays["w"])
    assert all(map(math.isfinite, good.scales.values()))


def test_what_int8_cannot_hold_is_not_finite() -> None:
    """The largest float32 itself, whose 127 steps would be above it; half of it is no problem."""
    largest = np.finfo(np.float32).max
    assert encode({"w": np.array([largest])}, UpdateFormat.INT8, coins()).scales["w"] == math.inf
    half = encode({"w": np.array([largest / 2])}, UpdateFormat.INT8, coins())
    np.testing.assert_allclose(decode(half)["w"], largest / 2, rtol=1 / 126)


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf, 0.0, -0.1, 2.0**-127, 2.0**122, 1e300])
def test_a_scale_that_is_none_is_refused(scale: float) -> None:
    """Not finite, not above 0, or so that steps would be neither exact nor finite."""
    with pytest.raises(Refused, match=r"the scale of 'w' must be in \[2\^-126, 2\^121\]"):
        decode(Encoded(arrays={"w": np.ones(3, np.int8)}, scales={"w": scale}))


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.float32])
@pytest.mark.parametrize("scales", [{}, {"v": 1.0}, {"w": 1.0, "v": 1.0}, {"w": 1.0}])
def test_int8_tensors_have_scales_and_others_have_none(dtype: type, scales: dict[str, float]) -> None:
    """One each, under its name."""
    encoded = Encoded(arrays={"w": np.zeros(3, dtype)}, scales=scales)
    if scales == ({"w": 1.0} if dtype is np.int8 else {}):
        assert decode(encoded)["w"].tolist() == [0, 0, 0]
    else:
        with pytest.raises(Refused, match="one scale"):
            decode(encoded)


@pytest.mark.parametrize("form", list(UpdateFormat))
def test_equal_coins_give_equal_bytes_in_whatever_order_the_names_come(form: UpdateFormat) -> None:
    """It is a function of the tensors and the coins: a seeded run repeats, also from a checkpoint."""
    arrays = {"a": noise(50), "b": noise(50, seed=2)}
    one, two = encode(arrays, form, coins()), encode(dict(reversed(arrays.items())), form, coins())
    assert one.scales == two.scales
    assert all(one.arrays[name].tobytes() == two.arrays[name].tobytes() for name in arrays)


def test_int8_adds_a_thousandth_of_the_noise_at_most() -> None:
    """Of an update that is Gaussian noise, 25,000 values: what rounding adds, as a part of its variance."""
    values = noise(25_000)
    error = decode(encode({"w": values}, UpdateFormat.INT8, coins()))["w"] - values
    assert 0 < np.square(error).mean() / np.square(values).mean() < 1e-3


@pytest.mark.parametrize("form", list(UpdateFormat))
def test_both_sides_come_to_the_same_parameters(form: UpdateFormat) -> None:
    """From what is sent and what was there, to the bit, within a step of what was meant; what is still is not sent."""
    before = {"a": noise(40), "b": noise(30, seed=2), "frozen": noise(20, seed=3)}
    after = {**before, "a": before["a"] + noise(40, seed=4) / 100, "b": before["b"] - np.float32(0.5)}
    sent = change(before, after, form, coins())
    assert sorted(sent.arrays) == ["a", "b"]
    ours, theirs = changed(before, sent), changed({name: array.copy() for name, array in before.items()}, sent)
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in before)
    assert ours["frozen"].tobytes() == before["frozen"].tobytes()
    for name in ("a", "b"):
        assert np.abs(ours[name] - after[name]).max() <= np.abs(after[name] - before[name]).max() / 100
    if form is UpdateFormat.FLOAT32:
        assert all(ours[name].tobytes() == after[name].tobytes() for name in after)


@pytest.mark.parametrize("dtype", [np.int8, np.uint16])
@pytest.mark.parametrize("before", [{}, {"w": np.zeros((3, 1), np.float32)}, {"v": np.zeros(3, np.float32)}])
def test_a_difference_to_nothing_is_refused(dtype: type, before: dict[str, NDArray[np.float32]]) -> None:
    """There is no tensor of that name, or it has another shape, which numpy would stretch."""
    scales = {"w": 1.0} if dtype is np.int8 else {}
    with pytest.raises(Refused, match="'w' is a difference"):
        changed(before, Encoded(arrays={"w": np.zeros(3, dtype)}, scales=scales))
