"""The verdict on a run in words, the same for the page, its figures and the terminal.

    headline(result)       # "5 domains, 10 rounds, epsilon at most 7.98 each; transfer helps 3 of 5."
    verdict(domain).words   # "transfer helps"

Whether transfer helps is read from the paired 95% interval alone: it helps where the interval is above
zero, hurts where it is below, and is otherwise undecided.
"""

import enum

from isthmus.report import numbers
from isthmus.report.result import DomainResult, Method, Result

METHODS: dict[Method, str] = {
    "federated": "Federated",
    "local_only": "Local only",
    "item_cf": "Item-CF",
    "text_knn": "Text neighbours",
    "popularity": "Popularity",
}
"""Methods in the order of every table and figure, with the names that people read."""


class Verdict(enum.Enum):
    """Does transfer help a domain? The value is a symbol and words that stand by themselves."""

    HELPS = ("▲", "transfer helps")
    HURTS = ("▼", "transfer hurts")
    UNDECIDED = ("=", "no clear difference")
    NO_TRANSFER = ("○", "no transfer")
    UNTESTED = ("?", "no test users")

    @property
    def symbol(self) -> str:
        """One character, so that colour is never the only sign."""
        return self.value[0]

    @property
    def words(self) -> str:
        """What to print."""
        return self.value[1]


def verdict(domain: DomainResult) -> Verdict:
    """Whether transfer helped, by the paired interval against the best local method.

    Where that leaves it open and the head serves a local method, there was no transfer.
    """
    if domain.transfer_gain is None:
        return Verdict.UNTESTED
    low, high = domain.transfer_gain.ci95
    if low > 0:
        return Verdict.HELPS
    if high < 0:
        return Verdict.HURTS
    return Verdict.NO_TRANSFER if domain.head.verdict == "no transfer" else Verdict.UNDECIDED


def headline(result: Result) -> str:
    """The run in one sentence."""
    domains = result.domains.values()
    nominal = "" if result.federation.private else "nominal "
    spent = numbers.epsilon(max(domain.epsilon for domain in domains))
    start = (
        f"{numbers.plural(len(domains), 'domain')}, {numbers.plural(result.federation.rounds, 'round')}, "
        f"{nominal}epsilon at most {spent} each"
    )
    tested = [verdict(domain) for domain in domains if domain.test_users]
    if not tested:
        return f"{start}; no domain had test users."
    hurt = tested.count(Verdict.HURTS)
    harm = f" and hurts {hurt}" if hurt else ""
    return f"{start}; transfer helps {tested.count(Verdict.HELPS)} of {len(tested)}{harm}."


def not_private(result: Result) -> str:
    """Why a seeded run claims no privacy, in plain words; empty for a private run."""
    if result.federation.private:
        return ""
    seed = result.federation.seed
    source = "its seed" if seed is None else f"seed {seed}"
    return (
        f"Anyone who knows {source} can compute the noise again and subtract it. Every epsilon shown is nominal: "
        "what the same settings would spend with secret noise. "
        "Run without a seed for noise that nobody can predict."
    )


def started_from(result: Result) -> str:
    """What the run began with that nobody protected, in plain words; empty for the text prior."""
    start = result.federation.start
    if start is None:
        return ""
    users = sum(domain.users for domain in start.domains)
    names = ", ".join(numbers.visible(domain.name) for domain in start.domains)
    return (
        f"The run began with a backbone that was trained in the open, without noise, on "
        f"{numbers.plural(users, 'user')} of {names}, whose histories are declared public: they are not protected."
    )


def counted(result: Result) -> str:
    """Which domains' updates counted for less than declared in the end, in a sentence; empty unless that was judged."""
    factors = {name: domain.factor for name, domain in result.domains.items() if domain.factor is not None}
    if not factors:
        return ""
    less = [f"{numbers.visible(name)} {factor:g}" for name, factor in factors.items() if factor < 1]
    if not less:
        return "In the end every domain's updates counted as declared."
    return f"In the end some domains' updates counted for a share of their declared weight: {', '.join(less)}."


def shipped(result: Result) -> str:
    """Which backbone was shipped, and why, in a sentence."""
    federation = result.federation
    if federation.shipped_round:
        return f"The backbone of round {federation.shipped_round} was shipped."
    if federation.start is not None and federation.start.shipped:
        return "No evaluation was released, so what the run began with was shipped; nothing says what it is worth here."
    return "No round beat the text prior, so the prior itself was shipped."
