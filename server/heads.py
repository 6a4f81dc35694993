"""The coordinator's memory of where every domain's ledger stood: a chain of its own that can only grow.

    heads = HeadLog(Path("coordinator/heads.db"))
    receipt = heads.note(reply, domain="books")        # text; goes back with the next request
    heads.keys                                          # sign requests and receipts: who the coordinator is

A ledger that was cut or replaced by an older copy contradicts what is noted here, and a coordinator that denies what
it received is contradicted by its receipts.
"""

import logging
from pathlib import Path

from isthmus.errors import Refused
from isthmus.privacy.chain import now
from isthmus.privacy.custody import open_chain
from isthmus.privacy.heads import Head, make_receipt, read_head
from isthmus.privacy.keys import Keys, Secret, secret_from_environment
from isthmus.privacy.lines import Noted, one_line
from isthmus.records import RoundReply

_LOG = logging.getLogger(__name__)


class HeadLog:
    """One coordinator's log.

    Args:
        path: Of the SQLite file; made, with its keys, if absent.
        secret: Opens its keys; the environment's where absent.

    Raises:
        RunError: If the file or its keys cannot be used.
    """

    def __init__(self, path: Path, secret: Secret | None = None) -> None:
        self._chain = open_chain(
            path, owner="coordinator", name="coordinator", secret=secret or secret_from_environment()
        )
        self._latest: dict[str, Head] = {}
        for line in map(self._chain.read, self._chain.links()):
            if isinstance(line, Noted):
                self._latest[line.domain] = read_head(line.head)

    @property
    def keys(self) -> Keys:
        """The coordinator's."""
        return self._chain.keys

    def note(self, reply: RoundReply, *, domain: str) -> str:
        """Write down the head that came with a reply.

        Args:
            reply: As parsed.
            domain: Name that its sender goes by.

        Returns:
            The receipt's text; empty if the reply carried no head that is signed by the key it names.

        Raises:
            Refused: If the ledger stands before where it stood, or is another one: an older copy, or a new one,
                would spend again what is spent.

        A head under another key than before is noted with a warning: only the ledger shows whether it was rotated.
        """
        try:
            head = read_head(reply.head)
        except ValueError as error:
            _LOG.warning("%s: its reply to round %d says nothing of its ledger: %s", domain, reply.round, error)
            return ""
        before = self._latest.get(domain)
        forked = before is not None and before.seq == head.seq and before.digest != head.digest
        other = ", which says something else" if forked else ""
        if before is not None and (forked or before.ledger != head.ledger or before.seq > head.seq):
            raise Refused(
                f"{domain}: its ledger stood at line {before.seq} of {before.ledger[:8]}, and now it is at line "
                f"{head.seq} of {head.ledger[:8]}{other}: an older copy, or a new ledger. Restore the newest copy; "
                f"where that is lost, only a new log of heads goes on ({self._chain.path} moved away), and the audit "
                "will say so.",
                rule="head",
                asked=f"line {head.seq}",
                limit=f"at least line {before.seq}",
            )
        if before is not None and before.key != head.key:
            _LOG.warning("%s: key %s signs now, before it was %s; is that a rotation?", domain, head.key, before.key)
        self._latest[domain] = head
        run = one_line(reply.run)
        with self._chain.transaction():
            self._chain.append(
                Noted, {"domain": one_line(domain), "run": run, "round": reply.round, "head": head.text()}
            )
        return make_receipt(head, run=run, round=reply.round, time=now(), keys=self.keys).text()

    def backup(self, target: Path) -> None:
        """Copy the log to another file, consistently, while it is in use."""
        self._chain.backup(target)

    def close(self) -> None:
        """Close the file."""
        self._chain.close()
