"""Keys: sealed on disk, opened by the right secret only, and every changed byte of their file is a clear refusal."""

import contextlib
import json
import os
import stat
import threading
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.privacy.conftest import OTHER_SECRET, SECRET

from isthmus.errors import ConfigError, RunError
from isthmus.privacy.keys import (
    _SMALL_ORDER,
    KEY_FILE,
    PASSPHRASE,
    Keys,
    Secret,
    SignatureError,
    check_signature,
    claimed_key,
    fresh_keys,
    open_keys,
    save_keys,
    secret_from_environment,
)

PHRASE = Secret(content=b"correct horse battery staple", stretch=True, source="the test's passphrase")
FIELDS = ("isthmus-key", "public", "kdf", "salt", "nonce", "sealed")


@pytest.fixture
def sealed(tmp_path: Path) -> tuple[Path, Keys]:
    """A key file under `SECRET`, and what is in it."""
    path, keys = tmp_path / "ledger.key", fresh_keys()
    save_keys(path, keys, SECRET)
    return path, keys


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Neither a passphrase nor a key file is named; returns the state folder."""
    monkeypatch.delenv(PASSPHRASE, raising=False)
    monkeypatch.delenv(KEY_FILE, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "isthmus"


# Signatures and fingerprints.


def test_a_signature_is_plain_ed25519() -> None:
    """RFC 8032, section 7.1, test 2: the key pair and the signature of the standard itself."""
    private = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
    public = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
    signature = bytes.fromhex(
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )
    keys = Keys(signing=Ed25519PrivateKey.from_private_bytes(private), fingerprint_key=bytes(32))
    assert keys.public == public
    assert keys.sign(b"\x72") == signature
    check_signature(public, b"\x72", signature)


def test_what_is_not_a_signature_is_said_so() -> None:
    """Another message, key or signature, and bytes of any length: `SignatureError`, never another error."""
    keys, other = fresh_keys(), fresh_keys()
    good = keys.sign(b"message")
    for public, message, signature in (
        (keys.public, b"messagf", good),
        (other.public, b"message", good),
        (keys.public, b"message", good[:-1] + bytes([good[-1] ^ 1])),
        (keys.public, b"message", b""),
        (b"", b"message", good),
        (bytes(31), b"message", good),
        (b"\xff" * 32, b"message", good),
    ):
        with pytest.raises(SignatureError):
            check_signature(public, message, signature)


def test_a_fingerprint_says_the_same_and_nothing_else() -> None:
    """Equal content, equal fingerprint, also after rotation; under another key it is another one."""
    keys = fresh_keys()
    assert keys.fingerprint(b"data") == keys.rotated().fingerprint(b"data") != keys.fingerprint(b"datb")
    assert keys.fingerprint(b"data") != fresh_keys().fingerprint(b"data")
    assert keys.rotated().public != keys.public


def test_a_secret_is_not_printed(sealed: tuple[Path, Keys]) -> None:
    """What goes into a log or a traceback shows neither the passphrase nor a key."""
    _, keys = sealed
    shown = repr(keys) + repr(PHRASE) + str(PHRASE)
    assert "correct horse" not in shown
    assert repr(keys.fingerprint_key)[2:-1] not in shown
    assert repr(PHRASE) == "Secret(the test's passphrase)"


# The file.


@pytest.mark.parametrize("secret", [SECRET, PHRASE])
def test_keys_come_back_from_their_file(tmp_path: Path, secret: Secret) -> None:
    """Both secrets, under a key file and under a passphrase."""
    path, keys = tmp_path / "a" / "ledger.key", fresh_keys()
    save_keys(path, keys, secret)
    again = open_keys(path, secret)
    assert (again.public, again.fingerprint_key) == (keys.public, keys.fingerprint_key)
    assert again.sign(b"message") == keys.sign(b"message")
    assert claimed_key(path) == keys.public


def test_a_key_file_is_for_its_owner_only(sealed: tuple[Path, Keys]) -> None:
    """Mode 0600 whatever the process's mask, and so after it was written again over a wider one."""
    path, keys = sealed
    before = os.umask(0)
    try:
        path.chmod(0o644)
        save_keys(path, keys, SECRET)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_no_secret_lies_on_disk_in_the_clear(sealed: tuple[Path, Keys]) -> None:
    """Neither as bytes nor as hex, in no file of the folder."""
    path, keys = sealed
    content = b"".join(file.read_bytes() for file in path.parent.rglob("*") if file.is_file())
    for secret in (keys.signing.private_bytes_raw(), keys.fingerprint_key, SECRET.content):
        assert secret not in content
        assert secret.hex().encode() not in content
    assert keys.public.hex().encode() in content  # so the search would find one


