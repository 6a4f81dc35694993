"""Invite a business unit: one signed file that it takes part with.

    kit = invite(config, "books", Path("books.zip"))     # needs a server that is up: its node is let in at once

The node's key is made here and goes into the kit, so that a unit needs one file and one command. It shows the node to
this coordinator and is good for nothing else; the keys of a unit's ledger are its own and are never here.
"""

import datetime as dt
import tempfile
from pathlib import Path

from pydantic import ValidationError

import isthmus
from isthmus.errors import ConfigError
from isthmus.privacy.kit import CA, NODE_KEY, NODE_PUBLIC, Kit, write_kit
from isthmus.privacy.program import code_hash
from isthmus.server.deploy.bundle import make_bundle
from isthmus.server.deploy.certs import AUTHORITY, make_node_key
from isthmus.server.deploy.control import Control
from isthmus.server.deploy.settings import ServerConfig
from isthmus.server.heads import HeadLog

DAYS = 30
"""In which a kit is to be used for the first time."""


def invite(config: ServerConfig, name: str, out: Path, *, federation: str) -> Kit:
    """Let a node in and write the kit that it takes part with.

    Args:
        config: Of the server.
        name: Of the domain; of its node, too.
        out: Where the kit goes; must not be there.
        federation: What the coordinator calls itself.

    Raises:
        ConfigError: If the file is there, or the name is none.
        RunError: If the server is not up, or has a node of that name.
    """
    if out.exists():
        raise ConfigError(f"{out} is there already, and may be somebody's key; name another --out")
    heads = HeadLog(config.heads_log)
    try:
        until = dt.datetime.now(dt.UTC) + dt.timedelta(days=DAYS)
        try:
            kit = Kit(
                domain=name,
                coordinator=federation,
                address=config.public,
                key=heads.keys.public.hex(),
                isthmus=isthmus.__version__,
                program=code_hash(),
                bundle=make_bundle().digest,
                until=until.isoformat(timespec="milliseconds"),
            )
        except ValidationError as error:
            first = error.errors()[0]
            raise ConfigError(f"`{'.'.join(map(str, first['loc']))}`: {first['msg']}, got {first['input']!r}") from None
        with tempfile.TemporaryDirectory() as folder:
            make_node_key(Path(folder) / name)
            key, public = (Path(folder) / f"{name}.{ending}" for ending in ("key", "pub"))
            with Control(config) as control:
                control.add_node(name, public)
            files = {
                CA: (config.certificates_folder / AUTHORITY).read_bytes(),
                NODE_KEY: key.read_bytes(),
                NODE_PUBLIC: public.read_bytes(),
            }
        write_kit(out, kit, files, heads.keys)
    finally:
        heads.close()
    return kit
