"""Verbs of taking part: `isthmus invite`, `isthmus join`, `isthmus leave`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isthmus.cli.console import log_to, stderr, stdout
from isthmus.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isthmus.config import DomainConfig
    from isthmus.supervision import Part

State = Annotated[
    Path | None,
    typer.Option(help="Folder of the node's files, the socket and logs; `federation` in the domain's where absent."),
]


def invite(
    name: Annotated[str, typer.Argument()],
    server: Annotated[Path, typer.Option("--server", help="The coordinator's server.toml.")] = Path("server.toml"),
    out: Annotated[Path | None, typer.Option(help="Where the kit goes; NAME.zip where absent.")] = None,
    federation: Annotated[str, typer.Option(help="What the coordinator calls itself.")] = "federation",
) -> None:
    """Let a business unit's node in, and write the signed kit that it takes part with.

    NAME is the domain's, as in its domain.toml. The server must be up. Hand the kit over as you would a password, and
    tell the unit the coordinator's public key by another way.
    """
    from isthmus.server.deploy.inviting import invite as make  # noqa: PLC0415 - takes a while to import
    from isthmus.server.deploy.settings import load_server  # noqa: PLC0415

    target = out or Path(f"{name}.zip")
    kit = make(load_server(server), name, target, federation=federation)
    lines = [
        f"{target}: for {kit.domain}, to be used until {kit.until[:10]}",
        f"coordinator's public key: {kit.key}",
        f"there: isthmus join {target.name} DOMAIN --coordinator {kit.key}",
    ]
    for line in lines:
        stdout.print(line, markup=False, highlight=False, soft_wrap=True)


def join(  # noqa: PLR0913, PLR0917 - options
    kit: Annotated[Path, typer.Argument()],
    domain: Annotated[Path, typer.Argument()],
    coordinator: Annotated[
        str | None,
        typer.Option(help="The coordinator's public key, known from elsewhere; a kit of another is refused."),
    ] = None,
    client_user: Annotated[
        str | None, typer.Option(help="User that the node runs as, so that it cannot read the vault's files (as root).")
    ] = None,
    state: State = None,
    vault: Annotated[
        str | None, typer.Option(help="Address of a vault that runs already, e.g. unix:/run/isthmus/vault.sock.")
    ] = None,
    ledger: Annotated[Path | None, typer.Option(help="Ledger, instead of the one beside the data.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Make noise repeatable, for tests. NOT private; needs --ledger.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Torch threads of the vault.", min=1)] = 1,
) -> None:
    """Take part in a federation: start a domain's vault and its node, and keep both running until stopped.

    KIT is the file that the coordinator made with `isthmus invite`. DOMAIN is a domain folder, or the domain.toml in
    it. Stop it with Ctrl-C or SIGTERM; started again, it goes on with its ledger.
    """
    from isthmus.clients import joining  # noqa: PLC0415 - takes a while to import
    from isthmus.config import load_domain  # noqa: PLC0415
    from isthmus.supervision import LOGS, OWN_LOG, supervise  # noqa: PLC0415

    config = load_domain(domain)
    if seed is not None and ledger is None:
        raise ConfigError("--seed makes noise that can be repeated: keep its books apart, with --ledger FILE")
    if vault is not None and (ledger is not None or seed is not None):
        raise ConfigError("--ledger and --seed are the vault's; with --vault it runs already, with its own")
    folder = _state(state, config)
    member = joining.accept_kit(kit, folder, domain=config.name, coordinator=coordinator, client_user=client_user)
    if coordinator is None:
        _say(
            f"the kit is signed by {member.kit.key}; ask the coordinator whether that is its key, and use --coordinator"
        )
    parts = []
    if vault is None:
        options = [("--threads", threads), ("--ledger", ledger and ledger.resolve()), ("--seed", seed)]
        given = tuple(str(word) for option in options if option[1] is not None for word in option)
        group = None if member.user is None else member.user[1]
        socket = folder / "vault.sock"
        parts.append(joining.vault_part(config, socket, group=group, options=given))
        vault = f"unix:{socket}"
        if member.user is None:
            _say("vault and node run as one user, so the vault's files are no secret to the node: see --client-user")
    parts.append(joining.node_part(member, vault))

    def started(running: "Sequence[Part]") -> None:
        _say(f"{config.name} takes part in {member.kit.coordinator} at {member.kit.address}")
        for part in running:
            _say(f"  {part.name}: {part.listening}; log {folder / LOGS / part.name}.log")

    log_to(folder / LOGS / OWN_LOG)
    supervise(lambda: parts, state=folder, started=started)
    _say(f"{config.name}: stopped")


def leave(domain: Annotated[Path, typer.Argument()], state: State = None) -> None:
    """Leave a federation: stop what `isthmus join` runs, and forget the node's key. Data and ledger stay.

    DOMAIN is a domain folder, or the domain.toml in it. Tell the coordinator, who removes the node on its side.
    """
    from isthmus.clients import joining  # noqa: PLC0415 - takes a while to import
    from isthmus.config import load_domain  # noqa: PLC0415
    from isthmus.supervision import stop  # noqa: PLC0415

    config = load_domain(domain)
    folder = _state(state, config)
    stop(folder)
    joining.leave(folder)
    stdout.print(f"{config.name} has left; the ledger is where it was", markup=False, highlight=False, soft_wrap=True)


def _state(given: Path | None, config: "DomainConfig") -> Path:
    return (given or config.folder / "federation").resolve()


def _say(text: str) -> None:
    stderr.print(text, markup=False, highlight=False, soft_wrap=True)
