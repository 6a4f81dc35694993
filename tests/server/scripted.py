"""Domains that answer what a script says: for what no honest vault can be made to do."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from isthmus.backbone import Backbone, shared_parameters
from isthmus.config import load_federation
from isthmus.encoding import encode
from isthmus.grid import InProcessGrid
from isthmus.records import RoundReply, RoundRequest
from isthmus.server.checkpoint import RunState
from isthmus.server.heads import HeadLog
from isthmus.server.loop import run_rounds
from isthmus.server.waiting import FOR_EVER, Patience

NAMES = ("books", "games", "music")
EMPTY = RoundReply(domain="", run="", round=0)
MOMENTS = replace(
    EMPTY,
    arrays={"mean": np.zeros(4, np.float32), "second": np.eye(4, dtype=np.float32)},
    values={"count": 10.0},
)
"""Honest moments of a catalogue of 4 dimensions."""


def moved(request: RoundRequest, step: float) -> RoundReply:
    """An update that adds the same everywhere, in the format of the request's recipe."""
    shapes = {
        name: tuple(each.shape)
        for name, each in shared_parameters(
            Backbone(4, request.recipe.backbone, domains=request.recipe.training.classes)
        ).items()
    }
    update = {name: np.full(shape, step, np.float32) for name, shape in shapes.items()}
    encoded = encode(update, request.recipe.training.update_format, np.random.default_rng(request.round).random)
    return replace(EMPTY, arrays=encoded.arrays, values=encoded.scales)


class Script(Protocol):
    """What the domains say."""

    def __call__(self, partition: int, kind: str, request: RoundRequest) -> RoundReply:
        """The reply of one of them, but for run, round and (where it names none) its name."""
        ...


@dataclass(frozen=True)
class Gains:
    """Every update adds 0.01 everywhere; evaluations have the given noisy gains, by round."""

    gains: dict[int, float]

    def __call__(self, partition: int, kind: str, request: RoundRequest) -> RoundReply:
        """What every domain says."""
        if kind == "catalogue":
            return MOMENTS
        if kind == "update":
            return moved(request, 0.01)
        return replace(EMPTY, values={"gain": self.gains[request.round], "users": 100.0, "noise_stddev": 1.0})


@dataclass(frozen=True)
class BadContact:
    """The first domain's first contact is the given one; everything else is honest."""

    contact: RoundReply

    def __call__(self, partition: int, kind: str, request: RoundRequest) -> RoundReply:
        """What the domains say."""
        bad = kind == "catalogue" and partition == 0
        return self.contact if bad else Gains({})(partition, kind, request)


@dataclass(frozen=True)
class OneName:
    """Domains that all call themselves `books`, each with a catalogue of its own."""

    def __call__(self, partition: int, kind: str, request: RoundRequest) -> RoundReply:
        """What the domains say."""
        reply = replace(Gains({})(partition, kind, request), domain="books")
        if kind != "catalogue":
            return reply
        return replace(reply, arrays={**reply.arrays, "mean": np.full(4, partition / 8, np.float32)})


@dataclass(frozen=True)
class Scripted:
    """Answers Flower's messages by a script."""

    script: Script

    def app(self) -> ClientApp:
        """The app that Flower's grid runs."""
        app = ClientApp()
        app.query("catalogue")(self.catalogue)
        app.train()(self.train)
        app.evaluate()(self.evaluate)
        return app

    def catalogue(self, message: Message, context: Context) -> Message:
        """Answer a first contact."""
        return self._answer("catalogue", message, context)

    def train(self, message: Message, context: Context) -> Message:
        """Answer a round."""
        return self._answer("update", message, context)

    def evaluate(self, message: Message, context: Context) -> Message:
        """Answer an evaluation."""
        return self._answer("metric", message, context)

    def _answer(self, kind: str, message: Message, context: Context) -> Message:
        request, partition = RoundRequest.from_records(message.content), int(context.node_config["partition-id"])
        said = self.script(partition, kind, request)
        reply = replace(said, domain=said.domain or NAMES[partition], run=request.run, round=request.round)
        return Message(reply.to_records(), reply_to=message)


def run_script(
    file: Path,
    script: Script,
    folder: Path,
    *,
    nodes: int = 2,
    rounds: int = 4,
    grid_type: Callable[..., InProcessGrid] = InProcessGrid,
    patience: Patience = FOR_EVER,
) -> list[RunState]:
    """Run a federation file over scripted domains; the states that a listener hears, from round 0 on."""
    heard: list[RunState] = []
    with grid_type(Scripted(script).app(), nodes=nodes, run_config={}) as grid:
        heads = HeadLog(folder / "heads.db")
        try:
            run_rounds(
                grid,
                load_federation(file),
                run="r1",
                rounds=rounds,
                folder=folder,
                heads=heads,
                listener=heard.append,
                patience=patience,
            )
        finally:
            heads.close()
    return heard
