"""A chain of signed lines that can only grow, in one SQLite file.

    chain = Chain(Path("books/ledger.db"), keys, owner="domain", name="books")
    with chain.transaction():
        line = chain.append(Charged, {"run": "r1", ...})     # numbered, dated, linked, signed
    for link in chain.links(): ...

Each link holds a line's text, the hash of the link before it, its own hash and an Ed25519 signature of that
hash, so an edited, deleted, reordered or inserted line breaks the chain for everybody who reads it (see
`isthmus.privacy.examination`). A cut tail or an older copy of the file breaks nothing in itself: that is what
`head` is for, a signed statement of where the chain stands, which others keep.

Write-ahead log, synchronous FULL: when a transaction has ended, its lines survive a crash of the process or
the machine.

Reference: Schneier and Kelsey, "Secure Audit Logs to Support Computer Forensics", ACM TISSEC 1999.
"""

import datetime as dt
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeVar

from isthmus.errors import RunError
from isthmus.privacy.heads import Head, make_head
from isthmus.privacy.keys import Keys
from isthmus.privacy.lines import FORMAT, AnyLine, Line, Opened, Rotated, from_text, one_line, to_text
from isthmus.privacy.links import (
    CHAIN_TABLES,
    LEDGER_TABLES,
    SELECT,
    START,
    Link,
    as_link,
    as_text,
    file_problem,
    key_in_force,
    link_digest,
    link_message,
    rotation_message,
)

L = TypeVar("L", bound=Line)
Owner = Literal["domain", "coordinator"]


