"""A made-up log of any size: one shop's events as they happened, and its catalogue.

    python benchmarks/scale/make.py scale-data --users 10000

Writes `events.parquet` (user, item, at; in order of time, so every user's events are spread over the whole file) and
`items.parquet` (item_id, title). Fifty events a user on average: from about 25 to thousands, and the most popular item
has a few hundred times the events of the median one. Nothing is held: a million events are drawn and written at a time.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

ITEMS = 100_000
EVENTS_PER_USER = 50
_AT_ONCE = 1_000_000
_START, _SECONDS = 1_600_000_000, 100_000_000  # unix seconds of the first event, and how long the log runs
_WORDS = 3_000


def main() -> int:
    """Parse and make."""
    parser = argparse.ArgumentParser(
        description="A made-up log of any size.",
        epilog="Example: python benchmarks/scale/make.py scale-data --users 10000",
    )
    parser.add_argument("folder", type=Path, help="made if absent")
    parser.add_argument("--users", type=int, required=True)
    arguments = parser.parse_args()
    make_log(arguments.folder, users=arguments.users)
    return 0


def make_log(folder: Path, *, users: int, items: int = ITEMS, events: int | None = None) -> None:
    """Write both tables.

    Args:
        folder: Made if absent.
        users: How many there are to draw from.
        items: Size of the catalogue.
        events: Length of the log; 50 per user when None.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(users)
    words = np.array([f"word{number}" for number in range(_WORDS)])
    titles = [" ".join(row) for row in words[rng.integers(0, _WORDS, (items, 6))]]
    pq.write_table(pa.table({"item_id": ids("i", np.arange(items)), "title": titles}), folder / "items.parquet")
    popular = rng.permutation(items)  # so that an id tells nothing
    total = EVENTS_PER_USER * users if events is None else events
    schema = pa.schema({"user": pa.string(), "item": pa.string(), "at": pa.int64()})
    with pq.ParquetWriter(folder / "events.parquet", schema) as writer:
        for start in range(0, total, _AT_ONCE):
            count = min(_AT_ONCE, total - start)
            who = (users * rng.random(count) ** 2).astype(np.int64)
            what = popular[(items * rng.random(count) ** 3).astype(np.int64)]
            at = _START + (np.arange(start, start + count) * _SECONDS) // total
            writer.write_table(pa.table({"user": ids("user-", who), "item": ids("i", what), "at": at}, schema=schema))


def ids(prefix: str, numbers: NDArray[np.int64]) -> pa.Array:
    """Numbers as the ids of a shop."""
    return pa.array([f"{prefix}{number:07d}" for number in numbers.tolist()])


if __name__ == "__main__":
    sys.exit(main())
