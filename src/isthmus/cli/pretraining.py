"""The verb that trains in the open: `isthmus pretrain`."""

from pathlib import Path
from typing import Annotated

import typer

from isthmus.cli.console import stdout
from isthmus.cli.data import Json
from isthmus.config import load_domain, load_federation


def pretrain(
    federation: Annotated[Path, typer.Argument()],
    out: Annotated[Path, typer.Option(help="File of the backbone, for `start` in [backbone] of a federation file.")],
    passes: Annotated[
        int, typer.Option(help="At most so many passes over all users; validation items stop it earlier.")
    ] = 8,
    as_json: Json = False,
) -> None:
    """Train a backbone without noise on domains whose histories are public, for a federation to start from.

    FEDERATION is a federation file all of whose domains say `public = true` in [interactions] of their domain.toml.
    Its [features], [backbone] and [training] say what is trained. The file that is written names what was public.
    """
    for folder in load_federation(federation).domain_folders():  # what is wrong in them is said at once
        load_domain(folder)
    from isthmus.cli.watching import LiveWatcher  # noqa: PLC0415 - these take seconds to import
    from isthmus.simulation.pretraining import pretrain as train  # noqa: PLC0415

    with LiveWatcher(()) as watcher:
        origin = train(federation, out=out, passes=passes, watcher=watcher)
    if as_json:
        stdout.print_json(origin.model_dump_json())
        return
    users = sum(domain.users for domain in origin.domains)
    names = ", ".join(domain.name for domain in origin.domains)
    stdout.print(
        f"{out}: trained in the open on {users:,} users of {names}, {origin.passes} passes; validation NDCG@10 "
        f"{origin.gain:+.4f} over the text prior",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
