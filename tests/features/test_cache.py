"""The cache encodes nothing twice, survives damage, and is shared by processes."""

import logging
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from isthmus.errors import ConfigError
from isthmus.features import FeatureCache, default_cache_dir, encode_texts
from isthmus.features.cache import text_key

TEXTS = [f"item number {n}" for n in range(40)]


class Count:
    """How many texts were encoded."""

    def __init__(self) -> None:
        self.encoded = self.asked = 0

    def __call__(self, done: int, total: int) -> None:
        """Remember the latest call."""
        self.encoded, self.asked = done, total


def encode(texts: list[str], folder: Path, encoder: str = "hash:32") -> tuple[np.ndarray, int]:
    """Features, and how many texts had to be encoded for them."""
    count = Count()
    features = encode_texts(texts, encoder, cache_dir=folder, progress=count)
    assert count.encoded == count.asked
    return features, count.encoded


def test_a_second_run_encodes_nothing_and_gives_the_same_bits(tmp_path: Path) -> None:
    """What is read back is what was computed."""
    first, encoded = encode(TEXTS, tmp_path)
    again, encoded_again = encode(TEXTS, tmp_path)
    assert (encoded, encoded_again) == (40, 0)
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() == encode_texts(TEXTS, "hash:32", cache_dir=None).tobytes()


def test_new_items_alone_are_encoded(tmp_path: Path) -> None:
    """A catalogue that grew costs what it grew by, in any order."""
    encode(TEXTS, tmp_path)
    features, encoded = encode(["brand new", *reversed(TEXTS), "another"], tmp_path)
    assert encoded == 2
    np.testing.assert_array_equal(features[1:-1][::-1], encode_texts(TEXTS, "hash:32", cache_dir=None))


def test_encoders_do_not_see_each_others_rows(tmp_path: Path) -> None:
    """The key holds the encoder's identity."""
    encode(TEXTS, tmp_path)
    features, encoded = encode(TEXTS, tmp_path, "hash:16")
    assert encoded == 40
    assert features.shape == (40, 16)
    assert encode(TEXTS, tmp_path)[1] == 0  # nor have the first one's been written over


def test_a_damaged_row_is_encoded_again_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A flipped bit never becomes a feature."""
    expected, _ = encode(TEXTS, tmp_path)
    key = text_key("hash:32@1", TEXTS[3])
    with sqlite3.connect(tmp_path / "features.db") as connection:
        (row,) = connection.execute("SELECT row FROM features WHERE key = ?", (key,)).fetchone()
        flipped = bytes([row[0] ^ 1]) + row[1:]
        connection.execute("UPDATE features SET row = ? WHERE key = ?", (flipped, key))
    connection.close()
    with caplog.at_level(logging.WARNING):
        healed, encoded = encode(TEXTS, tmp_path)
    assert encoded == 1
    assert "1 damaged rows are encoded again" in caplog.text
    np.testing.assert_array_equal(healed, expected)
    assert encode(TEXTS, tmp_path)[1] == 0


def test_a_row_under_another_key_is_damaged(tmp_path: Path) -> None:
    """The checksum covers the key: swapped rows would be valid on their own."""
    expected, _ = encode(TEXTS, tmp_path)
    one, two = text_key("hash:32@1", TEXTS[0]), text_key("hash:32@1", TEXTS[1])
    with sqlite3.connect(tmp_path / "features.db") as connection:
        connection.execute(
            "UPDATE features SET (checksum, row) = (SELECT checksum, row FROM features WHERE key = ?) WHERE key = ?",
            (one, two),
        )
    connection.close()
    healed, encoded = encode(TEXTS, tmp_path)
    assert encoded == 1
    np.testing.assert_array_equal(healed, expected)


@pytest.mark.parametrize("damage", ["not a database", "pages"])
def test_a_damaged_file_is_replaced_and_said(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A cache may always be rebuilt; the run goes on."""
    texts = [f"item number {n}" for n in range(400)]
    expected, _ = encode(texts, tmp_path)
    file = tmp_path / "features.db"
    good = file.read_bytes()
    if damage == "pages":  # the header stays, every page after it is overwritten
        file.write_bytes(good[:4096] + b"\xff" * (len(good) - 4096))
    else:
        file.write_bytes(b"not a database at all" * 1000)
    with caplog.at_level(logging.WARNING):
        healed, encoded = encode(texts, tmp_path)
    assert encoded == 400
    assert "the file is damaged" in caplog.text
    np.testing.assert_array_equal(healed, expected)
    assert encode(texts, tmp_path)[1] == 0


def test_an_unusable_folder_is_a_configuration_error(tmp_path: Path) -> None:
    """The way out is in the message."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match=r"cannot be used: .*Set ISTHMUS_CACHE"):
        FeatureCache(tmp_path / "file" / "cache")
    (tmp_path / "folder" / "features.db").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"cannot be used: .*Set ISTHMUS_CACHE"):
        FeatureCache(tmp_path / "folder")


def test_the_default_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ours first, then the XDG folder when it is absolute, then the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("ISTHMUS_CACHE", "~/mine")
    assert default_cache_dir() == tmp_path / "mine"
    monkeypatch.delenv("ISTHMUS_CACHE")
    assert default_cache_dir() == tmp_path / "xdg" / "isthmus"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_cache_dir() == tmp_path / ".cache" / "isthmus"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_dir() == tmp_path / ".cache" / "isthmus"


_WRITER = """
import sys
from pathlib import Path
import numpy as np
from isthmus.features import FeatureCache
from isthmus.features.cache import text_key
folder, start = Path(sys.argv[1]), int(sys.argv[2])
with FeatureCache(folder) as cache:
    print("ready", flush=True)
    sys.stdin.readline()
    for n in range(start, start + 300):
        cache.write([text_key("t", str(n))], np.full((1, 8), n, dtype=np.float32))
"""


def test_two_processes_write_one_cache_at_the_same_time(tmp_path: Path) -> None:
    """Interleaved writers, overlapping keys: no row is lost and none is mixed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(tmp_path), start],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for start in ("0", "150")
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n", writer.communicate()[1]
    for writer in writers:  # both have it open: now let them race
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        _, errors = writer.communicate(timeout=120)
        assert writer.returncode == 0, errors
    with FeatureCache(tmp_path) as cache:
        features, found = cache.read([text_key("t", str(n)) for n in range(450)], 8)
    assert found.all()
    np.testing.assert_array_equal(features, np.repeat(np.arange(450, dtype=np.float32)[:, None], 8, axis=1))


def test_a_killed_writer_leaves_what_it_finished(tmp_path: Path) -> None:
    """Killed in mid-write, the file opens and holds whole rows only."""
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(tmp_path), "0"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert writer.stdin is not None
    assert writer.stdout is not None
    writer.stdout.readline()
    writer.stdin.write("go\n")
    writer.stdin.flush()
    keys = [text_key("t", str(n)) for n in range(300)]
    with FeatureCache(tmp_path) as cache:
        while not cache.read(keys[:3], 8)[1].all():  # it is under way
            assert writer.poll() is None or cache.read(keys[:3], 8)[1].all()
        writer.kill()
        writer.communicate()
        features, found = cache.read(keys, 8)
        cache.write(keys, np.zeros((300, 8), dtype=np.float32))  # no lock was left behind
    finished = int(found.sum())
    assert finished >= 3
    assert found[:finished].all()
    np.testing.assert_array_equal(features[:finished, 0], np.arange(finished))
