"""Verbs on certificates and node keys: `isthmus certs init`, `node`, `show`, `renew`, `replace-ca`, `retire-ca`."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from isthmus.cli.console import stdout
from isthmus.cli.data import Json

certs_app = typer.Typer(
    name="certs",
    help="Make, show and replace the coordinator's certificates and the keys of nodes.",
    no_args_is_help=True,
)

Addresses = Annotated[
    list[str], typer.Option("--address", help="Host name or IP address of the server; may be given several times.")
]


def _say(line: str) -> None:
    stdout.print(line, markup=False, highlight=False, soft_wrap=True)


@certs_app.command("init", epilog="Example: isthmus certs init certs --address localhost")
def init(folder: Annotated[Path, typer.Argument()], address: Addresses) -> None:
    """Make an authority of the coordinator's own, and the server's first certificate.

    FOLDER is where they go. Give ca.crt to every business unit; ca.key never leaves and is not needed by the server.
    """
    from isthmus.server.deploy import certs  # noqa: PLC0415 - takes a while to import

    certs.make_certificates(folder, address)
    _say(f"{folder}: ca.crt for business units, server.crt and server.key for the server, ca.key to be kept away")


@certs_app.command("node", epilog="Example: isthmus certs node books")
def node(name: Annotated[Path, typer.Argument()]) -> None:
    """Make the key by which a business unit's node is known, where the unit is.

    NAME is a path without ending: NAME.key stays with the unit, NAME.pub goes to the coordinator.
    """
    from isthmus.server.deploy import certs  # noqa: PLC0415 - takes a while to import

    _say(certs.make_node_key(name))


@certs_app.command("show", epilog="Example: isthmus certs show certs")
def show(
    folder: Annotated[Path, typer.Argument()],
    within: Annotated[int, typer.Option(help="Exit 1 if one ends within so many days.", min=0)] = 30,
    as_json: Json = False,
) -> None:
    """Print what the certificates say and when they end; exit 1 if that is soon.

    FOLDER is the folder of `isthmus certs init`.
    """
    from isthmus.server.deploy import certs  # noqa: PLC0415 - takes a while to import

    now = datetime.now(UTC)
    found = [(certificate, certificate.days_left(now)) for certificate in certs.show_certificates(folder)]
    if as_json:
        rows = [
            {
                "file": one.file,
                "subject": one.subject,
                "names": one.names,
                "issuer": one.issuer,
                "expires": one.expires.isoformat(),
                "days_left": round(days, 2),
                "fingerprint": one.fingerprint,
            }
            for one, days in found
        ]
        stdout.print_json(json.dumps(rows))
    else:
        table = Table("file", "for", "ends", "days left", "SHA-256", box=None)
        for one, days in found:
            ends = f"{one.expires:%Y-%m-%d}"
            table.add_row(one.file, ", ".join(one.names) or one.subject, ends, f"{days:.0f}", one.fingerprint[:16])
        stdout.print(table)
    if any(days <= within for _, days in found):
        raise typer.Exit(1)


@certs_app.command("renew", epilog="Example: isthmus certs renew certs")
def renew(folder: Annotated[Path, typer.Argument()], address: Addresses = []) -> None:  # noqa: B006 - typer copies it
    """Make a new server certificate under the same authority; no business unit has to do anything.

    FOLDER is the folder of `isthmus certs init`; ca.key must be in it. Without --address, the names stay as they are.
    """
    from isthmus.server.deploy import certs  # noqa: PLC0415 - takes a while to import

    certs.renew_server(folder, address)
    _say(f"{folder / 'server.crt'}: new; a running server takes it when it is started again")


@certs_app.command("replace-ca", epilog="Example: isthmus certs replace-ca certs")
def replace_ca(folder: Annotated[Path, typer.Argument()]) -> None:
    """Put a new authority in force beside the old one, so that both are trusted for a while.

    FOLDER is the folder of `isthmus certs init`. Give the new ca.crt to every unit, then renew, then retire-ca.
    """
    from isthmus.server.deploy import certs  # noqa: PLC0415 - takes a while to import

    certs.replace_authority(folder)
    _say(f"{folder / 'ca.crt'}: holds the new authority and the old one. Give it to every business unit; then")
    _say(f"  isthmus certs renew {folder}      (the server's certificate comes from the new one)")
    _say(f"  isthmus certs retire-ca {folder}  (the old one is not trusted any more)")


@certs_app.command("retire-ca", epilog="Example: isthmus certs retire-ca certs")
def retire_ca(folder: Annotated[Path, typer.Argument()]) -> None:
    """Stop trusting every authority but the newest; refused while the server's certificate is by an older one.

    FOLDER is the folder of `isthmus certs init`.
    """
    from isthmus.server.deploy import certs  # noqa: PLC0415 - takes a while to import

    dropped = certs.retire_authorities(folder)
    _say(f"{folder / 'ca.crt'}: {dropped} dropped; the newest authority stays")
