"""`isthmus doctor`: is this machine ready, and if not, how is it mended."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from isthmus.cli.console import stdout
from isthmus.cli.data import Json


def doctor(
    server: Annotated[Path | None, typer.Option("--server", help="A coordinator's server.toml to look at.")] = None,
    domain: Annotated[Path | None, typer.Option("--domain", help="A domain folder to look at.")] = None,
    kit: Annotated[Path | None, typer.Option("--kit", help="A kit: whether its coordinator can be reached.")] = None,
    backbone: Annotated[
        str | None,
        typer.Option("--backbone", help="A custom backbone: its hash for a policy, its protocol line by line."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check this machine, and say how to mend what is not right; exit 1 if anything is not.

    Versions, links, telemetry switches and disk always; certificates, ports and permissions of a coordinator; files,
    permissions, clock and connection of a business unit; the protocol of a custom backbone. Changes nothing.
    """
    from isthmus.doctor import (  # noqa: PLC0415 - takes seconds
        examine_backbone,
        examine_domain,
        examine_machine,
        examine_server,
    )

    if kit is not None and domain is None:
        raise typer.BadParameter("belongs to --domain", param_hint="--kit")
    checks = examine_machine()
    checks += examine_server(server) if server else []
    checks += examine_domain(domain, kit=kit) if domain else []
    checks += examine_backbone(backbone) if backbone else []
    if as_json:
        stdout.print_json(json.dumps([asdict(check) for check in checks]))
    else:
        for check in checks:
            mark, style = ("ok  ", "green") if check.well else ("MEND", "red")
            stdout.print(Text.assemble((mark, style), f"  {check.name}: {check.seen}"), soft_wrap=True, highlight=False)
            if not check.well:
                stdout.print(Text(f"      {check.mend}"), soft_wrap=True, highlight=False)
    raise typer.Exit(0 if all(check.well for check in checks) else 1)
