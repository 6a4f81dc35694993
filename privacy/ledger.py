"""The books of one data set: what was released from it, over all runs, and what that cost.

    ledger = Ledger("books/ledger.db")
    entry = ledger.charge(charge, budget)      # written and synced, or BudgetExhausted
    ledger.keep_release(entry, payload)        # before the payload leaves
    ledger.epsilon(delta=1e-6)

One SQLite file (write-ahead log, synchronous FULL) beside the data, shared by every run on it.
All entries count, whatever run made them and whatever the data set's fingerprint was at the
time: a data set that grew still holds the same people.

A charge is written before anything is computed. The finished release is kept here before it
leaves, so a repeated request gets the same bytes, which costs nothing, and a charge without a
release is known to have released nothing: the same request may then be worked on again
under the charge it already paid.
"""

import datetime as dt
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dp_accounting import DpEvent

import isthmus
from isthmus.errors import BudgetExhausted, Refused, RunError
from isthmus.privacy.accounting import decode_event, encode_event, epsilon, fits
from isthmus.privacy.budget import PrivacyBudget

_SCHEMA = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS entries (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    time TEXT NOT NULL,
    dataset BLOB NOT NULL,
    run TEXT NOT NULL,
    round INTEGER NOT NULL,
    kind TEXT NOT NULL,
    request BLOB NOT NULL,
    event TEXT NOT NULL,
    private INTEGER NOT NULL,
    version TEXT NOT NULL,
    UNIQUE (run, round, kind)
) STRICT;
CREATE TABLE IF NOT EXISTS releases (
    seq INTEGER PRIMARY KEY REFERENCES entries (seq),
    payload BLOB
) STRICT;
COMMIT;
"""


@dataclass(frozen=True, kw_only=True)
class Charge:
    """One release that somebody asks for.

    Attributes:
        dataset: Fingerprint of the data it is computed from.
        run: Of the federation.
        round: Of the run, from 0.
        kind: `update`, `metric` or `catalogue`.
        request: Digest of everything the release will depend on besides the data.
        event: What it costs.
        private: False if its noise can be repeated.
    """

    dataset: bytes
    run: str
    round: int
    kind: str
    request: bytes
    event: DpEvent
    private: bool


@dataclass(frozen=True, kw_only=True)
class LedgerEntry:
    """One line of the books.

    Attributes:
        seq: Position in the ledger, from 1.
        time: When it was written, UTC, ISO 8601.
        charge: What was charged.
        version: Of Isthmus that wrote it.
        released: Whether the finished release was kept, i.e. may have left.
    """

    seq: int
    time: str
    charge: Charge
    version: str
    released: bool


class Ledger:
    """The ledger of one data set.

    Args:
        path: Of the SQLite file; made if absent.

    Raises:
        RunError: If the file is not a ledger.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, isolation_level=None, timeout=60, check_same_thread=False)
            is_new = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
            if not is_new:
                self._db.execute(f"{_SELECT} LIMIT 0")  # a database of something else has no such columns
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA foreign_keys = ON")
            if is_new:
                self._db.executescript(_SCHEMA)
        except (sqlite3.DatabaseError, OSError) as error:
            raise RunError(
                f"{self.path}: cannot be used as a ledger: {error}. Restore it from a backup; "
                f"starting a new one would forget what was spent."
            ) from None

    def charge(self, charge: Charge, budget: PrivacyBudget) -> LedgerEntry:
        """Write a charge down, if there is room for it.

        The check and the entry are one transaction: of two processes that race for the last of a budget,
        one wins. A charge that was already written for the same request is returned as it is.

        Args:
            charge: What is asked for.
            budget: Limit over everything in this ledger.

        Returns:
            The entry, synced to disk.

        Raises:
            BudgetExhausted: If all entries and this charge together exceed the budget.
            Refused: If another request was already charged for the same run, round and kind (a replay), or the
                same one at another cost and nothing was released for it yet (the policy changed in between).
            RunError: If the ledger cannot be written; nothing was charged.

        Guarantees:
            - When this returns, the entry survives a crash of the process or the machine.
            - Epsilon of all entries, by the PLD accountant, never exceeds a budget under which each was charged.
        """
        with self._transaction():
            existing = self._find(charge.run, charge.round, charge.kind)
            if existing is not None:
                if existing.charge.request != charge.request:
                    raise Refused(
                        f"round {charge.round} of run {charge.run!r} already asked for another {charge.kind}: "
                        f"request {existing.charge.request.hex()[:12]}, now {charge.request.hex()[:12]}. "
                        f"A round is answered once; start a new run to ask something else."
                    )
                paid = (encode_event(existing.charge.event), existing.charge.private)
                if not existing.released and paid != (encode_event(charge.event), charge.private):
                    raise Refused(
                        f"the {charge.kind} of round {charge.round} of run {charge.run!r} was charged as {paid[0]} "
                        f"(private: {paid[1]}) and would now be {encode_event(charge.event)} (private: "
                        f"{charge.private}). Go back to the policy and seed it was charged under, or start a new run."
                    )
                return existing
            self.require_room([charge.event], budget, what=f"the {charge.kind} of round {charge.round}")
            row = self._db.execute(
                "INSERT INTO entries (time, dataset, run, round, kind, request, event, private, version) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING seq, time",
                (
                    dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"),
                    charge.dataset,
                    charge.run,
                    charge.round,
                    charge.kind,
                    charge.request,
                    encode_event(charge.event),
                    int(charge.private),
                    isthmus.__version__,
                ),
            ).fetchone()
        return LedgerEntry(seq=row[0], time=row[1], charge=charge, version=isthmus.__version__, released=False)

    def require_room(self, asked: Sequence[DpEvent], budget: PrivacyBudget, *, what: str) -> None:
        """Refuse what would overspend, without writing anything.

        Args:
            asked: Events that are to come.
            budget: Limit over everything in this ledger.
            what: The asker's words for them.

        Raises:
            BudgetExhausted: If all entries and these events together exceed the budget.
        """
        events = [entry.charge.event for entry in self.entries()]
        if not fits([*events, *asked], budget):
            raise BudgetExhausted(
                f"epsilon {epsilon(events, budget.delta):.3f} of {budget.epsilon:g} is spent (delta {budget.delta:g}); "
                f"{what} would bring it to {epsilon([*events, *asked], budget.delta):.3f}. Nothing was read or "
                f"trained. Raise `epsilon` in domain.toml, or do without."
            )

    def keep_release(self, entry: LedgerEntry, payload: bytes) -> bytes:
        """Keep a finished release before it leaves, and forget the payloads of the run's earlier rounds.

        Returns:
            The payload that may leave: the one kept first, if another process was faster.
        """
        with self._transaction():
            self._db.execute("INSERT OR IGNORE INTO releases (seq, payload) VALUES (?, ?)", (entry.seq, payload))
            self._db.execute(
                "UPDATE releases SET payload = NULL WHERE seq IN "
                "(SELECT seq FROM entries WHERE run = ? AND kind = ? AND round < ?)",
                (entry.charge.run, entry.charge.kind, entry.charge.round),
            )
        return self.kept_release(entry) or payload

    def kept_release(self, entry: LedgerEntry) -> bytes | None:
        """The payload that was kept for an entry, if any.

        Raises:
            Refused: If it was released and has been forgotten since, because a later round followed.
        """
        row = self._db.execute("SELECT payload FROM releases WHERE seq = ?", (entry.seq,)).fetchone()
        if row is None:
            return None
        if row[0] is None:
            raise Refused(
                f"round {entry.charge.round} of run {entry.charge.run!r} was answered and a later one followed; "
                f"it is not answered again."
            )
        return bytes(row[0])

    def is_charged(self, run: str, round_: int, kind: str) -> bool:
        """Whether this question was already paid for."""
        return self._find(run, round_, kind) is not None

    def entries(self) -> Iterator[LedgerEntry]:
        """All entries, oldest first.

        Raises:
            RunError: If one of them cannot be read; it is never skipped.
        """
        for row in self._db.execute(f"{_SELECT} ORDER BY entries.seq"):
            yield self._entry(row)

    def epsilon(self, delta: float, *, upto: int | None = None, without_run: str | None = None) -> float:
        """Epsilon of everything charged so far, over all runs, by the PLD accountant.

        Args:
            delta: In (0, 1).
            upto: Only entries with this sequence number or a lower one.
            without_run: Leave this run's entries out.
        """
        return epsilon(
            (
                entry.charge.event
                for entry in self.entries()
                if (upto is None or entry.seq <= upto) and entry.charge.run != without_run
            ),
            delta,
        )

    def backup(self, target: Path) -> None:
        """Copy the ledger to another file, consistently, while it is in use."""
        target.parent.mkdir(parents=True, exist_ok=True)
        copy = sqlite3.connect(target)
        try:
            self._db.backup(copy)
        finally:
            copy.close()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _find(self, run: str, round_: int, kind: str) -> LedgerEntry | None:
        row = self._db.execute(f"{_SELECT} WHERE run = ? AND round = ? AND kind = ?", (run, round_, kind)).fetchone()
        return None if row is None else self._entry(row)

    def _entry(self, row: tuple[int, str, bytes, str, int, str, bytes, str, int, str, int]) -> LedgerEntry:
        seq, time, dataset, run, round_, kind, request, event, private, version, released = row
        try:
            decoded = decode_event(event)
        except ValueError as error:
            raise RunError(
                f"{self.path}: entry {seq} cannot be read: {error}. It was written by Isthmus {version}, this is "
                f"{isthmus.__version__}; use a version that knows it, or restore the ledger from a backup."
            ) from None
        charge = Charge(
            dataset=dataset,
            run=run,
            round=round_,
            kind=kind,
            request=request,
            event=decoded,
            private=bool(private),
        )
        return LedgerEntry(seq=seq, time=time, charge=charge, version=version, released=bool(released))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All of it, synced, or nothing."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk may have ended it already
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.OperationalError as error:
            raise RunError(
                f"{self.path}: the ledger cannot be written: {error}. Nothing leaves without it; make room on the "
                f"disk or end what holds the file, and ask again."
            ) from None


_SELECT = (
    "SELECT entries.seq, time, dataset, run, round, kind, request, event, private, version, releases.seq IS NOT NULL "
    "FROM entries LEFT JOIN releases ON releases.seq = entries.seq"
)
