"""Named tensors as bytes: in Flower's records, and as a digest.

    record = to_array_record(arrays)
    arrays = from_array_record(record)      # Refused unless every tensor is what its header and its bytes agree on

Float32 is packed as Flower packs it, so that Flower's own strategies can read it; encoded tensors (`isthmus.encoding`)
are their bytes and nothing else.
"""

import functools
import hashlib
import io
import math
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from isthmus.encoding import DTYPES, Arrays, Tensors
from isthmus.errors import Refused

_PACKING = "numpy.ndarray"  # what Flower calls the .npy format
_RAW = "isthmus.raw"  # little-endian, C order; a header of 128 bytes would double a small tensor of bytes
_ENCODED = {dtype.name: dtype for dtype in DTYPES.values() if dtype.name != "float32"}
_LONGEST_HEADER = 1000  # bytes; numpy writes 128


def arrays_digest(arrays: Arrays) -> bytes:
    """Hash of named tensors: names, shapes and values, in name order."""
    running = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        running.update(f"\n{name}{array.shape}".encode())
        running.update(np.ascontiguousarray(array, dtype=np.float32).tobytes())
    return running.digest()


def to_array_record(arrays: Tensors) -> ArrayRecord:
    """Named tensors as a Flower record: encoded ones as they are, others as float32."""
    return ArrayRecord({name: _packed(array) for name, array in arrays.items()})


def from_array_record(record: ArrayRecord) -> Tensors:
    """Named tensors of a Flower record, read-only: they lie in the message's own bytes.

    Raises:
        Refused: If a tensor has another dtype or cannot be read.
    """
    return {name: _tensor(name, packed) for name, packed in record.items()}


def tensor_of(name: str, data: bytes, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The tensor in some bytes, in C order, read-only.

    Raises:
        Refused: If it would not be exactly as large as they are.
    """
    # In whole numbers of Python, which do not overflow
    if min(shape, default=0) < 0 or dtype.itemsize * math.prod(shape) != len(data):
        raise Refused(f"tensor {name!r} cannot be read: {len(data)} bytes are no {dtype.name} of shape {shape!r:.80}")
    return np.frombuffer(data, dtype=dtype).reshape(shape)


def _packed(array: NDArray[Any]) -> Array:
    """An encoded tensor's bytes; else what `numpy.save` writes, in one copy; Flower's own constructor takes three."""
    if array.dtype in _ENCODED.values():
        return Array(array.dtype.name, array.shape, _RAW, array.tobytes())
    array = np.asarray(array, dtype="<f4", order="C")
    return Array("float32", array.shape, _PACKING, b"".join((_header_of(array.shape), array.data)))


@functools.lru_cache(maxsize=1024)
def _header_of(shape: tuple[int, ...]) -> bytes:
    """What stands before the numbers of a little-endian float32 array file in C order."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def _tensor(name: str, packed: Array) -> NDArray[Any]:
    """The tensor that a header and its bytes agree on; its size is known before anything is allocated."""
    if packed.dtype in _ENCODED and packed.stype == _RAW:
        return tensor_of(name, packed.data, tuple(packed.shape), _ENCODED[packed.dtype])
    if packed.dtype != "float32":
        raise Refused(
            f"tensor {name!r} has dtype {packed.dtype!r}, packed as {packed.stype!r}; exchanged are float32 as "
            f"{_PACKING!r}, and {' and '.join(_ENCODED)} as {_RAW!r}"
        )
    if packed.stype != _PACKING:
        raise Refused(f"tensor {name!r} is packed as {packed.stype!r}; only {_PACKING!r} is exchanged")
    start = 10 + int.from_bytes(packed.data[8:10], "little")  # the header's length stands after magic and version
    try:
        if start > _LONGEST_HEADER:
            raise ValueError(f"its header has {start} bytes")
        shape, fortran, dtype = _npy_header(packed.data[:start])
    except Exception as error:  # noqa: BLE001 - numpy's reader raises many things on bytes that are made for it
        raise Refused(f"tensor {name!r} cannot be read: {error!r:.200}") from None
    if dtype != np.dtype("<f4") or shape != tuple(packed.shape):
        raise Refused(f"tensor {name!r} is not what its header says: {dtype}, {shape}")
    rest = len(packed.data) - start
    if fortran or min(shape, default=0) < 0 or rest != 4 * math.prod(shape):
        raise Refused(f"tensor {name!r} cannot be read: {rest} bytes do not hold float32 of shape {shape} in C order")
    return np.ndarray(shape, np.dtype("<f4"), buffer=packed.data, offset=start)


@functools.lru_cache(maxsize=1024)
def _npy_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in Fortran order, and dtype, of the same few tensors again and again."""
    stream = io.BytesIO(header)
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise ValueError(f"its format is version {version}, not (1, 0)")
    return np.lib.format.read_array_header_1_0(stream)
