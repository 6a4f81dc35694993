"""The keys of a ledger: who signs its lines, sealed on disk.

    secret = secret_from_environment()                   # a passphrase or a key file
    keys = create_keys(Path("books/ledger.key"), secret)  # or open_keys(path, secret)
    signature = keys.sign(b"...")
    check_signature(keys.public, b"...", signature)      # SignatureError if it is not

Ed25519 (RFC 8032) signs. A second secret keys the data set's fingerprint, so that a ledger can say
"the same data as before" without saying anything about the data. Both lie in one file, sealed with
ChaCha20-Poly1305 (RFC 8439) under a key that scrypt (RFC 7914) makes of a passphrase, or HKDF
(RFC 5869) of a key file.

The secret comes from `ISTHMUS_PASSPHRASE`, or from the file that `ISTHMUS_KEY_FILE` names, or, where neither
is set, from a key file that is made once per user of the machine (`isthmus/ledger.secret` in the user's state
folder, readable by nobody else). The last one protects copies of a domain's folder, not against whoever reads
the user's files.
"""

import functools
import hashlib
import hmac
import json
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from isthmus.durable import write_durably
from isthmus.errors import ConfigError, RunError

PASSPHRASE, KEY_FILE = "ISTHMUS_PASSPHRASE", "ISTHMUS_KEY_FILE"
_SCRYPT_COST = 2**15
_LEAST_PASSPHRASE, _LEAST_KEY_FILE = 12, 32
_SMALL_ORDER = frozenset(
    (
        *(low.to_bytes(32, "little") for low in (0, 1, 2**255 - 20, 2**255 - 19, 2**255 - 18)),
        bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
        bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
    )
)
"""Ed25519 keys, without their sign, for which anybody can make signatures; as in libsodium's `has_small_order`."""


class SignatureError(ValueError):
    """A signature is not what it should be."""


@dataclass(frozen=True, kw_only=True)
class Secret:
    """What a key file is sealed with.

    Attributes:
        content: The passphrase or the key file, as bytes.
        stretch: Whether it is a passphrase, which needs a slow derivation.
        source: Where it came from, for messages.
    """

    content: bytes
    stretch: bool
    source: str

    def __repr__(self) -> str:
        return f"Secret({self.source})"

    def derive(self, salt: bytes) -> bytes:
        """(32 bytes) The sealing key for a salt."""
        if self.stretch:
            return Scrypt(salt=salt, length=32, n=_SCRYPT_COST, r=8, p=1).derive(self.content)
        return HKDF(algorithm=SHA256(), length=32, salt=salt, info=b"isthmus ledger key 1").derive(self.content)


@dataclass(frozen=True, kw_only=True)
class Keys:
    """An opened pair of secrets.

    Attributes:
        signing: Signs the lines of a chain.
        fingerprint_key: Keys the fingerprint of a data set; outlives rotation of the signing key.
    """

    signing: Ed25519PrivateKey = field(repr=False)
    fingerprint_key: bytes = field(repr=False)

    @property
    def public(self) -> bytes:
        """(32 bytes) What others check signatures with."""
        return self.signing.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """(64 bytes) Signature of a message."""
        return self.signing.sign(message)

    def fingerprint(self, content: bytes) -> bytes:
        """(32 bytes) Keyed hash; without the key it tells nothing about the content, not even by guessing."""
        return hmac.new(self.fingerprint_key, content, hashlib.sha256).digest()

    def rotated(self) -> "Keys":
        """The same fingerprints under a fresh signing key."""
        return Keys(signing=Ed25519PrivateKey.generate(), fingerprint_key=self.fingerprint_key)


def fresh_keys() -> Keys:
    """Keys that nobody has had before."""
    return Keys(signing=Ed25519PrivateKey.generate(), fingerprint_key=os.urandom(32))


def save_keys(path: Path, keys: Keys, secret: Secret) -> None:
    """Seal keys into a file, synced, readable by its owner only.

    Raises:
        RunError: If it cannot be written; what was there before still is.
    """
    salt, nonce = os.urandom(16), os.urandom(12)
    header = {"isthmus-key": 1, "public": keys.public.hex(), "kdf": "scrypt" if secret.stretch else "hkdf"}
    plain = keys.signing.private_bytes_raw() + keys.fingerprint_key
    sealed = ChaCha20Poly1305(secret.derive(salt)).encrypt(nonce, plain, _bound(header))
    content = {**header, "salt": salt.hex(), "nonce": nonce.hex(), "sealed": sealed.hex()}
    try:
        write_durably(path, json.dumps(content, indent=1).encode(), mode=0o600)
    except OSError as error:
        raise RunError(f"{path}: the ledger's key cannot be written: {error.strerror}; make room for it") from None