def now() -> str:
    """The time as lines say it."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")


class Chain:
    """One file; open for reading and appending.

    Args:
        path: Of the SQLite file.
        keys: Sign what is appended.
        owner: What the chain is of; an existing one must be of the same.
        name: Of the owner, for the first line of a new chain.
        new: Whether an absent or empty file becomes a chain; otherwise it is a ledger that somebody emptied.

    Attributes:
        lock: Held by a transaction, and by who must not see the middle of one: threads share one connection.

    Raises:
        RunError: If the file cannot be used, or holds anything but an owner's tables, intact.
    """

    def __init__(self, path: Path, keys: Keys, *, owner: Owner, name: str, new: bool = True) -> None:
        self.path = path
        self.lock = threading.RLock()
        self._keys = keys
        tables = LEDGER_TABLES if owner == "domain" else ()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.db = sqlite3.connect(path, isolation_level=None, timeout=60, check_same_thread=False)
        except (sqlite3.DatabaseError, OSError) as error:
            raise _unusable(path, str(error)) from None
        try:
            self.db.text_factory = as_text
            fresh = new and self.db.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
            if not fresh and (problem := file_problem(self.db, tables)):
                raise _unusable(path, problem)
            self.db.execute("PRAGMA journal_mode = WAL")
            self.db.execute("PRAGMA synchronous = FULL")
            self.db.execute("PRAGMA foreign_keys = ON")
            if fresh:
                self._create(owner, one_line(name), tables)
            first = self.line(1)
            if not isinstance(first, Opened) or first.owner != owner:
                raise RunError(f"{path}: its first line is not that of a {owner}'s ledger; restore it from a backup")
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            self.close()
            raise _unusable(path, one_line(str(error))) from None
        except RunError:
            self.close()
            raise
        self.ledger = first.ledger
        self.name = first.name
        self._place = _identity(path)

    def _create(self, owner: Owner, name: str, tables: tuple[str, ...]) -> None:
        """Schema and first line of a new file, in one transaction; of two processes one wins."""
        self.db.execute("BEGIN IMMEDIATE")
        if self.db.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
            for sql in (*CHAIN_TABLES, *tables):
                self.db.execute(sql)
            key = self._keys.public.hex()
            self._insert(Opened(seq=1, time=now(), ledger=os.urandom(16).hex(), owner=owner, name=name, key=key), START)
        self.db.execute("COMMIT")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it, synced, or nothing; one process at a time.

        Raises:
            RunError: If it cannot be written; nothing was.
        """
        try:
            with self.lock:
                self.db.execute("BEGIN IMMEDIATE")
                try:
                    yield
                    self._require_place()
                    self.db.execute("COMMIT")
                except BaseException:
                    if self.db.in_transaction:  # a full disk may have ended it already
                        self.db.execute("ROLLBACK")
                    raise
        except sqlite3.DatabaseError as error:
            raise RunError(
                f"{self.path}: the ledger cannot be written: {error}. Nothing leaves without it; make room on the "
                f"disk or end what holds the file, and ask again."
            ) from None

    def append(self, kind: type[L], fields: Mapping[str, object]) -> L:
        """Add a line at the end; only inside a transaction.

        Args:
            kind: Of line.
            fields: All but its number and time.

        Raises:
            ValueError: If a field breaks a rule of the format.
            RunError: If another process has put another key in force.
        """
        self.require_own_key()
        last = self.last()
        line = kind.model_validate({"v": FORMAT, "seq": last.seq + 1, "time": now(), **fields})
        self._insert(line, last.digest)
        return line

    def require_own_key(self) -> None:
        """Refuse to go on with a key that is not in force any more.

        Raises:
            RunError: If another process has put another key in force.
        """
        in_force, own = self.key_in_force(), self._keys.public
        if in_force != own:
            raise RunError(
                f"{self.path}: key {in_force.hex()[:16]} is in force, this process has {own.hex()[:16]}; "
                f"it was rotated meanwhile. Start again."
            )

    def use(self, keys: Keys) -> None:
        """Sign with other keys from now on."""
        self._keys = keys

    @property
    def keys(self) -> Keys:
        """What signs."""
        return self._keys

    def last(self) -> Link:
        """The latest link."""
        row = self.db.execute(f"{SELECT} ORDER BY seq DESC LIMIT 1").fetchone()
        if row is None:
            raise RunError(f"{self.path}: it holds no line any more; restore the ledger from a backup")
        return as_link(row)

    def line(self, seq: int) -> AnyLine:
        """The line at a position.

        Raises:
            RunError: If it is absent or cannot be read.
        """
        row = self.db.execute(f"{SELECT} WHERE seq = ?", (seq,)).fetchone()
        if row is None:
            raise RunError(f"{self.path}: line {seq} is missing; restore the ledger from a backup")
        return self.read(as_link(row))

    def read(self, link: Link) -> AnyLine:
        """What a link says.

        Raises:
            RunError: If it cannot be read; it is never skipped.
        """
        try:
            return from_text(link.body)
        except ValueError as error:
            raise RunError(
                f"{self.path}: line {link.seq} cannot be read: {error}. Use the version of Isthmus that wrote it, "
                f"or restore the ledger from a backup."
            ) from None

    def links(self, after: int = 0) -> Iterator[Link]:
        """All links after a position, in order."""
        for row in self.db.execute(f"{SELECT} WHERE seq > ? ORDER BY seq", (after,)):
            yield as_link(row)

    def key_in_force(self) -> bytes:
        """The public key that must sign the next line.

        Raises:
            RunError: If no line says so.
        """
        return key_in_force(self.db, self.path)

    def holds(self, head: Head) -> bool:
        """Whether the line that a head shows is in the chain, as shown."""
        row = self.db.execute("SELECT digest FROM chain WHERE seq = ?", (head.seq,)).fetchone()
        return row is not None and bytes(row[0]).hex() == head.digest

    def speaks(self, head: Head) -> bool:
        """Whether a head is signed by the key that was in force after the line it shows: by this chain's owner."""
        return key_in_force(self.db, self.path, after=head.seq).hex() == head.key

    def head(self) -> Head:
        """Where the chain stands, signed; never a line that a crash could still take back.

        Raises:
            RunError: If another process has put another key in force: a head under the old one counts for nothing.
        """
        with self.lock:
            last = self.last()
            self.require_own_key()  # after the line was read, so the key was in force there
            return make_head(self.ledger, last.seq, last.digest, self._keys)

    def rotate(self, keys: Keys, *, reason: str) -> Rotated:
        """Put another key in force; only inside a transaction, after which `use` it."""
        proof = keys.sign(rotation_message(self.ledger, self._keys.public)).hex()
        return self.append(Rotated, {"key": keys.public.hex(), "proof": proof, "reason": reason})

    def backup(self, target: Path) -> None:
        """Copy the file, consistently, while it is in use.

        Raises:
            RunError: If the copy cannot be written.
        """
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            copy = sqlite3.connect(target)
            try:
                self.db.backup(copy)
            finally:
                copy.close()
        except (sqlite3.DatabaseError, OSError) as error:
            raise RunError(f"{target}: the ledger cannot be copied there: {error}; name another file") from None

    def close(self) -> None:
        """Close the file."""
        self.db.close()

    def _require_place(self) -> None:
        """Refuse to write into a file that nobody would find: another one lies in its place by now, or none."""
        if _identity(self.path) != self._place:
            raise RunError(
                f"{self.path}: the ledger was moved, deleted or replaced under this process, so what it writes would "
                f"be in no book. Put the newest sound copy back, and start again."
            )

    def _insert(self, line: Line, previous: bytes) -> None:
        body = to_text(line)
        from_text(body)  # what could not be read back is not written
        digest = link_digest(previous, body)
        signature = self._keys.sign(link_message(digest))
        self.db.execute(
            "INSERT INTO chain (seq, body, previous, digest, key, signature) VALUES (?, ?, ?, ?, ?, ?)",
            (line.seq, body, previous, digest, self._keys.public, signature),
        )


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file lies at a path."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _unusable(path: Path, problem: str) -> RunError:
    return RunError(
        f"{path}: cannot be used as a ledger: {problem}. Restore it from a backup; starting a new one would forget "
        f"what was spent."
    )
