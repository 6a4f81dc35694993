"""What tests of the books and the gate share: an empty ledger, charges, and budgets of a known size."""

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import pytest
from dp_accounting import DpEvent

from isthmus.privacy.accounting import epsilon, gaussian
from isthmus.privacy.budget import PrivacyBudget
from isthmus.privacy.ledger import Charge, Ledger, LedgerEntry

FORK = multiprocessing.get_context("fork")
DELTA = 1e-5
EVENT = gaussian(4.0)
WIDE = PrivacyBudget(50.0, DELTA)
TWO = PrivacyBudget(epsilon([EVENT] * 2, DELTA), DELTA)
"""Room for exactly two of `EVENT`."""


def charge_of(number: int = 0, *, run: str = "run", kind: str = "update", event: DpEvent = EVENT) -> Charge:
    """A charge of one round, with a request of its own."""
    return Charge(
        dataset=b"data", run=run, round=number, kind=kind, request=f"{run}/{number}".encode(), event=event, private=True
    )


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """An empty ledger."""
    opened = Ledger(tmp_path / "ledger.db")
    yield opened
    opened.close()


def content(ledger: Ledger) -> list[LedgerEntry]:
    """Everything in a ledger, as another reader sees it."""
    other = Ledger(ledger.path)
    entries = list(other.entries())
    other.close()
    return entries
