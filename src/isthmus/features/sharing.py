"""One copy of equal features: the domains of a simulation may have the same catalogue.

features = one_copy(features)      # an equal array that somebody in this process still holds, or this one
"""

import hashlib
import weakref

import numpy as np
from numpy.typing import NDArray

_HELD: "weakref.WeakValueDictionary[bytes, NDArray[np.float32]]" = weakref.WeakValueDictionary()


def one_copy(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """The first of equal arrays that is still held by anyone in this process; nobody may write to it.

    Args:
        features: Any shape, in C order.
    """
    digest = hashlib.sha256(f"{features.shape}\0".encode())
    digest.update(np.ascontiguousarray(features).data)
    return _HELD.setdefault(digest.digest(), features)
