"""Tensors in fewer bytes than float32: rounded at random, so that the mean is right.

    encoded = encode(update, UpdateFormat.INT8, randomness.uniform)
    update = decode(encoded)                                          # Refused unless it can be
    sent = change(before, after, UpdateFormat.INT8, randomness.uniform)
    after = changed(before, sent)                                     # the same bits on both sides

What is encoded is private or public already: the noise is in it. `docs/adr/0016-update-format.md` says what rounding
adds to that noise, and why there is one step per tensor.

| format     | in memory                     | one step                                                      |
|------------|-------------------------------|---------------------------------------------------------------|
| `float32`  | float32                       | not rounded                                                   |
| `bfloat16` | uint16, upper half of float32 | 2^-7 of the value's power of two                              |
| `int8`     | int8, and a scale             | the scale: the tensor's largest magnitude / 127, 8 bits, up   |

References: Gupta, Agrawal, Gopalakrishnan and Narayanan, "Deep Learning with Limited Numerical Precision", ICML 2015
(stochastic rounding); Alistarh et al., "QSGD", NeurIPS 2017 (unbiased quantised updates).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isthmus.config import UpdateFormat
from isthmus.errors import Refused

Arrays = dict[str, NDArray[np.float32]]

Tensors = dict[str, NDArray[Any]]
"""Of the dtypes in `DTYPES`."""

DTYPES: dict[UpdateFormat, np.dtype[Any]] = {
    UpdateFormat.FLOAT32: np.dtype("<f4"),
    UpdateFormat.BFLOAT16: np.dtype("<u2"),
    UpdateFormat.INT8: np.dtype("i1"),
}

SMALLEST_SCALE, LARGEST_SCALE = 2.0**-126, 2.0**121
"""So that every number of steps, -127 to 127, is a finite and exact float32."""

_STEPS = 127

Uniform = Callable[[int], NDArray[np.float64]]
"""Gives so many independent draws from [0, 1)."""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Named tensors as they cross.

    Attributes:
        arrays: Of any dtype in `DTYPES`.
        scales: Width of one step, for each int8 tensor.
    """

    arrays: Tensors = field(default_factory=dict)
    scales: dict[str, float] = field(default_factory=dict)


def encode(arrays: Mapping[str, NDArray[np.float32]], form: UpdateFormat, uniform: Uniform) -> Encoded:
    """Round tensors to a format, up or down at random, each as often as it is near.

    Args:
        arrays: Named float32 tensors of any shape.
        form: To be rounded to.
        uniform: Source of the coins; one draw for each value that is rounded, in the order of the names.

    Guarantees:
        - It is a function of `arrays` and the coins alone, so of a noisy sum it is post-processing.
        - Unbiased: over the coins, the mean of what `decode` gives is the value, to 2^-52 of a step.
        - No value moves by a whole step or more, and one that is a whole number of steps does not move.
        - An int8 step is at most 1/126 of the tensor's largest magnitude, or 2^-126.
        - What holds a NaN or an infinity (or, as int8, a magnitude above 3.3e38) is not `finite` afterwards either.
    """
    if form is UpdateFormat.FLOAT32:
        return Encoded(arrays=dict(arrays))
    if form is UpdateFormat.BFLOAT16:
        return Encoded(arrays={name: _bfloat16(array, uniform) for name, array in sorted(arrays.items())})
    pairs = {name: _int8(array, uniform) for name, array in sorted(arrays.items())}
    return Encoded(
        arrays={name: steps for name, (steps, _) in pairs.items()},
        scales={name: scale for name, (_, scale) in pairs.items()},
    )


