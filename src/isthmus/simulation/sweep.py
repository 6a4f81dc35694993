"""Utility against epsilon: the same federation at several budgets, and, if asked for, without noise.

    study = sweep(Path("demo/federation.toml"), out=Path("sweep"), epsilons=(1, 2, 4, 8), seeds=3, watcher=watcher)

Every run is seeded, so none is private and all keep their books in the study's folder. Runs of one seed draw the same
batches and the same noise, scaled: their differences are those of epsilon, and not of luck. A domain's `policy.toml`
stays in force: what it forbids is refused before anything is read.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import isthmus
from isthmus.backbone_file import ShippedBackbone
from isthmus.clients.data import DomainData, open_domain_data
from isthmus.errors import ConfigError, DataError
from isthmus.report import study as report
from isthmus.report.result import read_result
from isthmus.report.study_page import write_all
from isthmus.simulation.derived import derive
from isthmus.simulation.measuring import Measured, keep_measured, kept_measured, measure
from isthmus.simulation.methods import methods_of
from isthmus.simulation.noise_free import require_allowed, run_noise_free
from isthmus.simulation.prepare import Simulation
from isthmus.simulation.run import Watcher
from isthmus.simulation.scenarios import usual_task
from isthmus.simulation.study import Observed, Study, figures, fit_private_head, known, open_study, prepared, trained


@dataclass(frozen=True, kw_only=True)
class _Point:
    """One run of a sweep.

    Attributes:
        epsilon: Of every domain; None for the run without noise.
        seed: Of the run.
        folder: Of the run.
        simulation: Checked; None for the run without noise.
        file: Its federation file.
    """

    epsilon: float | None
    seed: int
    folder: Path
    simulation: Simulation | None
    file: Path


def sweep(  # noqa: PLR0913 - keyword-only, one for each option of the command
    file: Path,
    *,
    out: Path,
    epsilons: Sequence[float],
    seeds: int,
    rounds: int | None = None,
    noise_free: bool = False,
    negatives: int | None = None,
    watcher: Watcher,
) -> report.Study:
    """Run every point that is not finished, measure it, and write `sweep.json`, `.csv` and `.html`.

    Args:
        file: Federation file.
        out: Folder of the study.
        epsilons: Of every domain's policy in turn; each once.
        seeds: Runs at each epsilon.
        rounds: Instead of the file's.
        noise_free: Add runs without noise, for reference.
        negatives: To sample beside full ranking; None for none.
        watcher: Told about progress.

    Raises:
        ConfigError: If a number is out of range, or an epsilon allows no noise multiplier.
        Refused: If a policy is against a run; nothing was read then.
        RunError: If the folder holds something else.
    """
    started = time.monotonic()
    if not epsilons or len(set(epsilons)) != len(epsilons):
        raise ConfigError(f"a sweep needs at least one epsilon, each once, got {list(epsilons)}")
    about = {"kind": "sweep", "epsilons": sorted(epsilons), "noise_free": noise_free}
    study = open_study(file, out=out, seeds=seeds, rounds=rounds, about=about)
    # 1. Everything that can be refused is refused before anything is read.
    points = list(_points(study, sorted(epsilons), noise_free=noise_free))
    # 2. One run after the other; what is finished is read.
    domains = {domain.name: open_domain_data(domain) for domain in study.domains}
    tested = {name: data for name, data in domains.items() if (data.test >= 0).any()}
    if not tested:
        raise DataError(f"{file}: no domain has a user with a test item, so nothing can be measured")
    measured: dict[tuple[str, float | None], list[Measured]] = {}
    spent: dict[tuple[str, float | None], tuple[float, float]] = {}
    for number, point in enumerate(points, start=1):
        what = "without noise" if point.epsilon is None else f"epsilon {point.epsilon:g}"
        watcher.stage(f"run {number} of {len(points)}: {what}, seed {point.seed}")
        for name, found in _measured(study, point, tested, watcher).items():
            measured.setdefault((name, point.epsilon), []).append(found)
            if point.epsilon is not None:
                domain = read_result(point.folder / "result.json").domains[name]
                spent[name, point.epsilon] = domain.epsilon, domain.noise_multiplier
    # 3. What it came to.
    observed = [_observed(name, epsilon, found, spent) for (name, epsilon), found in measured.items()]
    order = {name: at for at, name in enumerate(domains)}
    observed.sort(key=lambda one: (order[one.domain], one.at is None, one.at or 0.0))
    result = report.Study(
        schema_version=1,
        isthmus_version=isthmus.__version__,
        kind="sweep",
        scenario="the same federation at several epsilons",
        scale="epsilon",
        federation=study.federation.name,
        digest=study.federation.digest(),
        rounds=study.rounds,
        seeds=study.seeds,
        runs=len(points),
        negatives=negatives,
        private=False,
        raw=True,
        conditions=figures(observed, resamples=study.federation.evaluation.bootstrap, negatives=negatives),
        transfers=(),
        discrepancies=(),
        seconds=time.monotonic() - started,
    )
    write_all(result, study.out)
    return result


def _points(study: Study, epsilons: Sequence[float], *, noise_free: bool) -> Iterator[_Point]:
    """Every run, checked."""
    for epsilon in epsilons:
        place = study.out / f"epsilon-{epsilon:g}"
        derived = derive(study.federation, study.domains, to=place, epsilon=epsilon)
        for seed in study.seeds:
            folder = place / f"seed-{seed}"
            simulation = prepared(study, derived, seed=seed, folder=folder)
            yield _Point(epsilon=epsilon, seed=seed, folder=folder, simulation=simulation, file=derived)
    if noise_free:
        for domain in study.domains:
            require_allowed(domain)
        place = study.out / "no-noise-NOT-PRIVATE"
        derived = derive(study.federation, study.domains, to=place)
        for seed in study.seeds:
            yield _Point(epsilon=None, seed=seed, folder=place / f"seed-{seed}", simulation=None, file=derived)


def _measured(study: Study, point: _Point, tested: Mapping[str, DomainData], watcher: Watcher) -> dict[str, Measured]:
    """What one run is worth in each domain; run and measured only if that has not happened yet."""
    files = {name: point.folder / "measured" / f"{name}.safetensors" for name in tested}
    kept = {name: kept_measured(path) for name, path in files.items()}
    done = {name: found for name, found in kept.items() if found is not None}
    if len(done) == len(files):
        return done
    shipped = _shipped(study, point, watcher)
    for name, data in tested.items():
        if name in done:
            continue
        watcher.stage(f"measuring {name}")
        domain = known(study, data, shipped)
        head = point.folder / "heads" / name
        fit_private_head(study, domain, shipped, seed=point.seed, folder=head)
        task = usual_task(data, most=study.federation.evaluation.max_users)
        done[name] = measure(methods_of(domain, shipped=shipped, head=head, seed=point.seed), task)
        keep_measured(done[name], files[name])
    return done


def _shipped(study: Study, point: _Point, watcher: Watcher) -> ShippedBackbone:
    if point.simulation is not None:
        return trained(point.simulation, watcher)
    return run_noise_free(
        point.file,
        seed=point.seed,
        rounds=study.rounds,
        out=point.folder,
        listener=lambda state: watcher.stage(f"round {state.round} of {study.rounds}, without noise"),
    )


def _observed(
    name: str,
    epsilon: float | None,
    measured: Sequence[Measured],
    spent: Mapping[tuple[str, float | None], tuple[float, float]],
) -> Observed:
    noise: Literal["seeded", "none"] = "none" if epsilon is None else "seeded"
    nominal, multiplier = spent.get((name, epsilon), (None, None))
    return Observed(
        domain=name,
        label="no noise: NOT PRIVATE" if epsilon is None else f"epsilon {epsilon:g}",
        at=epsilon,
        noise=noise,
        epsilon=nominal,
        noise_multiplier=multiplier,
        measured=measured,
    )
