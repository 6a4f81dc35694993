"""Epsilon of one person who may be a user of several domains.

    person = person_epsilon({"books": Share(spending=books), "music": Share(spending=music)}, delta=1e-5)
    person.epsilon, person.rule

A domain's epsilon protects one user's history *there*. Who sees the releases of all domains sees every history of a
person, so they compose, each domain's noise being independent: at the *total* delta asked for, not at one per
domain. Which sets of domains one person may be in is declared by the domains' own policies (`Share`); nothing is
assumed in anyone's favour. The answer is the worst such set.

- Not declared: a person may be in this domain and in any others.
- `k_max`: this domain's people are in at most so many domains, this one included.
- `overlap=False`: this domain's people are in no other. Only then is it left out of everybody else's sum: *parallel
  composition*, McSherry, "Privacy Integrated Queries", SIGMOD 2009, theorem 4.
"""

import heapq
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dp_accounting.rdp import compute_epsilon

from isthmus.privacy.accounting import COARSE, Spending, epsilon
from isthmus.privacy.confirmation import renyi

MOST_SETS = 500
"""Different sets of domains that are looked at one by one; with more, the worst one is bounded."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """One domain's part.

    Attributes:
        spending: Everything it ever released.
        overlap: False only where it is declared that its people are in no other domain; none if nothing is declared.
        k_max: In how many domains one of its people is at most, this one included; all of them where absent.
    """

    spending: Spending
    overlap: bool | None = None
    k_max: int | None = None

    def __post_init__(self) -> None:
        """Refuse a declaration that contradicts itself."""
        if self.k_max is not None and self.k_max < 1:
            raise ValueError(f"k_max must be at least 1, got {self.k_max}")
        if self.overlap is False and self.k_max not in {None, 1}:
            raise ValueError(f"without overlap a person is in 1 domain, got k_max {self.k_max}")


@dataclass(frozen=True, kw_only=True)
class PersonEpsilon:
    """What all domains together may reveal of one person.

    Attributes:
        epsilon: At the total delta asked for; for an inexact answer, at least the worst set's.
        delta: The total.
        domains: The worst set; for an inexact answer, the one whose bound is the highest.
        exact: Whether every admissible set was looked at (up to `accounting.epsilon`'s own error).
        rule: In words, which declarations were used and how the releases were added up.
    """

    epsilon: float
    delta: float
    domains: tuple[str, ...]
    exact: bool
    rule: str


def person_epsilon(shares: Mapping[str, Share], delta: float) -> PersonEpsilon:
    """Epsilon of the person of whom all domains together reveal most.

    Args:
        shares: By domain, at least one.
        delta: In (0, 1), of everything together.

    Raises:
        ValueError: If there is no domain.

    Guarantees:
        - At least epsilon of every set of domains that the declarations admit, at this delta; a single domain is
          always admitted.
        - A domain is left out of a set only by a declaration: its own `overlap` or `k_max`.
        - Names and order of the domains do not matter for the number, to the last bit.
    """
    if not shares:
        raise ValueError("a person must be in at least one domain")
    # 1. By how many domains a set has: who may be in one. A set that still has room for another is not the worst.
    eligible = {size: _eligible(shares, size) for size in range(1, len(shares) + 1)}
    sizes = [
        size
        for size, names in eligible.items()
        if len(names) >= size and not (eligible.get(size + 1) == names and len(names) > size)
    ]
    # 2. Look at each set that differs by more than a name, or bound them all.
    candidates = [_few_copies(shares, eligible[size], size) for size in sizes]
    if sum(math.comb(len(names), size) for names, size in zip(candidates, sizes, strict=True)) <= MOST_SETS:
        sets = [
            chosen
            for names, size in zip(candidates, sizes, strict=True)
            for chosen in itertools.combinations(names, size)
        ]
        worst, spent = _worst(shares, sets, delta)
        return PersonEpsilon(
            epsilon=spent, delta=delta, domains=worst, exact=True, rule=_rule(shares, worst, exact=True)
        )
    bounds = [_bound(shares, eligible[size], size, delta) for size in sizes]
    spent, worst = max(bounds)
    return PersonEpsilon(epsilon=spent, delta=delta, domains=worst, exact=False, rule=_rule(shares, worst, exact=False))


def _eligible(shares: Mapping[str, Share], size: int) -> list[str]:
    """Domains that may be in a set of so many, in an order that depends on their spending first."""
    names = [
        name
        for name, share in shares.items()
        if size == 1 or (share.overlap is not False and (share.k_max is None or share.k_max >= size))
    ]
    return sorted(names, key=lambda name: (shares[name].spending.parts, name))


def _few_copies(shares: Mapping[str, Share], names: Sequence[str], size: int) -> list[str]:
    """Without domains whose spending at least `size` others share: which of them is in a set makes no difference."""
    return [
        name
        for _, same in itertools.groupby(names, key=lambda name: shares[name].spending.parts)
        for name in itertools.islice(same, size)
    ]


def _together(shares: Mapping[str, Share], names: Sequence[str]) -> Spending:
    total = Spending()
    for name in names:
        total = total.and_also(shares[name].spending)
    return total


def _worst(shares: Mapping[str, Share], sets: Sequence[tuple[str, ...]], delta: float) -> tuple[tuple[str, ...], float]:
    """The set with the highest epsilon: fine where the coarse grid, which never says less, leaves it a chance."""
    totals = {names: _together(shares, names) for names in sets}
    coarse = {names: epsilon(total, delta, interval=COARSE) for names, total in totals.items()}
    worst, most = sets[0], -1.0
    for names in sorted(sets, key=lambda names: -coarse[names]):
        if coarse[names] < most:
            break
        spent = epsilon(totals[names], delta)
        if spent > most:
            worst, most = names, spent
    return worst, most


def _bound(shares: Mapping[str, Share], names: Sequence[str], size: int, delta: float) -> tuple[float, tuple[str, ...]]:
    """At least epsilon of every `size` of these domains: at each Renyi order, the `size` largest divergences."""
    accountants = {name: renyi(shares[name].spending) for name in names}
    orders = accountants[names[0]].orders
    largest = [
        math.fsum(heapq.nlargest(size, (float(accountants[name].rdp[at]) for name in names)))
        for at in range(len(orders))
    ]
    spent, order = compute_epsilon(orders, largest, delta)
    at = list(orders).index(order)
    worst = heapq.nlargest(size, names, key=lambda name: float(accountants[name].rdp[at]))
    return float(spent), tuple(sorted(worst))


def _rule(shares: Mapping[str, Share], worst: Sequence[str], *, exact: bool) -> str:
    """What was declared, and what was done with it."""
    declared = []
    apart = sorted(name for name, share in shares.items() if share.overlap is False)
    limited = sorted(
        (name, share.k_max) for name, share in shares.items() if share.overlap is not False and share.k_max
    )
    silent = sorted(name for name, share in shares.items() if share.overlap is None and share.k_max is None)
    if limited:
        limits = ", ".join(f"{name}: {k_max}" for name, k_max in limited)
        declared.append(f"declared number of domains that one person is in at most ({limits})")
    if apart:
        declared.append(
            f"declared to share no person with another domain, hence parallel composition: {', '.join(apart)}"
        )
    if silent:
        declared.append(f"nothing declared, hence in any set of domains: {', '.join(silent)}")
    how = (
        "every admissible set was composed with the PLD accountant"
        if exact
        else f"too many sets to look at each, so the worst is bounded from above by Renyi DP with, at each order, the "
        f"{len(worst)} largest divergences"
    )
    person = (
        f"The worst case is a person in {', '.join(worst)}: independent noise, composed at the total delta"
        if len(worst) > 1
        else f"The worst case is a person in {worst[0]} alone"
    )
    return f"{person}; {how}. {'; '.join(declared).capitalize() or 'All domains may overlap'}."