def test_every_sealing_is_different(sealed: tuple[Path, Keys]) -> None:
    """A salt and a nonce of its own each time: equal keys cannot be seen to be equal but by their public part."""
    path, keys = sealed
    first = json.loads(path.read_bytes())
    save_keys(path, keys, SECRET)
    second = json.loads(path.read_bytes())
    assert [first[name] == second[name] for name in FIELDS] == [True, True, True, False, False, False]


def test_another_secret_does_not_open_it(sealed: tuple[Path, Keys]) -> None:
    """Says which secret was tried and where to put the right one."""
    path, _ = sealed
    with pytest.raises(RunError, match=rf"another key file does not open it, or it was changed; set {PASSPHRASE}, or"):
        open_keys(path, OTHER_SECRET)


def test_another_kind_of_secret_is_told_apart(sealed: tuple[Path, Keys], tmp_path: Path) -> None:
    """A passphrase for a file that a key file sealed, and the other way round: said before it is tried."""
    path, keys = sealed
    with pytest.raises(RunError, match="sealed with a key file, and a passphrase was given"):
        open_keys(path, PHRASE)
    save_keys(tmp_path / "other.key", keys, PHRASE)
    with pytest.raises(RunError, match="sealed with a passphrase, and a key file was given"):
        open_keys(tmp_path / "other.key", SECRET)


def test_a_missing_key_file_is_not_made_anew(tmp_path: Path) -> None:
    """Its lines could not be continued: the way out is a backup."""
    with pytest.raises(RunError, match=r"ledger\.key: the ledger's key is missing; restore it from a backup"):
        open_keys(tmp_path / "ledger.key", SECRET)


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize(
    "value", ["", "00", "zz", 0, 2, True, None, [], {}, "hkdf", "scrypt", "\ud800", 1e999, "ab" * 32], ids=repr
)
def test_a_changed_field_is_refused(sealed: tuple[Path, Keys], field: str, value: object) -> None:
    """Every field, of every type: one sentence, never a traceback."""
    path, _ = sealed
    changed = json.loads(path.read_bytes())
    changed[field] = "another" if changed[field] == value and value != 1 else value
    path.write_text(json.dumps(changed))
    with pytest.raises(RunError, match=r"ledger\.key: "):
        open_keys(path, SECRET)


@pytest.mark.parametrize("field", FIELDS)
def test_a_missing_field_is_refused(sealed: tuple[Path, Keys], field: str) -> None:
    """As not a key file of this version."""
    path, _ = sealed
    changed = json.loads(path.read_bytes())
    del changed[field]
    path.write_text(json.dumps(changed))
    with pytest.raises(RunError, match="not a key file of this version"):
        open_keys(path, SECRET)


