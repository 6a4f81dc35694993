"""A tensor comes back as it was packed; other bytes are refused with a reason, and nothing is unpickled."""

import io
import os
import pickle  # noqa: TID251 - to show that such bytes are never loaded
import struct
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray
from tests.test_records import ARRAYS

from isthmus.errors import Refused
from isthmus.packing import from_array_record, to_array_record


def npy(array: NDArray[np.generic]) -> bytes:
    """The bytes that numpy keeps an array in."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def record_of(
    data: bytes, *, shape: tuple[int, ...] = (2,), dtype: str = "float32", stype: str = "numpy.ndarray"
) -> ArrayRecord:
    """A record whose header says one thing and whose bytes are what they are."""
    return ArrayRecord({"w": Array(dtype=dtype, shape=shape, stype=stype, data=data)})


@pytest.mark.parametrize(("dtype", "bytes_"), [("int8", 5), ("int8", 7), ("uint16", 6), ("uint16", 11), ("int8", 0)])
def test_raw_bytes_that_are_not_of_their_shape_are_refused(dtype: str, bytes_: int) -> None:
    """Too few or too many for (2, 3), whatever else is right; so are shapes that overflow or go below 0."""
    for shape in ((2, 3), (2**40, 2**40), (-2, -3)):
        with pytest.raises(Refused, match=f"{bytes_} bytes are no {dtype} of shape"):
            from_array_record(record_of(bytes(bytes_), shape=shape, dtype=dtype, stype="isthmus.raw"))


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8", "int16", "object", "bfloat16"])
def test_raw_bytes_of_another_dtype_are_refused(dtype: str) -> None:
    """Two are exchanged raw; an int8 tensor as numpy packs it is not exchanged at all."""
    with pytest.raises(Refused, match="'w'"):
        from_array_record(record_of(bytes(48), dtype=dtype, stype="isthmus.raw"))
    with pytest.raises(Refused, match="'w' has dtype 'int8'"):
        from_array_record(record_of(npy(np.ones(2, np.int8)), dtype="int8"))


@pytest.mark.parametrize("dtype", ["float64", "float16", "int32", "bool", "complex64", "U3", "datetime64[s]"])
def test_another_dtype_is_refused(dtype: str) -> None:
    """Whether the header admits it or claims float32."""
    array = np.zeros(2, dtype)
    for said in (str(array.dtype), "float32"):
        with pytest.raises(Refused, match="'w'"):
            from_array_record(record_of(npy(array), dtype=said))


def test_the_other_byte_order_is_refused() -> None:
    """Big-endian float32 is not what is exchanged."""
    with pytest.raises(Refused, match="not what its header says"):
        from_array_record(record_of(npy(np.ones(2, ">f4"))))


@pytest.mark.parametrize("said", [(3,), (1, 2), (), (2, 1), (2**40,)])
def test_a_header_that_lies_about_the_shape_is_refused(said: tuple[int, ...]) -> None:
    """The record says one shape and the bytes another."""
    with pytest.raises(Refused, match="not what its header says"):
        from_array_record(record_of(npy(np.ones(2, np.float32)), shape=said))


@pytest.mark.parametrize("count", [3, 10**10, 10**15, 10**30, -1])
def test_bytes_that_lie_about_their_own_shape_are_refused(count: int) -> None:
    """Eight bytes that call themselves a petabyte are refused before anything of that size is made."""
    honest = npy(np.ones(2, np.float32))
    header = str({"descr": "<f4", "fortran_order": False, "shape": (count,)}).ljust(117) + "\n"
    lying = honest[:8] + struct.pack("<H", len(header)) + header.encode() + np.ones(2, np.float32).tobytes()
    with pytest.raises(Refused, match="'w' is not what its header says"):
        from_array_record(record_of(lying))
    if 0 < count < 2**63:  # what a record can say as well
        with pytest.raises(Refused, match="'w' cannot be read"):
            from_array_record(record_of(lying, shape=(count,)))


def _npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, w=np.ones(2, np.float32))
    return file.getvalue()


def _header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY",
        b"\x93NUMPY\x09\x09" + b"\0" * 100,
        npy(np.ones(2, np.float32))[:-3],
        _npz(),
        b"PK\x03\x04" + b"\0" * 40,
        b"PK\x05\x06" + b"\0" * 18,
        _header("-" * 9000 + "1"),
        _header("(" * 9000),
        _header("{'descr': '<f4', 'fortran_order': False, 'shape': 2}"),
        _header("{'descr': '<f4'}"),
        _header("{'descr': ['<f4'], 'fortran_order': False, 'shape': (2,)}"),
        b"\x93NUMPY\x03\x00" + struct.pack("<I", 3) + b"\xff\xfe\xfd",
        npy(np.zeros(2, [("a", "f4")])),
        _header("{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}".ljust(5000)) + bytes(8),
    ],
    ids=[
        "nothing",
        "half-a-magic",
        "no-such-version",
        "cut",
        "npz",
        "broken-zip",
        "empty-zip",
        "deep-signs",
        "deep-brackets",
        "shape-no-tuple",
        "keys",
        "descr",
        "no-utf8",
        "structured",
        "long-header",
    ],
)
def test_bytes_that_are_no_tensor_are_refused(data: bytes) -> None:
    """Whatever numpy's reader makes of them, the answer is a refusal that names the tensor."""
    with pytest.raises(Refused, match="'w'"):
        from_array_record(record_of(data))


class Bomb:
    """An object whose unpickling leaves a mark on the disk."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        """Make a folder when loaded."""
        return os.mkdir, (str(self._mark),)


@pytest.mark.parametrize("wrapped", ["bare", "object array"])
def test_a_pickle_is_refused_and_never_loaded(tmp_path: Path, wrapped: str) -> None:
    """Bare or as an object array: its code does not run; loading it by hand shows that it would have."""
    mark = tmp_path / "mark"
    bomb = pickle.dumps(Bomb(mark))
    data = bomb if wrapped == "bare" else npy(np.array([Bomb(mark), Bomb(mark)], dtype=object))
    for stype in ("numpy.ndarray", "pickle"):
        with pytest.raises(Refused, match="'w'"):
            from_array_record(record_of(data, stype=stype))
    assert not mark.exists()
    pickle.loads(bomb)  # noqa: S301 - our own
    assert mark.exists()


def test_what_is_parsed_cannot_be_changed_through_what_was_sent() -> None:
    """Changing an array after packing changes nothing, and what was parsed is read-only."""
    array = np.ones(3, np.float32)
    record = to_array_record({"w": array})
    array[:] = 7
    parsed = from_array_record(record)["w"]
    assert parsed.tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="read-only"):
        parsed[0] = 7


@pytest.mark.parametrize("name", ARRAYS)
def test_a_tensor_is_packed_as_flower_packs_it(name: str) -> None:
    """To the byte, whatever lies under it: a transposed or a big-endian array is brought into order first."""
    for array in (ARRAYS[name], ARRAYS[name].T, ARRAYS[name].astype(">f4")):
        packed = to_array_record({"w": array})["w"]
        theirs = Array(np.ascontiguousarray(array, dtype=np.float32).reshape(array.shape))
        assert (packed.dtype, packed.shape, packed.stype) == (theirs.dtype, theirs.shape, theirs.stype)
        assert packed.data == theirs.data
