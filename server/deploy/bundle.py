"""What Flower ships to every node at the start of a run: a bundle (FAB) that holds settings and no code.

    bundle = make_bundle()
    bundle.digest           # what a business unit can expect, whatever coordinator it is from

Both apps are references into the installed package, so a node runs the code that its own business unit has installed.
The bundle is the same, byte for byte, for every run of one version of Isthmus: a run's own settings travel beside it.
"""

import hashlib
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass

from flwr.cli.build import build_fab_from_files

SETTINGS: Mapping[str, str | int | float] = {
    "federation": "",
    "folder": "",
    "heads": "",
    "run": "",
    "rounds": 0,
    "seed": -1,
    "domains": 1,
    "deadline": 0.0,
    "joining": 0.0,
    "poll": 0.0,
}
"""The run configuration's keys; `isthmus.server.app` says what they mean."""

_PYPROJECT = """\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "isthmus"
version = "{version}"
license = "Apache-2.0"
description = "Settings only: the code is what the node has installed."
dependencies = []

[tool.flwr.app]
publisher = "isthmus"

[tool.flwr.app.components]
serverapp = "isthmus.server.app:app"
clientapp = "{clientapp}"

[tool.flwr.app.config]
{settings}
"""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A Flower bundle.

    Attributes:
        content: The file's bytes.
        digest: SHA-256 of them, as hex.
    """

    content: bytes
    digest: str


def make_bundle(files: Mapping[str, bytes] | None = None, clientapp: str = "isthmus.clients.app:app") -> Bundle:
    """Build the bundle of the installed version.

    Args:
        files: Code to ship, by name; none, but in tests.
        clientapp: What a node runs; another one in tests only.

    Guarantees:
        - Without `files`, the bundle holds one file, its settings, besides Flower's list of contents.
        - It is the same for everybody who has this version installed.
    """
    settings = "\n".join(f"{key} = {value!r}".replace("'", '"') for key, value in SETTINGS.items())
    version = importlib.metadata.version("isthmus")
    text = _PYPROJECT.format(version=version, clientapp=clientapp, settings=settings)
    content, _ = build_fab_from_files({"pyproject.toml": text.encode(), **(files or {})})
    return Bundle(content=content, digest=hashlib.sha256(content).hexdigest())
