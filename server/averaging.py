"""A moving average of the shared parameters over the rounds: what is evaluated and shipped, never what is trained on.

    average = moving_average(average, arrays, decay=0.9, round_=7)

Every round's noise is in the parameters; much of it averages out over rounds, while what was learned stays. It looks at
released parameters only, so it costs no privacy.

References: De, Berrada, Hayes, Smith and Balle, "Unlocking High-Accuracy Differentially Private Image Classification
through Scale", 2022, section 3; Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992.
"""

import numpy as np

from isthmus.encoding import Arrays


def moving_average(average: Arrays, arrays: Arrays, *, decay: float, round_: int) -> Arrays:
    """The average after one more round.

    Args:
        average: Before it.
        arrays: Shared parameters after it.
        decay: Weight of the average before, in (0, 1).
        round_: Of the run, from 1. The decay is at most (1 + round) / (10 + round), so that early rounds do not stay in
            the average for ever.

    Guarantees:
        - A function of its arguments, in float32: the same bits wherever it is computed.
        - A tensor that never changed is in it as it is.

    >>> moving_average({"a": np.zeros(1, np.float32)}, {"a": np.ones(1, np.float32)}, decay=0.9, round_=1)["a"].item()
    0.81...
    """
    kept = np.float32(min(decay, (1 + round_) / (10 + round_)))
    return {name: average[name] + (1 - kept) * (array - average[name]) for name, array in arrays.items()}
