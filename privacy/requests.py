"""Who asks: a coordinator signs the digest of its request, and a domain checks it before it looks at its rules.

    signature = sign_request(request.digest(kind), keys)
    asker = require_asker(request.digest(kind), coordinator=request.coordinator, signature=request.signature)

The digest covers everything that the answer depends on besides the data, so a signed request cannot be changed on
its way; that it is answered once per round is the ledger's business.
"""

from isthmus.errors import Refused
from isthmus.privacy.keys import Keys, SignatureError, check_signature


def sign_request(digest: bytes, keys: Keys) -> str:
    """(128 hex digits) The coordinator's signature."""
    return keys.sign(_message(digest)).hex()


def require_asker(digest: bytes, *, coordinator: str, signature: str) -> str:
    """The public key of who asks, hex; empty where the request names nobody.

    Args:
        digest: Of the request.
        coordinator: Public key that the request names, hex, or empty.
        signature: Hex.

    Raises:
        Refused: If a coordinator is named and the signature is not its own.
    """
    if not coordinator:
        return ""
    try:
        check_signature(bytes.fromhex(coordinator), _message(digest), bytes.fromhex(signature))
    except (SignatureError, ValueError):
        raise Refused(
            f"the request is not signed by the coordinator that it names ({coordinator[:16]})", rule="signature"
        ) from None
    return bytes.fromhex(coordinator).hex()


def _message(digest: bytes) -> bytes:
    return b"isthmus request 1\n" + digest
