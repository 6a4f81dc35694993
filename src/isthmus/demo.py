"""A small synthetic federation to start from: five domains, readable texts, structure that is worth sharing.

    write_demo("isthmus-demo")      # isthmus-demo/federation.toml and one folder per domain

**Every user, item and event is made up.** People drift between interests: whoever was last at camping tends to turn
to astronomy next, in a shop as much as in a playlist. That drift (`NEXT`) is planted, the same in every domain, and
cannot be guessed from how similar two texts are; so a domain with many users can learn it, a domain with few cannot,
and a federation can pass it on. How strong it is, and how much is chance, stands in `_DRIFT` and `_STAY`.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from isthmus.errors import ConfigError

INTERESTS = {
    "camping": ("tent", "campfire", "trail", "lantern"),
    "astronomy": ("telescope", "planet", "starlight", "comet"),
    "baking": ("bread", "oven", "pastry", "flour"),
    "chess": ("checkmate", "knight", "opening", "endgame"),
    "cycling": ("bike", "pedal", "saddle", "gravel road"),
    "gardening": ("seeds", "rose", "greenhouse", "compost"),
    "jazz": ("saxophone", "swing", "trumpet", "blues"),
    "knitting": ("wool", "yarn", "needle", "scarf"),
    "photography": ("camera", "lens", "portrait", "darkroom"),
    "pottery": ("clay", "kiln", "glaze", "ceramic"),
    "robotics": ("robot", "circuit", "motor", "sensor"),
    "running": ("marathon", "sprint", "sneaker", "track"),
    "sailing": ("yacht", "harbour", "anchor", "regatta"),
    "skiing": ("snow", "slope", "alpine", "chairlift"),
    "yoga": ("meditation", "stretch", "breathing", "mat"),
    "birdwatching": ("owl", "binoculars", "nest", "heron"),
}
"""What the texts are about, with words that go with it; the same in every domain."""

_DRIFT, _STAY = 0.75, 0.1
"""Chance that the next event is about the next interest, and about the same one; else it is about any."""


@dataclass(frozen=True, kw_only=True)
class DemoDomain:
    """What one made-up domain looks like.

    Attributes:
        name: Of the domain.
        users: People in it.
        items: Catalogue size.
        forms: Templates of a title; `{x}` is the interest, `{w}` a word of it, `{k}` one of `kinds`.
        kinds: Words that vary a title.
    """

    name: str
    users: int
    items: int
    forms: tuple[str, ...]
    kinds: tuple[str, ...]


DOMAINS = (
    DemoDomain(
        name="shopping",
        users=1500,
        items=240,
        forms=("{k} {w} for {x}", "{x} {w}, {k}", "{k} {x} set with {w}"),
        kinds=("Compact", "Classic", "Premium", "Foldable", "Budget", "Handmade", "Waterproof", "Junior"),
    ),
    DemoDomain(
        name="music",
        users=1200,
        items=200,
        forms=("{w} songs for {x}, {k}", "{k} {x} playlist: {w}", "Songs of {w} and {x}, {k}"),
        kinds=("Acoustic", "Upbeat", "Mellow", "Live", "Instrumental", "Nineties", "Morning", "Late night"),
    ),
    DemoDomain(
        name="ads",
        users=900,
        items=160,
        forms=("{k}: {x} and {w}", "{w} for {x}, {k}", "Try {x} today: {w}, {k}"),
        kinds=("20% off", "Free delivery", "New season", "Last chance", "Members only", "Gift idea"),
    ),
    DemoDomain(
        name="social",
        users=240,
        items=140,
        forms=("{k} {x} group: {w}", "{w} and {x} meetup, {k}", "{k} friends of {x} and {w}"),
        kinds=("Riverside", "Downtown", "Weekend", "Beginners", "Family", "Old town", "University"),
    ),
    DemoDomain(
        name="dining",
        users=64,
        items=120,
        forms=("The {w} {k}, a {x} theme", "{k} for {x} lovers: {w}", "{x} and {w} {k}"),
        kinds=("cafe", "bistro", "food truck", "brunch place", "tea room", "bar"),
    ),
)
"""Large, medium, small (`social`) and brand-new (`dining`)."""

_NOTE = "Synthetic: every user, item and event in this federation is made up by `isthmus demo`."


def drift() -> tuple[int, ...]:
    """For each interest, the one that people turn to next: one planted cycle through all of them."""
    order = np.random.default_rng(20).permutation(len(INTERESTS))
    following = np.empty(len(INTERESTS), np.int64)
    following[order] = np.roll(order, -1)
    return tuple(int(i) for i in following)


def write_demo(folder: str | Path) -> Path:
    """Write the demo federation.

    Args:
        folder: Made; must not exist, or be empty.

    Returns:
        The federation file.

    Raises:
        ConfigError: If there is something in the folder already.
    """
    root = Path(folder)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ConfigError(f"{root}: exists already. Name another folder; nothing was written.")
    for number, domain in enumerate(DOMAINS):
        _write_domain(root / domain.name, domain, np.random.default_rng((7, number)))
    file = root / "federation.toml"
    file.write_text(_federation(), encoding="utf-8")
    return file


def _write_domain(folder: Path, domain: DemoDomain, generator: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    about = np.arange(domain.items) % len(INTERESTS)  # interest of each item
    names = list(INTERESTS)
    titles = [
        domain.forms[generator.integers(len(domain.forms))].format(
            x=names[interest],
            w=INTERESTS[names[interest]][generator.integers(4)],
            k=domain.kinds[generator.integers(len(domain.kinds))],
        )
        for interest in about
    ]
    ids = [f"{domain.name[:2]}{i:04d}" for i in range(domain.items)]
    pl.DataFrame({"item_id": ids, "title": titles}).write_csv(folder / "items.csv")
    users, items, times = _events(domain, about, generator)
    pl.DataFrame(
        {
            "user": [f"{domain.name}-person-{user:05d}" for user in users],
            "item": [ids[item] for item in items],
            "timestamp": times,
        }
    ).write_csv(folder / "interactions.csv")
    (folder / "domain.toml").write_text(_domain(domain), encoding="utf-8")


def _events(
    domain: DemoDomain, about: np.ndarray[tuple[int], np.dtype[np.int64]], generator: np.random.Generator
) -> tuple[list[int], list[int], list[int]]:
    """Users, items and unix seconds of all events; a user meets an item at most once."""
    following = drift()
    fame = generator.uniform(1.0, 3.0, domain.items)  # some items are better known than others
    users, items, times = [], [], []
    for user in range(domain.users):
        interest = int(generator.integers(len(INTERESTS)))
        clock = 1_700_000_000 + int(generator.integers(10_000_000))
        seen: set[int] = set()
        for _ in range(int(generator.integers(6, 13))):
            luck = generator.random()
            if luck < _DRIFT:
                interest = following[interest]
            elif luck >= _DRIFT + _STAY:
                interest = int(generator.integers(len(INTERESTS)))
            choice = [int(i) for i in np.flatnonzero(about == interest) if int(i) not in seen]
            if not choice:
                continue
            share = fame[choice] / fame[choice].sum()
            item = int(generator.choice(choice, p=share))
            clock += int(generator.integers(600, 400_000))
            seen.add(item)
            users.append(user)
            items.append(item)
            times.append(clock)
    return users, items, times


def _domain(domain: DemoDomain) -> str:
    return f"""# {_NOTE}
