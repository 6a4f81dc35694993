"""User ids as one piece of memory: a million of them take megabytes, and can be mapped from a file.

users = UserIds.of(["ann", "bob"])      # sorted
users[1], users.index("bob"), "eve" in users
"""

import itertools
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self, overload

import numpy as np
import polars as pl
from numpy.typing import NDArray


class UserIds(Sequence[str]):
    """Ids as UTF-8, end to end.

    Args:
        ends: (ids + 1,) the u-th id is the bytes ends[u] to ends[u + 1].
        text: Their bytes.
    """

    def __init__(self, ends: NDArray[np.int64], text: NDArray[np.uint8]) -> None:
        self.ends = ends
        self.text = text

    @classmethod
    def of(cls, ids: Iterable[str] | pl.Series) -> Self:
        """From ids in byte order."""
        series = ids if isinstance(ids, pl.Series) else pl.Series(list(ids), dtype=pl.String)
        lengths = series.str.len_bytes().to_numpy().astype(np.int64)
        text = np.frombuffer("".join(series.to_list()).encode(), dtype=np.uint8)
        return cls(np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)]), text)

    def __len__(self) -> int:
        return self.ends.size - 1

    @overload
    def __getitem__(self, at: int) -> str: ...

    @overload
    def __getitem__(self, at: slice) -> tuple[str, ...]: ...

    def __getitem__(self, at: int | slice) -> str | tuple[str, ...]:
        if isinstance(at, slice):
            return tuple(self[place] for place in range(*at.indices(len(self))))
        place = range(len(self))[at]  # IndexError as a tuple's
        return self.text[self.ends[place] : self.ends[place + 1]].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        text, ends = self.text.tobytes(), self.ends.tolist()
        return (text[start:end].decode() for start, end in itertools.pairwise(ends))

    def __contains__(self, wanted: object) -> bool:
        return isinstance(wanted, str) and self._place(wanted) is not None

    def index(self, wanted: Any, *_: Any) -> int:
        """Place of an id, found by halving.

        Raises:
            ValueError: If it is not there.
        """
        place = self._place(wanted)
        if place is None:
            raise ValueError(f"no user {wanted!r}")
        return place

    def __eq__(self, other: object) -> bool:
        if isinstance(other, UserIds):
            return np.array_equal(self.ends, other.ends) and np.array_equal(self.text, other.text)
        return isinstance(other, tuple) and tuple(self) == other

    __hash__ = None  # type: ignore[assignment]

    def _place(self, wanted: str) -> int | None:
        """Place of an id; byte order of UTF-8 is the order of its characters' numbers, which Python compares."""
        place = bisect_left(self, wanted)
        return place if place < len(self) and self[place] == wanted else None
