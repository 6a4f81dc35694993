"""A ClientApp that a test ships to nodes: it answers as an honest domain would, and has neither data nor vault."""

import time
from dataclasses import replace

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from isthmus.encoding import encode
from isthmus.records import RoundReply, RoundRequest

app = ClientApp()


@app.query("catalogue")
def catalogue(message: Message, context: Context) -> Message:
    """Moments of a catalogue of 4 dimensions."""
    arrays = {"mean": np.zeros(4, np.float32), "second": np.eye(4, dtype=np.float32)}
    return _answer(message, context, RoundReply(domain="", run="", round=0, arrays=arrays, values={"count": 10.0}))


@app.train()
def train(message: Message, context: Context) -> Message:
    """Every update adds what the node was told to, everywhere."""
    request = RoundRequest.from_records(message.content)
    if request.round == context.node_config.get("slow-round"):
        time.sleep(60)
    step = float(context.node_config["step"])
    arrays = {name: np.full(array.shape, step, np.float32) for name, array in request.arrays.items()}
    update = encode(arrays, request.recipe.training.update_format, np.random.default_rng(0).random)
    return _answer(message, context, RoundReply(domain="", run="", round=0, arrays=update.arrays, values=update.scales))


@app.query("receipt")
def receipt(message: Message, context: Context) -> Message:
    """Nothing is kept."""
    return _answer(message, context, RoundReply(domain="", run="", round=0))


def _answer(message: Message, context: Context, reply: RoundReply) -> Message:
    request = RoundRequest.from_records(message.content)
    reply = replace(reply, domain=str(context.node_config["domain"]), run=request.run, round=request.round)
    return Message(reply.to_records(), reply_to=message)
