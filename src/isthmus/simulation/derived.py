"""A federation that differs in one thing from one that exists: what a study simulates instead.

    file = derive(federation, domains, to=out / "epsilon-2", epsilon=2.0)      # a federation file of its own
    file = derive(federation, domains, to=out / "held-out", without="dining")

Only files are written: the federation's, and a folder for each domain with a `domain.toml`. Tables are read where they
lie, unless some of their events are withheld: then the copy lies in the study's folder and is as private as the
original. A `policy.toml` is copied unchanged, so whatever a business unit forbids or limits holds for a study too.

A study is seeded, and seeded runs keep their own books: no ledger beside real data is touched.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from isthmus.clients.data import copy_interactions
from isthmus.config import DomainConfig, FederationConfig
from isthmus.durable import write_durably
from isthmus.errors import ConfigError
from isthmus.privacy.policy import FILE, load_policy
from isthmus.settings import toml_text

_FEDERATION = "federation.toml"


@dataclass(frozen=True, kw_only=True)
class Withheld:
    """What of one domain is hidden from training.

    Attributes:
        users: Ids of users of whom nothing is known.
        items: Ids of items whose events are unknown; they stay in the catalogue, which is public.
    """

    users: Sequence[str] = ()
    items: Sequence[str] = ()


def derive(  # noqa: PLR0913 - keyword-only, one for each thing that may differ
    federation: FederationConfig,
    domains: Sequence[DomainConfig],
    *,
    to: Path,
    epsilon: float | None = None,
    without: str | None = None,
    withheld: Mapping[str, Withheld] | None = None,
) -> Path:
    """Write a federation that differs from another; what is there already is left as it is.

    Args:
        federation: The original.
        domains: Its domains.
        to: Folder of the copy; made if absent.
        epsilon: Of every domain's `[privacy]`, instead of its own.
        without: Name of a domain that takes no part.
        withheld: By domain, what training must not know.

    Returns:
        The federation file of the copy.

    Raises:
        ConfigError: If an epsilon is out of range, or nobody is left.

    Guarantees:
        - A domain's `policy.toml` is in force in the copy, byte for byte.
        - Nothing is written outside of `to`.
    """
    file = to / _FEDERATION
    taking_part = [domain for domain in domains if domain.name != without]
    if not taking_part:
        raise ConfigError(f"without {without} nobody is left to train; a study needs another domain")
    if file.exists():
        return file
    for domain in taking_part:
        folder = to / "domains" / domain.name
        folder.mkdir(parents=True, exist_ok=True)
        changed = _changed(domain, folder, epsilon, (withheld or {}).get(domain.name))
        load_policy(domain)  # one that is wrong, or a link that leads nowhere, is refused in the words of its own file
        if (domain.folder / FILE).exists():
            write_durably(folder / FILE, (domain.folder / FILE).read_bytes())
        write_durably(folder / "domain.toml", toml_text(changed).encode())
    weights = {name: weight for name, weight in federation.strategy.weights.items() if name != without}
    copy = federation.model_copy(
        update={
            "domains": tuple(f"domains/{domain.name}" for domain in taking_part),
            "seed": 0,  # a study names each run's own; without one, a run of this file would look private
            "strategy": federation.strategy.model_copy(update={"weights": weights}),
            "backbone": federation.backbone.model_copy(
                update={"start": None if federation.start_path is None else str(federation.start_path)}
            ),
        }
    )
    write_durably(file, toml_text(copy).encode())  # last: it says that the rest is there
    return file


def _changed(domain: DomainConfig, folder: Path, epsilon: float | None, withheld: Withheld | None) -> DomainConfig:
    """A domain's configuration in the copy, its tables where they are."""
    interactions = domain.interactions.model_copy(update={"path": str(domain.interactions_path.resolve())})
    if withheld is not None and (withheld.users or withheld.items):
        interactions = copy_interactions(domain, folder, without_users=withheld.users, without_items=withheld.items)
    privacy = domain.privacy
    if epsilon is not None:
        if not 0 < epsilon <= 100:
            raise ConfigError(f"epsilon must be above 0 and at most 100, got {epsilon:g}")
        privacy = privacy.model_copy(update={"epsilon": epsilon})
    items = domain.items.model_copy(update={"path": str(domain.items_path.resolve())})
    return domain.model_copy(update={"interactions": interactions, "items": items, "privacy": privacy})
