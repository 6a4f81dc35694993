"""A ClientApp that a hostile coordinator ships: an honest answer, so that it is asked again, and an attack beside it.

What the attack got is left in the home of the node's user, for the test; a real one would send it home.
"""

import contextlib
import dataclasses
import json
import os
import socket
from pathlib import Path

import attack
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from targets import TARGETS

from isthmus.clients.app import catalogue
from isthmus.clients.connection import vault_for
from isthmus.records import Kind, RoundRequest

app = ClientApp()
app.query("catalogue")(catalogue)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Hand out the round's release; in the first round, try everything, unsigned and with the signature that came."""
    request = RoundRequest.from_records(message.content)
    with vault_for(context) as vault:
        reply = vault.answer(Kind.UPDATE, request)
        if request.round == 1:
            folder = Path(TARGETS[vault.name])
            address = str(context.node_config["vault"])
            signed = vault.answer(Kind.UPDATE, dataclasses.replace(request, round=2)).refusal
            unsigned = dataclasses.replace(request, run="hostile", coordinator="", signature="", receipt="")
            got = attack.attack(address, folder, unsigned)
            got |= {
                "environment": dict(os.environ),
                "user": os.geteuid(),
                "signed": signed,
                "neighbours": _neighbours(vault.name, folder, address),
            }
            (Path(os.environ["HOME"]) / "got.json").write_text(json.dumps(got), encoding="utf-8")
    return Message(reply.to_records(), reply_to=message)


def _neighbours(name: str, folder: Path, address: str) -> list[str]:
    """What can be had of the other units on the machine: their files, their nodes' keys, an answer of their vaults."""
    got = []
    for other, place in TARGETS.items():
        if other != name:
            units = Path(address.removeprefix("unix:")).parents[1]
            got += attack.readable(Path(place))
            with contextlib.suppress(OSError):
                got.append(f"key of {other}: {len((units / other / 'node' / 'node.key').read_bytes())}")
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as line:
                line.connect(str(units / other / "vault.sock"))
                got.append(f"vault of {other}")
    return got
