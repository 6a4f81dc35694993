"""Write a whole file so that a crash leaves the old one or the new one, never a part.

write_durably(folder / "result.json", content)
"""

import os
from pathlib import Path


def write_durably(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Replace a file's content, synced to disk when this returns.

    Args:
        path: Of the file; missing folders are made.
        content: All of it.
        mode: Permissions, less the process's mask.

    Raises:
        OSError: If the disk refuses; the old file is then still there, whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    partial.unlink(missing_ok=True)  # a left-over may have other permissions
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
