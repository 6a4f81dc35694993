"""A domain of users that we made up, over public item texts, and its run through the real vault.

    rows = make_up_users(300, items=120, length=8, generator=np.random.default_rng(0))
    transcript = run_vault(folder, titles, rows[included], federation=federation, policy=policy, seed=None)
    transcript.rounds[0].update, transcript.final, transcript.epsilon

The users go the whole way: tables are written and read, the ledger is charged, the gate releases, the next round
starts from where the update leads. Only the tables are made up; the ledger is a new one beside them, so a domain's own
books and people are left alone. A made-up history is random: whatever a model knows of it, it has from that user.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from isthmus.backbone import load_shared, shared_arrays, without_classifier
from isthmus.clients.data import Histories
from isthmus.clients.data.catalogue import read_catalogue
from isthmus.clients.trainer import TrainingSet, make_training_set
from isthmus.clients.vault import Vault
from isthmus.config import DomainConfig, FederationConfig, Interactions, Items, PrivacyPolicy
from isthmus.custom_backbone import AnyBackbone, make_backbone
from isthmus.encoding import Arrays, Encoded, decode
from isthmus.errors import ConfigError, Refused
from isthmus.features import TextMoments, fit_whitening
from isthmus.packing import arrays_digest
from isthmus.privacy.ledger import Ledger
from isthmus.privacy.policy import FILE, Allowed, load_policy
from isthmus.records import Kind, Recipe, RoundRequest, recipe_of
from isthmus.settings import toml_text

_HELD_OUT = 2
"""Latest events of a user that validate and test, and never train."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """What an onlooker sees of one round.

    Attributes:
        arrays: Shared parameters that were sent.
        update: What was released.
    """

    arrays: Arrays
    update: Arrays


@dataclass(frozen=True, kw_only=True)
class Transcript:
    """Everything that left a vault in a run, and what is public about it.

    Attributes:
        rounds: In order; fewer than were asked for if one was refused.
        refusal: Why the round after the last was refused; empty if all were released.
        final: Shared parameters after the last.
        recipe: That was followed.
        features: (items, features) of the public texts.
        noise_multiplier: Of each step, by the vault's plan.
        epsilon: By the vault's ledger.
    """

    rounds: tuple[Round, ...]
    refusal: str
    final: Arrays
    recipe: Recipe
    features: NDArray[np.float32]
    noise_multiplier: float
    epsilon: float

    def training_set(self, rows: NDArray[np.int64]) -> TrainingSet:
        """The trainer's view of (users, length) whole histories: what the vault would train on."""
        trained = rows[:, :-_HELD_OUT]
        histories = Histories(
            offsets=np.arange(len(rows) + 1, dtype=np.int64) * trained.shape[1],
            items=trained.astype(np.int32).ravel(),
        )
        return make_training_set(histories, self.features, self.recipe)

    def backbone(self, arrays: Arrays) -> AnyBackbone:
        """A backbone with these parameters."""
        backbone = make_backbone(self.features.shape[1], self.recipe.backbone)
        load_shared(backbone, without_classifier(arrays))
        return backbone


def public_titles(domain: DomainConfig, *, most: int) -> tuple[str, ...]:
    """Texts of a domain's public catalogue: the first `most` of those that differ."""
    texts = tuple(dict.fromkeys(read_catalogue(domain).catalogue.texts))[:most]
    if len(texts) < 2 * _HELD_OUT:
        raise ConfigError(f"{domain.folder}: an audit needs at least {2 * _HELD_OUT} different item texts")
    return texts


