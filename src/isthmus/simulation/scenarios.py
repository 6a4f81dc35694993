"""What a scenario hides from training, and whom it measures on.

    hidden = withheld_users(data, at_least=5)             # ids; none of them trains
    tasks = new_user_tasks(known, full, hidden, events=(1, 3, 5))

Draws that decide whom is measured use a fixed seed, so that every seed of a study is measured on the same users, and
so are all conditions of a scenario: their figures can be compared in pairs. Only the support users of a new domain are
drawn with the study's seed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from isthmus.clients.data import DomainData, Histories
from isthmus.errors import ConfigError
from isthmus.simulation.measuring import Task

_DRAW = 0  # seed of whom is measured; the same as a run's own draw of test users
NEW_SHARE = 0.2
"""Of the users that can be tested, how many are new at most."""
HIDDEN_SHARE = 0.1
"""Of a catalogue, how much is new."""


@dataclass(frozen=True, kw_only=True, eq=False)
class NewDomain:
    """The users of a domain that takes no part.

    Attributes:
        data: All of it.
        tested: (users,) rows that are measured on, and never known to a method.
        pool: (users,) rows of whom some become support users.
    """

    data: DomainData
    tested: NDArray[np.int64]
    pool: NDArray[np.int64]

    def support(self, users: int, *, seed: int) -> DomainData:
        """The domain as if it had so many users; a larger support holds the smaller one of the same seed.

        Raises:
            ConfigError: If there are not so many.
        """
        if not 0 <= users <= len(self.pool):
            raise ConfigError(
                f"{self.data.config.name} has {len(self.pool)} users beside the {len(self.tested)} that are measured "
                f"on; --users asks for {users}. Ask for at most {len(self.pool)}."
            )
        drawn = np.random.default_rng((seed, 1)).permutation(self.pool)[:users]
        return only_users(self.data, np.sort(drawn))

    def task(self, known: DomainData) -> Task:
        """Measure on the users that no support holds."""
        return Task(
            histories=replace(self.data.before_test, strangers=True),
            users=self.tested,
            targets=self.data.test[self.tested],
            counts=item_counts(known),
        )


def new_domain(data: DomainData, *, most: int) -> NewDomain:
    """Divide a domain's users into half to measure on (at most `most`) and others to draw support from.

    Raises:
        ConfigError: If nobody could be measured on.
    """
    testable = np.random.default_rng(_DRAW).permutation(np.flatnonzero(data.test >= 0))
    tested = np.sort(testable[: min(most, len(testable) // 2)])
    if not len(tested):
        raise ConfigError(f"{data.config.name} has {len(testable)} users with a test item; 2 or more are needed")
    return NewDomain(data=data, tested=tested, pool=np.setdiff1d(np.arange(len(data.users)), tested))


def usual_task(data: DomainData, *, most: int) -> Task:
    """The test users of a run: all, or `most` of them, drawn as `isthmus simulate` draws them."""
    tested = np.flatnonzero(data.test >= 0)
    if len(tested) > most:
        tested = np.sort(np.random.default_rng(_DRAW).choice(tested, most, replace=False))
    return Task(histories=data.before_test, users=tested, targets=data.test[tested], counts=item_counts(data))


def withheld_users(data: DomainData, *, at_least: int, most: int) -> NDArray[np.int64]:
    """(users,) rows of users who will be new: a fifth of those with a test item and enough events before it."""
    able = np.flatnonzero((data.test >= 0) & (data.before_test.lengths() >= at_least))
    drawn = np.random.default_rng(_DRAW).permutation(able)
    return np.sort(drawn[: min(most, int(NEW_SHARE * len(able)))])


def new_user_task(known: DomainData, full: DomainData, users: NDArray[np.int64], *, events: int) -> Task:
    """Measure on users of whom training knew nothing, from their latest few events before the test item.

    Args:
        known: What training knew.
        full: What there is.
        users: (users,) rows of `full`.
        events: Latest events that are known of each.
    """
    rows = [full.before_test.row(int(user))[-events:] for user in users]
    histories = replace(_ragged(rows), strangers=True)
    return Task(histories=histories, users=np.arange(len(users)), targets=full.test[users], counts=item_counts(known))


def hidden_items(data: DomainData) -> NDArray[np.int64]:
    """(items,) a tenth of the catalogue, to be new."""
    items = len(data.catalogue)
    return np.sort(np.random.default_rng(_DRAW).permutation(items)[: int(HIDDEN_SHARE * items)])


def new_item_task(known: DomainData, full: DomainData, hidden: NDArray[np.int64], *, most: int) -> Task:
    """Measure on users whose test item training had never met; hidden items are not in their histories either."""
    is_hidden = np.zeros(len(full.catalogue), np.bool_)
    is_hidden[hidden] = True
    able = np.flatnonzero((full.test >= 0) & is_hidden[full.test.clip(0)])
    rows = {int(user): full.before_test.row(int(user)) for user in able}
    rows = {user: row[~is_hidden[row]] for user, row in rows.items()}
    users = np.array([user for user, row in rows.items() if len(row)], np.int64)
    if len(users) > most:
        users = np.sort(np.random.default_rng(_DRAW).choice(users, most, replace=False))
    histories = _ragged([rows[int(user)] for user in users])
    return Task(histories=histories, users=np.arange(len(users)), targets=full.test[users], counts=item_counts(known))


def only_users(data: DomainData, users: NDArray[np.int64]) -> DomainData:
    """The same domain with some of its users.

    Args:
        data: All of it.
        users: (users,) rows, ascending.
    """
    return replace(
        data,
        users=[data.users[int(user)] for user in users],
        train=data.train.take(users),
        before_test=data.before_test.take(users),
        validation=data.validation[users],
        test=data.test[users],
    )


def item_counts(data: DomainData) -> NDArray[np.int64]:
    """(items,) events before the test items."""
    return np.bincount(data.before_test.items, minlength=len(data.catalogue)).astype(np.int64)


def ids(data: DomainData, users: NDArray[np.int64]) -> list[str]:
    """Ids of rows."""
    return [data.users[int(user)] for user in users]


def _ragged(rows: Sequence[NDArray[np.int32]]) -> Histories:
    offsets = np.cumsum([0, *(len(row) for row in rows)], dtype=np.int64)
    return Histories(offsets=offsets, items=np.concatenate([np.empty(0, np.int32), *rows]))


Tasks = Mapping[str, Task]
"""By condition, in words that a table shows."""
