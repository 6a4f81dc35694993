"""The in-process grid: the same Flower apps, in this process, with no runtime around them.

    grid = InProcessGrid(client_app, nodes=5, run_config={...})
    server_app(grid, grid.server_context())

Flower's own simulation starts Ray (15 to 20 s and 2 GB). `Grid` is Flower's public seam between
a ServerApp and whatever carries its messages, so a sub-class of it that calls the ClientApp
directly runs exactly the same code. Messages are copied on the way in, so that neither side can
change the other's arrays; the arrays of a delivered message read faster than Flower's, to the same values (those of
a reply read-only: Flower's strategies write into none).

This is the one file that touches private names of Flower (`TaskIdentity`, the message id), for
the minor version that `pyproject.toml` pins.
"""

import copy
import io
import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import numpy as np
from flwr.app import Array, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray

RunConfig = Mapping[str, bool | float | int | str]

_NPY = b"\x93NUMPY\x01\x00"  # an array file of format 1.0


class DeliveredArray(Array):
    """An array in a delivered request: reads as Flower's does, with one copy where that takes three."""

    def numpy(self) -> NDArray[Any]:
        """A fresh array; whatever is not plainly an array file is left to Flower to read or to refuse."""
        found = self.view()
        return super().numpy() if found is None else found.copy()

    def view(self) -> NDArray[Any] | None:
        """The array where it lies, read-only; None where the bytes are not plainly an array file."""
        start = 10 + int.from_bytes(self.data[8:10], "little")  # the header's length stands after magic and version
        if self.stype == "numpy.ndarray" and self.data.startswith(_NPY):
            found = _layout(self.data[:start])
            if found is not None and len(self.data) - start == math.prod(found[0]) * found[1].itemsize:
                return np.frombuffer(self.data, found[1], offset=start).reshape(found[0])
        return None


class ReturnedArray(DeliveredArray):
    """An array in a delivered reply: read-only, so that averaging hundreds of replies copies none of them."""

    def numpy(self) -> NDArray[Any]:
        """The array where it lies, read-only; what is not plainly an array file is Flower's to read, as above."""
        found = self.view()
        return super().numpy() if found is None else found


class InProcessGrid(Grid):
    """Carries messages to a ClientApp by calling it.

    Args:
        client_app: Flower ClientApp that every node runs.
        nodes: Number of nodes; node `i` has `partition-id` i in its node configuration.
        run_config: What both apps find in their context.
        node_config: What every node finds in its own configuration besides.
    """

    def __init__(
        self, client_app: ClientApp, *, nodes: int, run_config: RunConfig, node_config: RunConfig | None = None
    ) -> None:
        self._app = client_app
        self._run = Run.create_empty(run_id=1)
        self._run_config = dict(run_config)
        self._contexts = {
            node + 2: Context(
                run_id=self._run.run_id,
                node_id=node + 2,
                node_config={**(node_config or {}), "partition-id": node, "num-partitions": nodes},
                state=RecordDict(),
                run_config=dict(run_config),
            )
            for node in range(nodes)
        }
        self._replies: dict[str, Message] = {}
        take_identity(self._run.run_id)

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
        reply = answer(self._app, delivered(message, DeliveredArray), self._contexts[message.metadata.dst_node_id])
        self._replies[message_id] = delivered(reply, ReturnedArray)  # what the client kept of it stays the client's

    def _collect(self, message_id: str) -> Message:
        return self._replies.pop(message_id)


def answer(app: ClientApp, message: Message, context: Context) -> Message:
    """What a node replies; an exception is that node's error, as in every Flower runtime."""
    try:
        return app(message, context)
    except Exception as error:  # noqa: BLE001 - the round goes on without this node
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, repr(error)), reply_to=message)


def delivered(message: Message, form: type[DeliveredArray]) -> Message:
    """A copy that shares nothing changeable with the message, its arrays in a form that reads fast."""
    arrays: dict[int, object] = {}  # what stands for an array in the copy, by the array's identity
    if message.has_content():
        for record in message.content.array_records.values():
            for array in record.values():
                arrays[id(array)] = form(array.dtype, array.shape, array.stype, array.data)
    return copy.deepcopy(message, arrays)


@lru_cache(maxsize=4096)
def _layout(header: bytes) -> tuple[tuple[int, ...], np.dtype[Any]] | None:
    """Shape and dtype that the header of an array file tells; None where the bytes after it are not simply that."""
    try:
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(io.BytesIO(header[8:]))
    except ValueError:
        return None
    return None if fortran or dtype.hasobject else (shape, dtype)


def take_identity(run_id: int) -> None:
    """Give this process the identity that Flower's messages are stamped with."""
    TaskIdentity.task_id = 1
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = SUPERLINK_NODE_ID
