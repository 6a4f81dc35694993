"""Verbs on the keys of a ledger: `isthmus keys show`, `rotate`, `revoke`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from isthmus.cli.console import stdout
from isthmus.cli.data import Json

keys_app = typer.Typer(name="keys", help="Show and change the keys that sign a ledger.", no_args_is_help=True)

Reason = Annotated[str, typer.Option(help="In one line; the ledger keeps it.")]


@keys_app.command("show", epilog="Example: isthmus keys show run/ledgers/shopping.db")
def show(
    ledger: Annotated[Path, typer.Argument()],
    as_json: Json = False,
) -> None:
    """Print the public keys that signed a ledger, one a line, the one in force last; needs no secret.

    LEDGER is a ledger (ledger.db), a coordinator's log (heads.db), or a domain's folder.
    """
    from isthmus.privacy.key_changes import key_history  # noqa: PLC0415 - takes seconds to import

    found = key_history(ledger)
    if as_json:
        stdout.print_json(json.dumps([key.model_dump() for key in found]))
        return
    for number, key in enumerate(found, start=1):
        state = "in force" if number == len(found) else "replaced"
        if key.revoked_from is not None:
            state = f"revoked from line {key.revoked_from} on"
        after = f" ({key.reason})" if key.reason else ""
        line = f"{key.key}  from line {key.line}, {state}{after}"
        stdout.print(line, markup=False, highlight=False, soft_wrap=True)


@keys_app.command("rotate", epilog="Example: isthmus keys rotate run/ledgers/shopping.db --reason yearly")
def rotate(
    ledger: Annotated[Path, typer.Argument()],
    reason: Reason,
) -> None:
    """Put a fresh signing key in force; the old one signs that it is so and is gone afterwards.

    LEDGER is a ledger, a coordinator's log, or a domain's folder. Its key file is opened with ISTHMUS_PASSPHRASE or
    ISTHMUS_KEY_FILE, or, where neither is set, with the user's own key file.
    """
    from isthmus.privacy.key_changes import change_key  # noqa: PLC0415 - takes seconds to import

    stdout.print(change_key(ledger, reason=reason), markup=False, highlight=False, soft_wrap=True)


@keys_app.command(
    "revoke", epilog="Example: isthmus keys revoke run/ledgers/shopping.db --since 3 --reason 'laptop stolen'"
)
def revoke(
    ledger: Annotated[Path, typer.Argument()],
    since: Annotated[int, typer.Option(help="First line that somebody else may have signed.")],
    reason: Reason,
) -> None:
    """Put a fresh signing key in force, and say that the old one is not believed from a line on.

    LEDGER is a ledger, a coordinator's log, or a domain's folder. What the old key signed from that line on is a
    finding of every audit from then on.
    """
    from isthmus.privacy.key_changes import change_key  # noqa: PLC0415 - takes seconds to import

    stdout.print(change_key(ledger, reason=reason, since=since), markup=False, highlight=False, soft_wrap=True)
