"""A domain's histories on disk, as arrays that are mapped into memory: the second opening parses no table.

    data = open_domain_data(config)                # reads the tables, or maps what an earlier opening kept

What is kept is private: it is another form of the interaction table. It lies in the domain's own folder, in
`.isthmus-histories/` (mode 0700, files 0600), and may be deleted at any time. Only the latest state of the data is
kept.

Nothing there is trusted for lying there. It is used if it belongs to this process's user and nobody else may touch it,
if it was made by this version from tables of the same content under the same settings, and if every array still has
the digest that was noted when it was written. Else it is deleted, and made again. Where the folder cannot be written,
the histories stay in memory.
"""

import hashlib
import json
import logging
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from isthmus import __version__
from isthmus.clients.data.catalogue import Catalogue, read_catalogue
from isthmus.clients.data.domain import DataReport, DomainData, load_domain_data
from isthmus.clients.data.splits import Histories
from isthmus.clients.data.users import UserIds
from isthmus.config import DomainConfig

FOLDER = ".isthmus-histories"
"""Of the domain's folder; may be deleted at any time."""

_LOG = logging.getLogger("isthmus.data")
_FORMAT = 1  # raise it when what is kept, or how it is made, changes
_ABOUT = "about.json"
_NAMES = (
    "train-offsets",
    "train-items",
    "before-test-offsets",
    "before-test-items",
    "validation",
    "test",
    "user-ends",
    "user-text",
)
_OTHERS = 0o077  # what anybody but the owner may do


def open_domain_data(config: DomainConfig) -> DomainData:
    """A domain's data, its histories mapped from disk.

    The tables are read at every opening to be sure that they are the same (a digest of their bytes), and parsed only
    if they are not.

    Args:
        config: Of the domain; arrays are kept in its folder.

    Raises:
        ConfigError, DataError: As `load_domain_data`.
    """
    folder = config.folder / FOLDER
    try:
        key = _key(config)
    except OSError:  # said properly by the reader
        return load_domain_data(config)
    kept = _read(folder, key)
    if kept is None:
        data = load_domain_data(config)
        if _key(config) != key or not _write(folder, key, data):  # tables that change meanwhile are not kept
            return data
        kept = _read(folder, key)
        if kept is None:  # another process keeps another state of the data
            return data
        return _assemble(config, data.catalogue, *kept)
    return _assemble(config, read_catalogue(config).catalogue, *kept)


def _key(config: DomainConfig) -> str:
    """Digest of all that decides the arrays: format, version, settings, and the tables' bytes."""
    settings = config.model_dump_json(include={"interactions", "items", "split"})
    digest = hashlib.sha256(f"isthmus kept {_FORMAT} {__version__}\0{settings}\0".encode())
    for path in (config.interactions_path, config.items_path):
        digest.update(_digest(path).encode())
    return digest.hexdigest()


def _digest(path: Path) -> str:
    """SHA-256 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(folder: Path, key: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]] | None:
    """Mapped arrays and what was noted about them; None where there is nothing that may be used."""
    try:
        for place in (folder, folder / key):
            _require_private(place, stat.S_IFDIR)
        _require_private(folder / key / _ABOUT, stat.S_IFREG)
        about = json.loads((folder / key / _ABOUT).read_bytes())
        if about["key"] != key:
            raise ValueError("it was made from something else")
        arrays = {}
        for name in _NAMES:
            file = folder / key / f"{name}.npy"
            _require_private(file, stat.S_IFREG)
            if _digest(file) != about["arrays"][name]:
                raise ValueError(f"{file.name} was changed")
            # A plain view of the mapped pages: slices of np.memmap are several times slower.
            arrays[name] = np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        _LOG.warning("%s: what is kept there is not used, and made again: %s", folder, error)
        return None
    return arrays, about


def _write(folder: Path, key: str, data: DomainData) -> bool:
    """Keep the data in place of what was kept; False where that is not possible."""
    partial = None
    try:
        _make_private(folder)
        partial = Path(tempfile.mkdtemp(prefix="part-", dir=folder))  # mode 0700
        digests = {name: _save(partial / f"{name}.npy", array) for name, array in _arrays(data).items()}
        about = {
            "key": key,
            "arrays": digests,
            "fingerprint": data.fingerprint.hex(),
            "report": data.report.to_dict(),
        }
        with _opened(partial / _ABOUT) as file:
            file.write(json.dumps(about).encode())
        for other in folder.iterdir():
            if other != partial:
                _remove(other)
        partial.rename(folder / key)
    except OSError as error:
        _LOG.warning("%s: histories cannot be kept there, and stay in memory: %s", folder, error)
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
        return False
    return True


def _arrays(data: DomainData) -> dict[str, NDArray[Any]]:
    """What is kept, by name."""
    users = data.users if isinstance(data.users, UserIds) else UserIds.of(data.users)
    train, before = data.train, data.before_test
    arrays = (train.offsets, train.items, before.offsets, before.items, data.validation, data.test)
    return dict(zip(_NAMES, (*arrays, users.ends, users.text), strict=True))


def _require_private(path: Path, kind: int) -> None:
    """ValueError unless a path is of a kind (no link), this process's user's, and closed to all others."""
    found = path.lstat()
    if stat.S_IFMT(found.st_mode) != kind or found.st_uid != os.geteuid() or found.st_mode & _OTHERS:
        raise ValueError(f"{path.name} is not a private file or folder of this user")


def _make_private(folder: Path) -> None:
    """Make the folder, in place of whatever else has its name."""
    try:
        _require_private(folder, stat.S_IFDIR)
    except FileNotFoundError:
        folder.mkdir(mode=0o700)
    except ValueError:
        _remove(folder)
        folder.mkdir(mode=0o700)


def _remove(path: Path) -> None:
    """Delete a file, a link (not what it points to) or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _opened(path: Path) -> BinaryIO:
    """A new file that only its owner may read."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def _save(path: Path, array: NDArray[Any]) -> str:
    """Write an array; returns the digest of its file."""
    with _opened(path) as file:
        np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)
    return _digest(path)


def _assemble(
    config: DomainConfig, catalogue: Catalogue, arrays: dict[str, NDArray[Any]], about: dict[str, Any]
) -> DomainData:
    """The data that was kept."""
    report = dict(about["report"])
    return DomainData(
        config=config,
        catalogue=catalogue,
        users=UserIds(arrays["user-ends"], arrays["user-text"]),
        train=Histories(offsets=arrays["train-offsets"], items=arrays["train-items"]),
        before_test=Histories(offsets=arrays["before-test-offsets"], items=arrays["before-test-items"]),
        validation=arrays["validation"],
        test=arrays["test"],
        fingerprint=bytes.fromhex(about["fingerprint"]),
        report=DataReport(**{**report, "notes": tuple(report["notes"])}),
    )
