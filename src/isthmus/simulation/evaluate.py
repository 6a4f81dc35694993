"""What the federation is worth: every method, local, federated and pooled, under one scenario.

    study = evaluate(Path("demo/federation.toml"), out=Path("evaluation"), scenario=Usual(), seeds=3, watcher=watcher)
    study = evaluate(file, out=out, scenario=HeldOut(domain="dining", users=(0, 64, 256)), seeds=3, watcher=watcher)

Every run is seeded, so none is private and all keep their books in the study's folder. A `policy.toml` stays in force.
The ceiling is trained on the pooled histories of the domains that take part, as the federation knew them.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import isthmus
from isthmus.backbone_file import ShippedBackbone, load_backbone, save_backbone
from isthmus.clients.data import DomainData, open_domain_data
from isthmus.clients.trainer import make_training_set
from isthmus.custom_backbone import AnyBackbone
from isthmus.errors import ConfigError, DataError, PolicyRefused, Refused
from isthmus.report import study as report
from isthmus.report.result import read_result
from isthmus.report.study_page import write_all
from isthmus.simulation.ceiling import Pooled, train_centralised
from isthmus.simulation.measuring import Measured, keep_measured, kept_measured, measure
from isthmus.simulation.methods import methods_of
from isthmus.simulation.noise_free import require_allowed
from isthmus.simulation.prepare import Simulation
from isthmus.simulation.run import Watcher
from isthmus.simulation.scenario_kinds import Job, Scenario, Trained
from isthmus.simulation.study import (
    Observed,
    Study,
    figures,
    fit_private_head,
    known,
    open_study,
    prepared,
    recipe,
    trained,
)
from isthmus.simulation.transfer import discrepancies, transfers


def evaluate(  # noqa: PLR0913 - keyword-only, one for each option of the command
    file: Path,
    *,
    out: Path,
    scenario: Scenario,
    seeds: int,
    rounds: int | None = None,
    ceiling: bool = True,
    negatives: int | None = None,
    watcher: Watcher,
) -> report.Study:
    """Run the federation under a scenario, measure every method, and write `evaluation.json`, `.csv` and `.html`.

    Args:
        file: Federation file.
        out: Folder of the study.
        scenario: What is hidden from training, and whom is measured on.
        seeds: Runs.
        rounds: Instead of the file's.
        ceiling: Whether a backbone is trained on all histories in one place, for reference; policies may forbid it.
        negatives: To sample beside full ranking; None for none.
        watcher: Told about progress.

    Raises:
        ConfigError: If a number or name is wrong, or what the runs start from has seen what the scenario hides.
        DataError: If there is nobody to measure on.
        Refused: If a policy is against a run.
        RunError: If the folder holds something else.
    """
    started = time.monotonic()
    about = {"kind": "evaluation", "scenario": scenario.about(), "ceiling": ceiling}
    study = open_study(file, out=out, seeds=seeds, rounds=rounds, about=about)
    _require_unknown(study, file, str(scenario.about()["name"]))
    ceiling = ceiling and scenario.pools
    if ceiling:
        _require_no_objection(study)
    # Everything that can be refused is refused before anything is trained.
    runs = [
        (name, prepared(study, trains, seed=seed, folder=study.out / name / f"seed-{seed}"))
        for name, trains in scenario.prepare(study, file).items()
        for seed in study.seeds
    ]
    found: dict[tuple[str, str], list[tuple[Job, Measured]]] = {}
    spent: dict[str, tuple[float, float]] = {}
    for number, (name, simulation) in enumerate(runs, start=1):
        watcher.stage(f"run {number} of {len(runs)}: {name}, seed {simulation.federation.seed}")
        for job, measured in _one_run(study, name, simulation, scenario, watcher, ceiling=ceiling):
            found.setdefault((job.domain, job.label), []).append((job, measured))
        for domain, result in read_result(simulation.out / "result.json").domains.items():
            spent.setdefault(domain, (result.epsilon, result.noise_multiplier))
    if not found:
        raise DataError(f"{file}: nobody can be measured on under scenario {scenario.words}")
    observed = [_observed(each, spent) for each in found.values()]
    order = {domain.name: at for at, domain in enumerate(study.domains)}
    observed.sort(key=lambda one: (order[one.domain], one.at or 0.0))
    outcome = report.Study(
        schema_version=1,
        isthmus_version=isthmus.__version__,
        kind="evaluation",
        scenario=scenario.words,
        scale=scenario.scale,
        federation=study.federation.name,
        digest=study.federation.digest(),
        rounds=study.rounds,
        seeds=study.seeds,
        runs=len(runs),
        negatives=negatives,
        private=False,
        raw=True,
        conditions=figures(observed, resamples=study.federation.evaluation.bootstrap, negatives=negatives),
        transfers=transfers(
            {(job.domain, job.short): [m for _, m in each] for each in found.values() for job, _ in each[:1]},
            [domain.name for domain in study.domains],
            resamples=study.federation.evaluation.bootstrap,
        ),
        discrepancies=_distances(study, runs[0][1]),
        seconds=time.monotonic() - started,
    )
    write_all(outcome, study.out)
    return outcome


def _require_unknown(study: Study, file: Path, scenario: str) -> None:
    """Refuse to measure on what a scenario hides where the start of every run has seen it; test items it has not."""
    start = study.federation.started_from()
    seen = set() if start is None else {domain.name for domain in start.domains}
    known = sorted(seen & {domain.name for domain in study.domains})
    if known and scenario != "usual":
        raise ConfigError(
            f"{file}: `backbone.start` was trained on {', '.join(known)}, of which scenario {scenario} hides "
            f"something. Start from other domains, or leave the start out."
        )


def _require_no_objection(study: Study) -> None:
    """Refuse a ceiling where a policy wants noise: it trains on exact histories, like a run without noise."""
    for domain in study.domains:
        try:
            require_allowed(domain)
        except PolicyRefused as refusal:
            raise Refused(
                f"{refusal} The centralised reference trains without noise; `--no-ceiling` leaves it out.",
                rule=refusal.rule,
                asked=refusal.asked,
                limit=refusal.limit,
            ) from None


def _one_run(  # noqa: PLR0913 - the parts of a run
    study: Study, name: str, simulation: Simulation, scenario: Scenario, watcher: Watcher, *, ceiling: bool
) -> list[tuple[Job, Measured]]:
    """Train, pool, fit and measure; what is finished is read."""
    shipped = trained(simulation, watcher)
    seed = simulation.federation.seed or 0
    taking_part = {domain.name: open_domain_data(domain) for domain in simulation.domains}
    finished = Trained(name=name, domains=taking_part, seed=seed, folder=simulation.out)
    jobs = [job for job in scenario.jobs(study, finished) if len(job.task.users)]
    pooled: AnyBackbone | None = None
    measured = []
    for job in jobs:
        file = simulation.out / "measured" / f"{job.domain}-{job.short}.safetensors"
        kept = kept_measured(file)
        if kept is None:
            if ceiling and pooled is None:
                pooled = _ceiling(study, taking_part, shipped, seed=seed, out=simulation.out, watcher=watcher)
            watcher.stage(f"measuring {job.domain}: {job.label}")
            domain = known(study, job.known, shipped, newcomer=job.domain not in taking_part)
            fit_private_head(study, domain, shipped, seed=seed, folder=job.head)
            methods = methods_of(domain, shipped=shipped, head=job.head, seed=seed, centralised=pooled)
            kept = measure(methods, job.task)
            keep_measured(kept, file)
        measured.append((job, kept))
    return measured


def _distances(study: Study, simulation: Simulation) -> tuple[report.Discrepancy, ...]:
    """How far apart the domains of the first run are, under the backbone that it shipped."""
    shipped = load_backbone(simulation.out / "backbone.safetensors")
    return discrepancies(study, {domain.name: open_domain_data(domain) for domain in simulation.domains}, shipped)


def _ceiling(  # noqa: PLR0913 - keyword-only
    study: Study,
    taking_part: Mapping[str, DomainData],
    shipped: ShippedBackbone,
    *,
    seed: int,
    out: Path,
    watcher: Watcher,
) -> AnyBackbone:
    """The backbone that is trained on everything in one place; kept in the run's folder."""
    file = out / "centralised-NOT-PRIVATE.safetensors"
    if file.exists():
        return load_backbone(file).backbone
    watcher.stage("training the centralised backbone, the ceiling: all histories in one place, without privacy")
    followed = recipe(study, shipped)
    pool = []
    for data in taking_part.values():
        domain = known(study, data, shipped)
        pool.append(Pooled(users=make_training_set(data.train, domain.pooled, followed), data=data))
    backbone = train_centralised(
        pool, backbone_config=study.federation.backbone.shape, training=study.federation.training, seed=seed
    ).backbone
    save_backbone(file, replace(shipped, backbone=backbone, round=0, start=None))
    return backbone


def _observed(each: Sequence[tuple[Job, Measured]], spent: Mapping[str, tuple[float, float]]) -> Observed:
    job = each[0][0]
    epsilon, multiplier = spent.get(job.domain, (None, None))
    return Observed(
        domain=job.domain,
        label=job.label,
        at=job.at,
        epsilon=epsilon,
        noise_multiplier=multiplier,
        measured=[measured for _, measured in each],
    )
