"""The in-process grid carries real Flower messages between real Flower apps, and keeps the two sides apart."""

from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from isthmus.grid import InProcessGrid

client_app = ClientApp()
SEEN: list[Message] = []
"""What the ClientApp was given, so that a test can look at it afterwards."""


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Add the partition's number to every parameter, count the calls, and raise on node 1 where asked to."""
    partition = int(context.node_config["partition-id"])
    config = message.content.config_records["config"]
    if config.get("broken") == partition:
        raise ValueError(f"node {partition} is broken")
    calls = int(context.state.metric_records["calls"]["n"]) if "calls" in context.state else 0  # type: ignore[arg-type]
    context.state["calls"] = MetricRecord({"n": calls + 1})
    SEEN.append(message)
    moved = {name: Array(each.numpy() + partition) for name, each in message.content.array_records["arrays"].items()}
    return Message(
        RecordDict(
            {"arrays": ArrayRecord(moved), "metrics": MetricRecord({"num-examples": 1, "calls": calls + 1})},
        ),
        reply_to=message,
    )


@client_app.query("keep")
def keep(message: Message, context: Context) -> Message:
    """Answer with a record that the client keeps a hold of."""
    context.state["kept"] = ConfigRecord({"word": "mine"})
    return Message(RecordDict({"kept": context.state["kept"]}), reply_to=message)


@client_app.query("kept")
def kept(message: Message, context: Context) -> Message:
    """Answer with the word that was kept."""
    return Message(
        RecordDict({"kept": ConfigRecord({"word": context.state.config_records["kept"]["word"]})}), reply_to=message
    )


def ask(grid: InProcessGrid, node: int, *, kind: str = "train", value: float = 0.0, broken: int = -1) -> Message:
    """A message to one node."""
    content = RecordDict(
        {
            "arrays": ArrayRecord({"w": Array(np.full(3, value, np.float32))}),
            "config": ConfigRecord({"broken": broken}),
        }
    )
    return grid.create_message(content, kind, node, "group")


@pytest.fixture
def grid() -> InProcessGrid:
    """Three nodes."""
    SEEN.clear()
    return InProcessGrid(client_app, nodes=3, run_config={"who": "test"})


def test_flowers_own_strategy_and_apps_run_on_it(grid: InProcessGrid) -> None:
    """An unchanged ServerApp with Flower's FedAvg runs three rounds over unchanged ClientApps: mean of 0, 1, 2 each."""
    assert isinstance(grid, Grid)
    server, results = ServerApp(), []

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        assert context.run_config["who"] == "test"
        strategy = FedAvg(fraction_evaluate=0.0)
        results.append(strategy.start(grid, ArrayRecord({"w": Array(np.zeros(3, np.float32))}), num_rounds=3))

    with grid:
        server(grid, grid.server_context())
    # Flower asks the nodes in a random order, which decides how thirds are rounded.
    assert results[0].arrays["w"].numpy() == pytest.approx(np.full(3, 3.0), rel=1e-6)
    assert [dict(metrics)["calls"] for metrics in results[0].train_metrics_clientapp.values()] == [1, 2, 3]


def test_every_node_is_its_own_partition_with_its_own_state(grid: InProcessGrid) -> None:
    """Node ids come in partition order; what one node remembers another does not."""
    first, second, third = grid.get_node_ids()
    replies = grid.send_and_receive([ask(grid, node) for node in (first, second, third, second)])
    assert [reply.content.array_records["arrays"]["w"].numpy()[0] for reply in replies] == [0, 1, 2, 1]
    assert [reply.content.metric_records["metrics"]["calls"] for reply in replies] == [1, 1, 1, 2]
    assert [reply.metadata.src_node_id for reply in replies] == [first, second, third, second]


def test_a_raising_client_is_an_error_message_and_the_others_answer(grid: InProcessGrid) -> None:
    """The round goes on; the error says what was raised, and that node answers again next time."""
    nodes = grid.get_node_ids()
    replies = grid.send_and_receive([ask(grid, node, broken=1) for node in nodes])
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert replies[1].error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert "node 1 is broken" in str(replies[1].error.reason)
    assert replies[1].metadata.src_node_id == nodes[1]
    assert not grid.send_and_receive([ask(grid, nodes[1])])[0].has_error()


