"""Tiny real domains and federations, written as the files that users write.

    folder = tiny_domain(name="books", users=40)                    # holds domain.toml and two tables
    file = tiny_federation(domains={"books": 40, "games": 20})      # federation.toml beside its domains

Encoder `hash:64`, a handful of users, the cache in the test's own folder: nothing is shared and nothing is slow.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from isthmus.config import UpdateFormat

WORDS = ("red", "green", "blue", "black", "white", "gold", "silver", "pink")
PRIVACY: Mapping[str, float] = {
    "epsilon": 8.0,
    "delta": 1e-6,
    "clip": 1.0,
    "sample_rate": 0.5,
    "expected_batch": 20.0,
    "steps_per_round": 2,
    "rounds": 4,
    "evaluations": 2,
    "metric_noise_multiplier": 10.0,
}
"""Of a domain of which nothing else is asked; the noise is calibrated once per process for all of them."""


@dataclass(frozen=True)
class TinyDomain:
    """Writes domain folders under `root`."""

    root: Path

    def __call__(
        self,
        *,
        name: str = "books",
        users: int = 40,
        items: int = 24,
        seed: int = 0,
        privacy: Mapping[str, float] | None = None,
        public: bool = True,
    ) -> Path:
        """Write one domain; returns its folder.

        Args:
            name: Of the domain and its folder.
            users: Rows of the user side; each has 4 to 8 different items.
            items: Catalogue size, at least 9.
            seed: Of the events.
            privacy: Keys of `[privacy]` that differ from `PRIVACY`.
            public: Whether the catalogue is declared public.
        """
        folder = self.root / name
        folder.mkdir(parents=True)
        ids = [f"{name}-{i}" for i in range(items)]
        titles = [f"{WORDS[i % 8]} {name} {WORDS[i * 3 % 8]} {WORDS[i // 8 % 8]}" for i in range(items)]
        pl.DataFrame({"item_id": ids, "title": titles}).write_csv(folder / "items.csv")
        generator = np.random.default_rng((11, seed))
        rows = [
            (f"{name}-user-{user:03d}", ids[item])
            for user in range(users)
            for item in generator.choice(items, int(generator.integers(4, 9)), replace=False)
        ]
        pl.DataFrame(rows, schema=["user", "item"], orient="row").write_csv(folder / "interactions.csv")
        policy = "\n".join(f"{key} = {value}" for key, value in {**PRIVACY, **(privacy or {})}.items())
        (folder / "domain.toml").write_text(
            f'name = "{name}"\n\n[interactions]\npath = "interactions.csv"\n\n'
            f'[items]\npath = "items.csv"\npublic = {str(public).lower()}\n\n[privacy]\n{policy}\n'
        )
        return folder


@dataclass(frozen=True)
class TinyFederation:
    """Writes federations whose domains lie beside the federation file."""

    domain: TinyDomain

    def __call__(
        self,
        *,
        domains: Mapping[str, int] | None = None,
        seed: int | None = 5,
        strategy: str = "fedavg",
        rounds: int = 4,
        evaluate_every: int = 2,
        weights: Mapping[str, float] | None = None,
        privacy: Mapping[str, Mapping[str, float]] | None = None,
        update_format: UpdateFormat = UpdateFormat.INT8,
    ) -> Path:
        """Write a federation; returns its file.

        Args:
            domains: Users of each domain, by name; `books` with 40 and `games` with 20 where absent.
            seed: Of the run; None for a private one.
            strategy: Its name.
            rounds: Of the run.
            evaluate_every: Rounds between two noisy evaluations.
            weights: Declared weights of domains.
            privacy: For each domain, keys of `[privacy]` that differ from `PRIVACY`.
            update_format: What updates are rounded to.
        """
        members = domains or {"books": 40, "games": 20}
        for number, (name, users) in enumerate(members.items()):
            self.domain(name=name, users=users, seed=number, privacy=(privacy or {}).get(name))
        names = ", ".join(f'"{name}"' for name in members)
        declared = "\n".join(f"{name} = {weight}" for name, weight in (weights or {}).items())
        file = self.domain.root / "federation.toml"
        file.write_text(
            f'name = "tiny"\ndomains = [{names}]\n'
            + ("" if seed is None else f"seed = {seed}\n")
            + '\n[features]\nencoder = "hash:64"\n'
            + "\n[backbone]\nwidth = 8\nlayers = 1\nheads = 2\nfeedforward = 8\npositions = 8\n"
            + '\n[training]\ntrain = "all"\nlearning_rate = 0.5\nrivals = 10\n'
            + f'update_format = "{update_format}"\n'
            + "\n[evaluation]\nbootstrap = 100\n"
            + f'\n[strategy]\nname = "{strategy}"\nrounds = {rounds}\nevaluate_every = {evaluate_every}\n'
            + (f"\n[strategy.weights]\n{declared}\n" if weights else "")
        )
        return file


@pytest.fixture(scope="session", autouse=True)
def state_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Key files that are made on first use are made in a folder of the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture
def tiny_domain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyDomain:
    """Call it to write a domain folder; see `TinyDomain.__call__`."""
    monkeypatch.setenv("ISTHMUS_CACHE", str(tmp_path / "cache"))
    return TinyDomain(tmp_path / "tiny")


@pytest.fixture
def tiny_federation(tiny_domain: TinyDomain) -> TinyFederation:
    """Call it to write a federation; see `TinyFederation.__call__`."""
    return TinyFederation(tiny_domain)
