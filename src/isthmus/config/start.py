"""The backbone that a federation starts from: was it trained in the open, on what, and does it fit?

    started = read_start(path, features=federation.features, shape=federation.backbone.shape)
    started.digest, [domain.name for domain in started.domains]

Only the header of the file is looked at, and the whole of it hashed: nothing here needs numpy or torch, so that a wrong
file is said at once. `isthmus pretrain` writes such files; no other backbone says that it was trained in the open.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from isthmus.config.domain import Name
from isthmus.errors import ConfigError
from isthmus.settings import Section

_LONGEST = 10_000_000
"""Bytes of a header that are read."""


class PublicDomain(Section):
    """A domain that has declared its histories public, as it was when it was trained on.

    Attributes:
        name: Of the domain.
        users: That were trained on.
        fingerprint: Of its data set, hex (`isthmus.clients.data.fingerprint`); public as the data are.
    """

    name: Name
    users: Annotated[int, Field(ge=1)]
    fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


PublicDomains = Annotated[tuple[PublicDomain, ...], Field(strict=False, min_length=1, max_length=100)]


class StartedFrom(Section):
    """What a run says of the backbone that it starts from.

    Attributes:
        digest: SHA-256 of the file, hex.
        domains: Whose public histories it was trained on, without noise.
    """

    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    domains: PublicDomains


def start_digest(path: Path) -> str:
    """(64 hex digits) SHA-256 of the file.

    Raises:
        ConfigError: If it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(
            f"`backbone.start`: {path}: cannot be read ({error.strerror}). `isthmus pretrain` writes such a file."
        ) from None


def read_start(path: Path, *, features: Section, shape: Section) -> StartedFrom:
    """What a backbone file says of itself, if a federation can start from it.

    Args:
        path: Of the file.
        features: The federation's `[features]`.
        shape: The federation's `[backbone]`, without the start.

    Raises:
        ConfigError: If it is no backbone, was not trained in the open, or has another encoder or shape.
    """
    digest = start_digest(path)
    header = _header(path)
    if "origin" not in header:
        raise ConfigError(
            f"`backbone.start`: {path}: does not say that it was trained in the open, so nothing private may start "
            f"from it. `isthmus pretrain` writes a backbone that does."
        )
    try:
        found = {"features": type(features).model_validate(header["features"])}
        found["backbone"] = type(shape).model_validate(header["backbone"])
        started = StartedFrom(digest=digest, domains=header["origin"]["domains"])
    except (KeyError, TypeError, ValidationError) as error:
        raise _not_one(path, error) from None
    for section, said in (("features", features), ("backbone", shape)):
        theirs, ours = found[section].model_dump(), said.model_dump()
        for key in ours:
            if theirs[key] != ours[key]:
                raise ConfigError(
                    f"`backbone.start`: {path}: was trained with `{section}.{key}` = {theirs[key]!r}, and this "
                    f"federation has {ours[key]!r}. Change [{section}], or pre-train again."
                )
    return started


def _header(path: Path) -> dict[str, Any]:
    """Ours, in the metadata of a safetensors file."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > _LONGEST:
                raise ValueError("its header is too long")
            header = json.loads(json.loads(file.read(size))["__metadata__"]["isthmus"])
        if not isinstance(header, dict):
            raise TypeError("its header is no object")
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise _not_one(path, error) from None
    return header


def _not_one(path: Path, error: Exception) -> ConfigError:
    first = str(error).splitlines()[0] if str(error) else repr(error)
    return ConfigError(
        f"`backbone.start`: {path}: not a backbone of this version ({first:.100}). `isthmus pretrain` writes one."
    )
