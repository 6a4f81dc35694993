"""What `evaluate` and `sweep` share: a folder that belongs to one study, runs in it, and figures from measurements.

    study = open_study(file, out=Path("sweep"), seeds=3, rounds=None, about={"epsilon": [1.0, 2.0]})
    shipped = trained(study, derived, seed=0, folder=out / "epsilon-1" / "seed-0", watcher=watcher)
    conditions = figures([Observed(...), ...], resamples=1000, negatives=None)

A study can be stopped at any moment: a run goes on from its last round, a finished run and a finished measurement are
read and not made again.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from isthmus.backbone import learned_axes
from isthmus.backbone_file import ShippedBackbone, load_backbone
from isthmus.clients.data import DomainData
from isthmus.clients.finish import finish_domain, read_by, to_serve
from isthmus.clients.trainer import make_training_set
from isthmus.config import DomainConfig, FederationConfig, load_domain, load_federation
from isthmus.durable import write_durably
from isthmus.errors import ConfigError, RunError
from isthmus.features import default_cache_dir, encode_texts, fit_whitening, text_moments
from isthmus.metrics import bootstrap_ci, ndcg_at_k, paired_bootstrap_ci, ranking_metrics, sampled_ranks
from isthmus.packing import arrays_digest
from isthmus.records import Recipe, recipe_of
from isthmus.report import study as report
from isthmus.significance import holm, paired_p_value
from isthmus.simulation.measuring import Measured
from isthmus.simulation.methods import LOCAL, Known
from isthmus.simulation.prepare import Simulation, prepare
from isthmus.simulation.run import Watcher, run

CUTOFFS = (5, 10, 20)
_DECISIVE = 10  # cut-off of the NDCG that methods are compared on
_RESAMPLES = 10_000  # of the test
_SEED = 0  # of bootstrap and test


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study that was checked and may start.

    Attributes:
        federation: As its file says.
        domains: In the file's order.
        out: Folder of the study.
        seeds: One run for each, in each condition.
        rounds: Of each run.
    """

    federation: FederationConfig
    domains: tuple[DomainConfig, ...]
    out: Path
    seeds: tuple[int, ...]
    rounds: int


def open_study(file: Path, *, out: Path, seeds: int, rounds: int | None, about: Mapping[str, object]) -> Study:
    """Read a federation and claim a folder for one study of it.

    Args:
        file: Federation file.
        out: Folder; made if absent, gone on with if it holds the same study.
        seeds: How many; they are 0, 1, 2 and so on.
        rounds: Instead of the file's.
        about: Whatever else makes it this study and no other.

    Raises:
        ConfigError: If a file or a number is wrong.
        RunError: If the folder holds something else.
    """
    if seeds < 1:
        raise ConfigError(f"a study needs at least 1 seed, got {seeds}")
    if rounds is not None and rounds < 1:
        raise ConfigError(f"a run needs at least 1 round, got {rounds}")
    federation = load_federation(file)
    domains = tuple(load_domain(folder) for folder in federation.domain_folders())
    study = Study(
        federation=federation,
        domains=domains,
        out=out.resolve(),
        seeds=tuple(range(seeds)),
        rounds=rounds or federation.strategy.rounds,
    )
    what = {
        "federation": federation.digest(),
        "domains": {domain.name: domain.model_dump(mode="json") for domain in domains},
        "policies": {domain.name: _policy_digest(domain) for domain in domains},
        "seeds": study.seeds,
        "rounds": study.rounds,
        **about,
    }
    text = json.dumps(what, indent=1, sort_keys=True)
    mark = study.out / "study.json"
    if mark.exists():
        if mark.read_text(encoding="utf-8") != text:
            raise RunError(
                f"{out} holds another study (federation, policies, seeds, rounds or options differ). "
                f"Go on with what it was started with, or use another --out folder."
            )
    elif study.out.exists() and any(study.out.iterdir()):
        raise RunError(f"{out} holds something that is no study. Use another --out folder.")
    else:
        write_durably(mark, text.encode())
    return study


def trained(simulation: Simulation, watcher: Watcher) -> ShippedBackbone:
    """Run a prepared simulation, or go on with it, or read what it came to."""
    run(simulation, watcher)
    return load_backbone(simulation.out / "backbone.safetensors")


def prepared(study: Study, file: Path, *, seed: int, folder: Path) -> Simulation:
    """Check one run of a study before any table is opened; as `prepare`, of a derived federation."""
    return prepare(file, out=folder, rounds=study.rounds, seed=seed, backend="in-process")


def known(study: Study, data: DomainData, shipped: ShippedBackbone, *, newcomer: bool = False) -> Known:
    """A domain with its text features, in the axes of a shipped backbone.

    Args:
        study: Names the encoder's settings.
        data: The domain.
        shipped: The federation's backbone.
        newcomer: Whether the domain's texts are not in the shipped whitening. Alone it would whiten on its own, so
            that is what its local methods get, and the backbone, too, unless it has learned something about axes.
    """
    encoded = encode_texts(
        data.catalogue.texts,
        shipped.features.encoder,
        cache_dir=default_cache_dir(),
        threads=study.federation.compute.threads,
    )
    pooled = shipped.whitening.apply(encoded)
    if not newcomer:
        served, _ = to_serve(shipped, recipe(study, shipped), encoded)
        features, read = served.whitening.apply(encoded), read_by(shipped, encoded)
        return Known(data=data, features=features, shared=features if read is None else read, pooled=pooled)
    settings = study.federation.features
    own = fit_whitening([text_moments(encoded)], eps=settings.whitening_eps, dim=settings.dim).apply(encoded)
    shared = pooled if learned_axes(shipped.backbone) else own
    return Known(data=data, features=own, shared=shared, pooled=pooled)