def decode(encoded: Encoded) -> Arrays:
    """Float32 tensors of encoded ones; exact, so every decoder gives the same bits.

    Raises:
        Refused: If an int8 tensor has no scale in [2^-126, 2^121], or a scale has no int8 tensor.
    """
    steps = {name for name, array in encoded.arrays.items() if array.dtype == DTYPES[UpdateFormat.INT8]}
    if steps != encoded.scales.keys():
        raise Refused(
            f"every int8 tensor has one scale; missing or surplus: {sorted(steps ^ encoded.scales.keys())[:5]}"
        )
    for name, scale in encoded.scales.items():
        if not SMALLEST_SCALE <= scale <= LARGEST_SCALE:  # NaN is not, either
            raise Refused(f"the scale of {name!r} must be in [2^-126, 2^121], got {scale}")
    return {name: _decoded(array, encoded.scales.get(name, 1.0)) for name, array in encoded.arrays.items()}


def finite(array: NDArray[Any]) -> bool:
    """Whether every value of a tensor is finite; of an int8 tensor, its scale says so."""
    if array.dtype == DTYPES[UpdateFormat.BFLOAT16]:
        return bool(((array & 0x7F80) != 0x7F80).all())  # an exponent of ones
    return bool(np.isfinite(array).all())


def change(before: Arrays, after: Arrays, form: UpdateFormat, uniform: Uniform) -> Encoded:
    """What whoever has `before` needs: the tensors that changed, as differences, or whole where nothing is rounded.

    Args:
        before: What the other side has.
        after: What it shall have, of the same names and shapes.
        form: Of the differences.
        uniform: As for `encode`.
    """
    moved = {name: array for name, array in after.items() if not np.array_equal(array, before[name])}
    if form is UpdateFormat.FLOAT32:
        return Encoded(arrays=dict(moved))
    return encode({name: array - before[name] for name, array in moved.items()}, form, uniform)


def changed(before: Arrays, sent: Encoded) -> Arrays:
    """What somebody has who had `before` and got `sent`: float32 tensors in the place of theirs, others added to them.

    Raises:
        Refused: If there is nothing to add a tensor to, or it cannot be decoded.
    """
    after = dict(before)
    for name, array in decode(sent).items():
        if sent.arrays[name].dtype == DTYPES[UpdateFormat.FLOAT32]:
            after[name] = array
        elif name not in before or before[name].shape != array.shape:
            raise Refused(f"parameter {name!r} is a difference of shape {array.shape} to nothing of that shape")
        else:
            after[name] = before[name] + array
    return after


def _bfloat16(values: NDArray[np.float32], uniform: Uniform) -> NDArray[np.uint16]:
    """Upper halves of float32 numbers; a random number of 16 bits is added to the lower ones, and may carry."""
    bits = np.asarray(values, np.float32).view(np.uint32)
    coins = (uniform(values.size) * 2**16).astype(np.uint32).reshape(values.shape)
    with np.errstate(over="ignore"):  # of a NaN, whose sum is not used
        upper = ((bits + coins) >> 16).astype(np.uint16)
    return np.where(np.isfinite(values), upper, np.uint16(0x7F80))


def _int8(values: NDArray[np.float32], uniform: Uniform) -> tuple[NDArray[np.int8], float]:
    """Whole numbers of steps, and the step; an infinite step where a value is not finite."""
    scale = _scale(float(np.abs(values).max(initial=0.0)))
    if not scale <= LARGEST_SCALE:
        return np.zeros(values.shape, np.int8), math.inf
    steps = values.astype(np.float64) / scale
    below = np.floor(steps)
    up = uniform(values.size).reshape(values.shape) < steps - below
    return (below + up).astype(np.int8), scale


def _scale(largest: float) -> float:
    """The least number of 8 significant bits of which `_STEPS` reach the largest magnitude; NaN for NaN."""
    mantissa, exponent = math.frexp(largest / _STEPS)
    if not math.isfinite(mantissa):
        return math.inf
    return max(math.ldexp(math.ceil(mantissa * 256) / 256, exponent), SMALLEST_SCALE)


def _decoded(array: NDArray[Any], scale: float) -> NDArray[np.float32]:
    if array.dtype == DTYPES[UpdateFormat.FLOAT32]:
        return array
    if array.dtype == DTYPES[UpdateFormat.BFLOAT16]:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32) * np.float32(scale)
