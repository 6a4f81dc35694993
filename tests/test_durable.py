"""A file is written whole or not at all."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from isthmus.durable import write_durably

ROOT = Path(__file__).parents[1]
LOOP = """
import sys
from pathlib import Path
from isthmus.durable import write_durably
content = [bytes([letter]) * 300_000 for letter in b"ab"]
while True:
    for each in content:
        write_durably(Path(sys.argv[1]), each)
"""


@dataclass
class WatchedSync:
    """`os.fsync` that notes what is synced, and whether `file` had its name by then."""

    file: Path
    seen: list[tuple[str, bool]] = field(default_factory=list)
    sync: Callable[[int], None] = os.fsync

    def __call__(self, descriptor: int) -> None:
        """Note and sync."""
        self.seen.append((Path(f"/proc/self/fd/{descriptor}").resolve().name, self.file.exists()))
        self.sync(descriptor)


def test_a_file_is_replaced_and_its_folders_are_made(tmp_path: Path) -> None:
    """The new content stands alone: no part of the old one, no partial file beside it."""
    file = tmp_path / "new" / "folder" / "file.bin"
    write_durably(file, b"long old content")
    write_durably(file, b"new")
    assert file.read_bytes() == b"new"
    assert [each.name for each in file.parent.iterdir()] == ["file.bin"]


def test_a_disk_that_refuses_leaves_the_old_file(tmp_path: Path) -> None:
    """Where the new file cannot be written, the error is said and the old one is still whole."""
    file = tmp_path / "file.bin"
    write_durably(file, b"old")
    (tmp_path / "file.bin.part").mkdir()  # nothing can be written there
    with pytest.raises(OSError, match="directory"):
        write_durably(file, b"new")
    assert file.read_bytes() == b"old"


def test_the_content_is_synced_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is synced under its partial name, and the folder after the rename."""
    file = tmp_path / "file.bin"
    if not Path("/proc/self/fd").exists():
        pytest.skip("this system does not tell which file a descriptor belongs to")
    watched = WatchedSync(file=file)
    monkeypatch.setattr(os, "fsync", watched)
    write_durably(file, b"content")
    assert watched.seen == [("file.bin.part", False), (tmp_path.name, True)]


def test_a_kill_at_any_moment_leaves_one_whole_file(tmp_path: Path) -> None:
    """Killed six times in the middle of endless writing: always all of one content or all of the other."""
    file = tmp_path / "file.bin"
    wholes = {bytes([letter]) * 300_000 for letter in b"ab"}
    for number in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", LOOP, str(file)], env={**os.environ, "PYTHONPATH": str(ROOT / "src")}
        )
        if not number:
            while not file.exists():
                time.sleep(0.01)
        time.sleep(0.15 + 0.03 * number)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert file.read_bytes() in wholes
