"""What a run began with, in a domain's books: a backbone that was trained in the open, by the coordinator's word.

    note_start(ledger.chain, run="r1", start=request.recipe.start)      # before the first charge for an update
    words = starts_in_words(books)                                      # for an audit

No guarantee depends on it: whatever a run begins with, what one user can change is the same. It is there so that a
reader sees what was *not* protected, and by whom it was said to be public.
"""

from isthmus.config import StartedFrom
from isthmus.privacy.chain import Chain
from isthmus.privacy.lines import Started
from isthmus.privacy.links import RUN, TYPE
from isthmus.privacy.reading import Books


def note_start(chain: Chain, *, run: str, start: StartedFrom) -> None:
    """Write down, once for a run, what it is said to have begun with.

    Args:
        chain: Of a domain's ledger.
        run: Id of the run.
        start: What the coordinator's request says.
    """
    with chain.transaction():
        known = chain.db.execute(
            f"SELECT 1 FROM chain WHERE {TYPE} = 'started' AND {RUN} = ? "  # noqa: S608 - our own expressions
            f"AND json_extract(body, '$.start') = ? LIMIT 1",
            (run, start.digest),
        ).fetchone()
        if known is None:
            users = sum(domain.users for domain in start.domains)
            domains = tuple(domain.name for domain in start.domains)
            chain.append(Started, {"run": run, "start": start.digest, "domains": domains, "users": users})


def starts_in_words(books: Books) -> tuple[str, ...]:
    """A sentence for each run in a ledger that began with a backbone which was trained in the open."""
    return tuple(
        f"Run {line.run} began with a backbone (file {line.start[:16]}) that was trained without noise on "
        f"{line.users:,} users of {', '.join(line.domains)}, whose histories are public: that is the coordinator's "
        f"word. Nothing of it protects them; what is spent here is the same."
        for line in books.lines
        if isinstance(line, Started)
    )