def make_up_users(count: int, *, items: int, length: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """(users, length) histories: items that differ within a user, at random."""
    if not _HELD_OUT + 2 <= length <= items:
        raise ConfigError(f"a made-up history has from {_HELD_OUT + 2} to {items} events, got {length}")
    return np.argsort(generator.random((count, items)), axis=1)[:, :length]


def run_vault(  # noqa: PLR0913 - keyword-only, each a part of the run
    folder: Path,
    titles: Sequence[str],
    rows: NDArray[np.int64],
    *,
    federation: FederationConfig,
    policy: PrivacyPolicy,
    rounds: int,
    seed: int | None,
    cache: Path | None = None,
) -> Transcript:
    """Write made-up users down as a domain, and ask its vault for round after round.

    Args:
        folder: Of the domain; made.
        titles: Public item texts.
        rows: (users, length) items of each user.
        federation: Encoder, shape and training settings.
        policy: Of the made-up domain; says how much noise there is.
        rounds: To run, at most as many as the policy plans.
        seed: Of the vault's noise; None for secure randomness. The first backbone is the same for every seed.
        cache: Of encoded texts; the user's own where absent.

    Raises:
        Refused: If the first round is refused; a later refusal is in the transcript.
    """
    name = (federation.training.align_domains or ("audit",))[0]  # one that the recipe knows, where it asks
    domain = _write(folder, titles, rows, policy, name=name)
    if federation.backbone.module is not None:
        _allow(federation.backbone.module, domain)
    vault = Vault(domain, ledger=Ledger(domain.ledger_path), seed=seed, cache=cache, threads=1)
    try:
        catalogue = vault.release(
            Kind.CATALOGUE, RoundRequest(run="audit", round=0, recipe=recipe_of(federation, ""))
        ).payload
        moments = TextMoments(
            count=int(catalogue.values["count"]),
            mean=catalogue.arrays["mean"].astype(np.float64),
            second=catalogue.arrays["second"].astype(np.float64),
        )
        whitening = fit_whitening([moments], eps=federation.features.whitening_eps, dim=federation.features.dim)
        recipe = recipe_of(federation, arrays_digest(whitening.arrays()).hex())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            training = federation.training
            first = make_backbone(whitening.matrix.shape[1], federation.backbone, domains=training.classes)
        arrays = shared_arrays(first)
        seen: list[Round] = []
        refusal = ""
        for number in range(1, min(rounds, policy.rounds) + 1):
            request = RoundRequest(
                run="audit", round=number, recipe=recipe, arrays=arrays, whitening=whitening.arrays()
            )
            try:
                released = vault.release(Kind.UPDATE, request).payload
            except Refused as refused:  # a finding: an honest run of made-up users is never refused
                if not seen:
                    raise
                refusal = str(refused)
                break
            update = decode(Encoded(arrays=released.arrays, scales=released.values))
            seen.append(Round(arrays=arrays, update=update))
            arrays = arrays | {name: arrays[name] + moved for name, moved in update.items()}
        return Transcript(
            rounds=tuple(seen),
            refusal=refusal,
            final=arrays,
            recipe=recipe,
            features=vault.features(federation.features, whitening),
            noise_multiplier=vault.plan.noise_multiplier,
            epsilon=vault.epsilon(),
        )
    finally:
        vault.close()


def _allow(module: str, domain: DomainConfig) -> None:
    """Name a custom backbone in the rules of a made-up domain, which else are those that its configuration implies."""
    rules = load_policy(domain)
    allowed = rules.model_copy(update={"allow": Allowed(backbones=(module,))})
    text = toml_text(allowed).replace(f'"{rules.approved_on}"', str(rules.approved_on))  # a date has no quotes
    (domain.folder / FILE).write_text(text, encoding="utf-8")


def _write(
    folder: Path, titles: Sequence[str], rows: NDArray[np.int64], policy: PrivacyPolicy, *, name: str
) -> DomainConfig:
    """The tables of a made-up domain; ids sort as the rows do."""
    folder.mkdir(parents=True)
    ids = [f"item-{number:06d}" for number in range(len(titles))]
    pl.DataFrame({"item_id": ids, "title": list(titles)}).write_csv(folder / "items.csv")
    users = np.repeat([f"user-{number:06d}" for number in range(len(rows))], rows.shape[1])
    pl.DataFrame({"user": users, "item": [ids[item] for item in rows.ravel()]}).write_csv(folder / "interactions.csv")
    return DomainConfig(
        name=name,
        interactions=Interactions(path="interactions.csv"),
        items=Items(path="items.csv", public=True),
        privacy=policy,
        folder=folder,
    )
