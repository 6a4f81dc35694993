"""Who helps whom, and how far apart domains are.

    scenario = WhoHelpsWhom()                     # trains the federation, and it again without each domain
    transfers(found, domains, resamples=1000)     # what each domain is worth to each
    discrepancies(study, domains, shipped)        # in the space of the shipped backbone

What `source` is worth to `target` is the target's NDCG@10 under the backbone that everybody trained, minus that under
the backbone that everybody but `source` trained, on the same users. Noise differs between these runs, and an
interval over users does not know of it: use several seeds.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from isthmus.backbone_file import ShippedBackbone
from isthmus.clients.data import DomainData, open_domain_data
from isthmus.clients.text_tower import shipped_reading
from isthmus.discrepancy import coral, mmd, proxy_a_distance
from isthmus.errors import ConfigError
from isthmus.metrics import ndcg_at_k, paired_bootstrap_ci
from isthmus.report import study as report
from isthmus.significance import holm, paired_p_value
from isthmus.simulation.derived import derive
from isthmus.simulation.measuring import Measured
from isthmus.simulation.scenario_kinds import Job, Trained
from isthmus.simulation.scenarios import usual_task
from isthmus.simulation.study import Study, known

EVERYBODY, WITHOUT = "everybody", "without-"
_METHOD = "backbone"  # by itself: a head hides what it does not use
_CUTOFF, _RESAMPLES, _SEED = 10, 10_000, 0
_USERS = 500  # of a domain that are compared: a kernel of all of them would fill a memory
_FEWEST = 8


@dataclass(frozen=True)
class WhoHelpsWhom:
    """The whole federation, and the federation without each of its domains."""

    words = "who helps whom: the federation with and without each domain"
    scale = None
    pools = False

    def about(self) -> Mapping[str, object]:
        """As `Scenario.about`."""
        return {"name": "transfer"}

    def prepare(self, study: Study, file: Path) -> Mapping[str, Path]:
        """The federation, and a copy without each domain."""
        if len(study.domains) < 2:
            raise ConfigError(f"{file}: who helps whom needs at least 2 domains, got {len(study.domains)}")
        copies = {}
        for domain in study.domains:
            name = f"{WITHOUT}{domain.name}"
            to = study.out / "federations" / name
            copies[name] = derive(study.federation, study.domains, to=to, without=domain.name)
        return {EVERYBODY: file, **copies}

    def jobs(self, study: Study, trained: Trained) -> Sequence[Job]:
        """Every domain, whether it took part or not."""
        label = f"trained by {trained.name}" if trained.name == EVERYBODY else f"trained {_words(trained.name)}"
        jobs = []
        for domain in study.domains:
            data = open_domain_data(domain)
            jobs.append(
                Job(
                    domain=domain.name,
                    label=label,
                    short=trained.name,
                    at=None,
                    known=data,
                    task=usual_task(data, most=study.federation.evaluation.max_users),
                    head=trained.folder / "heads" / domain.name,
                )
            )
        return jobs


def transfers(
    found: Mapping[tuple[str, str], Sequence[Measured]], domains: Sequence[str], *, resamples: int
) -> tuple[report.Transfer, ...]:
    """What each domain's part is worth to each domain, its own included.

    Args:
        found: By domain and name of what trained, one measurement for each seed.
        domains: In order.
        resamples: Of an interval.
    """
    pairs = [
        (source, target)
        for source, target in itertools.product(domains, domains)
        if (target, EVERYBODY) in found and (target, f"{WITHOUT}{source}") in found
    ]
    made = []
    for source, target in pairs:
        all_in, left_out = (_ndcg(found[target, name]) for name in (EVERYBODY, f"{WITHOUT}{source}"))
        made.append(
            report.Transfer(
                source=source,
                target=target,
                mean=float((all_in - left_out).mean()),
                ci95=paired_bootstrap_ci(all_in, left_out, resamples=resamples, seed=_SEED),
                p_holm=paired_p_value(all_in, left_out, resamples=_RESAMPLES, seed=_SEED),
            )
        )
    adjusted = holm([one.p_holm for one in made])
    return tuple(one.model_copy(update={"p_holm": p}) for one, p in zip(made, adjusted, strict=True))


def discrepancies(
    study: Study, domains: Mapping[str, DomainData], shipped: ShippedBackbone
) -> tuple[report.Discrepancy, ...]:
    """Distances between domains, in what the shipped backbone makes of their users' histories before the test item.

    Args:
        study: Says how texts are encoded.
        domains: By name; one with fewer than 8 users who have a history is left out.
        shipped: The backbone.
    """
    features = {name: _queries(study, data, shipped) for name, data in domains.items()}
    large = {name: found for name, found in features.items() if len(found) >= _FEWEST}
    return tuple(
        report.Discrepancy(
            first=first,
            second=second,
            a_distance=proxy_a_distance(large[first], large[second], seed=_SEED),
            mmd=mmd(large[first], large[second]),
            coral=coral(large[first], large[second]),
        )
        for first, second in itertools.combinations(large, 2)
    )


def _queries(study: Study, data: DomainData, shipped: ShippedBackbone) -> NDArray[np.float64]:
    """(users, features) the backbone's prediction after each history, of at most `_USERS` users."""
    users = np.flatnonzero(data.before_test.lengths() > 0)
    users = np.sort(np.random.default_rng(_SEED).permutation(users)[:_USERS])
    rows = [data.before_test.row(int(user))[-shipped.backbone.config.positions :] for user in users]
    items = np.zeros((len(rows), max(map(len, rows), default=1)), np.int64)
    last = np.array([len(row) - 1 for row in rows], np.int64)
    for at, row in enumerate(rows):
        items[at, : len(row)] = row
    features = torch.from_numpy(known(study, data, shipped).pooled)
    with torch.inference_mode():
        history = features[torch.from_numpy(items)]  # (users, positions, features)
        read = shipped_reading(shipped, data.catalogue.texts)
        by = () if read is None else (read[torch.from_numpy(items)],)
        predicted = shipped.backbone(history, *by)
        chosen = predicted[torch.arange(len(rows)), torch.from_numpy(last)]
    queries: NDArray[np.float64] = chosen.numpy().astype(np.float64)
    return queries


def _ndcg(measured: Sequence[Measured]) -> NDArray[np.float64]:
    """(users,) mean over seeds."""
    mean: NDArray[np.float64] = np.mean([ndcg_at_k(one.ranks[_METHOD], _CUTOFF) for one in measured], axis=0)
    return mean


def _words(name: str) -> str:
    return name.replace(WITHOUT, "without ", 1)