@given(st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_changed_byte_goes_unnoticed(sealed: tuple[Path, Keys], data: st.DataObject) -> None:
    """One byte of the file, anywhere: it is refused, or says exactly what it said."""
    path, keys = sealed
    save_keys(path, keys, SECRET)
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        again = open_keys(path, SECRET)
    except RunError:
        return
    assert (again.public, again.fingerprint_key) == (keys.public, keys.fingerprint_key)


@pytest.mark.parametrize(
    "content",
    [b"", b"null", b"[]", b"\xff\xfe", b'"text"', b"[" * 100_000, b"1" * 5000, b"{}"],
    ids=lambda c: repr(c[:9]),
)
def test_what_is_not_a_key_file_is_refused(tmp_path: Path, content: bytes) -> None:
    """Whatever the bytes are."""
    path = tmp_path / "ledger.key"
    path.write_bytes(content)
    for read in (lambda: open_keys(path, SECRET), lambda: claimed_key(path)):
        with pytest.raises(RunError, match="not a key file of this version"):
            read()


def test_a_folder_in_its_place_is_said_in_words(tmp_path: Path) -> None:
    """Reading and writing."""
    path = tmp_path / "ledger.key"
    path.mkdir()
    with pytest.raises(RunError, match="not a key file"):
        open_keys(path, SECRET)
    with pytest.raises(RunError, match="the ledger's key cannot be written"):
        save_keys(path, fresh_keys(), SECRET)


# Where the secret comes from.


def test_a_passphrase_goes_before_a_key_file(clean_environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are set: the passphrase is what seals, and no key file is made."""
    monkeypatch.setenv(PASSPHRASE, "twelve chars")
    monkeypatch.setenv(KEY_FILE, "/nowhere")
    secret = secret_from_environment()
    assert (secret.content, secret.stretch) == (b"twelve chars", True)
    assert not clean_environment.exists()


@pytest.mark.parametrize("phrase", ["", "eleven char"])
@pytest.mark.usefixtures("clean_environment")
def test_a_short_passphrase_is_refused(monkeypatch: pytest.MonkeyPatch, phrase: str) -> None:
    """With its length and the least one; an empty one is not the absence of one."""
    monkeypatch.setenv(PASSPHRASE, phrase)
    with pytest.raises(ConfigError, match=rf"ISTHMUS_PASSPHRASE: {len(phrase)} characters; use at least 12"):
        secret_from_environment()


@pytest.mark.usefixtures("clean_environment")
def test_a_passphrase_of_any_bytes_seals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that the terminal wrote in another encoding than ours."""
    monkeypatch.setenv(PASSPHRASE, os.fsdecode(b"sch\xf6n-lang-genug"))
    assert secret_from_environment().content == b"sch\xf6n-lang-genug"


@pytest.mark.usefixtures("clean_environment")
def test_a_key_file_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Too short, absent or a folder: said with the path."""
    file = tmp_path / "secret"
    monkeypatch.setenv(KEY_FILE, str(file))
    with pytest.raises(ConfigError, match=r"secret: the key file cannot be used: No such file"):
        secret_from_environment()
    file.write_bytes(bytes(31))
    with pytest.raises(ConfigError, match=r"secret: 31 bytes; a key file has at least 32"):
        secret_from_environment()
    file.write_bytes(b"x" * 32)
    secret = secret_from_environment()
    assert (secret.content, secret.stretch) == (b"x" * 32, False)
    monkeypatch.setenv(KEY_FILE, str(tmp_path))
    with pytest.raises(ConfigError, match="the key file cannot be used: Is a directory"):
        secret_from_environment()


def test_without_either_a_key_file_is_made_once(clean_environment: Path) -> None:
    """For its owner only, and the same one at the next call."""
    first, second = secret_from_environment(), secret_from_environment()
    file = clean_environment / "ledger.secret"
    assert first.content == second.content == file.read_bytes()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [each.name for each in clean_environment.iterdir()] == ["ledger.secret"]


def test_threads_that_make_it_at_once_get_the_same(clean_environment: Path) -> None:
    """Ten vaults of one process open their ledgers for the first time."""
    line, contents = threading.Barrier(10), []
    threads = [threading.Thread(target=take_secret, args=(line, contents)) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert contents == [(clean_environment / "ledger.secret").read_bytes()] * 10


def take_secret(line: threading.Barrier, contents: list[bytes]) -> None:
    """When everybody is ready."""
    line.wait()
    contents.append(secret_from_environment().content)


def test_a_key_for_which_anybody_can_sign_has_no_signature() -> None:
    """Points of small order: for each, a signature made without any secret passes the library and is refused here."""
    signature = (1).to_bytes(32, "little") + bytes(32)  # R is the neutral point and s is 0: passes where k A vanishes
    for point in _SMALL_ORDER:
        for sign in (0, 0x80):
            key = point[:31] + bytes([point[31] | sign])
            passed = []
            for number in range(200):
                message = number.to_bytes(2, "big")
                with contextlib.suppress(InvalidSignature):
                    Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
                    passed.append(message)
            assert passed or int.from_bytes(point, "little") >= 2**255 - 19  # no canonical point
            for message in passed or [b""]:
                with pytest.raises(SignatureError, match="no key that signs"):
                    check_signature(key, message, signature)
