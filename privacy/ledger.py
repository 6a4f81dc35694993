"""The books of one data set: what was released from it, over all runs, and what that cost.

    ledger = Ledger("books/ledger.db", name="books")
    entry = ledger.charge(charge, Limits(lifetime=budget))     # written and synced, or BudgetExhausted
    ledger.keep_release(entry, payload)                        # before the payload leaves
    ledger.epsilon(delta=1e-6)

A signed chain (`isthmus.privacy.chain`) beside the data, shared by every run on it. All charges count,
whatever run made them and whatever the data set's fingerprint was at the time: a data set that grew still
holds the same people.

A charge is written before anything is computed. The finished release is kept here before it leaves, so a
repeated request gets the same bytes, which costs nothing, and a charge without a release is known to have
released nothing: the same request may then be worked on again under the charge it already paid.
"""

import functools
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from dp_accounting import DpEvent

import isthmus
from isthmus.errors import BudgetExhausted, Refused, RunError
from isthmus.privacy.accounting import Spending, encode_event, epsilon, fits
from isthmus.privacy.custody import open_chain, require_sound
from isthmus.privacy.entries import Charge, LedgerEntry, Limits, entry_of, read_event, require_same
from isthmus.privacy.heads import Head, Receipt, read_head
from isthmus.privacy.keys import Secret, secret_from_environment
from isthmus.privacy.lines import (
    Charged,
    Layers,
    PolicyInForce,
    Released,
    Withheld,
    names_digest,
    one_line,
)
from isthmus.privacy.links import KIND, ROUND, RUN, TYPE, Link
from isthmus.privacy.program import code_hash
from isthmus.privacy.refusals import Refusals


