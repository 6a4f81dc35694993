"""Apps that do nothing but exchange: 1M parameters each way, and note when each round ends."""

import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from isthmus.server.waiting import Patience, exchange

PARAMETERS = 1_000_000

app = ServerApp()
client = ClientApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    settings = context.run_config
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=2, min_available_nodes=2)
    arrays = ArrayRecord({"w": Array(np.zeros(PARAMETERS, np.float32))})
    with Path(str(settings["times"])).open("w", encoding="ascii") as times:
        for round_ in range(1, int(settings["rounds"]) + 1):
            messages = strategy.configure_train(round_, arrays, ConfigRecord(), grid)
            if settings["poll"]:
                replies = exchange(grid, messages, Patience(poll=float(settings["poll"])))
            else:
                replies = grid.send_and_receive(messages)
            found, _ = strategy.aggregate_train(round_, replies)
            if found is None:
                raise RuntimeError(f"round {round_}: nobody answered")
            arrays = found
            times.write(f"{time.time()}\n")
            times.flush()


@client.train()
def train(message: Message, context: Context) -> Message:
    del context
    arrays = message.content["arrays"]
    content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})})
    return Message(content, reply_to=message)