def open_keys(path: Path, secret: Secret) -> Keys:
    """Open a sealed key file.

    Raises:
        RunError: If it is absent, is not a key file, or the secret does not open it.
    """
    header, (salt, nonce, sealed) = _parts(path)
    asked, given = ("a passphrase", "a key file") if header["kdf"] == "scrypt" else ("a key file", "a passphrase")
    if secret.stretch != (header["kdf"] == "scrypt"):
        raise RunError(f"{path}: sealed with {asked}, and {given} was given ({secret.source}); set {_HOW}")
    try:
        plain = ChaCha20Poly1305(secret.derive(salt)).decrypt(nonce, sealed, _bound(header))
    except (InvalidTag, ValueError):  # the second for a nonce of another length
        raise RunError(f"{path}: {secret.source} does not open it, or it was changed; set {_HOW}") from None
    keys = Keys(signing=Ed25519PrivateKey.from_private_bytes(plain[:32]), fingerprint_key=plain[32:])
    if keys.public.hex() != header["public"]:
        raise RunError(f"{path}: its public key is not that of its private key")
    return keys


def claimed_key(path: Path) -> bytes:
    """(32 bytes) The public key that a key file names; whether it is that of the sealed one only `open_keys` knows.

    Raises:
        RunError: If it is absent or is not a key file.
    """
    return bytes.fromhex(str(_parts(path)[0]["public"]))


def check_signature(public: bytes, message: bytes, signature: bytes) -> None:
    """Accept a signature, or say no.

    Raises:
        SignatureError: If it is not this key's signature of this message.

    Guarantees:
        - A key that needs no secret to sign (a point of small order) has no signature.
    """
    if public[:31] + bytes(byte & 0x7F for byte in public[31:]) in _SMALL_ORDER:
        raise SignatureError(f"no key that signs: {public.hex()[:16]}")
    try:
        _public_key(public).verify(signature, message)
    except (InvalidSignature, ValueError) as error:
        raise SignatureError(f"not a signature of key {public.hex()[:16]}") from error


@functools.lru_cache(maxsize=64)
def _public_key(public: bytes) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(public)


def secret_from_environment() -> Secret:
    """The secret that seals keys here; a key file is made where there is none.

    Raises:
        ConfigError: If the passphrase or the key file is too short, or the file cannot be read.
    """
    phrase, named = os.environ.get(PASSPHRASE), os.environ.get(KEY_FILE)
    if phrase is not None:
        if len(phrase) < _LEAST_PASSPHRASE:
            raise ConfigError(f"{PASSPHRASE}: {len(phrase)} characters; use at least {_LEAST_PASSPHRASE}")
        return Secret(content=os.fsencode(phrase), stretch=True, source=f"the passphrase in {PASSPHRASE}")
    path = Path(named) if named else _state_folder() / "ledger.secret"
    try:
        if not named and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            _create_once(path, os.urandom(_LEAST_KEY_FILE))
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: the key file cannot be used: {error.strerror}. Set {_HOW}") from None
    if len(content) < _LEAST_KEY_FILE:
        raise ConfigError(f"{path}: {len(content)} bytes; a key file has at least {_LEAST_KEY_FILE} random ones")
    return Secret(content=content, stretch=False, source=f"the key file {path}")


_HOW = f"{PASSPHRASE}, or {KEY_FILE} to the right file"


def _state_folder() -> Path:
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "isthmus"


def _create_once(path: Path, content: bytes) -> None:
    """Write a file that must be whole the moment it exists; of two processes one wins."""
    partial = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_native_id()}.part")
    write_durably(partial, content, mode=0o600)
    try:
        os.link(partial, path)
    except FileExistsError:
        pass
    finally:
        partial.unlink()


def _parts(path: Path) -> tuple[dict[str, Any], list[bytes]]:
    """What lies open in a key file, and its salt, nonce and sealed secrets; nothing of it is checked yet."""
    try:
        content = json.loads(path.read_bytes())
        header = {name: content[name] for name in ("isthmus-key", "public", "kdf")}
        if header["isthmus-key"] != 1 or header["kdf"] not in {"scrypt", "hkdf"}:
            raise ValueError(f"version {header['isthmus-key']!r}, {header['kdf']!r}")
        if len(bytes.fromhex(header["public"])) != 32:
            raise ValueError(f"public key {header['public']!r:.80}")
        return header, [bytes.fromhex(content[name]) for name in ("salt", "nonce", "sealed")]
    except FileNotFoundError:
        raise RunError(f"{path}: the ledger's key is missing; restore it from a backup") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(f"{path}: not a key file of this version: {error!r:.200}") from None


def _bound(header: dict[str, object]) -> bytes:
    """What the seal covers besides the secrets."""
    return json.dumps(header, sort_keys=True).encode()
