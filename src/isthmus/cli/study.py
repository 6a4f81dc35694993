"""Verbs on studies: `isthmus evaluate`, `isthmus sweep`."""

import enum
from pathlib import Path
from typing import Annotated, Any

import click
import typer
from typer.core import TyperCommand

from isthmus.cli.console import stdout
from isthmus.cli.data import Json

Seeds = Annotated[int, typer.Option(help="Runs of each condition, with seeds 0, 1, 2 and so on.", min=1)]
Rounds = Annotated[int | None, typer.Option(help="Rounds of each run, instead of the file's.")]
Negatives = Annotated[
    int | None,
    typer.Option(
        help="Add metrics among so many sampled negatives (FedDCSR: 999). Biased; to compare with papers only.", min=1
    ),
]


class SeveralValues(TyperCommand):
    """A command whose repeatable number options also take several values at once: `--epsilon 1 2 4`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat the option before each further number."""
        repeatable = {
            name
            for option in self.params
            if isinstance(option, click.Option) and option.multiple
            for name in option.opts
        }
        told: list[str] = []
        option, values = "", 0
        for word in args:
            if word.startswith("--"):
                option, values = word, 0
            elif option in repeatable and _is_number(word):
                values += 1
                if values > 1:
                    told.append(option)
            else:
                option = ""
            told.append(word)
        return super().parse_args(ctx, told)


class ScenarioName(enum.StrEnum):
    """What an evaluation hides from training."""

    USUAL = "usual"
    NEW_DOMAIN = "new-domain"
    NEW_USERS = "new-users"
    NEW_ITEMS = "new-items"
    TRANSFER = "transfer"


def sweep(  # noqa: PLR0913, PLR0917 - options
    federation: Annotated[Path, typer.Argument()],
    out: Annotated[Path, typer.Option(help="Folder of the sweep; a stopped one in it is continued.")],
    epsilon: Annotated[list[float], typer.Option(help="Epsilons to try, one or several values.")],
    seeds: Seeds = 1,
    rounds: Rounds = None,
    non_private: Annotated[
        bool, typer.Option("--non-private", help="Add runs WITHOUT NOISE for reference; policies may forbid it.")
    ] = False,
    sampled_negatives: Negatives = None,
    as_json: Json = False,
) -> None:
    """Run a federation at several epsilons, to see what privacy costs. Simulation only: nothing of it is private.

    FEDERATION is a federation file. Each domain's epsilon is replaced, in seeded runs that keep their own books.
    """
    from isthmus.cli.watching import LiveWatcher  # noqa: PLC0415 - these take seconds to import
    from isthmus.config import load_domain, load_federation  # noqa: PLC0415
    from isthmus.simulation.sweep import sweep as run_sweep  # noqa: PLC0415

    domains = tuple(load_domain(folder) for folder in load_federation(federation).domain_folders())
    with LiveWatcher(domains) as watcher:
        study = run_sweep(
            federation,
            out=out,
            epsilons=epsilon,
            seeds=seeds,
            rounds=rounds,
            noise_free=non_private,
            negatives=sampled_negatives,
            watcher=watcher,
        )
    _print(study, out, as_json=as_json)


def evaluate(  # noqa: PLR0913, PLR0917 - options
    federation: Annotated[Path, typer.Argument()],
    out: Annotated[Path, typer.Option(help="Folder of the evaluation; a stopped one in it is continued.")],
    scenario: Annotated[ScenarioName, typer.Option(help="What is hidden from training.")] = ScenarioName.USUAL,
    hold_out: Annotated[
        str | None, typer.Option(help="Of new-domain: the domain that takes no part in training.")
    ] = None,
    users: Annotated[
        list[int] | None, typer.Option(help="Of new-domain: how many users it has, one or several values.")
    ] = None,
    events: Annotated[
        list[int] | None, typer.Option(help="Of new-users: events known of each, one or several values.")
    ] = None,
    seeds: Seeds = 1,
    rounds: Rounds = None,
    no_ceiling: Annotated[
        bool, typer.Option("--no-ceiling", help="Leave the centralised reference out; policies may forbid it.")
    ] = False,
    sampled_negatives: Negatives = None,
    as_json: Json = False,
) -> None:
    """Compare every method: local ones, the federation, and a ceiling that pools all data. Simulation only.

    FEDERATION is a federation file. All runs are seeded, so none is private, and they keep their own books.
    """
    from isthmus.cli.watching import LiveWatcher  # noqa: PLC0415 - these take seconds to import
    from isthmus.config import load_domain, load_federation  # noqa: PLC0415
    from isthmus.simulation.evaluate import evaluate as run_evaluation  # noqa: PLC0415

    chosen = _scenario(scenario, hold_out=hold_out, users=users or [], events=events or [])
    domains = tuple(load_domain(folder) for folder in load_federation(federation).domain_folders())
    with LiveWatcher(domains) as watcher:
        study = run_evaluation(
            federation,
            out=out,
            scenario=chosen,
            seeds=seeds,
            rounds=rounds,
            ceiling=not no_ceiling,
            negatives=sampled_negatives,
            watcher=watcher,
        )
    _print(study, out, as_json=as_json)


def _scenario(name: ScenarioName, *, hold_out: str | None, users: list[int], events: list[int]) -> Any:
    """The scenario that the options describe; an option of another scenario is an error."""
    from isthmus.simulation.scenario_kinds import HeldOut, NewItems, NewUsers, Usual  # noqa: PLC0415 - as above
    from isthmus.simulation.transfer import WhoHelpsWhom  # noqa: PLC0415 - as above

    given = {"--hold-out": hold_out is not None, "--users": bool(users), "--events": bool(events)}
    wanted = {ScenarioName.NEW_DOMAIN: ("--hold-out", "--users"), ScenarioName.NEW_USERS: ("--events",)}.get(name, ())
    for option, there in given.items():
        if there and option not in wanted:
            raise typer.BadParameter(f"does not belong to --scenario {name}", param_hint=option)
        if not there and option in wanted:
            raise typer.BadParameter(f"--scenario {name} needs it", param_hint=option)
    for option, values, least in (("--users", users, 0), ("--events", events, 1)):
        if len(set(values)) != len(values) or any(value < least for value in values):
            raise typer.BadParameter(f"values must differ and be at least {least}, got {values}", param_hint=option)
    if name is ScenarioName.NEW_DOMAIN:
        return HeldOut(domain=hold_out or "", users=tuple(sorted(users)))
    if name is ScenarioName.NEW_USERS:
        return NewUsers(events=tuple(sorted(events)))
    return {ScenarioName.NEW_ITEMS: NewItems, ScenarioName.TRANSFER: WhoHelpsWhom}.get(name, Usual)()


def _print(study: Any, out: Path, *, as_json: bool) -> None:
    from isthmus.report.study_page import study_table  # noqa: PLC0415 - loads matplotlib

    if as_json:
        stdout.print_json((out / f"{study.kind}.json").read_text(encoding="utf-8"))
        return
    stdout.print(study_table(study))
    stdout.print(f"report: {out / f'{study.kind}.html'}", markup=False, highlight=False, soft_wrap=True)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
