"""Show and change the key that signs a ledger or a coordinator's log, by its path.

    key_history(Path("books"))[-1].key                                 # public key in force; needs no secret
    change_key(Path("books/ledger.db"), reason="yearly")
    change_key(Path("books"), reason="laptop stolen", since=120)       # and revoke the old one from line 120 on

What changes on disk, and in which order, is `isthmus.privacy.custody`'s business.
"""

from pathlib import Path

from isthmus.errors import RunError
from isthmus.privacy.audit.data_set import keys_of_lines
from isthmus.privacy.custody import open_chain, revoke_key, rotate_key
from isthmus.privacy.examination import examine
from isthmus.privacy.keys import secret_from_environment
from isthmus.privacy.lines import one_line
from isthmus.privacy.reading import Books, read_ledger
from isthmus.report.audit import KeyRecord


def key_history(path: Path) -> tuple[KeyRecord, ...]:
    """The keys that signed a ledger or log, oldest first; the last one is in force.

    Raises:
        RunError: If there is no ledger, or it was changed by somebody else.
    """
    return keys_of_lines(_sound(path).lines)


def change_key(path: Path, *, reason: str, since: int | None = None) -> str:
    """Put a fresh signing key in force, and revoke the old one if a line is given.

    Args:
        path: Of a ledger, a log, or a domain's folder.
        reason: For the record.
        since: First line from which the old key is not believed.

    Returns:
        What was done, for a person.

    Raises:
        RunError: If there is no ledger, it was changed by somebody else, its key cannot be opened, or there is no such
            line.
        ConfigError: If the secret that opens its key is too short or cannot be read.
    """
    books, secret, reason = _sound(path), secret_from_environment(), one_line(reason)
    chain = open_chain(
        books.path,
        owner="coordinator" if books.owner == "coordinator" else "domain",
        name=books.name,
        secret=secret,
    )
    try:
        old = chain.keys.public.hex()
        if since is None:
            rotate_key(chain, secret, reason=reason)
        else:
            revoke_key(chain, secret, since=since, reason=reason)
        new = chain.keys.public.hex()
    finally:
        chain.close()
    what = f"{old} is replaced" if since is None else f"{old} is replaced, and revoked from line {since} on"
    return f"{books.path}: key {what}.\nIn force: {new}\nTell it to whoever verifies this ledger."


def _sound(path: Path) -> Books:
    """The books at a path, if their chain is what its owner wrote."""
    file = path / "ledger.db" if path.is_dir() else path
    books = read_ledger(file)
    findings = [finding for finding in examine(books.links) if finding.rule != "revoked"]
    if findings:
        raise RunError(
            f"{file}: this ledger was changed by somebody else: line {findings[0].line}: {findings[0].text}. "
            f"Its keys are not to be believed; restore its newest sound copy."
        )
    return books
