"""How long a run waits for its domains, and for what.

    replies = exchange(grid, messages, Patience(deadline=60.0))

On the in-process grid every answer is there at once; a deployed run must expect domains that are slow, late or gone.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid


@dataclass(frozen=True, kw_only=True)
class Patience:
    """What a run waits for; as it stands here, for everybody and for ever, as a simulation does.

    Attributes:
        domains: It starts, and goes on, with at least so many.
        joining: Seconds that it waits for them.
        deadline: Seconds for one exchange; then the round goes on without who has not answered.
        again: Seconds after which a node that could not introduce itself is asked again; None for never.
        poll: Seconds between two looks for replies.
    """

    domains: int = 1
    joining: float = 0.0
    deadline: float | None = None
    again: float | None = None
    poll: float = 0.25


FOR_EVER = Patience()
"""What a simulation has."""


def exchange(grid: Grid, messages: Iterable[Message], patience: Patience) -> list[Message]:
    """Send messages and wait for the replies, until all are there or the deadline is over.

    A message that was not delivered by the deadline is never delivered: nobody spends budget on an answer that nobody
    waits for.

    Returns:
        The replies, in the order of the messages where they come together.
    """
    messages = list(messages)
    deadline = None if patience.deadline is None else time.monotonic() + patience.deadline
    pending = push(grid, messages, patience)
    replies: list[Message] = []
    while pending:
        replies += pull(grid, pending)
        if not pending or (deadline is not None and time.monotonic() >= deadline):
            break
        time.sleep(patience.poll)
    return replies


def push(grid: Grid, messages: list[Message], patience: Patience) -> dict[str, Message]:
    """Send messages that live no longer than an exchange may take; those that Flower took, by their ids."""
    if patience.deadline is not None:
        for message in messages:
            message.metadata.ttl = patience.deadline
    return {taken: message for taken, message in zip(grid.push_messages(messages), messages, strict=True) if taken}


def pull(grid: Grid, pending: dict[str, Message]) -> list[Message]:
    """Take the replies that are there, and what they answer away; a second answer to one message is dropped.

    Where the SuperLink answers in a node's place (it is not connected any more, or the message expired), the reply is
    made that node's: it says in the SuperLink's words why there is none.
    """
    replies = []
    for reply in grid.pull_messages(list(pending)) if pending else ():
        question = pending.pop(reply.metadata.reply_to_message_id, None)
        if question is None:
            continue
        elsewhere = reply.metadata.src_node_id != question.metadata.dst_node_id
        replies.append(Message(reply.error, reply_to=question) if reply.has_error() and elsewhere else reply)
    return replies
