"""What is left of each data set's budget, a line each, for scripts.

lines, findings = budget_lines(sources)
lines[0].text()                       # name <tab> spent <tab> left <tab> limit <tab> delta <tab> rounds <tab> path
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isthmus.privacy.audit.data_set import finite, totals_of
from isthmus.privacy.audit.sources import Sources
from isthmus.privacy.examination import Finding

_DIGITS = 4


@dataclass(frozen=True, kw_only=True)
class BudgetLine:
    """One data set.

    Attributes:
        name: Of the domain.
        spent: Epsilon over all runs; None where none can be proven.
        left: Limit less spent; None without a policy, or where its limit holds at another delta.
        limit: Of the policy in force; None without one, or where it holds at another delta.
        delta: At which, all three.
        more_rounds: Rounds like the last that still fit; None where not known.
        path: Of the ledger.
    """

    name: str
    spent: float | None
    left: float | None
    limit: float | None
    delta: float
    more_rounds: int | None
    path: str

    def text(self) -> str:
        """Separated by tabs; spent is rounded up, left down."""
        scale = 10**_DIGITS
        spent = "inf" if self.spent is None else f"{math.ceil(self.spent * scale - 1e-7) / scale:.{_DIGITS}f}"
        left = "-" if self.left is None else f"{math.floor(self.left * scale + 1e-7) / scale:.{_DIGITS}f}"
        limit = "-" if self.limit is None else f"{self.limit:g}"
        rounds = "-" if self.more_rounds is None else str(self.more_rounds)
        return "\t".join((self.name, spent, left, limit, f"{self.delta:g}", rounds, self.path))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, unrounded, for JSON."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def budget_lines(
    sources: Sources, *, delta: float | None = None
) -> tuple[list[BudgetLine], list[tuple[Path, Finding]]]:
    """A line for each ledger, and what is wrong with their chains: such a line is not to be relied on.

    Raises:
        ConfigError: If the delta is impossible.
        RunError: If there is no ledger among the sources.
    """
    sources.require_ledgers()
    lines = []
    for books in sources.ledgers:
        totals = totals_of(books, delta=delta)
        limit = totals.budget if totals.budget and totals.budget.delta == totals.delta else None
        lines.append(
            BudgetLine(
                name=books.name,
                spent=finite(totals.epsilon),
                left=totals.left if limit else None,
                limit=limit.epsilon if limit else None,
                delta=totals.delta,
                more_rounds=totals.more_rounds,
                path=str(books.path),
            )
        )
    return lines, [(books.path, finding) for books in sources.ledgers for finding in books.findings]