def recipe(study: Study, shipped: ShippedBackbone) -> Recipe:
    """What a shipped backbone was trained under."""
    return recipe_of(study.federation, arrays_digest(shipped.whitening.arrays()).hex())


def fit_private_head(study: Study, domain: Known, shipped: ShippedBackbone, *, seed: int, folder: Path) -> None:
    """Do what a domain does after a run, unless it is done: train alone, fit the private head, keep both."""
    if (folder / "head.json").exists():
        return
    followed = recipe(study, shipped)
    finish_domain(
        domain.data,
        make_training_set(domain.data.train, domain.features, followed),
        shipped,
        followed,
        evaluation=study.federation.evaluation,
        seed=seed,
        folder=folder,
        shared=domain.shared,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Observed:
    """One condition of a study, measured with each seed.

    Attributes:
        domain: Name.
        label: The condition, in words.
        at: Its place on the study's scale.
        noise: Of the runs.
        epsilon: Nominal, of one run.
        noise_multiplier: Of its steps.
        measured: One for each seed, all on the same users.
    """

    domain: str
    label: str
    at: float | None = None
    noise: Literal["seeded", "none"] = "seeded"
    epsilon: float | None = None
    noise_multiplier: float | None = None
    measured: Sequence[Measured]


def figures(observed: Sequence[Observed], *, resamples: int, negatives: int | None) -> tuple[report.Condition, ...]:
    """Means, intervals and paired differences of every condition; p-values adjusted over all of them.

    A user's metric is averaged over seeds first: users are what is drawn, seeds are not independent users.

    Args:
        observed: Conditions with at least one user.
        resamples: Of a bootstrap.
        negatives: To sample beside full ranking; None for none.
    """
    conditions = [_condition(one, resamples=resamples, negatives=negatives) for one in observed]
    places = [(at, name) for at, condition in enumerate(conditions) for name in condition.differences]
    adjusted = holm([conditions[at].differences[name].p for at, name in places])
    for (at, name), p in zip(places, adjusted, strict=True):
        changed = {**conditions[at].differences}
        changed[name] = changed[name].model_copy(update={"p_holm": p})
        conditions[at] = conditions[at].model_copy(update={"differences": changed})
    return tuple(conditions)


def _condition(one: Observed, *, resamples: int, negatives: int | None) -> report.Condition:
    names = [name for name in report.METHODS if name in one.measured[0].ranks]
    decisive = {name: _over_seeds([ndcg_at_k(m.ranks[name], _DECISIVE) for m in one.measured]) for name in names}
    best = max((name for name in LOCAL if name in decisive), key=lambda name: float(decisive[name].mean()))
    return report.Condition(
        domain=one.domain,
        label=one.label,
        at=one.at,
        noise=one.noise,
        epsilon=one.epsilon,
        noise_multiplier=one.noise_multiplier,
        users=len(one.measured[0].races),
        methods={name: _method(one.measured, name, resamples=resamples, negatives=negatives) for name in names},
        best_local=best,
        differences={
            name: _difference(decisive[name], decisive[best], resamples) for name in names if name not in LOCAL
        },
    )


def _method(measured: Sequence[Measured], name: str, *, resamples: int, negatives: int | None) -> report.MethodFigures:
    each = [ranking_metrics(m.ranks[name], CUTOFFS) for m in measured]
    sampled = None
    if negatives is not None:
        among = [
            ranking_metrics(sampled_ranks(m.ranks[name], m.races, negatives=negatives, seed=seed), CUTOFFS)
            for seed, m in enumerate(measured)
        ]
        sampled = {metric: float(np.mean([values[metric].mean() for values in among])) for metric in among[0]}
    return report.MethodFigures(
        metrics={metric: _figure([values[metric] for values in each], resamples) for metric in each[0]},
        novelty=_figure([m.novelty[name] for m in measured], resamples),
        coverage=float(np.mean([m.coverage[name] for m in measured])),
        sampled=sampled,
    )


def _figure(seeds: Sequence[NDArray[np.float64]], resamples: int) -> report.Figure:
    values = _over_seeds(seeds)
    return report.Figure(
        mean=float(values.mean()),
        ci95=bootstrap_ci(values, resamples=resamples, seed=_SEED),
        seeds=tuple(float(one.mean()) for one in seeds),
    )


def _difference(method: NDArray[np.float64], local: NDArray[np.float64], resamples: int) -> report.Difference:
    p = paired_p_value(method, local, resamples=_RESAMPLES, seed=_SEED)
    return report.Difference(
        mean=float((method - local).mean()),
        ci95=paired_bootstrap_ci(method, local, resamples=resamples, seed=_SEED),
        p=p,
        p_holm=p,
    )


def _over_seeds(values: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """(users,) mean over seeds."""
    mean: NDArray[np.float64] = np.mean(values, axis=0)
    return mean


def _policy_digest(domain: DomainConfig) -> str | None:
    """Of the policy in force; None where there is none."""
    file = domain.folder / "policy.toml"
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else None
