"""What an empirical audit attacks: the policy and the recipe that lie in the folders that were named, or built-in ones.

    with target_of([Path("run")]) as target:
        for attack in attacks(target):
            evidence = attack.run()

A run's folder names its federation file, a federation's folder holds one, a domain's folder holds `domain.toml`, and a
ledger stands for the folder in which it lies. Of all domains that are found so, the one whose steps have the least
noise is attacked: under its own policy, with its public catalogue, on the backbone of its federation. Where none is
found, `AUDIT_POLICY` is, on the demo's backbone and texts. Whatever is attacked, all users are made up.
"""

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from isthmus.clients.audit.canaries import AUDIT_POLICY, audit_canaries
from isthmus.clients.audit.evidence import Evidence
from isthmus.clients.audit.membership import audit_membership
from isthmus.clients.audit.planted import audit_planted
from isthmus.config import (
    DomainConfig,
    FederationConfig,
    PrivacyPolicy,
    StartingBackbone,
    Trained,
    load_domain,
    load_federation,
)
from isthmus.demo import write_demo
from isthmus.errors import ConfigError
from isthmus.features import encoder_dim
from isthmus.privacy.plan import plan_for
from isthmus.privacy.policy import load_policy

_BUILT_IN = "dining"
"""Of the demo's domains, the one whose texts are used where no domain was named."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is attacked.

    Attributes:
        domain: Its public catalogue is used; neither its users nor its ledger are touched.
        federation: Encoder, shape of the backbone and training settings.
        policy: Says how much noise there is, and so what is claimed.
        what: All of it in words, for the reader of a report.
    """

    domain: DomainConfig
    federation: FederationConfig
    policy: PrivacyPolicy
    what: str


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One attack that is ready to run.

    Attributes:
        name: As in its evidence.
        about: What it does, in words.
        run: Runs it; takes seconds to a minute on one core.
    """

    name: str
    about: str
    run: Callable[[], Evidence]


@contextmanager
def target_of(paths: Iterable[Path]) -> Iterator[Target]:
    """Find what is to be attacked; built-in texts lie in a temporary folder for as long as this is open.

    Args:
        paths: Files and folders, as they are named to an audit.

    Raises:
        ConfigError: If a federation or domain is there and its file is wrong.
    """
    folders = dict.fromkeys(path if path.is_dir() else path.parent for path in paths)
    found = [pair for folder in folders for pair in _in_folder(folder)]
    if found:
        federation, domain = min(found, key=lambda pair: plan_for(pair[1].privacy).noise_multiplier)
        yield Target(
            domain=domain,
            federation=federation,
            policy=domain.privacy,
            what=f"policy and catalogue of {domain.name}, backbone of federation {federation.name}",
        )
        return
    with tempfile.TemporaryDirectory() as folder:
        file = write_demo(Path(folder) / "demo")
        yield Target(
            domain=load_domain(file.parent / _BUILT_IN),
            federation=load_federation(file),
            policy=AUDIT_POLICY,
            what="the built-in audit policy on the demo's texts and backbone, since no domain or federation was named",
        )


def attacks(target: Target, *, seed: int | None = None) -> tuple[Attack, ...]:
    """All attacks on a target, the quickest first.

    Args:
        target: Of `target_of`, which must be open while they run.
        seed: For repeatable attacks; fresh secure randomness where absent.

    Raises:
        PolicyRefused: If the federation has a custom backbone that the domain's policy does not allow.
        ConfigError: If it fine-tunes a text encoder, which an audit would have to do dozens of times.
    """
    if target.federation.training.train is Trained.TEXT:
        raise ConfigError(
            'an empirical audit trains dozens of backbones, and `train = "text"` is too slow for that; point it at a '
            "federation file with another `train`: clipping, noise and ledger are the same"
        )
    domain, policy = target.domain, target.policy
    load_policy(domain).check_backbone(target.federation.backbone.module)  # its code runs here
    # They begin with the text prior: the guarantee is the same for any start.
    shape = StartingBackbone(**target.federation.backbone.shape.model_dump())
    federation = target.federation.model_copy(update={"backbone": shape})
    features = federation.features.dim or encoder_dim(federation.features.encoder)
    return (
        Attack(
            name="canaries",
            about="gradients on coordinates of their own, through the optimizer",
            run=partial(audit_canaries, policy, federation.backbone, features=features, seed=seed),
        ),
        Attack(
            name="planted",
            about="made-up users through the whole vault, every update looked at",
            run=partial(audit_planted, domain, federation, policy=policy, seed=seed),
        ),
        Attack(
            name="membership",
            about="who was trained on, told from the final backbone",
            run=partial(audit_membership, domain, federation, policy=policy, seed=seed),
        ),
    )


def _in_folder(folder: Path) -> list[tuple[FederationConfig, DomainConfig]]:
    """Domains that a folder stands for, each with its federation."""
    file = _federation_of_run(folder) or folder / "federation.toml"
    if file.is_file():
        federation = load_federation(file)
        return [(federation, load_domain(each)) for each in federation.domain_folders()]
    if not (folder / "domain.toml").is_file():
        return []
    domain, file = load_domain(folder), folder.resolve().parent / "federation.toml"
    if file.is_file():
        federation = load_federation(file)
        if folder.resolve() in federation.domain_folders():
            return [(federation, domain)]
    return [(FederationConfig(name=domain.name, domains=(folder.resolve().name,)), domain)]


def _federation_of_run(folder: Path) -> Path | None:
    """The federation file of a simulation's folder, if it is still where it was."""
    try:
        file = Path(str(json.loads((folder / "plan.json").read_text(encoding="utf-8"))["federation"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return file if file.is_file() else None
