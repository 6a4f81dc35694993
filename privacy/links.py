"""What lies in the file of a ledger: links, the tables and indexes around them, and how a copy is read.

    with open_copy(Path("books.db")) as db:      # nothing is written, nothing is believed
        links = links_of(db)
        problem = file_problem(db, LEDGER_TABLES)    # "" if it is built as this version builds it

Everything that finds a line is an index, so that adding to a ledger takes the same time however long it is.
"""

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isthmus.errors import RunError
from isthmus.privacy.lines import one_line

_TABLE = """
CREATE TABLE chain (
    seq INTEGER PRIMARY KEY,
    body TEXT NOT NULL,
    previous BLOB NOT NULL,
    digest BLOB NOT NULL,
    key BLOB NOT NULL,
    signature BLOB NOT NULL
) STRICT
"""
_KEY_LINES = "json_extract(body, '$.type') IN ('opened', 'rotated')"
_KEYS = f"CREATE INDEX chain_keys ON chain (seq) WHERE {_KEY_LINES}"
CHAIN_TABLES = (_TABLE, _KEYS)
SELECT = "SELECT seq, body, previous, digest, key, signature FROM chain"

TYPE, RUN, ROUND, KIND = (f"json_extract(body, '$.{name}')" for name in ("type", "run", "round", "kind"))
DAY = "substr(json_extract(body, '$.time'), 1, 10)"
LEDGER_TABLES = (
    f"CREATE UNIQUE INDEX charges ON chain ({RUN}, {ROUND}, {KIND}) WHERE {TYPE} = 'charged'",
    f"CREATE UNIQUE INDEX outcomes ON chain (json_extract(body, '$.charge')) WHERE {TYPE} IN ('released', 'withheld')",
    f"CREATE INDEX policies ON chain (seq) WHERE {TYPE} = 'policy'",
    f"CREATE UNIQUE INDEX layers ON chain (json_extract(body, '$.digest')) WHERE {TYPE} = 'layers'",
    f"CREATE INDEX refusals ON chain ({RUN}, {ROUND}, {KIND}) WHERE {TYPE} = 'refused'",
    f"CREATE INDEX days ON chain ({DAY}) WHERE {TYPE} = 'refused'",
    """CREATE TABLE floods (
    line INTEGER PRIMARY KEY REFERENCES chain (seq),
    count INTEGER NOT NULL
) STRICT""",
    """CREATE TABLE releases (
    seq INTEGER PRIMARY KEY REFERENCES chain (seq),
    run TEXT NOT NULL,
    kind TEXT NOT NULL,
    round INTEGER NOT NULL,
    payload BLOB NOT NULL
) STRICT""",
    "CREATE INDEX kept ON releases (run, kind, round)",
    """CREATE TABLE receipts (
    seq INTEGER NOT NULL REFERENCES chain (seq),
    text TEXT NOT NULL UNIQUE
) STRICT""",
    "CREATE INDEX shown ON receipts (seq)",
)
"""What lies beside the chain of a domain; nothing beside that of a coordinator."""

