"""Equal features are held once, and no longer than somebody holds them."""

import gc
import weakref

import numpy as np

from isthmus.features import one_copy


def test_equal_arrays_are_one_and_others_are_not() -> None:
    """Shape counts, too: the same bytes in another shape are another catalogue."""
    first = one_copy(np.arange(6, dtype=np.float32).reshape(2, 3))
    assert one_copy(np.arange(6, dtype=np.float32).reshape(2, 3)) is first
    assert one_copy(np.arange(6, dtype=np.float32).reshape(3, 2)) is not first
    assert one_copy(np.zeros((2, 3), dtype=np.float32)) is not first


def test_nothing_is_held_that_nobody_holds() -> None:
    """A closed domain's features do not stay in memory."""
    held = one_copy(np.full((4, 4), 7, dtype=np.float32))
    gone = weakref.ref(held)
    del held
    gc.collect()
    assert gone() is None
