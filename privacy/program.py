"""Which code is this? Hashes of source, for the record and for policies that allow certain versions only.

code_hash()                # of this program: 64 hex digits, the same for the same files, wherever they are installed
backbone_hash("gru4rec")   # of the package that holds a custom backbone, as it lies on the disk; nothing of it is run
"""

import functools
import hashlib
from collections.abc import Iterable
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path

import isthmus
from isthmus.errors import ConfigError
from isthmus.installed import installed_backbone


@functools.cache
def code_hash() -> str:
    """SHA-256 over the names and contents of all Python files of the installed package, in name order."""
    root = Path(isthmus.__file__).parent
    return _hash("isthmus program 1", root, (file for file in _files(root) if file.suffix == ".py"))


def backbone_hash(name: str) -> str:
    """SHA-256 over a custom backbone's entry point and the names and contents of its package's files, in name order.

    Read afresh at each call. The package is the first one on the entry point's path that is no namespace, or the
    module where there is none. All of its files count, compiled ones and data too; what lies in a `__pycache__` does
    not, nor does what it imports from other packages.

    Raises:
        ConfigError: If it is not installed, or its files cannot be told: in a zip file, built in, put together from
            several folders.

    Guarantees:
        - No code of the package is run.
    """
    entry = installed_backbone(name)
    try:
        root, files = _package(entry)
        return _hash(f"isthmus backbone 1 {entry.value}", root, files)
    except (ImportError, AttributeError, ValueError, OSError) as error:
        # Not the error's own words: they hold paths, and a refusal is read by whoever asked.
        raise ConfigError(
            f"custom backbone {name!r} ({entry.value}) has no hash, because its files cannot be read as one package in "
            f"one folder ({type(error).__name__}). Install it as one, or allow it by its name alone: docs/backbone.md."
        ) from error


def _hash(title: str, root: Path, files: Iterable[Path]) -> str:
    running = hashlib.sha256(f"{title}\n".encode())
    names = {file.relative_to(root).as_posix(): file for file in files}
    for name, file in sorted(names.items()):
        if "\n" in name:
            raise ValueError("a name of two lines could be taken for a name and a content")
        content = file.read_bytes()
        running.update(f"{name}\n{len(content)}\n".encode())
        running.update(content)
    return running.hexdigest()


def _files(folder: Path) -> list[Path]:
    """Files below a folder, role folders that are links included, but for caches."""
    found = []
    for each in folder.iterdir():
        if each.is_dir():
            found += [] if each.name == "__pycache__" else _files(each)
        elif each.is_file():
            found.append(each)
    return found


def _package(entry: EntryPoint) -> tuple[Path, list[Path]]:
    """Folder and files of what holds an entry point."""
    parts = entry.module.split(".")
    for depth in range(1, len(parts) + 1):
        # Imports what is above, which is namespaces: they hold no code.
        spec = find_spec(".".join(parts[:depth]))
        if spec is not None and spec.origin is None and spec.submodule_search_locations is not None:
            continue
        if spec is None or spec.origin is None or not spec.has_location:
            break
        place, inside = Path(spec.origin), "/".join(parts[depth:])
        if spec.submodule_search_locations is None:
            files = [place]
        else:
            files = _files(place.parent)
            inside = inside or "__init__"
        names = [file.relative_to(place.parent).as_posix() for file in files]
        starts = (f"{inside}.", f"{inside}/__init__.") if inside else ("",)
        # A package may look for its modules elsewhere, too; a hash that leaves out the backbone itself says nothing.
        if not any(name.startswith(starts) for name in names):
            break
        return place.parent, files
    raise ImportError(name=entry.module)
