"""A federation of two tiny domains, written as files: seconds to run, real in every part."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

WORDS = ("red", "green", "blue", "black", "white", "gold", "silver", "pink")

Factory = Callable[..., Path]


@pytest.fixture
def federation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Factory:
    """Write a federation and return its file; keyword arguments change what its tests are about."""
    monkeypatch.setenv("ISTHMUS_CACHE", str(tmp_path / "cache"))
    return lambda **changes: write_federation(tmp_path / "federation", **changes)


def write_federation(
    folder: Path, *, seed: int | None = 5, strategy: str = "fedavg", rounds: int = 4, epsilon: float = 8.0
) -> Path:
    """Two domains of 60 and 30 users over 24 items each, and the file that joins them."""
    for number, (name, users) in enumerate((("books", 60), ("games", 30))):
        write_domain(folder / name, name=name, users=users, seed=number, epsilon=epsilon)
    seeded = "" if seed is None else f"seed = {seed}\n"
    file = folder / "federation.toml"
    file.write_text(
        f"""name = "tiny"
domains = ["books", "games"]
{seeded}
[features]
encoder = "hash:64"

[backbone]
width = 8
layers = 1
heads = 2
feedforward = 8
positions = 8

[training]
train = "all"
learning_rate = 0.5
rivals = 10

[evaluation]
bootstrap = 100

[strategy]
name = "{strategy}"
rounds = {rounds}
evaluate_every = 2
"""
    )
    return file


def write_domain(folder: Path, *, name: str, users: int, seed: int, epsilon: float) -> None:
    """One domain folder."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    items = [f"{name}-{i}" for i in range(24)]
    titles = [f"{WORDS[i % 8]} {name} {WORDS[(i * 3) % 8]}" for i in range(24)]
    pl.DataFrame({"item_id": items, "title": titles}).write_csv(folder / "items.csv")
    rows = [
        (f"u{user:03d}", items[item])
        for user in range(users)
        for item in generator.choice(24, int(generator.integers(4, 9)), replace=False)
    ]
    pl.DataFrame(rows, schema=["user", "item"], orient="row").write_csv(folder / "interactions.csv")
    (folder / "domain.toml").write_text(
        f"""name = "{name}"

[interactions]
path = "interactions.csv"

[items]
path = "items.csv"
public = true

[privacy]
epsilon = {epsilon}
delta = 1e-6
clip = 1.0
sample_rate = 0.5
expected_batch = {users / 2}
steps_per_round = 2
rounds = 4
evaluations = 2
metric_noise_multiplier = 10.0
"""
    )
