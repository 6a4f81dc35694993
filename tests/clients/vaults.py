"""What the tests of a vault share."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.conftest import TinyDomain

from isthmus.clients.vault import Vault
from isthmus.config import (
    BackboneConfig,
    FeatureConfig,
    Trained,
    TrainingConfig,
    load_domain,
)
from isthmus.encoding import Encoded, decode
from isthmus.packing import arrays_digest
from isthmus.privacy.gate import Release
from isthmus.privacy.ledger import Ledger
from isthmus.records import Arrays, RoundRequest

USERS, ITEMS = 24, 16
FEATURES = FeatureConfig(encoder="hash:64")
SHAPE = BackboneConfig(width=8, heads=2, layers=1, feedforward=8, positions=6)
TRAINING = TrainingConfig(train=Trained.ALL, learning_rate=0.5, rivals=10)

ONE_ROUND = {"rounds": 1, "evaluations": 0}

Opener = Callable[..., Vault]


def opened(root: Path, at: str, seed: int | None, changes: dict[str, Any]) -> Vault:
    folder = root / at / "books"
    if not folder.exists():
        name = changes.pop("name", "books")
        TinyDomain(root / at)(name="books", users=USERS, items=ITEMS, **changes)
        file = folder / "domain.toml"
        file.write_text(file.read_text().replace('name = "books"', f'name = "{name}"'))
    config = load_domain(folder)
    return Vault(config, ledger=Ledger(config.ledger_path), seed=seed, cache=root / f"cache-{at}")


def retrained(request: RoundRequest, **changes: Any) -> RoundRequest:
    """The request with other training settings."""
    training = request.recipe.training.model_copy(update=changes)
    return dataclasses.replace(request, recipe=request.recipe.model_copy(update={"training": training}))


def assert_nothing_happened(vault: Vault) -> None:
    """No charge, no table opened."""
    assert list(vault.ledger.entries()) == []
    assert "data" not in vars(vault)


def same(first: Release, second: Release) -> bool:
    """Equal to the last bit."""
    return first.payload.values == second.payload.values and arrays_digest(first.payload.arrays) == arrays_digest(
        second.payload.arrays
    )


def decoded(release: Release) -> Arrays:
    """The update in a release, as the server will read it."""
    return decode(Encoded(arrays=release.payload.arrays, scales=release.payload.values))


def look(vault: Vault) -> list[tuple[str, int, str, bool]]:
    """What another reader finds in the ledger's file."""
    other = Ledger(vault.ledger.path)
    found = [(entry.run, entry.round, entry.kind, entry.released) for entry in other.entries()]
    other.close()
    return found
