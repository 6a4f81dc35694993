"""What tests of commands share."""

import shutil
import sqlite3
from pathlib import Path

import pytest
from tests.cli.called import Caller
from tests.privacy.audited import Federation, everyday


@pytest.fixture
def isthmus(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Caller:
    """Call it with the words of a command line."""
    return Caller(monkeypatch, capsys)


@pytest.fixture(scope="session")
def books(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """A federation's books that are in order; not to be changed."""
    return everyday(tmp_path_factory.mktemp("everyday"))


@pytest.fixture
def cut(books: Federation, tmp_path: Path) -> Path:
    """A copy of its folder, of whose `books` ledger the last lines were cut off."""
    folder = Path(shutil.copytree(books.folder, tmp_path / "cut"))
    db = sqlite3.connect(folder / "ledgers" / "books.db")
    db.execute("DELETE FROM receipts WHERE seq > 20")
    db.execute("DELETE FROM releases WHERE seq > 20")
    db.execute("DELETE FROM chain WHERE seq > 20")
    db.commit()
    db.close()
    return folder
