"""Features on disk, addressed by what they were made from, so that nothing is encoded twice.

    with FeatureCache(default_cache_dir()) as cache:
        keys = [text_key(identity, text) for text in texts]
        features, found = cache.read(keys, dim)        # found: which rows are known
        cache.write(missing_keys, new_features)

The key of a text is the hash of the encoder's identity (weights included) and the text, so a changed
model or text is never confused with an old one. One SQLite file, safe for many processes and for a
kill at any moment: a write is one transaction. Texts are not stored.

Every row carries a checksum. A damaged row counts as absent and is encoded again; a damaged file is
replaced by an empty one. Either is said as a warning of the logger `isthmus.features`.
"""

import contextlib
import hashlib
import logging
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from isthmus.errors import ConfigError

_LOG = logging.getLogger("isthmus.features")
_FILE = "features.db"
_WAIT = 60.0  # seconds for another process to finish its write, which takes milliseconds
_MANY = 500  # keys of one query
_CHECKSUM = 8  # bytes
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_SCHEMA = "CREATE TABLE IF NOT EXISTS features (key BLOB PRIMARY KEY, checksum BLOB, row BLOB) WITHOUT ROWID"


def default_cache_dir() -> Path:
    """$ISTHMUS_CACHE, else `isthmus` in the XDG cache folder of the user."""
    if own := os.environ.get("ISTHMUS_CACHE"):
        return Path(own).expanduser()
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG specification: a relative path is invalid and ignored.
    return (base if base.is_absolute() else Path.home() / ".cache") / "isthmus"


def text_key(identity: str, text: str) -> bytes:
    """Key of one text under one encoder, 32 bytes."""
    return hashlib.sha256(f"{identity}\0{text}".encode()).digest()


class FeatureCache:
    """The feature file of a folder; close it, or use it in a `with`.

    Args:
        folder: Made when absent.

    Raises:
        ConfigError: If the folder or the file in it cannot be used (also from `read` and `write`).
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / _FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unusable(error) from None
        self._connection = self._connect()
        try:
            self._create()
        except sqlite3.DatabaseError as error:
            self._start_again(error)

    def read(self, keys: Sequence[bytes], dim: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Look up rows.

        Args:
            keys: From `text_key`, each at most once.
            dim: Width of a row; a row of any other width is damaged.

        Returns:
            Features (keys, dim), zero where unknown, and which are known (keys,).
        """
        features = np.zeros((len(keys), dim), dtype=np.float32)
        found = np.zeros(len(keys), dtype=np.bool_)
        place = {key: position for position, key in enumerate(keys)}
        damaged = 0
        try:
            for start in range(0, len(keys), _MANY):
                for key, checksum, row in self._select(keys[start : start + _MANY]):
                    if len(row) != dim * 4 or _checksum(key, row) != checksum:
                        damaged += 1
                        continue
                    features[place[key]] = np.frombuffer(row, dtype="<f4")
                    found[place[key]] = True
        except sqlite3.DatabaseError as error:
            self._start_again(error)
        if damaged:
            _LOG.warning("%s: %d damaged rows are encoded again", self.path, damaged)
        return features, found

    def write(self, keys: Sequence[bytes], features: NDArray[np.float32]) -> None:
        """Store rows, durably and all or none, over damaged ones of the same keys.

        Args:
            keys: (rows,) from `text_key`.
            features: (rows, dim).
        """
        blobs = [row.astype("<f4").tobytes() for row in features]
        rows = [(key, _checksum(key, blob), blob) for key, blob in zip(keys, blobs, strict=True)]
        try:
            self._insert(rows)
        except sqlite3.DatabaseError as error:
            self._start_again(error)
            self._insert(rows)

    def close(self) -> None:
        """Close the file; everything written is already on disk."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _connect(self) -> sqlite3.Connection:
        try:
            return sqlite3.connect(self.path, timeout=_WAIT)
        except sqlite3.Error as error:
            raise self._unusable(error) from None

    def _create(self) -> None:
        with self._connection:
            self._connection.execute(_SCHEMA)

    def _select(self, keys: Sequence[bytes]) -> list[tuple[bytes, bytes, bytes]]:
        marks = ",".join("?" * len(keys))
        query = f"SELECT key, checksum, row FROM features WHERE key IN ({marks})"  # noqa: S608 - only question marks
        return self._connection.execute(query, tuple(keys)).fetchall()

    def _insert(self, rows: list[tuple[bytes, bytes, bytes]]) -> None:
        with self._connection:
            self._connection.executemany("INSERT OR REPLACE INTO features VALUES (?, ?, ?)", rows)

    def _start_again(self, error: sqlite3.DatabaseError) -> None:
        """Replace a damaged file by an empty one; any other failure is the user's to know."""
        if error.sqlite_errorcode & 0xFF not in _DAMAGE:
            raise self._unusable(error) from None
        _LOG.warning("%s: the file is damaged (%s); it is replaced and its texts are encoded again", self.path, error)
        self._connection.close()
        # The journal first: beside an empty file it would be played back.
        for name in (f"{_FILE}-journal", _FILE):
            with contextlib.suppress(FileNotFoundError):
                self.path.with_name(name).unlink()
        self._connection = self._connect()
        self._create()

    def _unusable(self, error: Exception) -> ConfigError:
        return ConfigError(
            f"feature cache {self.path} cannot be used: {error}. "
            "Set ISTHMUS_CACHE to a folder that can be written, or free some space."
        )


def _checksum(key: bytes, row: bytes) -> bytes:
    """Of a row under its key, so that a row in the wrong place is damaged too."""
    return hashlib.sha256(key + row).digest()[:_CHECKSUM]