START = bytes(32)
"""What stands for the hash before the first link."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """A line and what ties it to its place.

    Attributes:
        seq: Position, from 1.
        body: The line's canonical text.
        previous: (32 bytes) digest of the link before.
        digest: (32 bytes) hash of `previous` and `body`.
        key: (32 bytes) public key that signed.
        signature: (64 bytes) of the digest.
    """

    seq: int
    body: str
    previous: bytes
    digest: bytes
    key: bytes
    signature: bytes


def link_digest(previous: bytes, body: str) -> bytes:
    """(32 bytes) What ties a line to the ones before it."""
    return hashlib.sha256(b"isthmus link 1\n" + previous + body.encode("utf-8", "surrogateescape")).digest()


def link_message(digest: bytes) -> bytes:
    """What is signed of a link."""
    return b"isthmus signed link 1\n" + digest


def rotation_message(ledger: str, old: bytes) -> bytes:
    """What a new key signs to show that it is there."""
    return b"isthmus rotation 1\n" + ledger.encode() + b"\n" + old


def key_in_force(db: sqlite3.Connection, path: Path, *, after: int = 2**53) -> bytes:
    """The public key that must sign the next line of the chain in a file.

    Args:
        db: The file.
        path: Its path, for messages.
        after: Line whose next one is meant; the last one where absent.

    Raises:
        RunError: If no line says so.
    """
    try:
        row = db.execute(
            f"SELECT json_extract(body, '$.key') FROM chain WHERE {_KEY_LINES} AND seq <= ? ORDER BY seq DESC LIMIT 1",  # noqa: S608
            (after,),
        ).fetchone()
        return bytes.fromhex(row[0])
    except (sqlite3.DatabaseError, TypeError, ValueError):
        raise RunError(f"{path}: no line says which key signs; restore the ledger from a backup") from None


def file_problem(db: sqlite3.Connection, tables: tuple[str, ...]) -> str:
    """What is wrong with a database apart from the lines in it; empty if nothing is.

    Another table, index or trigger than those of this version could make a line vanish, or a question be answered
    twice; so could an index that does not say what its table says.

    Args:
        db: The database.
        tables: SQL of what lives beside the chain.
    """
    try:
        found = [_squeezed(str(row[0])) for row in db.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")]
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        return one_line(f"damaged: {error}")
    if found.count(_squeezed(_TABLE)) != 1:
        return "it has no table of lines as this version makes it"
    expected = {_squeezed(sql) for sql in (*CHAIN_TABLES, *tables)}
    if sorted(found) != sorted(expected):
        odd = sorted(expected.symmetric_difference(found)) or ["twice the same"]
        return one_line(f"its tables and indexes are not those of this version, but for: {odd[0]:.100}")
    try:
        checked = db.execute("PRAGMA integrity_check(1)").fetchone()[0]
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # an index of a text that is none any more
        checked = error
    return "" if checked == "ok" else one_line(f"damaged: {checked}")


@contextmanager
def open_copy(path: Path) -> Iterator[sqlite3.Connection]:
    """Read a file that somebody sent, without writing to it or beside it.

    Raises:
        RunError: If the file is not a ledger.
    """
    if not path.is_file():
        raise RunError(f"{path}: no such file; name a ledger (ledger.db) or a copy of one")
    # Where the log of a living or killed process lies beside it, that belongs to it; else nobody has it open.
    live = any(path.with_name(path.name + ending).exists() for ending in ("-wal", "-journal"))
    try:
        db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro{'' if live else '&immutable=1'}", uri=True)
        try:
            db.text_factory = as_text
            kind = db.execute("SELECT sql FROM sqlite_master WHERE name = 'chain'").fetchone()
            if kind is None or _squeezed(str(kind[0])) != _squeezed(_TABLE):
                raise RunError(f"{path}: not a ledger: it has no table of lines as this version makes it")
            yield db
        finally:
            db.close()
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # its own words may quote the damage
        raise RunError(one_line(f"{path}: not a ledger: {error}")) from None


def read_links(path: Path) -> list[Link]:
    """All links of a file that somebody sent, without writing to it and without believing any of it.

    Raises:
        RunError: If the file is not a ledger.
    """
    with open_copy(path) as db:
        return links_of(db)


def links_of(db: sqlite3.Connection) -> list[Link]:
    """All links of an open copy, as they lie in it."""
    return [as_link(row) for row in db.execute(f"{SELECT} ORDER BY rowid")]


def as_link(row: tuple[Any, ...]) -> Link:
    """A link of what a row holds; what is of another type than a ledger writes becomes what no link can hold."""
    seq, body, *blobs = row
    previous, digest, key, signature = (blob if type(blob) is bytes else b"" for blob in blobs)
    return Link(
        seq=seq if type(seq) is int else 0,
        body=body if type(body) is str else "",
        previous=previous,
        digest=digest,
        key=key,
        signature=signature,
    )


def as_text(content: bytes) -> str:
    """Text of a database; bytes that are no UTF-8 are kept, and found by whoever reads the line."""
    return content.decode("utf-8", "surrogateescape")


def _squeezed(sql: str) -> str:
    return " ".join(sql.split())
