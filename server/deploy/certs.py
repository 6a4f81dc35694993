"""The coordinator's certificates, and the keys by which business units are known.

    make_certificates(folder, ["coordinator.example"])    # ca.crt for everybody, ca.key, server.crt, server.key
    renew_server(folder)                                  # a year later: server.crt and server.key again
    make_node_key(Path("books"))                          # books.key stays with the unit, books.pub goes away

Everything is elliptic, NIST P-384: Flower refuses other node keys. Private keys have mode 0600 from their first
byte. `ca.crt` may hold several authorities, the one that signs first: that is how an authority is replaced without
anybody losing the connection (`replace_authority`, hand out the new `ca.crt`, `renew_server`, `retire_authorities`).
Revocation needs no lists: a node is known by its key, and a key that is removed is not let in.

Reference: RFC 5280.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from isthmus.durable import write_durably
from isthmus.errors import ConfigError

AUTHORITY, AUTHORITY_KEY, SERVER, SERVER_KEY = "ca.crt", "ca.key", "server.crt", "server.key"

AUTHORITY_DAYS, SERVER_DAYS = 3650, 397
"""How long a certificate is valid, in days."""

_SKEW = timedelta(hours=1)  # a client whose clock is behind accepts a certificate of this minute
_LOOPBACK = ("localhost", "127.0.0.1")


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What a certificate of the folder says.

    Attributes:
        file: It is in.
        subject: Whom it names.
        names: Addresses that it is good for; none for an authority.
        issuer: Who signed it.
        expires: When it ends.
        fingerprint: SHA-256 of it, as hex.
    """

    file: str
    subject: str
    names: tuple[str, ...]
    issuer: str
    expires: datetime
    fingerprint: str

    def days_left(self, now: datetime) -> float:
        """Days until it ends; negative if it has."""
        return (self.expires - now) / timedelta(days=1)


def make_certificates(folder: Path, names: Sequence[str]) -> None:
    """Make the coordinator's own authority, in a folder that has none, and the server's first certificate.

    Args:
        folder: Made if absent.
        names: Host names and IP addresses of the server, besides loopback.

    Raises:
        ConfigError: If there is an authority already, or a name is none.
    """
    for name in names:
        _general_name(name)
    for name in (AUTHORITY, AUTHORITY_KEY):
        if (folder / name).exists():
            raise ConfigError(
                f"{folder / name} is there already, and every business unit trusts it. `isthmus certs renew` makes a "
                f"new server certificate, `isthmus certs replace-ca` a new authority."
            )
    _write_authority(folder, _authority(AUTHORITY_DAYS), ())
    renew_server(folder, names)


def replace_authority(folder: Path) -> None:
    """Put a new authority in force beside the old ones, which stay trusted until `retire_authorities`.

    Raises:
        ConfigError: If there is no authority, or an earlier replacement is not finished.
    """
    old = _authorities(folder)
    if len(old) > 1:
        raise ConfigError(
            f"{folder / AUTHORITY} holds {len(old)} authorities: the last replacement is not finished. Run `isthmus "
            f"certs retire-ca {folder}` once every business unit has the new file."
        )
    _write_authority(folder, _authority(AUTHORITY_DAYS), old)


def retire_authorities(folder: Path) -> int:
    """Stop trusting every authority but the one in force; returns how many were dropped.

    Raises:
        ConfigError: If the server's certificate was signed by one of them: nobody could connect any more.
    """
    newest, *old = _authorities(folder)
    server = _load(folder / SERVER)
    try:
        server.verify_directly_issued_by(newest)
    except (ValueError, TypeError, InvalidSignature):
        raise ConfigError(
            f"{folder / SERVER} is not signed by the authority in force. Run `isthmus certs renew {folder}` first."
        ) from None
    if old:
        write_durably(folder / AUTHORITY, _pem(newest))
    return len(old)


def renew_server(folder: Path, names: Sequence[str] = (), *, days: int = SERVER_DAYS) -> None:
    """Make the server a new key, and a certificate by the authority in force.

    Args:
        folder: Of the authority.
        names: Host names and IP addresses that it is good for, besides loopback; those of the certificate that is
            there where none is given.
        days: Until it expires.

    Raises:
        ConfigError: If there is no authority, or no name.
    """
    authority = _authorities(folder)[0]
    signer = _private(folder / AUTHORITY_KEY)
    if signer.public_key() != authority.public_key():
        raise ConfigError(
            f"{folder / AUTHORITY_KEY} is not the key of the first certificate of {AUTHORITY}. "
            f"Put the two files back from one copy."
        )
    if not names:
        names = _names(_load(folder / SERVER))
    key = ec.generate_private_key(ec.SECP384R1())
    wanted = [_general_name(name) for name in dict.fromkeys((*names, *_LOOPBACK))]
    certificate = (
        _unsigned(names[0], authority.subject, key.public_key(), days)
        .add_extension(x509.SubjectAlternativeName(wanted), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA384())
    )
    # The key goes first: a crash between the two leaves a pair that does not fit, which `server up` says, not one
    # that seems to.
    write_durably(folder / SERVER_KEY, _key_pem(key), mode=0o600)
    write_durably(folder / SERVER, _pem(certificate))


