"""Refusals in a ledger: each is written once, and whoever asks without end cannot make a ledger grow without end.

    refusals = Refusals(chain)
    with chain.transaction():
        refusals.write(refusal, run="r1", round_=3, kind="update")
    with chain.transaction():
        refusals.count()                       # before a charge: what an earlier day's flood came to

Whoever can send a message can cause a refusal, under a run name of their own, signed or not. So a day (UTC) holds
`MOST_REFUSALS` of them singly. Then a line `flooded` says that from here on they are counted, and the first refusal or
charge of another day writes a line `ebbed` with the count. Until then the count lies in the table `floods`: every
process sees it, and a restart does not lose it. It is not signed; a flood without its `ebbed` line says so.
"""

from dataclasses import dataclass

from isthmus.errors import Refused
from isthmus.privacy.chain import Chain, now
from isthmus.privacy.lines import Ebbed, Flooded, RefusedLine, one_line
from isthmus.privacy.links import DAY, KIND, ROUND, RUN, TYPE

MOST_REFUSALS = 100
"""Lines of refusals in a day."""
LONGEST_REFUSAL = 500
"""Characters of each text in such a line."""


@dataclass(frozen=True)
class Refusals:
    """Those in one ledger.

    Attributes:
        chain: Of the ledger; everything here happens inside one of its transactions.
    """

    chain: Chain

    def write(self, refusal: Refused, *, run: str, round_: int, kind: str, coordinator: str = "") -> None:
        """Write down that a rule said no; only inside a transaction.

        Args:
            refusal: Names the rule, what was asked and the limit.
            run: That was asked about.
            round_: Of the run.
            kind: Of release.
            coordinator: Public key of who asked, hex; empty if nobody signed.

        Guarantees:
            - The same rule about the same question (run, round, kind) is written once.
            - A ledger grows by at most `MOST_REFUSALS` such lines and two more in a day, whoever asks what, in however
              many processes, whenever they are restarted. Each text in them has at most `LONGEST_REFUSAL` characters.
            - The others of that day are counted, a repeated one each time that it is asked.
        """
        run, kind, rule, asked, limit = (
            one_line(text, LONGEST_REFUSAL)
            for text in (run, kind, refusal.rule, refusal.asked or str(refusal), refusal.limit)
        )
        known = self.chain.db.execute(
            f"SELECT 1 FROM chain WHERE {TYPE} = 'refused' AND {RUN} = ? AND {ROUND} = ? AND {KIND} = ? "  # noqa: S608
            f"AND json_extract(body, '$.rule') = ?",
            (run, round_, kind, rule),
        ).fetchone()
        if known is None and not self._counted():
            fields = {"run": run, "round": round_, "kind": kind, "rule": rule}
            self.chain.append(RefusedLine, {**fields, "asked": asked, "limit": limit, "coordinator": coordinator})

    def count(self) -> None:
        """Say how many refusals were not written on an earlier day, if there were any; only inside a transaction."""
        for line, count in self.chain.db.execute("SELECT line, count FROM floods LIMIT 1").fetchall():
            if self.chain.line(line).time[:10] != now()[:10]:
                self.chain.append(Ebbed, {"flood": line, "count": count})
                self.chain.db.execute("DELETE FROM floods WHERE line = ?", (line,))

    def _counted(self) -> bool:
        """Whether a refusal is one too many for today; then it was counted."""
        self.count()
        if self.chain.db.execute("UPDATE floods SET count = count + 1").rowcount:
            return True
        query = f"SELECT count(*) FROM chain WHERE {TYPE} = 'refused' AND {DAY} = ?"  # noqa: S608 - ours
        if self.chain.db.execute(query, (now()[:10],)).fetchone()[0] < MOST_REFUSALS:
            return False
        line = self.chain.append(Flooded, {"most": MOST_REFUSALS})
        self.chain.db.execute("INSERT INTO floods (line, count) VALUES (?, 1)", (line.seq,))
        return True
