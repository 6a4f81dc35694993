"""Validate a backbone, and release the result with noise.

    gains = validation_ndcg(scorer, data) - validation_ndcg(reference, data)
    payload = noisy_gain(gains, policy=policy, randomness=randomness)    # for the gate

What leaves is two noisy sums over users: the gain of NDCG@10 over the reference, clipped to [-1, 1] by the
metric's own range, and the number of users that were evaluated. The reference is the text prior, or the parameters
that a request brings; whichever it is, a user's gain is a function of that user's own history and of what a
coordinator sent. So one user moves the pair by at most sqrt(2) in L2 norm, and Gaussian noise of
`metric_noise_multiplier * sqrt(2)` on both is one Gaussian event of that multiplier. The exact figures stay in the
domain.
"""

import math

import numpy as np
from numpy.typing import NDArray

from isthmus.clients.data import DomainData
from isthmus.clients.scorers import Scorer, rank_users
from isthmus.config import PrivacyPolicy
from isthmus.metrics import ndcg_at_k
from isthmus.privacy.gate import Payload
from isthmus.privacy.noise import Randomness

CUTOFF = 10
"""A validation item that ranks lower gains nothing."""

SENSITIVITY = math.sqrt(2.0)
"""L2 norm by which one user can move (summed gain, user count)."""


def validation_ndcg(scorer: Scorer, data: DomainData) -> NDArray[np.float64]:
    """NDCG@10 of every user with a validation target, exact: it must not leave the domain.

    Returns:
        (validation users,) in user order, each in [0, 1].
    """
    users = np.flatnonzero(data.validation >= 0)
    return ndcg_at_k(rank_users(scorer, data.train, users, data.validation[users], within=CUTOFF), CUTOFF)


def noisy_gain(gains: NDArray[np.float64], *, policy: PrivacyPolicy, randomness: Randomness) -> Payload:
    """Summed gain and user count, with noise.

    Args:
        gains: (users,) difference of NDCG@10 to the reference.
        policy: Says how much noise.
        randomness: Of the noise.

    Guarantees:
        - One user moves the exact pair by at most sqrt(2): gains are clipped to [-1, 1], NaN counts as 0.
        - Both noisy values have the standard deviation that is released beside them, a public constant.
    """
    clipped = np.clip(np.nan_to_num(gains, nan=0.0), -1.0, 1.0)
    stddev = policy.metric_noise_multiplier * SENSITIVITY
    pair = np.array([clipped.sum(), len(clipped)])
    gain, users = randomness.noisy(pair, stddev=stddev, sensitivity=SENSITIVITY)
    return Payload(values={"gain": float(gain), "users": float(users), "noise_stddev": stddev})
