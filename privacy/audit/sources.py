"""Which files an audit is about: ledgers, and coordinators' logs to hold them against.

    sources = read_sources([Path("run")])                      # run/ledgers/*.db and run/heads.db
    sources = read_sources([Path("books/ledger.db")], heads=[Path("heads.db")])

A folder may be a run's, a domain's (`ledger.db`) or a federation's (its domains' folders). Of two copies of one ledger
the longer one is audited, if the shorter one is its beginning; if it is not, that is a finding.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from isthmus.errors import RunError
from isthmus.privacy.lines import Noted
from isthmus.privacy.reading import Books, read_ledger

_LEDGERS = ("ledger.db", "ledgers/*.db", "*/ledger.db")
_LOG = "heads.db"


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What was read.

    Attributes:
        ledgers: Of domains, in the order of their files.
        logs: Of coordinators.
        copies: (kept, left out) copies of one ledger; the second is not audited.
    """

    ledgers: tuple[Books, ...]
    logs: tuple[Books, ...]
    copies: tuple[tuple[Books, Books], ...] = ()

    def require_ledgers(self) -> None:
        """Refuse an audit of nothing.

        Raises:
            RunError: If only coordinators' logs were named.
        """
        if not self.ledgers:
            raise RunError("only coordinators' logs were named; name the ledger or folder that is to be audited too")


def read_sources(paths: Iterable[Path], *, heads: Iterable[Path] = ()) -> Sources:
    """Read all files that were named, each once.

    Args:
        paths: Ledgers, coordinators' logs, or folders that hold some.
        heads: Coordinators' logs.

    Raises:
        RunError: If a folder holds no ledger, a file is none, or a ledger was named where a log is asked for.
    """
    files = {file.resolve(): file for path in paths for file in ledger_files(path, logs=True)}
    named = {file.resolve(): file for file in heads}
    books = [read_ledger(file) for file in {**files, **named}.values()]
    wrong = [found.path for found in books if found.path.resolve() in named and found.owner != "coordinator"]
    if wrong:
        raise RunError(f"{wrong[0]}: a domain's ledger; a coordinator's log of heads is asked for (heads.db)")
    domains = [found for found in books if found.owner != "coordinator"]
    ledgers, copies = _longest(domains)
    return Sources(
        ledgers=tuple(ledgers),
        logs=tuple(found for found in books if found.owner == "coordinator"),
        copies=tuple(copies),
    )


def ledger_files(path: Path, *, logs: bool = False) -> list[Path]:
    """The ledgers that a path stands for: itself if it is a file, or those in a folder.

    Args:
        path: Of a file or folder.
        logs: Coordinators' logs as well.

    Raises:
        RunError: If there is none.
    """
    if not path.exists():
        raise RunError(
            f"{path}: no such file or folder; name a ledger (ledger.db), a domain's folder or a run's folder"
        )
    if not path.is_dir():
        return [path]
    found = sorted({file for pattern in _LEDGERS for file in path.glob(pattern)})
    if not found:
        raise RunError(f"{path}: no ledger here; a run's folder holds ledgers/*.db, a domain's folder ledger.db")
    return [*found, path / _LOG] if logs and (path / _LOG).is_file() else found


def is_beginning(short: Books, long: Books) -> bool:
    """Whether one chain is the other one, cut off somewhere."""
    ends = len(short.links)
    return [link.digest for link in short.links] == [link.digest for link in long.links[:ends]]


def noted_heads(log: Books) -> list[Noted]:
    """What a coordinator's log says of domains' ledgers, oldest first."""
    return [line for line in log.lines if isinstance(line, Noted)]


def _longest(ledgers: list[Books]) -> tuple[list[Books], list[tuple[Books, Books]]]:
    """Each ledger once, and which of its copies were left out."""
    kept: dict[str, Books] = {}
    copies: list[tuple[Books, Books]] = []
    for number, books in enumerate(ledgers):
        name = books.ledger or f"unreadable {number}"
        other = kept.setdefault(name, books)
        if other is not books:
            longer, shorter = (books, other) if len(books.links) > len(other.links) else (other, books)
            kept[name] = longer
            copies = [(longer if old is shorter else old, left_out) for old, left_out in copies]
            copies.append((longer, shorter))
    return list(kept.values()), copies
