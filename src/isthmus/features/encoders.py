"""Encode public texts with a frozen encoder, chosen by name, through the cache.

    features = encode_texts(titles, "minilm", cache_dir=default_cache_dir())   # (items, 384)

Names: `minilm` (packaged weights, the default of a federation), `hash` or `hash:DIM` (no model), a
local transformers folder, or a hub id; `minilm:int8` (or any BERT's name with `:int8`) is the same weights
with products in 8 bits, 1.3 to 1.6 times as fast. A text is encoded once however often it appears, and never
again once it is in the cache. A text that is empty or blank says nothing: its row is zero, whatever
the encoder, and stays zero through whitening.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from isthmus.errors import ConfigError
from isthmus.features.cache import FeatureCache, text_key
from isthmus.features.hashed import HashEncoder
from isthmus.features.model_folder import CHOICES, find_model_folder

_HASH_DIM = 256
_HASH_DIMS = range(2, 65537)

Progress = Callable[[int, int], None]
"""Called with (texts encoded so far, texts to encode)."""


class Encoder(Protocol):
    """What turns texts into vectors."""

    @property
    def identity(self) -> str:
        """Name and hash of everything that decides a vector."""

    @property
    def dim(self) -> int:
        """Width of a vector."""

    def encode(
        self, texts: Sequence[str], *, threads: int | None
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Yield batches of (positions into texts, L2-normalised features), each position once."""


def encode_texts(
    texts: Sequence[str],
    encoder: str | Encoder,
    *,
    cache_dir: Path | None,
    progress: Progress | None = None,
    threads: int | None = None,
) -> NDArray[np.float32]:
    """Features of texts, in their order.

    Args:
        texts: Any Unicode; what cannot be written as UTF-8 (a lone surrogate) is read as `?`.
        encoder: A name as in the module's description, or one that is open.
        cache_dir: Folder of the cache; None reads and writes none.
        progress: Called with (0, n) before and (done, n) after each batch, n being the distinct texts that
            are not in the cache. Never called when n is 0.
        threads: Torch threads while encoding; torch's own setting when None, and again afterwards.

    Returns:
        (texts, dim), rows L2-normalised, zero for blank texts. Rows of the cache are the very bits
        that were stored.

    Raises:
        ConfigError: If the encoder is unknown or cannot be loaded, or the cache folder cannot be used.
    """
    chosen = open_encoder(encoder) if isinstance(encoder, str) else encoder
    readable = [text.encode("utf-8", "replace").decode() for text in texts]
    distinct = list(dict.fromkeys(text for text in readable if text.strip()))
    known = np.zeros((len(distinct), chosen.dim), dtype=np.float32)
    if cache_dir is None:
        for rows, batch in _batches(chosen, distinct, progress, threads):
            known[rows] = batch
    else:
        with FeatureCache(cache_dir) as cache:
            identity = chosen.identity
            keys = [text_key(identity, text) for text in distinct]
            known, found = cache.read(keys, chosen.dim)
            missing = np.flatnonzero(~found)
            for positions, batch in _batches(chosen, [distinct[row] for row in missing], progress, threads):
                rows = missing[positions]
                known[rows] = batch
                cache.write([keys[row] for row in rows], batch)
    place = {text: row for row, text in enumerate(distinct)}
    features = np.zeros((len(texts), chosen.dim), dtype=np.float32)
    for row, text in enumerate(readable):
        if text in place:
            features[row] = known[place[text]]
    return features


def encoder_dim(encoder: str) -> int:
    """Width of an encoder's vectors; no weights are loaded.

    Raises:
        ConfigError: If the encoder is unknown.

    >>> encoder_dim("hash:64")
    64
    """
    return open_encoder(encoder).dim


def encoder_identity(encoder: str) -> str:
    """Name and hash of everything that decides an encoder's vectors, as used in cache keys.

    Raises:
        ConfigError: If the encoder is unknown.

    >>> encoder_identity("hash:64")
    'hash:64@1'
    """
    return open_encoder(encoder).identity


def open_encoder(encoder: str) -> Encoder:
    """The encoder of that name; a transformer's weights wait until a text must be encoded.

    Raises:
        ConfigError: If there is none.
    """
    name, colon, width = encoder.partition(":")
    if name != "hash":
        return find_model_folder(encoder)
    if not colon:
        return HashEncoder(dim=_HASH_DIM)
    if not (width.isascii() and width.isdigit() and int(width) in _HASH_DIMS):
        raise ConfigError(
            f"encoder {encoder!r}: DIM of hash:DIM must be a whole number from {_HASH_DIMS.start} to "
            f"{_HASH_DIMS.stop - 1}, got {width!r}. {CHOICES}"
        )
    return HashEncoder(dim=int(width))


def _batches(
    encoder: Encoder, texts: list[str], progress: Progress | None, threads: int | None
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """What the encoder yields for texts, if there are any, with the progress told."""
    if not texts:
        return
    done = 0
    if progress:
        progress(done, len(texts))
    for positions, features in encoder.encode(texts, threads=threads):
        yield positions, features
        done += len(positions)
        if progress:
            progress(done, len(texts))
