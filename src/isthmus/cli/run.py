"""Verbs on runs: `isthmus simulate`, `isthmus calibrate`, `isthmus recommend`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from isthmus.cli.console import stderr, stdout
from isthmus.cli.data import Json
from isthmus.config import load_domain, load_federation

_DEMO = Path("isthmus-demo")


def simulate(  # noqa: PLR0913, PLR0917 - options
    federation: Annotated[Path | None, typer.Argument()] = None,
    out: Annotated[Path, typer.Option(help="Run folder; a stopped run in it is continued.")] = Path("isthmus-run"),
    rounds: Annotated[int | None, typer.Option(help="Rounds, instead of the file's.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Make the run repeatable, noise included. Such a run is NOT private.")
    ] = None,
    backend: Annotated[str, typer.Option(help="in-process, or ray for many cores and machines.")] = "in-process",
    as_json: Json = False,
) -> None:
    """Run a whole federation on this machine: private training, baselines, a report.

    FEDERATION is a federation file. Without one, the built-in synthetic demo is written to isthmus-demo/ and run.
    """
    if backend not in ("in-process", "ray"):
        raise typer.BadParameter(f"must be in-process or ray, got {backend!r}", param_hint="--backend")
    if federation is not None:
        load_federation(federation)  # what is wrong in it is said at once
    from isthmus.cli.watching import LiveWatcher  # noqa: PLC0415 - these take seconds to import
    from isthmus.demo import write_demo  # noqa: PLC0415
    from isthmus.report.terminal import summary_table  # noqa: PLC0415
    from isthmus.simulation import Backend, prepare, run  # noqa: PLC0415

    chosen: Backend = "ray" if backend == "ray" else "in-process"
    if federation is None:
        federation = _DEMO / "federation.toml"
        if not federation.exists():
            write_demo(_DEMO)
        stderr.print(f"no federation named: running the synthetic demo in {_DEMO}/", highlight=False)
    simulation = prepare(federation, out=out, rounds=rounds, seed=seed, backend=chosen)
    for note in simulation.notes:
        stderr.print(f"note: {note}", markup=False, highlight=False)
    with LiveWatcher(simulation.domains) as watcher:
        result = run(simulation, watcher)
    if as_json:
        stdout.print_json((simulation.out / "result.json").read_text(encoding="utf-8"))
        return
    stdout.print(summary_table(result))
    stdout.print(f"report: {out / 'report.html'}", markup=False, highlight=False)


def calibrate(
    domain: Annotated[Path, typer.Argument()],
    as_json: Json = False,
) -> None:
    """Print how much noise a domain's policy needs; opens no table, trains nothing, spends nothing.

    DOMAIN is a domain folder, or the domain.toml in it.
    """
    from isthmus.privacy.plan import plan_for  # noqa: PLC0415 - takes seconds to import

    config = load_domain(domain)
    plan = plan_for(config.privacy)
    figures = {
        "domain": config.name,
        "epsilon": config.privacy.epsilon,
        "delta": config.privacy.delta,
        "sample_rate": config.privacy.sample_rate,
        "steps": plan.config.steps,
        "rounds": config.privacy.rounds,
        "evaluations": config.privacy.evaluations,
        "metric_noise_multiplier": config.privacy.metric_noise_multiplier,
        "clip": config.privacy.clip,
        "noise_multiplier": plan.noise_multiplier,
        "epsilon_of_plan": plan.epsilon,
        "accountant": "PLD (dp-accounting), add or remove one user",
    }
    if as_json:
        stdout.print_json(json.dumps(figures))
        return
    table = Table(box=None, show_header=False)
    for key, value in figures.items():
        table.add_row(key.replace("_", " "), f"{value:g}" if isinstance(value, float) else str(value))
    stdout.print(table)


def recommend(
    run: Annotated[Path, typer.Option(help="Folder of a finished run.")],
    domain: Annotated[str, typer.Option(help="Name of a domain in it.")],
    user: Annotated[str, typer.Option(help="Id of one of its users.")],
    k: Annotated[int, typer.Option("-k", help="How many items.", min=1)] = 10,
    as_json: Json = False,
) -> None:
    """Recommend items to one user with a run's backbone and the domain's private head."""
    from isthmus.simulation.recommend import recommend_items  # noqa: PLC0415 - takes seconds to import

    items = recommend_items(run, domain=domain, user=user, count=k)
    if as_json:
        stdout.print_json(json.dumps([{"item": i.item, "title": i.title, "score": i.score} for i in items]))
        return
    table = Table(box=None)
    for column in ("item", "title", "score"):
        table.add_column(column, justify="right" if column == "score" else "left")
    for found in items:
        table.add_row(found.item, found.title, f"{found.score:.4f}")
    stdout.print(table)