name = "{domain.name}"

[interactions]
path = "interactions.csv"
timestamp = "timestamp"

[items]
path = "items.csv"
public = true                    # item texts are public: their statistics leave the domain

[split]
kind = "leave-one-out"

[privacy]                        # for one user's whole history, over all runs on this data
epsilon = 8.0
delta = 1e-6
clip = 1.0
sample_rate = 0.5                # these are public constants, not counts of the data
expected_batch = {domain.users / 2:.1f}
steps_per_round = 2
rounds = 12
evaluations = 3
metric_noise_multiplier = 15.0
"""


def _federation() -> str:
    names = ", ".join(f'"{domain.name}"' for domain in DOMAINS)
    weights = "\n".join(f"{domain.name} = {(domain.users / 1000) ** 2:.4f}" for domain in DOMAINS)
    return f"""# {_NOTE}
name = "demo"
domains = [{names}]
seed = 7                         # repeatable, noise included: such a run is NOT private

[features]
encoder = "minilm"
dim = 64                         # fewer dimensions carry less noise

[backbone]
width = 32
feedforward = 64

[training]
train = "all"                    # here the domains are alike enough; the default trains ten numbers
learning_rate = 2.0
rivals = 200

[strategy]
name = "fedavg"
rounds = 12
evaluate_every = 4

# Declared and public. Noise is the same for a domain of any size, so the mean of its update is worth as much as its
# size squared: (thousands of users) ** 2.
[strategy.weights]
{weights}
"""