def make_node_key(stem: Path) -> str:
    """Make the key by which a business unit's SuperNode is known: `stem.key` and `stem.pub`, in OpenSSH's form.

    Returns:
        The line of `stem.pub`.

    Raises:
        ConfigError: If one of the two files is there already.
    """
    private, public = stem.with_name(stem.name + ".key"), stem.with_name(stem.name + ".pub")
    for path in (private, public):
        if path.exists():
            raise ConfigError(f"{path} is there already; a unit that lost its key makes one of another name.")
    key = ec.generate_private_key(ec.SECP384R1())
    plain = serialization.NoEncryption()
    write_durably(
        private,
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, plain),
        mode=0o600,
    )
    line = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    write_durably(public, line + b"\n")
    return line.decode()


def show_certificates(folder: Path) -> tuple[Certificate, ...]:
    """What the folder's certificates say: the server's first, then the authorities, the one in force first.

    Raises:
        ConfigError: If one is missing or cannot be read.
    """
    found = [(SERVER, _load(folder / SERVER))]
    found += [(AUTHORITY, authority) for authority in _authorities(folder)]
    return tuple(
        Certificate(
            file=name,
            subject=certificate.subject.rfc4514_string(),
            names=_names(certificate),
            issuer=certificate.issuer.rfc4514_string(),
            expires=certificate.not_valid_after_utc,
            fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
        )
        for name, certificate in found
    )


def check_certificates(folder: Path, address: str) -> Certificate:
    """The server's certificate, if a server at `address` can be started with the folder.

    Raises:
        ConfigError: If it has expired, is for other names, does not fit its key, or its key can be read by others.
    """
    key = folder / SERVER_KEY
    if _load(folder / SERVER).public_key() != _private(key).public_key():
        raise ConfigError(f"{key} is not the key of {SERVER}. Run `isthmus certs renew {folder}`.")
    if key.stat().st_mode & 0o077:
        raise ConfigError(
            f"{key} has mode {key.stat().st_mode & 0o777:o}, so others can read it; it must be 600. `chmod 600 {key}`."
        )
    server, *authorities = show_certificates(folder)
    now = datetime.now(UTC)
    for certificate in (server, authorities[0]):
        if certificate.days_left(now) <= 0:
            raise ConfigError(
                f"{folder / certificate.file} expired on {certificate.expires:%Y-%m-%d}. Run `isthmus certs renew "
                f"{folder}`, or `replace-ca` if it is the authority."
            )
    if address not in server.names:
        raise ConfigError(
            f"{folder / SERVER} is good for {', '.join(server.names)}, not for the server's address {address!r}. Run "
            f"`isthmus certs renew {folder} --address {address}`."
        )
    return server


def _authority(days: int) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A new authority that signs itself; its name carries its moment, so that two can be told apart."""
    key = ec.generate_private_key(ec.SECP384R1())
    title = f"Isthmus coordinator {datetime.now(UTC):%Y-%m-%d %H:%M:%S.%f}"
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, title)])
    certificate = (
        _unsigned(title, name, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA384())
    )
    return certificate, key


def _unsigned(subject: str, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _write_authority(
    folder: Path,
    new: tuple[x509.Certificate, ec.EllipticCurvePrivateKey],
    old: Sequence[x509.Certificate],
) -> None:
    certificate, key = new
    write_durably(folder / AUTHORITY_KEY, _key_pem(key), mode=0o600)
    write_durably(folder / AUTHORITY, b"".join(map(_pem, (certificate, *old))))


def _authorities(folder: Path) -> list[x509.Certificate]:
    path = folder / AUTHORITY
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file. `isthmus certs init {folder} --address HOST` makes it.") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: holds no certificates that can be read: {error}") from None


def _load(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file. `isthmus certs init {path.parent} --address HOST` makes it."
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a certificate that can be read: {error}") from None


def _private(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file. It lies where `isthmus certs init` was run.") from None
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: not a private key that can be read: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path}: must be an elliptic key, got {type(key).__name__}.")
    return key


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        return x509.DNSName(name)
    except ValueError:
        raise ConfigError(f"{name!r} is neither a host name in ASCII nor an IP address.") from None


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(str(name.value) for name in found)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
