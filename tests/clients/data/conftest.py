"""A domain of a few rows, written in whatever layout a test asks for."""

from pathlib import Path

import pytest

from isthmus.clients.data import DomainData, load_domain_data
from isthmus.config import DomainConfig, Interactions, Items, PrivacyPolicy, Split

PRIVACY = PrivacyPolicy(
    epsilon=8.0,
    delta=1e-6,
    clip=1.0,
    sample_rate=0.1,
    expected_batch=10.0,
    steps_per_round=5,
    rounds=10,
    evaluations=2,
    metric_noise_multiplier=10.0,
)
EVENTS = """user,item,timestamp
ann,a,10
ann,b,20
ann,c,30
ann,d,40
bob,b,5
bob,a,6
bob,b,7
007,d,1
"""
ITEMS = """item_id,title,category
a,Apple,fruit
b,Bread,bakery
c,Cake,bakery
d,Dill,herb
"""


class ToyDomain:
    """Files of a domain in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.privacy = PRIVACY
        self.write("events.csv", EVENTS)
        self.write("items.csv", ITEMS)

    def write(self, name: str, content: str | bytes) -> Path:
        """Write a file of the domain."""
        path = self.folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def config(self, *, split: Split | None = None, items: dict | None = None, **interactions) -> DomainConfig:
        """Configuration of events.csv and items.csv, with some keys changed."""
        return DomainConfig(
            name="toy",
            interactions=Interactions(**{"path": "events.csv", "timestamp": "timestamp", **interactions}),
            items=Items(**{"path": "items.csv", "public": True, **(items or {})}),
            split=split or Split(),
            privacy=self.privacy,
            folder=self.folder,
        )

    def load(self, events: str | bytes | None = None, **changes) -> DomainData:
        """Load the domain, after writing other events if any are given."""
        if events is not None:
            self.write("events.csv", events)
        return load_domain_data(self.config(**changes))


@pytest.fixture
def toy(tmp_path: Path) -> ToyDomain:
    """The toy domain in a fresh folder."""
    return ToyDomain(tmp_path)
