"""What an empirical audit found: bounds beside the claim, named checks, and what it cannot see.

evidence.lower_bound <= evidence.claimed_epsilon     # or something is broken
evidence.findings                                    # checks that failed
json.dumps(evidence.to_dict())
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from isthmus.privacy.empirical import LowerBound, RocPoint, chance_of_so_little_noise

FALSE_ALARM = 1e-6
"""Chance that a check of noise or contribution fails in an honest build, at most."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One question that the measurement answers.

    Attributes:
        name: Stable, for machines: `bound`, `noise`, `noise in every tensor`, `contribution`, ...
        passed: False is a finding: the code does not do what is accounted for.
        detail: One sentence with the figures.
    """

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True, kw_only=True)
class TensorNoise:
    """Noise that was measured in one parameter tensor, where no canary was.

    Attributes:
        name: Of the tensor.
        samples: Coordinates times steps.
        ratio: Measured standard deviation over the accounted one.
        chance: Of noise as quiet as this if the accounted noise was there (chi-square, lower tail).
    """

    name: str
    samples: int
    ratio: float
    chance: float


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The outcome of one empirical audit.

    Attributes:
        name: Of the audit: `canaries`, `planted` or `membership`.
        claimed_epsilon: What the accountant, or the ledger, says of the very run that was attacked.
        delta: Of the claim and of the bounds.
        confidence: With which all bounds hold together.
        bounds: Lower bounds, each with its assumption and a confidence of its own.
        checks: Named; each passed or is a finding.
        sees: What this audit would notice, in plain words.
        blind_to: What it would not, in plain words.
        area: Under the ROC curve; 0.5 is guessing.
        roc: Operating points of the attack; empty where there are none.
        noise: Per tensor; empty where it was not measured.
        settings: Public figures of the run that was attacked (steps, rate, noise multiplier, ...).
        cpu_seconds: Of the whole audit.
    """

    name: str
    claimed_epsilon: float
    delta: float
    confidence: float
    bounds: tuple[LowerBound, ...]
    checks: tuple[Check, ...]
    sees: str
    blind_to: str
    area: float
    roc: tuple[RocPoint, ...] = ()
    noise: tuple[TensorNoise, ...] = ()
    settings: tuple[tuple[str, float], ...] = ()
    cpu_seconds: float

    @property
    def lower_bound(self) -> float:
        """The best of the bounds; they hold together, so it does too (under its assumption)."""
        return max(bound.epsilon for bound in self.bounds)

    @property
    def findings(self) -> tuple[Check, ...]:
        """Checks that failed."""
        return tuple(check for check in self.checks if not check.passed)

    def to_dict(self) -> dict[str, Any]:
        """Plain values in a stable order, for JSON."""
        bounds = [
            {**asdict(bound), "form": bound.form.value, "assumption": bound.form.assumption} for bound in self.bounds
        ]
        return {
            **asdict(self),
            "lower_bound": self.lower_bound,
            "bounds": bounds,
            "settings": dict(self.settings),
            "passed": not self.findings,
        }


def bound_check(bounds: tuple[LowerBound, ...], *, claimed: float, confidence: float) -> Check:
    """The check that every audit makes: no lower bound is above the claim."""
    best = max(bounds, key=lambda bound: bound.epsilon)
    return Check(
        name="bound",
        passed=best.epsilon <= claimed,
        detail=(
            f"epsilon is at least {best.epsilon:.3f} ({best.form.value}, {confidence:.0%} confidence, "
            f"{best.correct} of {best.guesses} guesses right, {best.canaries} canaries); {claimed:.3f} is claimed"
        ),
    )


def release_check(refusal: str) -> Check:
    """Was every planned round released? A vault that refuses its own updates is broken."""
    detail = f"a round was refused: {refusal}" if refusal else "every planned round was released"
    return Check(name="released", passed=not refusal, detail=detail)


def measure_noise(name: str, noise: NDArray[np.float64], stddev: float) -> TensorNoise:
    """Compare what was seen of a tensor where only noise should be with what was accounted for.

    Args:
        name: Of the tensor.
        noise: Any shape, at least one value.
        stddev: Accounted standard deviation.
    """
    return TensorNoise(
        name=name,
        samples=noise.size,
        ratio=math.sqrt(float(np.square(noise).mean())) / stddev,
        chance=chance_of_so_little_noise(noise, stddev),
    )


def noise_checks(noise: tuple[TensorNoise, ...]) -> tuple[Check, Check]:
    """Is there as much noise as is accounted for, in all tensors together and in each?

    Guarantees:
        - With the accounted noise, each check fails with a chance of at most `FALSE_ALARM`.
    """
    samples = sum(one.samples for one in noise)
    squares = sum(one.samples * one.ratio**2 for one in noise)
    together = float(special.chdtr(samples, squares))
    quietest = min(noise, key=lambda one: one.chance)
    return (
        Check(
            name="noise",
            passed=together > FALSE_ALARM,
            detail=f"{math.sqrt(squares / samples):.4f} of the accounted standard deviation, over {samples} samples",
        ),
        Check(
            name="noise in every tensor",
            passed=quietest.chance > FALSE_ALARM / len(noise),
            detail=(
                f"least plausible in {quietest.name}: {quietest.ratio:.4f} of the accounted standard deviation over "
                f"{quietest.samples} samples, which has a chance of {quietest.chance:.2g}"
            ),
        ),
    )


def freshness_check(noise: NDArray[np.float64], stddev: float) -> Check:
    """Is the noise of a step unrelated to that of the step before?

    Args:
        noise: (steps, coordinates), at least two steps, of coordinates where only noise should be.
        stddev: Accounted standard deviation.

    Guarantees:
        - With fresh Gaussian noise it fails with a chance of about `FALSE_ALARM`.
    """
    pairs = noise[1:] * noise[:-1]
    surprise = float(pairs.sum()) / stddev**2 / math.sqrt(pairs.size)
    limit = -float(special.ndtri(FALSE_ALARM / 2))
    return Check(
        name="fresh noise",
        passed=abs(surprise) <= limit,
        detail=f"steps correlate by {surprise:.2f} standard deviations of chance; up to {limit:.2f} may be chance",
    )


def contribution_check(measured: float, *, deviation: float) -> Check:
    """Does a user add what was accounted for? More is a leak; less means that the audit does not see the users.

    Args:
        measured: Mean contribution, in units of the accounted one.
        deviation: Its standard deviation if the accounted one is true.

    Guarantees:
        - With contributions of 1 and Gaussian noise it fails with a chance of at most `FALSE_ALARM`.
    """
    room = -float(special.ndtri(FALSE_ALARM / 2)) * deviation
    return Check(
        name="contribution",
        passed=abs(measured - 1.0) <= room,
        detail=f"a user adds {measured:.4f} of what is accounted for; 1 is right, {room:.4f} to a side may be chance",
    )
