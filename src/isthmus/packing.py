"""Named tensors as bytes: in a message, in the records of Flower's strategies, and as a digest.

    record = pack(tensors, scales)          # of a message: one Flower array, safetensors within
    tensors, scales = unpack(record)        # Refused unless it is that
    record = to_array_record(arrays)        # for Flower's own strategies: an array per tensor, as Flower packs it
    arrays = from_array_record(record)

Flower's links ask for every array of a message by itself, and a coordinator stores each with some ten statements of
SQL: the 38 tensors of a small backbone are 38 of each, for each domain, up and down. As one array they are one.
"""

import functools
import hashlib
import io
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import safetensors.numpy
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from isthmus.encoding import DTYPES, Arrays, Tensors
from isthmus.errors import Refused

_ONE, _SAFETENSORS, _SCALES = "tensors", "safetensors", "scales"
_PACKING = "numpy.ndarray"  # what Flower calls the .npy format


def arrays_digest(arrays: Arrays) -> bytes:
    """Hash of named tensors: names, shapes and values, in name order."""
    running = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        running.update(f"\n{name}{array.shape}".encode())
        running.update(np.ascontiguousarray(array, dtype=np.float32).tobytes())
    return running.digest()


def pack(tensors: Tensors, scales: Mapping[str, float] = MappingProxyType({})) -> ArrayRecord:
    """Named tensors, encoded or not, as a message holds them.

    Args:
        tensors: By name.
        scales: Of those that are int8, float32; beside them in the order of their names, NaN for one that is missing.
    """
    whole = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    if names := _scaled(tensors):
        with np.errstate(over="ignore"):  # the other side refuses an infinite one
            whole[_SCALES] = np.array([scales.get(name, math.nan) for name in names]).astype(np.float32)
    data = safetensors.numpy.save(whole)
    return ArrayRecord({_ONE: Array("uint8", (len(data),), _SAFETENSORS, data)})


def unpack(record: ArrayRecord) -> tuple[Tensors, dict[str, float]]:
    """Named tensors of a message, in name order, and the scales of those that are int8, as they came.

    Nothing is allocated that its bytes do not hold, nothing is unpickled.

    Raises:
        Refused: If they cannot be read, one is of a dtype that is not exchanged, or there is not one scale for each
            int8 tensor.
    """
    if set(record) != {_ONE}:
        raise Refused(f"a message holds its tensors as one array {_ONE!r}, got {sorted(record)[:5]!r:.200}")
    one = record[_ONE]
    if one.stype != _SAFETENSORS:
        raise Refused(f"the message's tensors are packed as {one.stype!r:.80}; only {_SAFETENSORS!r} is exchanged")
    try:
        tensors: Tensors = safetensors.numpy.load(one.data)
    except Exception as error:  # noqa: BLE001 - its reader raises many things on bytes that are made for it
        raise Refused(f"the message's tensors cannot be read: {error!r:.200}") from None
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES.values():
            exchanged = ", ".join(dtype.name for dtype in DTYPES.values())
            raise Refused(f"tensor {name!r:.80} has dtype {tensor.dtype.name!r}; exchanged are {exchanged}")
    scales = tensors.pop(_SCALES, np.zeros(0, np.float32))
    names = _scaled(tensors)
    if scales.dtype != np.float32 or scales.shape != (len(names),):
        raise Refused(
            f"the message has {len(names)} int8 tensors, and its scales are {scales.dtype.name} of shape "
            f"{scales.shape!r:.80}; there is one float32 for each"
        )
    # The reader's own order changes from call to call
    return dict(sorted(tensors.items())), dict(zip(names, scales.tolist(), strict=True))


def _scaled(tensors: Tensors) -> list[str]:
    """Those that need a scale, in the order in which scales travel."""
    return sorted(name for name, tensor in tensors.items() if tensor.dtype == np.int8)


def to_array_record(arrays: Arrays) -> ArrayRecord:
    """Named tensors as a record of Flower's strategies, float32: as `numpy.save` writes, in one copy, not three."""
    return ArrayRecord({name: _packed(array) for name, array in arrays.items()})


def from_array_record(record: ArrayRecord) -> Arrays:
    """Named tensors of such a record, read-only: they lie in its own bytes.

    Raises:
        ValueError: If one is not what `to_array_record` makes.
    """
    return {name: _tensor(packed) for name, packed in record.items()}


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
    array = np.asarray(array, dtype="<f4", order="C")
    return Array("float32", array.shape, _PACKING, b"".join((_header_of(array.shape), array.data)))


def _tensor(packed: Array) -> NDArray[np.float32]:
    header = _header_of(tuple(packed.shape))
    if packed.stype != _PACKING or not packed.data.startswith(header):
        array = packed.numpy()  # Flower's own, which averages in the dtype that numpy promotes to
        if array.dtype != np.float32:
            raise ValueError(f"shared parameters are float32, got {array.dtype}")
        return array
    return np.ndarray(packed.shape, np.dtype("<f4"), buffer=packed.data, offset=len(header))


@functools.lru_cache(maxsize=1024)
def _header_of(shape: tuple[int, ...]) -> bytes:
    """What stands before the numbers of a little-endian float32 array file in C order."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return stream.getvalue()
