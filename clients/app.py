"""The ClientApp: what Flower starts for each message. It forwards to the vault and does nothing else.

A coordinator can ship code to this process, so this process holds nothing: no data, no model, no
torch. It parses the request, asks the vault, and turns what the vault's gate released into a reply.
What goes wrong inside the vault stays inside: only a `Refused` explains itself to the outside, because
its words are about budgets and rules; any other error may quote data.
"""

import logging

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from isthmus.clients.connection import DomainVault, vault_for
from isthmus.errors import BudgetExhausted, Refused, RunError
from isthmus.records import Kind, RoundReply, RoundRequest

app = ClientApp()

_LOG = logging.getLogger(__name__)
_SILENT = "an error in the domain; its own log says which (it may quote data, so it is not sent)"


@app.query("catalogue")
def catalogue(message: Message, context: Context) -> Message:
    """Answer with the moments of the public catalogue text."""
    return _answer(message, _vault(context), Kind.CATALOGUE)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer with a round of DP-SGD."""
    return _answer(message, _vault(context), Kind.UPDATE)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Answer with a noisy evaluation."""
    return _answer(message, _vault(context), Kind.METRIC)


@app.query("receipt")
def receipt(message: Message, context: Context) -> Message:
    """Keep the receipt for the last reply of a run; answers with nothing but where the ledger stands."""
    vault = _vault(context)
    try:
        reply = _kept(message, vault)
    except Exception:  # noqa: BLE001 - whatever it is, its words stay in the domain
        _LOG.exception("domain %s could not keep a receipt", vault.name)
        reply = RoundReply(domain=vault.name, run="", round=0, refusal=_SILENT)
    return Message(reply.to_records(), reply_to=message)


def _vault(context: Context) -> DomainVault:
    try:
        return vault_for(context)
    except Exception:  # noqa: BLE001 - what is raised next becomes the reply, so it quotes nothing
        _LOG.exception("node %d cannot reach its vault", context.node_id)
        raise RunError("this node cannot reach its vault; its own log says why") from None


def _answer(message: Message, vault: DomainVault, kind: Kind) -> Message:
    run, round_ = "", 0
    try:
        try:
            request = RoundRequest.from_records(message.content)
            run, round_ = request.run, request.round
            if request.receipt:
                vault.keep_receipt(request.receipt)
            release = vault.release(kind, request)
            reply = RoundReply(
                domain=vault.name,
                run=run,
                round=round_,
                arrays=release.payload.arrays,
                values=release.payload.values,
                epsilon=vault.epsilon(),
                head=vault.head(),
            )
        except Refused as refusal:
            exhausted = isinstance(refusal, BudgetExhausted)
            reply = RoundReply(
                domain=vault.name,
                run=run,
                round=round_,
                refusal=str(refusal),
                exhausted=exhausted,
                head=vault.head(),
            )
    except Exception:  # noqa: BLE001 - whatever it is, its words stay in the domain
        _LOG.exception("domain %s could not answer round %d of run %r", vault.name, round_, run)
        reply = RoundReply(domain=vault.name, run=run, round=round_, refusal=_SILENT)
    return Message(reply.to_records(), reply_to=message)


def _kept(message: Message, vault: DomainVault) -> RoundReply:
    """Keep a receipt, or say why not."""
    reason = ""
    try:
        vault.keep_receipt(RoundRequest.from_records(message.content).receipt)
    except Refused as refusal:
        reason = str(refusal)
    return RoundReply(domain=vault.name, run="", round=0, refusal=reason, head=vault.head())
