"""Randomness that a guarantee rests on: noise, and who is in a batch.

    randomness = SecureRandomness()                    # production
    randomness = SeededRandomness(7, "books", 3)       # tests and repeatable simulation: not private
    noise = randomness.gaussian(1000) * stddev
    batch = randomness.bernoulli(users, sample_rate)

`SecureRandomness` draws from ChaCha20 under a fresh 256-bit key of the operating system and
cannot be seeded. `SeededRandomness` can be repeated by anyone who knows the seed, so whoever
uses it must say so: `private` travels into the ledger, the result and the report.

References: RFC 8439 (ChaCha20); Box and Muller, "A note on the generation of random normal
deviates", 1958. Known limit: samples are double precision and results are rounded to float32
after the noise; defences against floating-point attacks (Mironov, CCS 2012) are not claimed.
"""

import hashlib
import os
from typing import Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from numpy.typing import NDArray

_KEY_BYTES = 2**38
"""Key stream of one key, in bytes: 2^32 blocks of 64."""


class Randomness(Protocol):
    """A source of the random draws that a privacy guarantee depends on."""

    @property
    def private(self) -> bool:
        """Whether nobody can repeat the draws."""
        ...

    def gaussian(self, count: int) -> NDArray[np.float64]:
        """`count` independent standard normal deviates."""
        ...

    def bernoulli(self, count: int, probability: float) -> NDArray[np.bool_]:
        """`count` independent coins, each true with `probability`."""
        ...


class SecureRandomness:
    """Draws from a cryptographic generator that nobody can seed.

    Guarantees:
        - Two instances never share a key stream.
        - Draws of a child process after a fork differ from the parent's: the key is drawn anew.
        - A key is left before its key stream ends (256 GiB), so no number of draws repeats one or fails.
    """

    private = True

    def __init__(self) -> None:
        self._rekey()

    def gaussian(self, count: int) -> NDArray[np.float64]:
        """`count` independent standard normal deviates."""
        pairs = (count + 1) // 2
        uniform = self._uniform(2 * pairs)
        radius = np.sqrt(-2.0 * np.log(uniform[:pairs]))  # uniform is in (0, 1]: the logarithm is finite
        angle = 2.0 * np.pi * uniform[pairs:]
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]

    def bernoulli(self, count: int, probability: float) -> NDArray[np.bool_]:
        """`count` independent coins, each true with `probability` (to within 2^-53)."""
        return self._uniform(count) <= probability

    def _uniform(self, count: int) -> NDArray[np.float64]:
        """Multiples of 2^-53 in (0, 1]."""
        if os.getpid() != self._owner or self._left < 8 * count:
            self._rekey()
        self._left -= 8 * count
        stream = self._cipher.update(bytes(8 * count))
        return ((np.frombuffer(stream, dtype=np.uint64) >> np.uint64(11)).astype(np.float64) + 1.0) * 2.0**-53

    def _rekey(self) -> None:
        self._owner = os.getpid()
        self._left = _KEY_BYTES
        self._cipher = Cipher(ChaCha20(os.urandom(32), bytes(16)), mode=None).encryptor()


class SeededRandomness:
    """Repeatable draws for tests and simulation; **not private**.

    Args:
        seed: Of the run.
        context: What the draws are for (domain, round, purpose); other words give independent draws.
    """

    private = False

    def __init__(self, seed: int, *context: str | int) -> None:
        words = "\x1f".join(str(word) for word in (seed, *context))
        self._generator = np.random.Generator(np.random.PCG64(int.from_bytes(hashlib.sha256(words.encode()).digest())))

    def gaussian(self, count: int) -> NDArray[np.float64]:
        """`count` independent standard normal deviates."""
        return self._generator.standard_normal(count)

    def bernoulli(self, count: int, probability: float) -> NDArray[np.bool_]:
        """`count` independent coins, each true with `probability`."""
        return self._generator.random(count) < probability
