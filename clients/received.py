"""Tensors that were sent to a domain, kept by their digest, so that they need not be sent again.

    parameters = Received(folder, most=16)
    parameters.keep(digest, arrays)
    arrays = parameters.get(digest)        # None where they were forgotten

Nothing in here is private: a coordinator sent it. Losing it costs a message, so it is written without haste.
"""

import contextlib
import threading
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from isthmus.encoding import Arrays
from isthmus.packing import arrays_digest


class Received:
    """A folder of named float32 tensors.

    Args:
        folder: Made when something is kept.
        most: Kept of them, the latest: anybody who may ask can send some, and a disk is not endless.
    """

    def __init__(self, folder: Path, *, most: int) -> None:
        self._folder = folder
        self._most = most

    def get(self, digest: str) -> Arrays | None:
        """What was kept under a digest (64 hex digits); None if it was not, or is damaged."""
        try:
            arrays: Arrays = load_file(self._file(digest))
        except (FileNotFoundError, SafetensorError):
            return None
        return arrays if arrays_digest(arrays).hex() == digest else None

    def keep(self, digest: str, arrays: Arrays) -> None:
        """Keep tensors; the oldest are forgotten."""
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._file(digest)
        partial = file.with_suffix(f".{threading.get_native_id()}.part")
        save_file(arrays, partial)
        partial.replace(file)
        with contextlib.suppress(FileNotFoundError):  # another vault with the same folder tidies up, too
            kept = self._folder.glob("*.safetensors")
            dated = sorted(kept, key=lambda each: (each.stat().st_mtime_ns, each.name))
            for each in dated[: -self._most]:
                each.unlink()

    def _file(self, digest: str) -> Path:
        return self._folder / f"{digest}.safetensors"
