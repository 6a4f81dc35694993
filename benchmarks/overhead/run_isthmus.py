"""The peers' workload as Flower apps on the in-process grid: the case `isthmus` of the overhead benchmark.

    ISTHMUS_BENCH_PEERS=../shared/bench/peers python benchmarks/overhead/run_isthmus.py 5

The work is the peers' own (`workload.py`, imported and not copied): `sample` fixes the cohort of a round, so the
accuracy must be that of the plain loop. Arrays are packed and read by `isthmus.records`, as in the product, and travel
through Flower's FedAvg; as in the plain loop, a process keeps one model and loads what it was sent into it.
"""

import logging
import os
import sys
import time
from pathlib import Path

START = time.perf_counter()

import numpy as np  # noqa: E402 - the clock starts before the imports, as in the peers' cases
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict  # noqa: E402
from flwr.clientapp import ClientApp  # noqa: E402
from flwr.serverapp import ServerApp  # noqa: E402
from flwr.serverapp.strategy import FedAvg  # noqa: E402

from isthmus.grid import InProcessGrid  # noqa: E402
from isthmus.packing import from_array_record, to_array_record  # noqa: E402

_BESIDE = Path(__file__).resolve().parents[3] / "shared" / "bench" / "peers"
sys.path.insert(0, os.environ.get("ISTHMUS_BENCH_PEERS", str(_BESIDE)))

import workload as w  # noqa: E402

client = ClientApp()
server = ServerApp()
model = w.make_model()
parameters = dict(model.named_parameters())


class CohortGrid(InProcessGrid):
    """The in-process grid, seen through the cohort of one round.

    Attributes:
        cohort: Clients that are there in this round.
    """

    cohort: tuple[int, ...] = ()

    def get_node_ids(self) -> list[int]:
        """Nodes of the cohort."""
        nodes = super().get_node_ids()
        return [nodes[client_id] for client_id in self.cohort]


@client.train()
def train(message: Message, context: Context) -> Message:
    """One local epoch from the arrays that were sent."""
    load(message.content.array_records["arrays"])
    loss = w.train_client(model, int(context.node_config["partition-id"]))
    content = RecordDict(
        {
            "arrays": to_array_record({name: tensor.detach().numpy() for name, tensor in parameters.items()}),
            "metrics": MetricRecord({"loss": loss, "num-examples": w.BATCHES * w.BS}),
        }
    )
    return Message(content, reply_to=message)


@server.main()
def main(grid: CohortGrid, context: Context) -> None:
    """Flower's FedAvg, round by round, over the cohorts that the workload fixes."""
    rounds = int(context.run_config["rounds"])
    strategy = make_strategy()
    arrays = ArrayRecord(w.make_model().state_dict())
    stamps = []
    for round_ in range(rounds):
        arrays = one_round(grid, strategy, round_, arrays)
        stamps.append(time.perf_counter() - START)
    load(arrays)
    w.report(rounds=rounds, acc=w.accuracy(model), stamps=stamps)


def make_grid(rounds: int) -> CohortGrid:
    """A grid of all clients."""
    return CohortGrid(client, nodes=w.CLIENTS, run_config={"rounds": rounds})


def make_strategy() -> FedAvg:
    """Flower's FedAvg, which asks everyone that the grid shows."""
    return FedAvg(min_train_nodes=w.COHORT, min_available_nodes=w.COHORT)


def one_round(grid: CohortGrid, strategy: FedAvg, round_: int, arrays: ArrayRecord) -> ArrayRecord:
    """The mean of what the cohort makes of `arrays`."""
    grid.cohort = tuple(w.sample(round_))
    replies = grid.send_and_receive(strategy.configure_train(round_ + 1, arrays, ConfigRecord(), grid))
    mean, _ = strategy.aggregate_train(round_ + 1, replies)
    return mean


def load(arrays: ArrayRecord) -> None:
    """Put arrays into the process's one model."""
    for name, array in from_array_record(arrays).items():
        np.copyto(parameters[name].detach().numpy(), array)


if __name__ == "__main__":
    logging.getLogger("flwr").setLevel(logging.WARNING)
    with make_grid(int(sys.argv[1])) as the_grid:
        server(the_grid, the_grid.server_context())
