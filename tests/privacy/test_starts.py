"""What a run began with is in the books of every domain, once, and takes nothing away from them."""

from pathlib import Path

from isthmus.config import PublicDomain, StartedFrom
from isthmus.privacy.ledger import Ledger
from isthmus.privacy.lines import Started
from isthmus.privacy.reading import read_ledger
from isthmus.privacy.starts import note_start, starts_in_words

HERE = PublicDomain(name="here", users=1200, fingerprint="cd" * 32)
THERE = PublicDomain(name="there", users=34, fingerprint="ef" * 32)
START = StartedFrom(digest="ab" * 32, domains=(HERE, THERE))


def test_a_start_is_noted_once_for_a_run_and_read_by_an_auditor(tmp_path: Path) -> None:
    """Again in another run, and where the coordinator names another file; the chain stays sound."""
    ledger = Ledger(tmp_path / "ledger.db", name="books")
    other = StartedFrom(digest="00" * 32, domains=(THERE,))
    for run, start in (("r1", START), ("r1", START), ("r2", START), ("r2", other), ("r2", other)):
        note_start(ledger.chain, run=run, start=start)
    assert ledger.epsilon(1e-6) == 0
    ledger.close()
    books = read_ledger(tmp_path / "ledger.db")
    assert books.findings == ()
    noted = [(line.run, line.start[:2], line.users) for line in books.lines if isinstance(line, Started)]
    assert noted == [("r1", "ab", 1234), ("r2", "ab", 1234), ("r2", "00", 34)]
    words = starts_in_words(books)
    assert len(words) == 3
    assert "without noise on 1,234 users of here, there" in words[0]
    assert "that is the coordinator's word" in words[0]