def test_a_message_that_no_app_answers_is_an_error_message(grid: InProcessGrid) -> None:
    """A kind that the ClientApp does not have."""
    (reply,) = grid.send_and_receive([ask(grid, grid.get_node_ids()[0], kind="query.nobody")])
    assert reply.has_error()


def test_what_the_client_does_to_a_message_does_not_reach_the_server(grid: InProcessGrid) -> None:
    """Arrays, settings and whole records: the server's message stays as it was sent, and so does the next node's."""
    record = ask(grid, 2).content
    messages = [grid.create_message(record, "train", node, "group") for node in grid.get_node_ids()]
    grid.send_and_receive(messages)
    given = SEEN[0].content
    given.config_records["config"]["broken"] = 99
    given.array_records["arrays"]["w"] = Array(np.full(3, 99, np.float32))
    del given["config"]
    assert record.config_records["config"]["broken"] == -1
    assert record.array_records["arrays"]["w"].numpy().tolist() == [0, 0, 0]
    assert SEEN[1].content.config_records["config"]["broken"] == -1
    assert SEEN[1].content.array_records["arrays"]["w"].numpy().tolist() == [0, 0, 0]


def test_what_the_server_does_to_a_message_does_not_reach_the_client(grid: InProcessGrid) -> None:
    """Neither to the request after it was sent, nor to the reply."""
    node = grid.get_node_ids()[0]
    message = ask(grid, node, value=5)
    grid.send_and_receive([message])
    message.content.array_records["arrays"]["w"] = Array(np.zeros(3, np.float32))
    assert SEEN[0].content.array_records["arrays"]["w"].numpy().tolist() == [5, 5, 5]
    (reply,) = grid.send_and_receive([ask(grid, node, kind="query.keep")])
    reply.content.config_records["kept"]["word"] = "changed"
    (later,) = grid.send_and_receive([ask(grid, node, kind="query.kept")])
    assert later.content.config_records["kept"]["word"] == "mine"


def test_an_array_of_a_request_is_the_clients_to_write_and_one_of_a_reply_is_nobodys(grid: InProcessGrid) -> None:
    """A reply's arrays lie in its bytes: whoever wrote into them would change what was received."""
    (reply,) = grid.send_and_receive([ask(grid, grid.get_node_ids()[1], value=5)])
    SEEN[-1].content.array_records["arrays"]["w"].numpy()[:] = 9
    assert SEEN[-1].content.array_records["arrays"]["w"].numpy().tolist() == [5, 5, 5]
    received = reply.content.array_records["arrays"]["w"]
    assert (
        received.numpy().tolist()
        == Array(received.dtype, received.shape, received.stype, received.data).numpy().tolist()
    )
    with pytest.raises(ValueError, match="read-only"):
        received.numpy()[:] = 9


def test_a_reply_is_handed_out_once(grid: InProcessGrid) -> None:
    """Pulling again gives nothing, in whatever order; an id that nobody sent gives nothing either."""
    nodes = grid.get_node_ids()
    ids = grid.push_messages([ask(grid, node) for node in nodes])
    assert len(set(ids)) == 3
    backwards = list(grid.pull_messages(reversed(ids)))
    assert [reply.metadata.src_node_id for reply in backwards] == nodes[::-1]
    assert [reply.metadata.reply_to_message_id for reply in backwards] == ids[::-1]
    assert list(grid.pull_messages([*ids, "nobody"])) == []


def test_contexts_do_not_share_the_run_configuration(grid: InProcessGrid) -> None:
    """Changing one side's settings changes nobody else's."""
    grid.server_context().run_config["who"] = "changed"
    assert grid.server_context().run_config["who"] == "test"


def test_flowers_private_names_are_touched_in_four_files_alone() -> None:
    """What a new minor version of Flower may break: the in-process grid, Control client, bundle, and SuperNode."""
    package = Path(__file__).parents[1] / "src" / "isthmus"
    files = [file for file in package.rglob("*.py") if "__pycache__" not in file.parts]
    # rglob does not follow links: the role folders are asked for by name
    files += [
        file for role in ("server", "clients", "strategies", "privacy") for file in (package / role).rglob("*.py")
    ]
    private = ("flwr.supercore", "flwr.cli.", "flwr.proto", "flwr.common.", "flwr.supernode", '"_message_id"')
    touching = {file.name for file in files if any(name in file.read_text() for name in private)}
    assert touching == {"grid.py", "control.py", "bundle.py", "node.py"}
