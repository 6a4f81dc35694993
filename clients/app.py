"""The ClientApp: what Flower starts for each message. It forwards to the vault and does nothing else.

A coordinator can ship code to this process, so this process holds nothing: no data, no model, no key, no
torch. It parses the request, asks the vault, and sends what the vault answers.
"""

import logging
from collections.abc import Callable

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from isthmus.clients.connection import DomainVault, vault_for
from isthmus.errors import Refused, RunError
from isthmus.records import Kind, RoundReply, RoundRequest

app = ClientApp()

_LOG = logging.getLogger(__name__)


@app.query("catalogue")
def catalogue(message: Message, context: Context) -> Message:
    """Answer with the moments of the public catalogue text."""
    return _forward(message, context, lambda vault, request: vault.answer(Kind.CATALOGUE, request))


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer with a round of DP-SGD."""
    return _forward(message, context, lambda vault, request: vault.answer(Kind.UPDATE, request))


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Answer with a noisy evaluation."""
    return _forward(message, context, lambda vault, request: vault.answer(Kind.METRIC, request))


@app.query("backbone")
def backbone(message: Message, context: Context) -> Message:
    """Hand over what a run ended with; answers with nothing but where the ledger stands."""
    return _forward(message, context, lambda vault, request: vault.receive(request))


def _forward(message: Message, context: Context, ask: Callable[[DomainVault, RoundRequest], RoundReply]) -> Message:
    """The vault's reply; an error without words where the vault cannot be reached."""
    try:
        with vault_for(context) as vault:
            try:
                request = RoundRequest.from_records(message.content)
            except Refused as refusal:
                reply = RoundReply(domain=vault.name, run="", round=0, refusal=str(refusal))
            else:
                reply = ask(vault, request)
    except Exception:  # noqa: BLE001 - what is raised next becomes the reply, so it quotes nothing
        _LOG.exception("node %d cannot reach its vault", context.node_id)
        raise RunError("this node cannot reach its vault; its own log says why") from None
    return Message(reply.to_records(), reply_to=message)
