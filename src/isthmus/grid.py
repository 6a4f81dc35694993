"""The in-process grid: the same Flower apps, in this process, with no runtime around them.

    grid = InProcessGrid(client_app, nodes=5, run_config={...})
    server_app(grid, grid.server_context())

Flower's own simulation starts Ray (15 to 20 s and 2 GB). `Grid` is Flower's public seam between
a ServerApp and whatever carries its messages, so a sub-class of it that calls the ClientApp
directly runs exactly the same code. Messages are copied on the way in, so that neither side can
change the other's arrays.

This is the one file that touches private names of Flower (`TaskIdentity`, the message id), for
the minor version that `pyproject.toml` pins.
"""

import copy
import ctypes
import sys
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Self
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

RunConfig = Mapping[str, bool | float | int | str]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
_KEEP = 32 * 2**20  # bytes; the most that glibc takes for the second one


class InProcessGrid(Grid):
    """Carries messages to a ClientApp by calling it.

    Args:
        client_app: Flower ClientApp that every node runs.
        nodes: Number of nodes; node `i` has `partition-id` i in its node configuration.
        run_config: What both apps find in their context.
    """

    def __init__(self, client_app: ClientApp, *, nodes: int, run_config: RunConfig) -> None:
        self._app = client_app
        self._run = Run.create_empty(run_id=1)
        self._run_config = dict(run_config)
        self._contexts = {
            node + 2: Context(
                run_id=self._run.run_id,
                node_id=node + 2,
                node_config={"partition-id": node, "num-partitions": nodes},
                state=RecordDict(),
                run_config=dict(run_config),
            )
            for node in range(nodes)
        }
        self._replies: dict[str, Message] = {}
        take_identity(self._run.run_id)
        keep_freed_memory()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of whatever runs the clients."""

    def server_context(self) -> Context:
        """The context to start a ServerApp with."""
        return Context(
            run_id=self._run.run_id,
            node_id=SUPERLINK_NODE_ID,
            node_config={},
            state=RecordDict(),
            run_config=dict(self._run_config),
        )

    def set_run(self, run: Run) -> None:
        """Set the run this grid operates in."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run this grid operates in."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Make a message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Ids of all nodes, in partition order."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Deliver messages; returns their ids."""
        ids = []
        for message in messages:
            message_id = str(uuid4())
            message.metadata.__dict__["_message_id"] = message_id
            self._deliver(message_id, message)
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Take the replies to these messages, in order; each reply is handed out once."""
        return [self._collect(message_id) for message_id in message_ids if message_id in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Deliver messages and return their replies, in order; calls return when they are done, so no time-out."""
        del timeout
        return self.pull_messages(self.push_messages(messages))

    def _deliver(self, message_id: str, message: Message) -> None:
        self._replies[message_id] = answer(
            self._app, copy.deepcopy(message), self._contexts[message.metadata.dst_node_id]
        )

    def _collect(self, message_id: str) -> Message:
        return self._replies.pop(message_id)


def answer(app: ClientApp, message: Message, context: Context) -> Message:
    """What a node replies; an exception is that node's error, as in every Flower runtime."""
    try:
        return app(message, context)
    except Exception as error:  # noqa: BLE001 - the round goes on without this node
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, repr(error)), reply_to=message)


def take_identity(run_id: int) -> None:
    """Give this process the identity that Flower's messages are stamped with."""
    TaskIdentity.task_id = 1
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = SUPERLINK_NODE_ID


def keep_freed_memory() -> None:
    """Have glibc keep the memory that a message's arrays leave behind, up to what was once in use.

    By default it goes back to the system whenever a round's replies are freed, and comes back page by page: a third
    of the cost of a small client. A C library without this setting is left as it is.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(_MMAP_THRESHOLD, _KEEP)
        library.mallopt(_TRIM_THRESHOLD, 2**30)
