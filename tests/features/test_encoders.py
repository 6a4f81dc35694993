"""What callers of `encode_texts` rely on, with the encoder that needs no model."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from isthmus.errors import ConfigError
from isthmus.features import encode_texts, encoder_dim, encoder_identity

TEXTS = ["red running shoes", "Ångström & Søn — 東京 🎧", "blue running shoes", "red running shoes", "!!!"]


class Progress:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def __call__(self, done: int, total: int) -> None:
        """Remember one call."""
        self.calls.append((done, total))


def python(code: str, **variables: str) -> str:
    """What a fresh interpreter prints."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variables}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return done.stdout.strip()


def test_importing_the_package_imports_neither_torch_nor_transformers() -> None:
    """Command line and server start without paying for models they do not run."""
    code = (
        "import sys, isthmus.features; "
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'torch', 'transformers', 'flwr'}), "
        "'isthmus.clients' in sys.modules)"
    )
    assert python(code) == "[] False"


def test_rows_follow_the_texts_and_equal_texts_have_equal_rows() -> None:
    """The order and number of the texts survive deduplication."""
    features = encode_texts(TEXTS, "hash", cache_dir=None)
    assert features.shape == (5, 256)
    assert features.dtype == np.float32
    np.testing.assert_array_equal(features[0], features[3])
    for text, row in zip(TEXTS, features, strict=True):
        np.testing.assert_array_equal(encode_texts([text], "hash", cache_dir=None)[0], row)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-6)


def test_duplicates_are_encoded_once() -> None:
    """The progress counts distinct texts with something in them."""
    progress = Progress()
    encode_texts([*TEXTS, *TEXTS, "", "  "], "hash", cache_dir=None, progress=progress)
    assert progress.calls == [(0, 4), (4, 4)]


def test_hashed_vectors_know_words_and_spelling() -> None:
    """Shared words bring texts together; so does a typing error, less."""
    near, typo, far, anchor = encode_texts(
        ["blue running shoes", "red runing shoe", "violin sonata in g minor", "red running shoes"],
        "hash:4096",
        cache_dir=None,
    )
    assert near @ anchor > 0.5
    assert typo @ anchor > 0.3
    assert abs(far @ anchor) < 0.1


def test_hashed_vectors_are_the_same_bits_in_another_process() -> None:
    """Python's own string hash is salted for each process; ours must not be used."""
    code = (
        "from isthmus.features import encode_texts; "
        f"print(encode_texts({TEXTS!r}, 'hash:32', cache_dir=None).tobytes().hex())"
    )
    runs = {python(code, PYTHONHASHSEED=seed) for seed in ("1", "2")}
    assert runs == {encode_texts(TEXTS, "hash:32", cache_dir=None).tobytes().hex()}


def test_one_hashed_word_lands_where_its_digest_says() -> None:
    """The layout is public: bucket and sign of each n-gram come from BLAKE2b alone."""
    expected = np.zeros(64)
    for gram, weight in {"w:ab": 1.0, "c:<ab": 0.3, "c:ab>": 0.3}.items():
        digest = hashlib.blake2b(gram.encode(), digest_size=9).digest()
        expected[int.from_bytes(digest[:8], "little") % 64] += weight if digest[8] % 2 else -weight
    found = encode_texts(["AB"], "hash:64", cache_dir=None)[0]
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-6)


@pytest.mark.parametrize("blank", ["", "   ", "\t\n", "\u3000"])
def test_a_blank_text_is_a_zero_row(blank: str) -> None:
    """An item that says nothing has no direction."""
    features = encode_texts(["shoes", blank], "hash", cache_dir=None)
    assert features[0].any()
    assert not features[1].any()


def test_no_texts_give_no_rows(tmp_path: Path) -> None:
    """An empty catalogue is not an error here, and makes no cache."""
    assert encode_texts([], "hash:16", cache_dir=tmp_path).shape == (0, 16)


def test_text_that_is_not_unicode_is_read_and_never_a_crash(tmp_path: Path) -> None:
    """A lone surrogate comes from a file that was decoded leniently."""
    broken, read_as = encode_texts(["caf\udce9", "caf?"], "hash", cache_dir=tmp_path)
    np.testing.assert_array_equal(broken, read_as)


def test_dimension_and_identity_tell_encoders_apart() -> None:
    """Two encoders never share a cache key."""
    assert encoder_dim("hash") == 256
    assert encoder_dim("hash:40") == 40
    assert encoder_identity("hash") == encoder_identity("hash:256")
    assert encoder_identity("hash") != encoder_identity("hash:40")


@pytest.mark.parametrize("wrong", ["hash:", "hash:0", "hash:1", "hash:-5", "hash:1e3", "hash:9999999", "hash:²"])
def test_a_wrong_hash_width_is_refused_with_the_range(wrong: str) -> None:
    """The message names the value and the rule."""
    with pytest.raises(ConfigError, match=r"whole number from 2 to 65536, got .* Valid encoders"):
        encode_texts(["x"], wrong, cache_dir=None)