class Ledger:
    """The ledger of one data set.

    Args:
        path: Of the SQLite file; made, with its keys, if absent.
        name: Of the domain, for the first line of a new ledger.
        secret: Opens its keys; the environment's where absent.

    Raises:
        RunError: If the file is not a ledger, was tampered with, or its keys cannot be opened.
    """

    def __init__(self, path: str | Path, *, name: str = "", secret: Secret | None = None) -> None:
        self.path = Path(path)
        self.chain = open_chain(
            self.path,
            owner="domain",
            name=name or self.path.resolve().parent.name,
            secret=secret or secret_from_environment(),
        )
        self._refusals = Refusals(self.chain)
        self._seen: Link | None = None
        self._spent = Spending()
        self._spent_by_run: dict[str, Spending] = {}
        self._policy: str | None = None
        try:
            require_sound(self.chain)
            self._catch_up()
        except RunError:
            self.close()
            raise

    def charge(self, charge: Charge, limits: Limits) -> LedgerEntry:
        """Write a charge down, if there is room for it.

        The check and the line are one transaction: of two processes that race for the last of a budget,
        one wins. A charge that was already written for the same request is returned as it is.

        Args:
            charge: What is asked for.
            limits: What it must fit into.

        Returns:
            The entry, synced to disk.

        Raises:
            BudgetExhausted: If a limit would be exceeded.
            Refused: If another request was already charged for the same run, round and kind (a replay), or the
                same one at another cost and nothing was released for it yet (the policy changed in between), or
                a text holds a control character.
            RunError: If the ledger cannot be written; nothing was charged.

        Guarantees:
            - When this returns, the entry survives a crash of the process or the machine.
            - Epsilon of all entries, by the PLD accountant, never exceeds a budget under which each was charged.
        """
        with self.chain.transaction():
            existing = self._find(charge.run, charge.round, charge.kind)
            if existing is not None:
                require_same(existing, charge)
                return existing
            what = f"the {charge.kind} of round {charge.round}"
            self._require_room([charge.event], limits, run=charge.run, what=what)
            self._follow()  # another process may have followed another policy meanwhile
            self._refusals.count()
            try:
                line = self.chain.append(
                    Charged,
                    {
                        "dataset": self.chain.keys.fingerprint(charge.dataset).hex(),
                        "run": charge.run,
                        "round": charge.round,
                        "kind": charge.kind,
                        "request": charge.request.hex(),
                        "event": encode_event(charge.event),
                        "clip": None if charge.clip is None else float(charge.clip),
                        "layers": self._name(charge.layers),
                        "private": charge.private,
                        "version": isthmus.__version__,
                        "code": code_hash(),
                        "policy": self._policy_in_force(),
                        "coordinator": charge.coordinator,
                    },
                )
            except ValueError as error:
                raise Refused(f"this cannot be written into a ledger: {one_line(str(error))}", rule="text") from None
        return entry_of(line, outcome=None)

    def require_room(self, asked: Sequence[DpEvent], limits: Limits, *, run: str, what: str) -> None:
        """Refuse what would overspend, without writing anything.

        Args:
            asked: Events that are to come.
            limits: What they must fit into.
            run: That they belong to.
            what: The asker's words for them.

        Raises:
            BudgetExhausted: If a limit would be exceeded.
        """
        with self.chain.lock:
            self._require_room(asked, limits, run=run, what=what)

    def keep_release(self, entry: LedgerEntry, payload: bytes) -> bytes:
        """Keep a finished release before it leaves, and forget the payloads of the run's earlier rounds.

        Returns:
            The payload that may leave: the one kept first, if another process was faster.

        Raises:
            Refused: If it was withheld, or released and forgotten since.
        """
        with self.chain.transaction():
            line = self.chain.line(entry.seq)
            if not isinstance(line, Charged):
                raise RunError(f"{self.path}: line {entry.seq} charges nothing, so no release belongs to it")
            if self._outcome(entry.seq) is None:
                digest = hashlib.sha256(payload).hexdigest()
                self.chain.append(Released, {"charge": entry.seq, "payload": digest})
                self.chain.db.execute(
                    "INSERT INTO releases (seq, run, kind, round, payload) VALUES (?, ?, ?, ?, ?)",
                    (line.seq, line.run, line.kind, line.round, payload),
                )
                self.chain.db.execute(
                    "DELETE FROM releases WHERE run = ? AND kind = ? AND round < ?", (line.run, line.kind, line.round)
                )
        return self.kept_release(entry) or payload

    def kept_release(self, entry: LedgerEntry) -> bytes | None:
        """The payload that was kept for an entry, if any.

        Raises:
            Refused: If it was withheld, or was released and has been forgotten since, because a later round followed.
            RunError: If it is not the one that was kept.
        """
        with self.chain.lock:
            outcome = self._outcome(entry.seq)
            row = self.chain.db.execute("SELECT payload FROM releases WHERE seq = ?", (entry.seq,)).fetchone()
        if outcome is None:
            return None
        about = f"round {entry.round} of run {entry.run!r}"
        if isinstance(outcome, Withheld):
            raise Refused(f"{about} was computed and did not leave ({outcome.reason}); it is not computed again")
        if row is None:
            raise Refused(f"{about} was answered and a later one followed; it is not answered again.", rule="replay")
        if hashlib.sha256(row[0]).hexdigest() != outcome.payload:
            raise RunError(f"{self.path}: the kept release of line {entry.seq} was changed; restore the ledger")
        return bytes(row[0])

    def withhold(self, entry: LedgerEntry, reason: str) -> None:
        """Write down that what was computed for an entry does not leave, now or later; it stays paid for."""
        with self.chain.transaction():
            if self._outcome(entry.seq) is None:
                self.chain.append(Withheld, {"charge": entry.seq, "reason": one_line(reason)})

    def refuse(self, refusal: Refused, *, run: str, round_: int, kind: str, coordinator: str = "") -> None:
        """Write down that a rule said no, as `isthmus.privacy.refusals` does: once, and not too many in a day."""
        with self.chain.transaction():
            self._refusals.write(refusal, run=run, round_=round_, kind=kind, coordinator=coordinator)

    def follow(self, policy: str) -> None:
        """Write down the policy in force, where it is another one than before.

        Args:
            policy: As canonical JSON.
        """
        self._policy = policy
        with self.chain.transaction():
            self._follow()

    def head(self) -> Head:
        """Where the ledger stands, signed, for others to keep."""
        return self.chain.head()

    def keep_receipt(self, receipt: Receipt) -> None:
        """Keep the coordinator's word that it received a head.

        Raises:
            Refused: If the head is not one of this ledger, or says of it what it does not hold: either it was cut, or
                replaced by an older copy, or somebody made the head up. If it is not signed by the key that was in
                force after its line. The receipt is not kept.
        """
        head = read_head(receipt.head)
        if head.ledger != self.chain.ledger:
            raise Refused(f"the receipt is about ledger {head.ledger[:16]}, not about this one", rule="receipt")
        with self.chain.transaction():
            if not self.chain.holds(head):
                raise Refused(
                    f"the receipt shows line {head.seq} of this ledger as {head.digest[:16]}, which it does not hold; "
                    f"if it was restored from an older copy, bring back the newest one",
                    rule="receipt",
                    asked=f"line {head.seq} is {head.digest}",
                )
            if not self.chain.speaks(head):
                raise Refused(
                    f"the receipt shows line {head.seq} of this ledger under key {head.key[:16]}, which was not in "
                    f"force there: somebody else signed it",
                    rule="receipt",
                    asked=f"line {head.seq} under key {head.key}",
                )
            self.chain.db.execute(
                "INSERT OR IGNORE INTO receipts (seq, text) VALUES (?, ?)", (head.seq, receipt.text())
            )

    def is_charged(self, run: str, round_: int, kind: str) -> bool:
        """Whether this question was already paid for."""
        with self.chain.lock:
            return self._find(run, round_, kind) is not None

    def took_part(self, run: str, kind: str) -> bool:
        """Whether anything of this kind was ever paid for in a run."""
        with self.chain.lock:
            row = self.chain.db.execute(
                f"SELECT 1 FROM chain WHERE {TYPE} = 'charged' AND {RUN} = ? AND {KIND} = ? LIMIT 1",  # noqa: S608
                (run, kind),
            ).fetchone()
        return row is not None

    def entries(self) -> Iterator[LedgerEntry]:
        """All charges, oldest first.

        Raises:
            RunError: If one of them cannot be read; it is never skipped.
        """
        lines = [self.chain.read(link) for link in self.chain.links()]
        outcomes = {line.charge: line for line in lines if isinstance(line, Released | Withheld)}
        for line in lines:
            if isinstance(line, Charged):
                yield entry_of(line, outcomes.get(line.seq))

    def unsent(self) -> list[LedgerEntry]:
        """What was charged, and neither released nor withheld: a process died in between."""
        return [entry for entry in self.entries() if not entry.released and not entry.withheld]

    def spending(self) -> Spending:
        """Everything that was ever charged."""
        with self.chain.lock:
            self._catch_up()
            return self._spent

    def epsilon(self, delta: float, *, upto: int | None = None, without_run: str | None = None) -> float:
        """Epsilon of everything charged so far, over all runs, by the PLD accountant.

        Args:
            delta: In (0, 1).
            upto: Only entries with this sequence number or a lower one.
            without_run: Leave this run's entries out.
        """
        if upto is None and without_run is None:
            return epsilon(self.spending(), delta)
        return epsilon(
            (e.event for e in self.entries() if (upto is None or e.seq <= upto) and e.run != without_run), delta
        )

    def backup(self, target: Path) -> None:
        """Copy the ledger to another file, consistently, while it is in use."""
        self.chain.backup(target)

    def close(self) -> None:
        """Close the file."""
        self.chain.close()

    def _require_room(self, asked: Sequence[DpEvent], limits: Limits, *, run: str, what: str) -> None:
        self._catch_up()
        for spent, budget, scope in (
            (self._spent, limits.lifetime, "over all runs"),
            (self._spent_by_run.get(run, Spending()), limits.run, f"in run {run!r}"),
        ):
            then = functools.reduce(Spending.plus, asked, spent)
            if budget is None or fits(then, budget):
                continue
            before, after = epsilon(spent, budget.delta), epsilon(then, budget.delta)
            raise BudgetExhausted(
                f"epsilon {before:.3f} of {budget.epsilon:g} is spent {scope} (delta {budget.delta:g}); "
                f"{what} would bring it to {after:.3f}. Nothing was read or trained. Raise the limit "
                f"(`epsilon` in domain.toml, or the policy's), or do without.",
                rule="budget" if budget is limits.lifetime else "run-budget",
                asked=f"epsilon {after:.4f}",
                limit=f"epsilon {budget.epsilon:g} at delta {budget.delta:g}",
            )

    def _catch_up(self) -> None:
        """Add up what was written since the last look, by this process or another."""
        links = self.chain.links(after=self._seen.seq - 1 if self._seen else 0)
        if self._seen is not None and next(links, None) != self._seen:
            raise RunError(
                f"{self.path}: line {self._seen.seq} is not what it was when this process read it; the ledger was "
                f"changed by somebody else. Restore its newest sound copy."
            )
        for link in links:
            line = self.chain.read(link)
            if isinstance(line, Charged):
                event = _decoded(line, self.path)
                self._spent = self._spent.plus(event)
                self._spent_by_run[line.run] = self._spent_by_run.get(line.run, Spending()).plus(event)
            self._seen = link

    def _find(self, run: str, round_: int, kind: str) -> LedgerEntry | None:
        for text in (run, kind):
            if not text.isprintable():
                raise Refused(f"{one_line(text)!r:.80}: such characters cannot be written into a ledger", rule="text")
        row = self.chain.db.execute(
            f"SELECT seq FROM chain WHERE {TYPE} = 'charged' AND {RUN} = ? AND {ROUND} = ? AND {KIND} = ?",  # noqa: S608
            (run, round_, kind),
        ).fetchone()
        if row is None:
            return None
        line = self.chain.line(row[0])
        assert isinstance(line, Charged)  # noqa: S101 - what the query asked for
        return entry_of(line, self._outcome(line.seq))

    def _outcome(self, seq: int) -> Released | Withheld | None:
        row = self.chain.db.execute(
            f"SELECT seq FROM chain WHERE {TYPE} IN ('released', 'withheld') "  # noqa: S608
            f"AND json_extract(body, '$.charge') = ?",
            (seq,),
        ).fetchone()
        line = None if row is None else self.chain.line(row[0])
        return line if isinstance(line, Released | Withheld) else None

    def _follow(self) -> None:
        """Inside a transaction: the last policy line is the policy that this process follows."""
        if self._policy is not None:
            digest = hashlib.sha256(self._policy.encode()).hexdigest()
            if self._policy_in_force() != digest:
                self.chain.append(PolicyInForce, {"digest": digest, "text": self._policy})

    def _name(self, layers: Sequence[str]) -> str:
        """Inside a transaction: the digest of these names, which a line holds; empty for no names."""
        if not layers:
            return ""
        names = tuple(sorted(set(layers)))
        digest = names_digest(names)
        known = self.chain.db.execute(
            f"SELECT 1 FROM chain WHERE {TYPE} = 'layers' AND json_extract(body, '$.digest') = ?",  # noqa: S608
            (digest,),
        ).fetchone()
        if known is None:
            self.chain.append(Layers, {"digest": digest, "names": names})
        return digest

    def _policy_in_force(self) -> str:
        row = self.chain.db.execute(
            f"SELECT json_extract(body, '$.digest') FROM chain WHERE {TYPE} = 'policy' ORDER BY seq DESC LIMIT 1"  # noqa: S608
        ).fetchone()
        return "" if row is None else str(row[0])


def _decoded(line: Charged, path: Path) -> DpEvent:
    try:
        return read_event(line.event)
    except ValueError as error:
        raise RunError(
            f"{path}: line {line.seq} cannot be read: {error}. It was written by Isthmus {line.version}, this is "
            f"{isthmus.__version__}; use a version that knows it, or restore the ledger from a backup."
        ) from None
