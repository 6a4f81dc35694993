"""A privacy budget: the pair (epsilon, delta) that one user's whole history may cost.

    budget = PrivacyBudget(8.0, 1e-6)

Unit: one user's whole history in one domain; adjacency: add or remove one user.
Reference: Dwork and Roth, "The Algorithmic Foundations of Differential Privacy", 2014, definition 2.4.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class PrivacyBudget:
    """A limit on what may be learned about one user, over everything that is ever released.

    Attributes:
        epsilon: Bound on the log-likelihood ratio, above 0.
        delta: Probability that the bound does not hold, in (0, 1). Should be below 1 / users.

    >>> PrivacyBudget(8.0, 1e-6).epsilon
    8.0
    """

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        """Refuse what is not a budget."""
        if not (math.isfinite(self.epsilon) and self.epsilon > 0):
            raise ValueError(f"epsilon must be a finite number above 0, got {self.epsilon}")
        if not 0 < self.delta < 1:
            raise ValueError(f"delta must be in (0, 1), got {self.delta}")
