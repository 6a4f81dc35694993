"""What tests of the books and the gate share: an empty ledger, charges, known budgets, and a way to tamper."""

import multiprocessing
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from dp_accounting import DpEvent

from isthmus.privacy.accounting import encode_event, epsilon, gaussian
from isthmus.privacy.budget import PrivacyBudget
from isthmus.privacy.custody import key_path
from isthmus.privacy.entries import Charge, LedgerEntry, Limits
from isthmus.privacy.keys import Keys, Secret
from isthmus.privacy.ledger import Ledger
from isthmus.privacy.lines import AnyLine, to_text
from isthmus.privacy.links import START, Link, link_digest, link_message
from isthmus.privacy.reading import read_ledger

FORK = multiprocessing.get_context("fork")
DELTA = 1e-5
EVENT = gaussian(4.0)
WIDE = Limits(lifetime=PrivacyBudget(50.0, DELTA))
TWO = Limits(lifetime=PrivacyBudget(epsilon([EVENT] * 2, DELTA), DELTA))
"""Room for exactly two of `EVENT`."""

SECRET = Secret(content=b"k" * 32, stretch=False, source="the test's key file")
OTHER_SECRET = Secret(content=b"o" * 32, stretch=False, source="another key file")


def charge_of(number: int = 0, *, run: str = "run", kind: str = "update", event: DpEvent = EVENT) -> Charge:
    """A charge of one round, with a request of its own."""
    return Charge(
        dataset=b"data", run=run, round=number, kind=kind, request=f"{run}/{number}".encode(), event=event, private=True
    )


def fields_of(charge: Charge) -> dict[str, object]:
    """Of the line that charges it."""
    return {
        "dataset": "00",
        "run": charge.run,
        "round": charge.round,
        "kind": charge.kind,
        "request": charge.request.hex(),
        "event": encode_event(charge.event),
        "clip": None,
        "layers": "",
        "private": True,
        "version": "0",
        "code": "",
        "policy": "",
        "coordinator": "",
    }


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """An empty ledger."""
    opened = Ledger(tmp_path / "ledger.db")
    yield opened
    opened.close()


def content(ledger: Ledger) -> list[LedgerEntry]:
    """Everything in a ledger, as another reader sees it, who finds nothing wrong."""
    books = read_ledger(ledger.path)
    assert books.findings == ()
    return list(books.entries)


# Tampering.


def change(path: Path, *statements: str, parameters: tuple[object, ...] = ()) -> None:
    """Run SQL on a file of which nobody knows that it is a ledger; parameters go to the last statement."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for statement in statements[:-1]:
            db.execute(statement)
        db.execute(statements[-1], parameters)


def rules(path: Path, **known: object) -> set[str]:
    """The rules that a reader finds broken."""
    return {finding.rule for finding in read_ledger(path, **known).findings}  # type: ignore[arg-type]


def copy_of(path: Path, folder: Path) -> Path:
    """A ledger with its keys, in another folder."""
    folder.mkdir()
    for file in (path, key_path(path)):
        shutil.copy(file, folder / file.name)
    return folder / path.name


def link_of(line: AnyLine, *, previous: bytes, keys: Keys) -> Link:
    """A link as it would be if these keys had been in force."""
    body = to_text(line)
    digest = link_digest(previous, body)
    signature = keys.sign(link_message(digest))
    return Link(seq=line.seq, body=body, previous=previous, digest=digest, key=keys.public, signature=signature)


def signed(*lines: AnyLine, keys: Keys) -> list[Link]:
    """A chain of lines as it would be if these keys were in force all along."""
    links: list[Link] = []
    for line in lines:
        links.append(link_of(line, previous=links[-1].digest if links else START, keys=keys))
    return links


def insert(path: Path, link: Link) -> None:
    """Put a link into a file, whatever it says."""
    change(
        path,
        "INSERT INTO chain (seq, body, previous, digest, key, signature) VALUES (?, ?, ?, ?, ?, ?)",
        parameters=(link.seq, link.body, link.previous, link.digest, link.key, link.signature),
    )
