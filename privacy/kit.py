"""An invitation to a federation: one signed file with all that a business unit needs to take part.

    write_kit(Path("books.zip"), Kit(domain="books", address="fl.example.org:8443", ...), files, keys)   # coordinator
    kit, files = read_kit(Path("books.zip"))                                                               # unit

A zip file with `kit.json`, the certificate authority that the coordinator's certificate is signed by, and the key by
which this node shows who it is. The node's key opens no data and signs no ledger: whoever steals it can pose as a
domain towards the coordinator until the node is removed there, so hand the file over as one hands over a password.

The coordinator signs `kit.json` (Ed25519), which holds hashes of the other files. Its public key should be known from
elsewhere; the signature then shows that the kit is its own.
"""

import datetime as dt
import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from isthmus.config import Name
from isthmus.durable import write_durably
from isthmus.errors import ConfigError
from isthmus.privacy.keys import Keys, SignatureError, check_signature
from isthmus.privacy.lines import Hash, Text, Time
from isthmus.settings import Section

CA, NODE_KEY, NODE_PUBLIC = "ca.crt", "node.key", "node.pub"
FILES = (CA, NODE_KEY, NODE_PUBLIC)
"""What lies in a kit beside `kit.json`."""
_ABOUT = "kit.json"
_LARGEST = 1_000_000  # bytes of a kit, and of each of its files


class Kit(Section):
    """What a coordinator says to one domain.

    Attributes:
        format: Of the kit.
        domain: Who is invited.
        coordinator: What the coordinator calls itself.
        address: HOST:PORT that the node connects to.
        key: The coordinator's public key, hex; signs this kit, every request and every receipt.
        isthmus: Version that the coordinator runs.
        program: Hash of that program; the domain's should be the same.
        bundle: Hash of the bundle that the coordinator sends to nodes; it carries no code.
        until: The kit is not to be used afterwards; UTC, ISO 8601.
    """

    format: Literal[1] = 1
    domain: Name
    coordinator: Text
    address: Annotated[str, Field(pattern=r"^[A-Za-z0-9.\-\[\]:]{1,250}:[0-9]{1,5}$")]
    key: Hash
    isthmus: Text
    program: Hash
    bundle: Hash
    until: Time


def write_kit(path: Path, kit: Kit, files: Mapping[str, bytes], keys: Keys) -> None:
    """Sign a kit and write it, readable by its owner only.

    Args:
        path: Of the zip file.
        kit: What it says.
        files: Content of each of `FILES`.
        keys: The coordinator's; their public key is the kit's.

    Raises:
        ValueError: If the files are not those of a kit, or the key is another one.
        OSError: If it cannot be written.
    """
    if set(files) != set(FILES) or kit.key != keys.public.hex():
        raise ValueError(f"a kit holds {FILES} and is signed by its own key; got {sorted(files)}")
    said = {"kit": kit.model_dump(mode="json"), "files": {name: _hash(files[name]) for name in FILES}}
    about = {**said, "signature": keys.sign(_message(said)).hex()}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(_ABOUT, json.dumps(about, indent=1))
        for name in FILES:
            archive.writestr(name, files[name])
    write_durably(path, packed.getvalue(), mode=0o600)


def read_kit(path: Path, *, now: dt.datetime | None = None) -> tuple[Kit, dict[str, bytes]]:
    """What a kit says, and its files.

    Args:
        path: Of the zip file.
        now: When it is read; the clock's time where absent.

    Raises:
        ConfigError: If it is no kit, was changed after it was signed, or is too old.

    Guarantees:
        - Whatever is returned was signed by the key that the kit names.
        - Nothing is unpacked: names in the archive are compared, never used as paths.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise ConfigError(f"{path}: {path.stat().st_size} bytes are too many for a kit")
        with zipfile.ZipFile(path) as archive:
            members = {member.filename: member for member in archive.infolist()}
            if set(members) != {_ABOUT, *FILES}:
                raise ConfigError(f"{path}: a kit holds {_ABOUT} and {', '.join(FILES)}; this holds {_listed(members)}")
            large = [name for name, member in members.items() if member.file_size > _LARGEST]
            if large:
                raise ConfigError(f"{path}: {large[0]} is too large for a kit")
            about = json.loads(archive.read(_ABOUT))
            files = {name: archive.read(name) for name in FILES}
        said = {"kit": about["kit"], "files": about["files"]}
        kit = Kit.model_validate(about["kit"])
        check_signature(bytes.fromhex(kit.key), _message(said), bytes.fromhex(about["signature"]))
        changed = [name for name in FILES if about["files"][name] != _hash(files[name])]
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; the coordinator makes a kit with `isthmus invite`") from None
    except SignatureError:
        raise ConfigError(f"{path}: it is not signed by the key that it names; ask for another one") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{path}: not a kit: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise ConfigError(f"{path}: not a kit: {error!r:.200}") from None
    if changed:
        raise ConfigError(f"{path}: {changed[0]} was changed after the kit was signed; ask for another one")
    if dt.datetime.fromisoformat(kit.until) < (now or dt.datetime.now(dt.UTC)):
        raise ConfigError(f"{path}: it was to be used until {kit.until}; ask the coordinator for another one")
    return kit, files


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _message(said: Mapping[str, object]) -> bytes:
    return b"isthmus kit 1\n" + json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _listed(members: Mapping[str, object]) -> str:
    return ", ".join(repr(name)[:40] for name in list(members)[:8]) or "nothing"
