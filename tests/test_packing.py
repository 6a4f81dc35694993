"""Tensors come back as they were packed; other bytes are refused with a reason, and nothing is unpickled."""

import io
import json
import math
import os
import pickle  # noqa: TID251 - to show that such bytes are never loaded
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray
from tests.test_records import ARRAYS

from isthmus.encoding import Encoded, Tensors, decode
from isthmus.errors import Refused
from isthmus.packing import from_array_record, pack, to_array_record, unpack

FOUR = np.arange(4, dtype="<f4").tobytes()


def message_of(data: bytes, *, name: str = "tensors", stype: str = "safetensors") -> ArrayRecord:
    """A message's record of any bytes."""
    return ArrayRecord({name: Array("uint8", (len(data),), stype, data)})


def file_of(header: object, data: bytes = FOUR) -> bytes:
    """Bytes laid out as safetensors does, whatever the header claims."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def claim(shape: list[int], offsets: list[int], dtype: str = "F32") -> dict[str, object]:
    """A header of one tensor `w`."""
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        ARRAYS,
        {"w": np.float32(3).reshape(()), "none": np.zeros((0, 3), np.float32)},
        {
            "a": np.arange(-3, 3, dtype=np.int8).reshape(2, 3),
            "b": np.arange(5, dtype="<u2"),
            "c": np.ones(2, np.float32),
        },
        {"turned": np.arange(6, dtype=np.float32).reshape(2, 3).T, "big": np.arange(3, dtype=">f4")},
    ],
    ids=["none", "float32", "empty shapes", "encoded", "odd layouts"],
)
def test_tensors_come_back_as_they_were(tensors: Tensors) -> None:
    """Names, shapes, dtypes and bits, and all of it is one array of Flower's."""
    record = pack(tensors)
    assert len(record) == 1
    found, _ = unpack(record)
    assert list(found) == sorted(tensors)
    for name, tensor in tensors.items():
        assert (found[name].shape, found[name].dtype) == (tensor.shape, tensor.dtype.newbyteorder("<"))
        assert found[name].tobytes() == tensor.astype(found[name].dtype).tobytes()  # NaN and -0 too


def test_scales_come_back_with_their_tensors() -> None:
    """To the bit, in any order; one that is missing cannot be used, one of no tensor does not travel."""
    steps = {name: np.ones(2, np.int8) for name in ("b", "a", "c")}
    scales = {"c": 2.0**-126, "a": 2.0**121, "b": 5 * 2.0**-9, "d": 1.0}
    _, found = unpack(pack({**steps, "whole": np.ones(2, np.float32)}, scales))
    assert found == {name: scales[name] for name in ("a", "b", "c")}
    arrays, found = unpack(pack(steps, {"a": 1.0}))
    assert (found["a"], math.isnan(found["b"]), math.isnan(found["c"])) == (1.0, True, True)
    with pytest.raises(Refused, match="must be in"):
        decode(Encoded(arrays=arrays, scales=found))


@pytest.mark.parametrize(
    "scales", [np.ones(1, np.float32), np.ones(3, np.float32), np.ones((2, 1), np.float32), np.ones(2, np.uint16), None]
)
def test_scales_that_are_not_one_for_each_are_refused(scales: NDArray[np.float32] | None) -> None:
    """Fewer, more, in another shape or dtype, or none at all."""
    tensors = {"a": np.ones(2, np.int8), "b": np.ones(2, np.int8)} | ({} if scales is None else {"scales": scales})
    with pytest.raises(Refused, match="2 int8 tensors, and its scales are"):
        unpack(message_of(safetensors.numpy.save(tensors)))


@pytest.mark.parametrize("dtype", ["float64", "float16", "int32", "int64", "uint8", "bool", "complex64"])
def test_another_dtype_is_refused(dtype: str) -> None:
    """Three are exchanged; nothing is quietly converted."""
    data = safetensors.numpy.save({"w": np.zeros(2, dtype)})
    with pytest.raises(Refused, match=f"'w' has dtype '{dtype}'; exchanged are float32, uint16, int8"):
        unpack(message_of(data))


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "F4", "Q7", "", 5])
def test_a_dtype_that_numpy_does_not_have_is_refused(dtype: str) -> None:
    """Whether it exists elsewhere or is made up."""
    with pytest.raises(Refused):
        unpack(message_of(file_of(claim([8], [0, 16], dtype))))


