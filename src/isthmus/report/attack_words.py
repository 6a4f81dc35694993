"""Attacks on the program in words, the same for the page, the document and the terminal.

    proven(attack)                  # "canaries: epsilon is at least 2.68 (95% confidence), 5.00 is claimed; ..."
    found_members(attack)           # "0.11% of members are found ... while at most 0.1% of outsiders are called one"

Lower bounds are rounded down. Nothing here computes one.
"""

from isthmus.report import numbers
from isthmus.report.audit import Audit, Empirical, EmpiricalBound, EmpiricalPoint

ATTACKED = (
    "An attack gives a lower bound. One above the claim means that the program does not do what it charges for; one "
    "below it proves nothing, since the attack may be weak. All users in it are made up; no ledger is charged."
)
LOW_RATE = 0.001
"""False-positive rate at which membership inference is judged (Carlini et al., IEEE S&P 2022)."""


def proven(attack: Empirical) -> str:
    """An attack's outcome in one line."""
    failed = [check.name for check in attack.checks if not check.passed]
    outcome = f"FAILED: {', '.join(failed)}" if failed else "every check passed"
    return (
        f"{attack.name}: epsilon is at least {lower(attack.lower_bound)} ({attack.confidence:.0%} confidence), "
        f"{numbers.epsilon(attack.claimed_epsilon)} is claimed; {outcome}"
    )


def bound(one: EmpiricalBound) -> str:
    """One bound, with what it takes for granted."""
    return (
        f"epsilon is at least {lower(one.epsilon)}, with {one.confidence:.1%} confidence of its own; assumed: "
        f"{one.assumption}"
    )


def attacked(audit: Audit) -> str:
    """What attacks on the program came to, for page one; empty where there were none."""
    if not audit.empirical:
        return ""
    how = f"{numbers.plural(len(audit.empirical), 'attack')} on made-up users"
    failed = [attack.name for attack in audit.empirical if not attack.passed]
    if failed:
        return f"Of {how}, {', '.join(failed)} showed that it does not do what it charges for."
    best = max(audit.empirical, key=lambda attack: attack.lower_bound)
    found = [low_rate(attack) for attack in audit.empirical if attack.name == "membership"]
    outsider = "".join(
        f" Somebody who has only the final backbone finds {percent(point.true_positives.low)} to "
        f"{percent(point.true_positives.high)} of those who were in the data ({best.confidence:.0%} interval), while "
        f"wrong about at most {LOW_RATE:.1%} of those who were not."
        for point in found
        if point
    )
    return (
        f"{how} did not contradict what it charges for: the best proves an epsilon of at least "
        f"{lower(best.lower_bound)}, where {numbers.epsilon(best.claimed_epsilon)} is claimed.{outsider}"
    )


def percent(share: float) -> str:
    """A share, with digits that mean something.

    >>> percent(0.0011), percent(0.1103)
    ('0.11%', '11.0%')
    """
    return f"{share:.2%}" if share < 0.1 else f"{share:.1%}"


def lower(value: float) -> str:
    """A lower bound, rounded down."""
    return f"{int(value * 100 + 1e-7) / 100:.2f}"


def low_rate(attack: Empirical) -> EmpiricalPoint | None:
    """Where the attack finds most while it is wrong about at most `LOW_RATE` of outsiders; None without a ROC."""
    points = [point for point in attack.roc if point.false_positives.value <= LOW_RATE]
    return max(points, key=lambda point: point.true_positives.value, default=None)


def found_members(attack: Empirical) -> str:
    """How many members the attack finds at a low false-positive rate, and the area; empty without a ROC."""
    point = low_rate(attack)
    if point is None:
        return ""
    found, wrong = point.true_positives, point.false_positives
    return (
        f"{percent(found.value)} of members are found ({attack.confidence:.0%} interval {percent(found.low)} to "
        f"{percent(found.high)}) while at most {LOW_RATE:.1%} of outsiders are called one ({wrong.successes:,} of "
        f"{wrong.trials:,}); area under the ROC {attack.area:.3f}, where 0.5 is guessing"
    )


def settings(attack: Empirical) -> str:
    """Public figures of the run that was attacked."""
    return ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in attack.settings.items())
