"""Build this checkout, one process at a time: two builds at once write the same metadata and lose half of it."""

import fcntl
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def build(out: Path, *options: str) -> None:
    """Put the wheel (and the sdist, unless `--wheel` says otherwise) of this checkout into a folder."""
    with (Path(tempfile.gettempdir()) / "isthmus-build.lock").open("w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = [sys.executable, "-m", "build", "--no-isolation", *options, "--outdir", str(out), str(ROOT)]
        subprocess.run(command, check=True, capture_output=True)