@pytest.mark.parametrize(
    "header",
    [
        claim([5], [0, 16]),
        claim([3], [0, 16]),
        claim([-4], [0, 16]),
        claim([10**10], [0, 4 * 10**10]),
        claim([2**62, 4], [0, 16]),
        claim([2**32, 2**32], [0, 16]),
        claim([10**30], [0, 16]),
        claim([4], [0, 20]),
        claim([4], [16, 0]),
        claim([2], [0, 8]),
        claim([2], [8, 16]),
        {**claim([4], [0, 16]), "v": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}},
        {},
        [],
        {"w": 1},
        {"w": {"dtype": "F32", "shape": 4, "data_offsets": [0, 16]}},
        {"w": {"dtype": "F32", "shape": [4]}},
        b"",
        b"{",
        b"\xff\xfe\xfd",
        b"[" * 9000,
        b'{"w":' * 9000,
    ],
)
def test_a_header_that_lies_is_refused(header: object) -> None:
    """Shapes that the bytes do not hold, overlaps, holes, bytes that nobody claims, and what is no header."""
    with pytest.raises(Refused, match="cannot be read"):
        unpack(message_of(file_of(header)))


@pytest.mark.parametrize("cut", [0, 4, 8, 20, -1, -16])
def test_bytes_that_were_cut_are_refused(cut: int) -> None:
    """Wherever; and a header that calls itself longer than the message."""
    whole = file_of(claim([4], [0, 16]))
    assert unpack(message_of(whole))[0]["w"].tolist() == [0, 1, 2, 3]
    for data in (whole[:cut], whole + b"\0", struct.pack("<Q", 2**63) + whole[8:]):
        with pytest.raises(Refused, match="cannot be read"):
            unpack(message_of(data))


def test_another_packing_is_refused() -> None:
    """Under another name, as numpy packs, several, or none."""
    good = file_of(claim([4], [0, 16]))
    with pytest.raises(Refused, match="one array 'tensors', got \\['w'\\]"):
        unpack(message_of(good, name="w"))
    with pytest.raises(Refused, match="packed as 'numpy.ndarray'"):
        unpack(message_of(good, stype="numpy.ndarray"))
    with pytest.raises(Refused, match="got \\['tensors', 'w'\\]"):
        unpack(ArrayRecord({**message_of(good), "w": Array(np.ones(2, np.float32))}))
    with pytest.raises(Refused, match="got \\[\\]"):
        unpack(ArrayRecord())


def test_a_refusal_is_short() -> None:
    """A name of a megabyte is not repeated."""
    data = safetensors.numpy.save({"w" * 10**6: np.zeros(2)})
    for record in (message_of(data), message_of(b"", name="w" * 10**6), message_of(b"", stype="w" * 10**6)):
        with pytest.raises(Refused) as caught:
            unpack(record)
        assert len(str(caught.value)) < 400


class Bomb:
    """An object whose unpickling leaves a mark on the disk."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        """Make a folder when loaded."""
        return os.mkdir, (str(self._mark),)


def _npy(array: NDArray[np.object_]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize("wrapped", ["bare", "object array"])
def test_a_pickle_is_refused_and_never_loaded(tmp_path: Path, wrapped: str) -> None:
    """Bare or as an object array: its code does not run; loading it by hand shows that it would have."""
    mark = tmp_path / "mark"
    bomb = pickle.dumps(Bomb(mark))
    data = bomb if wrapped == "bare" else _npy(np.array([Bomb(mark), Bomb(mark)], dtype=object))
    for stype in ("safetensors", "numpy.ndarray", "pickle"):
        with pytest.raises(Refused):
            unpack(message_of(data, stype=stype))
    assert not mark.exists()
    pickle.loads(bomb)  # noqa: S301 - our own
    assert mark.exists()


def test_what_is_parsed_cannot_be_changed_through_what_was_sent() -> None:
    """Changing an array after packing changes nothing, nor does changing what was parsed; Flower's are read-only."""
    array = np.ones(3, np.float32)
    record, flowers = pack({"w": array}), to_array_record({"w": array})
    array[:] = 7
    unpack(record)[0]["w"][:] = 9
    assert unpack(record)[0]["w"].tolist() == [1.0, 1.0, 1.0]
    parsed = from_array_record(flowers)["w"]
    assert parsed.tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="read-only"):
        parsed[0] = 7


@pytest.mark.parametrize("name", ARRAYS)
def test_a_tensor_of_a_strategy_is_packed_as_flower_packs_it(name: str) -> None:
    """To the byte, whatever lies under it: a transposed or a big-endian array is brought into order first."""
    for array in (ARRAYS[name], ARRAYS[name].T, ARRAYS[name].astype(">f4")):
        packed = to_array_record({"w": array})["w"]
        theirs = Array(np.ascontiguousarray(array, dtype=np.float32).reshape(array.shape))
        assert (packed.dtype, packed.shape, packed.stype) == (theirs.dtype, theirs.shape, theirs.stype)
        assert packed.data == theirs.data
        assert np.array_equal(from_array_record(ArrayRecord({"w": theirs}))["w"], array, equal_nan=True)


def test_a_strategy_gets_no_other_dtype() -> None:
    """What Flower averaged in float64 has to be rounded by whoever called it."""
    with pytest.raises(ValueError, match="float32, got float64"):
        from_array_record(ArrayRecord({"w": Array(np.ones(2))}))
