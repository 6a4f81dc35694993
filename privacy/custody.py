"""Opening a chain with its keys, and changing them, so that no crash leaves one without the other.

    chain = open_chain(Path("books/ledger.db"), owner="domain", name="books", secret=secret)
    rotate_key(chain, secret, reason="yearly")
    revoke_key(chain, secret, since=120, reason="laptop stolen")

The keys of `ledger.db` lie beside it in `ledger.key`. New keys are on disk as `ledger.key.next` before the
chain mentions them and get their final name after, so at every moment the file system holds the keys that are in
force. A key file without a chain means that a ledger is missing, and is refused: a new one would forget
what was spent.
"""

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from isthmus.errors import RunError
from isthmus.privacy.chain import Chain, Owner
from isthmus.privacy.examination import compare_heads, examine, read_receipts
from isthmus.privacy.heads import read_head
from isthmus.privacy.keys import Keys, Secret, claimed_key, fresh_keys, open_keys, save_keys
from isthmus.privacy.lines import Revoked, one_line
from isthmus.privacy.links import key_in_force


def key_path(path: Path) -> Path:
    """Where the keys of a chain lie."""
    return path.with_suffix(".key")


def open_chain(path: Path, *, owner: Owner, name: str, secret: Secret) -> Chain:
    """Open a chain with the keys in force; both are made where there is neither.

    Args:
        path: Of the SQLite file.
        owner: What the chain is of.
        name: Of the owner, should it be new.
        secret: Seals its key file.

    Raises:
        RunError: If chain or key is missing while the other is there, or one of them cannot be used.
    """
    final, following = key_path(path), _following(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{path}: a ledger cannot be made there: {error.strerror}") from None
    with _alone_in(path.parent):
        if not path.exists():
            if final.exists():
                raise RunError(
                    f"{path}: this ledger is missing, and its key {final.name} is there. Restore the ledger from its "
                    f"newest copy; a new one would forget what was spent."
                )
            if not following.exists():
                save_keys(following, fresh_keys(), secret)
        new = not final.exists()  # whose first line is not written before its key is there, nor named after it
        if not new and following.exists():
            _settle(path, _signer(path))
        chosen = open_keys(following if new and following.exists() else final, secret)
        chain = Chain(path, chosen, owner=owner, name=name, new=new)
        try:
            in_force = chain.key_in_force()
            if chosen.public != in_force:
                raise RunError(
                    f"{final}: holds key {chosen.public.hex()[:16]}, and the ledger's lines are signed by "
                    f"{in_force.hex()[:16]}. Restore the key file that belongs to {path.name}."
                )
        except RunError:
            chain.close()
            raise
        if new:
            following.replace(final)
    return chain


def require_sound(chain: Chain) -> None:
    """Refuse a chain that is not what its owner wrote, or that ends before what it was last seen to hold.

    A revocation is no reason: it is a finding for good. Nor is a head that somebody else signed (`foreign-head`).

    Raises:
        RunError: With the first finding.
    """
    links = list(chain.links())
    # Each digest covers all lines before it, so the last receipt stands for all of them.
    texts = chain.db.execute("SELECT text FROM receipts ORDER BY seq DESC LIMIT 1").fetchall()
    receipts, broken = read_receipts(text for (text,) in texts)
    shown = compare_heads(links, [read_head(receipt.head) for receipt in receipts])
    findings = [f for f in (*examine(links), *broken, *shown) if f.rule not in {"revoked", "foreign-head"}]
    if not findings:
        return
    first, listed = findings[0], f"({len(findings)} findings; `isthmus verify` lists them)"
    where = f"line {first.line}: " if first.line else ""
    if all(finding.rule in {"form", "event"} for finding in findings):
        raise RunError(
            f"{chain.path}: line {first.line} cannot be read: {first.text} {listed}. Use the version of Isthmus "
            f"that wrote it, or restore the ledger's newest sound copy."
        )
    raise RunError(
        f"{chain.path}: this ledger was changed by somebody else: {where}{first.text} {listed}. "
        f"Restore its newest sound copy."
    )


def rotate_key(chain: Chain, secret: Secret, *, reason: str) -> None:
    """Put a fresh signing key in force; the old one signs that it is so and is gone afterwards.

    Args:
        chain: Whose key.
        secret: Seals the new key file; it may be another secret than before.
        reason: In one line, for the record.

    Raises:
        RunError: If another process has put another key in force, or nothing can be written; nothing has changed then.

    Guarantees:
        - After a crash at any moment the ledger opens, with the old secret if the chain does not have the new
          key yet and with the new one if it does.
    """
    _change(chain, secret, reason=reason, since=None)


def revoke_key(chain: Chain, secret: Secret, *, since: int, reason: str) -> None:
    """Put a fresh signing key in force and say that the old one is not believed from a line on.

    Args:
        chain: Whose key.
        secret: Seals the new key file.
        since: First line that somebody else may have signed; the number after the last one if there is none yet.
        reason: In one line, for the record.

    Raises:
        RunError: If there is no such line, or as in `rotate_key`.
    """
    first, following = _first_signed(chain), chain.last().seq + 1
    if not first <= since <= following:
        raise RunError(
            f"{chain.path}: `since` must be a line from {first}, the first that the key in force signed, to "
            f"{following}, the next one; got {since}. A key that was replaced before cannot be revoked."
        )
    _change(chain, secret, reason=reason, since=since)


def _first_signed(chain: Chain) -> int:
    """The first line that the key in force signed."""
    own = chain.keys.public
    return next((link.seq for link in chain.links() if link.key == own), chain.last().seq + 1)


def _change(chain: Chain, secret: Secret, *, reason: str, since: int | None) -> None:
    old, new, reason = chain.keys, chain.keys.rotated(), one_line(reason)
    with _alone_in(chain.path.parent), chain.lock:
        _settle(chain.path, chain.key_in_force())  # another process may have died here
        chain.require_own_key()  # before its key file could be written over
        save_keys(_following(chain.path), new, secret)  # 1. the new key is on disk
        try:
            with chain.transaction():
                chain.rotate(new, reason=reason)  # 2. the chain says so
                if since is not None:
                    _revoke(chain, old, new, since=since, reason=reason)
        except BaseException:
            chain.use(old)
            _settle(chain.path, chain.key_in_force())  # it may say so all the same, if this is an interrupt
            raise
        _following(chain.path).replace(key_path(chain.path))  # 3. the old one is gone
        chain.use(new)


def _revoke(chain: Chain, old: Keys, new: Keys, *, since: int, reason: str) -> None:
    chain.use(new)
    chain.append(Revoked, {"key": old.public.hex(), "since": since, "reason": reason})


def _settle(path: Path, in_force: bytes) -> None:
    """Finish a change of keys that a crash interrupted, or take it back if the chain never had it."""
    following = _following(path)
    if following.exists():
        if claimed_key(following) == in_force:
            following.replace(key_path(path))
        else:
            following.unlink()


def _signer(path: Path) -> bytes:
    """The key in force in a file, before any key file was opened."""
    db = sqlite3.connect(path, timeout=60)
    try:
        return key_in_force(db, path)
    finally:
        db.close()


def _following(path: Path) -> Path:
    final = key_path(path)
    return final.with_name(final.name + ".next")


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder, so that of two processes that make or change keys there one waits."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
