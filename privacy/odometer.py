"""How far a budget still goes: what is left, and how many more rounds like the last.

    left(spending, budget)                        # 1.37
    more_rounds(spending, budget, last_event)     # 42

Epsilons do not add up: see `NOT_LINEAR`. That is why `more_rounds` composes, and does not divide.

Both answers are for rounds and noise that are fixed without looking at results. Choosing them by what earlier rounds
released needs a privacy filter (Rogers, Roth, Ullman and Vadhan, "Privacy Odometers and Filters", NeurIPS 2016), which
this is not.
"""

import math
from dataclasses import dataclass

from dp_accounting import DpEvent

from isthmus.privacy.accounting import COARSE, FINE, NOTHING, Spending, epsilon
from isthmus.privacy.budget import PrivacyBudget

MOST_ROUNDS = 1_000_000
"""`more_rounds` counts no further."""

NOT_LINEAR = (
    "Epsilons do not subtract: what is left is the budget minus what is spent, but a release composes with all that "
    "came before. After many releases one more usually costs far less than its epsilon alone; at the same delta it can "
    "also cost more. Ask how many more rounds fit instead."
)
"""What a report says beside a figure from `left`."""


def left(spending: Spending, budget: PrivacyBudget) -> float:
    """The budget's epsilon minus epsilon of what was spent, at the budget's delta.

    Returns:
        At least 0; 0 if the budget is overspent. It is *not* the largest epsilon that a further release may have by
        itself (`NOT_LINEAR`).

    >>> left(Spending(), PrivacyBudget(2.0, 1e-6))
    2.0
    """
    return max(0.0, budget.epsilon - epsilon(spending, budget.delta))


def more_rounds(spending: Spending, budget: PrivacyBudget, event: DpEvent, *, interval: float = FINE) -> int:
    """How many more events like this one fit into a budget, on top of what was spent.

    Args:
        spending: What was spent.
        budget: Limit over everything.
        event: Of one round.
        interval: Of the grid that decides. `accounting.COARSE` is quick and never says more.

    Returns:
        0 if not even one fits, `MOST_ROUNDS` if at least so many do (as for an event that costs nothing).

    Guarantees:
        - So many rounds fit, as `accounting.epsilon` counts; one more does not, unless it is `MOST_ROUNDS`.
    """
    if event == NOTHING:
        return MOST_ROUNDS if epsilon(spending, budget.delta, interval=interval) <= budget.epsilon else 0
    # 1. On the coarse grid, in milliseconds.
    coarse = _Rounds(spending, event, budget.delta, COARSE)
    low = coarse.within(budget.epsilon, guess=0)
    if interval >= COARSE:
        return low
    # 2. It says somewhat more than the fine one, here and in a few rounds alike: a guess, and a look around it.
    fine = _Rounds(spending, event, budget.delta, interval)
    guess = coarse.within(budget.epsilon + coarse.epsilon(low) - fine.epsilon(low), guess=low)
    return fine.within(budget.epsilon, guess=guess)


@dataclass(frozen=True)
class _Rounds:
    """A spending and so many more rounds, on one grid."""

    spending: Spending
    event: DpEvent
    delta: float
    interval: float

    def epsilon(self, rounds: int) -> float:
        """With so many more rounds."""
        then = self.spending.and_also(Spending.of([self.event]).times(rounds)) if rounds else self.spending
        return epsilon(then, self.delta, interval=self.interval)

    def within(self, limit: float, *, guess: int) -> int:
        """Most rounds whose epsilon is at most a limit; 0 if there are none. A good guess makes it quick."""
        if math.isnan(limit):  # infinity less infinity: nothing is proven
            return 0
        # 1. Bracket: `low` fits, or is -1; `high` does not, or is out of range.
        stride, low, high = 1, -1, MOST_ROUNDS + 1
        at = guess
        while low < at < high:
            if self.epsilon(at) <= limit:
                low = at
                if high <= MOST_ROUNDS:
                    break
                at = min(low + stride, MOST_ROUNDS)
            else:
                high = at
                if low >= 0:
                    break
                at = max(high - stride, 0)
            stride *= 2
        # 2. Halve.
        while high - low > 1:
            middle = (low + high) // 2
            if self.epsilon(middle) <= limit:
                low = middle
            else:
                high = middle
        return max(low, 0)
