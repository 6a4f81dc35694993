"""Some users' histories as the trainer works on them: padded, with what each position is told from and counts for."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from isthmus.clients.rivals import Rivals


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Some users' histories, padded at the end.

    Attributes:
        history: (users, positions) item at each position; 0 where there is none.
        lengths: (users,) positions of each user that have an item.
        event: (users, positions) row in `rivals` of the item after it; 0 where there is none.
        weight: (users, positions) share of each position in its user's loss; sums to 1 per user, or to 0 for a
            user with nothing to learn from.
        rivals: What these users' events are told from.
        hidden: (users, positions) whether the model is not shown what is there; None where it is shown everything.
    """

    history: Tensor
    lengths: NDArray[np.int64]
    event: Tensor
    weight: Tensor
    rivals: Rivals
    hidden: Tensor | None = None
