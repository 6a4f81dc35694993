"""Which program is this? A hash of its own source, for the record and for policies that allow certain versions only.

code_hash()      # 64 hex digits; the same for the same files, wherever they are installed
"""

import functools
import hashlib
from pathlib import Path

import isthmus


@functools.cache
def code_hash() -> str:
    """SHA-256 over the names and contents of all Python files of the installed package, in name order."""
    root = Path(isthmus.__file__).parent
    running = hashlib.sha256(b"isthmus program 1\n")
    for file in sorted(_sources(root), key=lambda file: file.relative_to(root).as_posix()):
        content = file.read_bytes()
        running.update(f"{file.relative_to(root).as_posix()}\n{len(content)}\n".encode())
        running.update(content)
    return running.hexdigest()


def _sources(folder: Path) -> list[Path]:
    """Python files below a folder, role folders that are links included."""
    found = []
    for each in folder.iterdir():
        if each.is_dir():
            found += _sources(each)
        elif each.suffix == ".py":
            found.append(each)
    return found
