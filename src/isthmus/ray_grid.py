"""The Ray grid: the same apps and the same messages, answered by worker processes on many cores or machines.

    with RayGrid(client_app, nodes=50, run_config={...}) as grid:
        server_app(grid, grid.server_context())

Each node is always answered by the same worker, so its vault is opened once and stays warm; `shares` says by which, so
that heavy domains do not meet on one core. Ray takes some seconds to start and memory per worker: it pays when a run's
rounds take longer than that on one core (`isthmus.simulation.parallel` estimates it before a run).
Needs the extra `isthmus[ray]`.
"""

import importlib
import os
from collections.abc import Callable
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from isthmus.errors import ConfigError
from isthmus.grid import InProcessGrid, RunConfig, answer, take_identity


class Worker:
    """Answers for some nodes, in a process of its own."""

    def __init__(self, app: ClientApp, contexts: dict[int, Context], run_id: int) -> None:
        take_identity(run_id)
        self._app = app
        self._contexts = contexts

    def answer(self, message: Message) -> Message:
        """The reply of the node that the message is for."""
        return answer(self._app, message, self._contexts[message.metadata.dst_node_id])


class RayGrid(InProcessGrid):
    """Carries messages to a ClientApp in Ray workers.

    Args:
        client_app: Flower ClientApp that every node runs.
        nodes: Number of nodes.
        run_config: What both apps find in their context.
        node_config: What every node finds in its own configuration besides.
        share: Given a number of workers, which partitions each of them answers for; in turns where absent.

    Raises:
        ConfigError: If Ray is not installed.
    """

    def __init__(
        self,
        client_app: ClientApp,
        *,
        nodes: int,
        run_config: RunConfig,
        node_config: RunConfig | None = None,
        share: Callable[[int], list[list[int]]] | None = None,
    ) -> None:
        super().__init__(client_app, nodes=nodes, run_config=run_config, node_config=node_config)
        try:
            self._ray: Any = importlib.import_module("ray")
        except ImportError:
            raise ConfigError("the ray backend needs Ray: pip install 'isthmus[ray]', or use in-process") from None
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        self._ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        count = max(1, min(nodes, int(self._ray.cluster_resources().get("CPU", 1))))
        remote = self._ray.remote(num_cpus=1)(Worker)
        shares = share(count) if share else [list(range(first, nodes, count)) for first in range(count)]
        ids = self.get_node_ids()  # in partition order
        self._worker: dict[int, Any] = {}  # by node
        for partitions in shares:
            contexts = {ids[partition]: self._contexts[ids[partition]] for partition in partitions}
            worker = remote.remote(client_app, contexts, self._run.run_id)
            self._worker |= dict.fromkeys(contexts, worker)

    def close(self) -> None:
        """Stop the workers."""
        self._ray.shutdown()

    def _deliver(self, message_id: str, message: Message) -> None:
        self._replies[message_id] = self._worker[message.metadata.dst_node_id].answer.remote(message)

    def _collect(self, message_id: str) -> Message:
        reply: Message = self._ray.get(self._replies.pop(message_id))
        return reply
