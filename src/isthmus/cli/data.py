"""Verbs on data: `isthmus domain import`, `isthmus domain check`, `isthmus demo`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from isthmus.cli.console import stdout
from isthmus.config import Split, TableFormat, load_domain

domain_app = typer.Typer(
    name="domain", help="Make and check the folder that holds one domain's tables and policy.", no_args_is_help=True
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of a table.")]


def write_demo_federation(
    folder: Annotated[Path, typer.Argument()],
) -> None:
    """Write a small SYNTHETIC federation of five domains to start from; every user in it is made up.

    FOLDER is made; it must not exist, or be empty.
    """
    from isthmus.demo import write_demo  # noqa: PLC0415 - loads polars

    file = write_demo(folder)
    stdout.print(f"{file}\nRun it: isthmus simulate {file} --out isthmus-run", markup=False, highlight=False)


@domain_app.command(
    "import",
    epilog="Example: isthmus domain import books --name books --interactions isthmus-demo/music/interactions.csv "
    "--items isthmus-demo/music/items.csv --timestamp timestamp --public-catalogue --epsilon 8 --delta 1e-6 "
    "--clip 1 --expected-users 1200",
)
def import_command(  # noqa: PLR0913, PLR0917 - one option for each thing that must be said
    target: Annotated[Path, typer.Argument()],
    name: Annotated[str, typer.Option(help="Name of the domain: lower-case letters, digits, - and _.")],
    interactions: Annotated[Path, typer.Option(help="Interactions: Parquet, CSV, TSV, .inter or a sequence file.")],
    items: Annotated[Path, typer.Option(help="Items: Parquet, CSV, TSV or .item.")],
    epsilon: Annotated[float, typer.Option(help="Limit of epsilon for one user, over all runs on this data.")],
    delta: Annotated[float, typer.Option(help="Delta, over all runs on this data; below 1 / users.")],
    clip: Annotated[float, typer.Option(help="L2 norm to which one user's gradient is clipped.")],
    expected_users: Annotated[
        int, typer.Option(help="A PUBLIC figure for the number of users, never the exact count.")
    ],
    public_catalogue: Annotated[
        bool, typer.Option("--public-catalogue", help="Declare that item texts are public. Required to take part.")
    ] = False,
    user: Annotated[str | None, typer.Option(help="Column of user ids.")] = None,
    item: Annotated[str | None, typer.Option(help="Column of item ids in the interactions.")] = None,
    timestamp: Annotated[
        str | None, typer.Option(help="Column of times; without it, file order is time order.")
    ] = None,
    event: Annotated[str | None, typer.Option(help="Column of event types.")] = None,
    keep_event: Annotated[list[str] | None, typer.Option(help="Event type that counts; may be repeated.")] = None,
    interactions_format: Annotated[
        TableFormat | None, typer.Option(help="Layout, where the ending does not tell; `sequence` must be said.")
    ] = None,
    item_id: Annotated[str | None, typer.Option(help="Column of item ids in the items.")] = None,
    title: Annotated[str | None, typer.Option(help="Column shown to people.")] = None,
    text: Annotated[str | None, typer.Option(help="Template of an item's text, e.g. '{title}. {category}'.")] = None,
) -> None:
    """Make a domain folder from tables: copies them and writes a commented domain.toml.

    TARGET is the folder to make; it must not exist.
    """
    from isthmus.clients.data import ImportColumns, import_domain, propose_privacy  # noqa: PLC0415 - loads polars

    config = import_domain(
        name=name,
        interactions=interactions,
        items=items,
        target=target,
        public_catalogue=public_catalogue,
        privacy=propose_privacy(epsilon=epsilon, delta=delta, expected_users=expected_users, clip=clip),
        columns=ImportColumns(
            interactions_format=interactions_format,
            user=user,
            item=item,
            timestamp=timestamp,
            event=event,
            keep_events=tuple(keep_event) if keep_event else None,
            item_id=item_id,
            title=title,
            text=text,
        ),
        split=Split(),
    )
    stdout.print(f"{config.folder / 'domain.toml'}\nCheck it: isthmus domain check {target}", markup=False)


@domain_app.command("check", epilog="Example: isthmus domain check isthmus-demo/shopping")
def check_command(
    domain: Annotated[Path, typer.Argument()],
    as_json: Json = False,
) -> None:
    """Read a domain's tables and show what was found and repaired; trains nothing, spends nothing.

    DOMAIN is a domain folder, or the domain.toml in it.
    """
    from isthmus.clients.data import check_domain  # noqa: PLC0415 - loads polars

    report = check_domain(load_domain(domain)).to_dict()
    if as_json:
        stdout.print_json(json.dumps(report, ensure_ascii=False))
        return
    notes: list[str] = report.pop("notes")
    table = Table(box=None, show_header=False)
    for key, value in report.items():
        table.add_row(key.replace("_", " "), _shown(value))
    stdout.print(table)
    for note in notes:
        stdout.print(f"- {note}", markup=False, highlight=False)


def _shown(value: Any) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
