"""A text encoder without a model: hashed words, word pairs and character trigrams.

    HashEncoder(dim=256).encode(["red running shoes"])

It depends on nothing but hashlib, so it gives the same bits in every process, and needs no
download. It knows spelling, not meaning: for tests, demonstrations and machines without weights.

Reference: Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", ICML 2009.
"""

import hashlib
import itertools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_VERSION = 1  # part of the identity: raise it when the vectors change
_BATCH = 2048  # texts
_WORD = re.compile(r"\w+")
_PAIR_WEIGHT = 0.5  # of two neighbouring words, relative to a word
_TRIGRAM_WEIGHT = 0.3  # of three neighbouring characters, relative to a word


@dataclass(frozen=True, kw_only=True)
class HashEncoder:
    """Signed hashing of n-grams into `dim` buckets, rows L2-normalised.

    Attributes:
        dim: Buckets, at least 2.
    """

    dim: int

    @property
    def identity(self) -> str:
        """Name and version of what decides the vectors."""
        return f"hash:{self.dim}@{_VERSION}"

    def encode(
        self,
        texts: Sequence[str],
        *,
        threads: int | None = None,  # noqa: ARG002 - of the seam; there is nothing to share here
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Yield (positions, features) of a batch, in the order of `texts`.

        Args:
            texts: None of them blank.
            threads: Changes nothing.

        Yields:
            Positions (batch,) into `texts` and features (batch, dim).
        """
        known: dict[str, NDArray[np.float64]] = {}  # a catalogue repeats its words
        for start in range(0, len(texts), _BATCH):
            batch = texts[start : start + _BATCH]
            rows = np.stack([self._row(text, known) for text in batch])  # (batch, dim)
            norms = np.linalg.norm(rows, axis=1, keepdims=True)
            features = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
            yield np.arange(start, start + len(batch)), features.astype(np.float32)

    def _row(self, text: str, known: dict[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        """Sum of the signed buckets of one text, (dim,)."""
        text = unicodedata.normalize("NFKC", text).casefold()
        words = _WORD.findall(text) or text.split()  # "!!!" is a name too
        row = np.zeros(self.dim)
        for word in words:
            if word not in known:
                known[word] = self._word(word)
            row += known[word]
        for pair in itertools.pairwise(words):
            self._add(row, " ".join(pair), _PAIR_WEIGHT)
        return row

    def _word(self, word: str) -> NDArray[np.float64]:
        """The buckets of one word and of its trigrams, word ends marked, (dim,)."""
        row = np.zeros(self.dim)
        self._add(row, f"w:{word}", 1.0)
        marked = f"<{word}>"
        for start in range(len(marked) - 2):
            self._add(row, f"c:{marked[start : start + 3]}", _TRIGRAM_WEIGHT)
        return row

    def _add(self, row: NDArray[np.float64], gram: str, weight: float) -> None:
        """Add one n-gram to its bucket, with its sign."""
        digest = hashlib.blake2b(gram.encode(), digest_size=9).digest()
        bucket = int.from_bytes(digest[:8], "little") % self.dim
        row[bucket] += weight if digest[8] & 1 else -weight
