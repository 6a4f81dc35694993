"""What the whole-pipeline audits share: a tiny domain with a public catalogue, and a small recipe."""

import pytest
from tests.conftest import TinyDomain

from isthmus.config import (
    DomainConfig,
    FeatureConfig,
    FederationConfig,
    StartingBackbone,
    Trained,
    TrainingConfig,
    load_domain,
)


@pytest.fixture
def domain(tiny_domain: TinyDomain) -> DomainConfig:
    """Three users of its own, who must not matter, and 60 items."""
    return load_domain(tiny_domain(name="books", users=3, items=60))


@pytest.fixture
def federation() -> FederationConfig:
    """The demo's recipe, smaller: hashed texts, one block of width 16."""
    return FederationConfig(
        name="tiny",
        domains=("books",),
        features=FeatureConfig(encoder="hash:64", dim=24),
        backbone=StartingBackbone(width=16, heads=2, feedforward=16, layers=1, positions=8),
        training=TrainingConfig(train=Trained.ALL, learning_rate=2.0, rivals=60),
    )
