"""A ClientApp for tests of faults: the real one where the node has a vault, and a domain that does as it is told.

A node without a vault is told its name as `domain`, what it does in each round as `acts` (words, the first round's
first; the last one stays), and as `gate` the beginning of a path: it answers round 3 once PATH3 is there.
"""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from isthmus.clients import app as real
from isthmus.encoding import encode
from isthmus.records import RoundReply, RoundRequest

app = ClientApp()
app.evaluate()(real.evaluate)
app.query("backbone")(real.backbone)


@app.query("catalogue")
def catalogue(message: Message, context: Context) -> Message:
    """The vault's, or moments of a catalogue of 64 dimensions."""
    if "vault" in context.node_config:
        return real.catalogue(message, context)
    arrays = {"mean": np.zeros(64, np.float32), "second": np.eye(64, dtype=np.float32)}
    return _answer(message, context, RoundReply(domain="", run="", round=0, arrays=arrays, values={"count": 10.0}))


@app.train()
def train(message: Message, context: Context) -> Message:
    """The vault's, or what was told for this round."""
    if "vault" in context.node_config:
        return real.train(message, context)
    request = RoundRequest.from_records(message.content)
    gate = Path(f"{context.node_config['gate']}{request.round}")
    until = time.monotonic() + 140
    while not gate.exists() and time.monotonic() < until:
        time.sleep(0.1)
    acts = str(context.node_config["acts"]).split()
    act = acts[min(request.round, len(acts)) - 1]
    step = {"1e38": 1e38, "nan": np.nan}.get(act, 0.01)
    arrays = {name: np.full(array.shape, step, np.float32) for name, array in request.arrays.items()}
    if act == "200MB":
        arrays[next(iter(arrays))] = np.zeros(50_000_000, np.float32)
    update = encode(arrays, request.recipe.training.update_format, np.random.default_rng(0).random)
    reply = RoundReply(domain="", run="", round=0, arrays=update.arrays, values=update.scales)
    return _answer(message, context, reply, earlier=act == "replay")


def _answer(message: Message, context: Context, reply: RoundReply, *, earlier: bool = False) -> Message:
    request = RoundRequest.from_records(message.content)
    number = 1 if earlier else request.round
    reply = replace(reply, domain=str(context.node_config["domain"]), run=request.run, round=number)
    return Message(reply.to_records(), reply_to=message)
