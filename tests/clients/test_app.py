"""The ClientApp is thin, explains refusals, and lets no word out that a vault's error happens to hold."""

import dataclasses
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Message, RecordDict
from flwr.common.serde import message_to_proto
from tests.clients.test_connection import write_plan
from tests.conftest import TinyDomain, TinyFederation

from isthmus.backbone import Backbone, shared_parameters
from isthmus.clients import connection
from isthmus.clients.answers import Answering
from isthmus.clients.app import app
from isthmus.clients.connection import leave_simulation
from isthmus.clients.vault import Vault
from isthmus.config import load_federation
from isthmus.errors import DataError, Refused, RunError
from isthmus.features import TextMoments, fit_whitening
from isthmus.grid import InProcessGrid
from isthmus.packing import arrays_digest
from isthmus.privacy.gate import Release
from isthmus.privacy.reading import read_ledger
from isthmus.records import Kind, RoundReply, RoundRequest, recipe_of

ROOT = Path(__file__).parents[2]
WORDS = "user-4711-bought-a-pregnancy-test"
HEAVY = ("torch", "opacus", "polars", "pyarrow", "transformers", "sklearn")
KINDS = {Kind.CATALOGUE: "query.catalogue", Kind.UPDATE: "train", Kind.METRIC: "evaluate"}


class Party:
    """One node with its domain behind it, and the requests of a real first round."""

    def __init__(self, file: Path, folder: Path) -> None:
        self.plan = str(write_plan(file, folder))
        self.federation = load_federation(file)
        self.grid = InProcessGrid(app, nodes=1, run_config={}, node_config={"simulation": self.plan})
        self.folder = file.parent / "books"

    def tell(self, kind: Kind, content: RecordDict) -> Message:
        """The raw answer to a message."""
        (reply,) = self.grid.send_and_receive([self.grid.create_message(content, KINDS[kind], 2, "g")])
        return reply

    def ask(self, kind: Kind, request: RoundRequest) -> RoundReply:
        """The parsed answer to a request."""
        reply = self.tell(kind, request.to_records())
        assert not reply.has_error(), reply.error.reason
        return RoundReply.from_records(reply.content)

    def first_contact(self) -> RoundRequest:
        """What is asked before there is a whitening."""
        return RoundRequest(run="r1", round=0, recipe=recipe_of(self.federation, ""))

    def request(self, round_: int = 1) -> RoundRequest:
        """What is asked in a round; the whitening comes from what the domain says of its catalogue."""
        said = self.ask(Kind.CATALOGUE, self.first_contact())
        moments = TextMoments(
            count=int(said.values["count"]),
            mean=said.arrays["mean"].astype(np.float64),
            second=said.arrays["second"].astype(np.float64),
        )
        whitening = fit_whitening([moments], eps=1e-3, dim=None).arrays()
        torch.manual_seed(0)
        shared = shared_parameters(Backbone(whitening["matrix"].shape[1], self.federation.backbone))
        return RoundRequest(
            run="r1",
            round=round_,
            recipe=recipe_of(self.federation, arrays_digest(whitening).hex()),
            arrays={name: parameter.detach().numpy() for name, parameter in shared.items()},
            whitening=whitening,
        )


@pytest.fixture
def party(tiny_federation: TinyFederation, tmp_path: Path) -> Iterator[Party]:
    """A node in front of the domain `books`."""
    party = Party(tiny_federation(domains={"books": 40}), tmp_path / "run")
    yield party
    leave_simulation(party.plan)


def test_importing_the_client_app_imports_nothing_heavy() -> None:
    """Flower starts a process per message: no torch, no Opacus, no table reader comes with the ClientApp."""
    code = f"import sys, isthmus.clients.app; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_every_question_is_answered_with_a_release_and_an_echo(party: Party) -> None:
    """Catalogue, update, evaluation: name, run and round come back, with what the vault released and what is spent."""
    catalogue = party.ask(Kind.CATALOGUE, party.first_contact())
    assert (catalogue.domain, catalogue.run, catalogue.round, catalogue.refusal) == ("books", "r1", 0, "")
    assert catalogue.epsilon == 0.0  # public text costs nothing
    request = party.request()
    update, metric = party.ask(Kind.UPDATE, request), party.ask(Kind.METRIC, request)
    assert (update.refusal, metric.refusal) == ("", "")
    assert {name: array.shape for name, array in update.arrays.items()} == {
        name: array.shape for name, array in request.arrays.items()
    }
    assert any(array.any() for array in update.arrays.values())
    assert sorted(metric.values) == ["gain", "noise_stddev", "users"]
    assert 0 < update.epsilon < metric.epsilon <= 8.0
    assert (update.round, metric.round) == (1, 1)


def test_a_reply_holds_the_release_and_nothing_else(party: Party) -> None:
    """No user id, no item id, no count of users travels beside it."""
    request = party.request()
    for kind in Kind:
        content = request if kind is not Kind.CATALOGUE else party.first_contact()
        reply = party.tell(kind, content.to_records())
        assert sorted(reply.content) == ["arrays", "config", "values"]
        assert sorted(reply.content.config_records["config"]) == sorted(
            ["protocol", "domain", "run", "server-round", "refusal", "exhausted", "epsilon", "head"]
        )
        wire = message_to_proto(reply).SerializeToString()
        assert b"books-user-" not in wire
        assert b"books-1" not in wire


def test_a_repeated_question_gets_the_same_bytes_at_no_cost(party: Party) -> None:
    """A message that arrives twice is paid once."""
    request = party.request()
    first, second = party.ask(Kind.UPDATE, request), party.ask(Kind.UPDATE, request)
    assert all(first.arrays[name].tobytes() == array.tobytes() for name, array in second.arrays.items())
    assert first.epsilon == second.epsilon


def test_another_question_for_the_same_round_is_refused_with_the_reason(party: Party) -> None:
    """A replay with other parameters gets no second answer; the refusal says so and echoes the round."""
    request = party.request()
    party.ask(Kind.UPDATE, request)
    moved = {name: array + np.float32(1) for name, array in request.arrays.items()}
    reply = party.ask(Kind.UPDATE, dataclasses.replace(request, arrays=moved))
    assert "A round is answered once" in reply.refusal
    assert (reply.run, reply.round, reply.exhausted, reply.arrays) == ("r1", 1, False, {})


def test_an_exhausted_budget_says_so(party: Party) -> None:
    """The reply is marked, so that the server need not ask again, and the figures are in its words."""
    request = party.request()
    for round_ in range(1, 20):
        reply = party.ask(Kind.UPDATE, dataclasses.replace(request, round=round_))
        if reply.refusal:
            break
    assert reply.exhausted
    assert "of 8 is spent" in reply.refusal
    assert reply.arrays == {}
    assert round_ > 4  # its policy's rounds all fitted


@pytest.mark.parametrize("kind", list(Kind))
def test_a_message_that_is_no_request_is_refused_with_the_reason(party: Party, kind: Kind) -> None:
    """An empty one, another protocol, a bool for a round."""
    good = party.first_contact().to_records
    broken = [RecordDict(), good(), good()]
    broken[1].config_records["config"]["protocol"] = 2
    broken[2].config_records["config"]["server-round"] = True
    reasons = ["no record 'config'", "speaks protocol 2", "'server-round' must be a int, got bool"]
    for content, reason in zip(broken, reasons, strict=True):
        reply = RoundReply.from_records(party.tell(kind, content).content)
        assert reason in reply.refusal
        assert (reply.domain, reply.exhausted, reply.arrays, reply.values) == ("books", False, {}, {})


def test_a_catalogue_that_is_not_public_is_refused_with_the_reason(
    tiny_federation: TinyFederation, tiny_domain: TinyDomain, tmp_path: Path
) -> None:
    """Nothing is said of it; the key to look at is named."""
    file = tiny_federation(domains={"books": 12})
    toml = file.parent / "books" / "domain.toml"
    toml.write_text(toml.read_text().replace("public = true", "public = false"))
    party = Party(file, tmp_path / "run")
    reply = party.ask(Kind.CATALOGUE, party.first_contact())
    assert "`items.public`" in reply.refusal
    assert reply.arrays == {}
    leave_simulation(party.plan)


def test_what_an_internal_error_says_stays_in_the_domain(party: Party, caplog: pytest.LogCaptureFixture) -> None:
    """A table with a broken row, whose error quotes the row: in the domain's log, not in a byte of the reply."""
    (party.folder / "interactions.csv").write_bytes(b"user,item\n" + WORDS.encode() + b",a,b,c,\xff\n" * 3)
    with caplog.at_level(logging.ERROR):
        reply = party.tell(Kind.UPDATE, real_request(party).to_records())
    refusal = RoundReply.from_records(reply.content).refusal
    assert "an error in the domain; its own log says which" in refusal
    wire = message_to_proto(reply).SerializeToString()
    for word in (WORDS.encode(), b"interactions", str(party.folder).encode(), b"Traceback"):
        assert word not in wire
    assert "interactions.csv" in caplog.text


@pytest.mark.parametrize("error", [ValueError, KeyError, MemoryError, DataError, RunError], ids=lambda e: e.__name__)
def test_an_error_that_quotes_private_data_stays_in_the_domain(
    party: Party, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """Any exception but a refusal, whatever its words: they are in the log and nowhere in the reply."""
    monkeypatch.setitem(connection._OPEN, (party.plan, 0), Indiscreet(error(WORDS)))
    for kind in Kind:
        caplog.clear()
        reply = party.tell(kind, party.first_contact().to_records())
        assert WORDS.encode() not in message_to_proto(reply).SerializeToString()
        assert "an error in the domain" in RoundReply.from_records(reply.content).refusal
        assert WORDS in caplog.text


def test_a_refused_receipt_is_answered_with_the_reason_and_written_down(party: Party) -> None:
    """By itself and with a request; the reply to both says where the ledger stands, the refusal included."""
    vault = connection.simulated_vault(party.plan, 0)
    assert isinstance(vault, Vault)
    hostile = dataclasses.replace(party.first_contact(), receipt="no receipt")
    (reply,) = party.grid.send_and_receive([party.grid.create_message(hostile.to_records(), "query.backbone", 2, "g")])
    said = RoundReply.from_records(reply.content)
    assert "the receipt cannot be kept" in said.refusal
    assert "the receipt cannot be kept" in party.ask(Kind.CATALOGUE, hostile).refusal
    assert said.head == vault.head()
    books = read_ledger(vault.ledger.path)
    assert [(line.kind, line.rule) for line in books.refusals] == [("receipt", "receipt")]


def test_what_goes_wrong_with_a_receipt_or_a_head_stays_in_the_domain(
    party: Party, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ledger whose key was rotated meanwhile, or that is full: its path and key are in the domain's log only."""
    for failing in ("keep_receipt", "head"):
        monkeypatch.setitem(connection._OPEN, (party.plan, 0), Unable(failing))
        caplog.clear()
        content = dataclasses.replace(party.first_contact(), receipt="{}").to_records()
        (reply,) = party.grid.send_and_receive([party.grid.create_message(content, "query.backbone", 2, "g")])
        replies = [reply, party.tell(Kind.UPDATE, content)] if failing == "head" else [reply]
        for each in replies:
            assert "an error in the domain" in RoundReply.from_records(each.content).refusal
            assert WORDS.encode() not in message_to_proto(each).SerializeToString()
        assert WORDS in caplog.text


def test_a_vault_that_cannot_be_opened_says_nothing_of_itself(
    tiny_federation: TinyFederation, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its configuration's error names files and values: the node answers with an error without them."""
    file = tiny_federation(domains={"books": 12})
    (file.parent / "books" / "domain.toml").write_text(f'name = "{WORDS}"\n"{WORDS}" = 1\n')
    party = Party(file, tmp_path / "run")
    for kind in Kind:
        reply = party.tell(kind, party.first_contact().to_records())
        assert reply.has_error()
        assert "cannot reach its vault" in str(reply.error.reason)
        wire = message_to_proto(reply).SerializeToString()
        assert WORDS.encode() not in wire
        assert b"domain.toml" not in wire
    assert WORDS in caplog.text


class Unable(Answering):
    """A domain that refuses every request, and whose ledger cannot do one thing."""

    name = "books"

    def __init__(self, failing: str) -> None:
        self.failing = failing

    def epsilon(self) -> float:
        """Nothing spent."""
        return 0.0

    def keep_backbone(self, request: RoundRequest) -> None:
        """Keep it."""

    def release(self, kind: Kind, request: RoundRequest) -> Release:
        """Refuse."""
        raise Refused("no")

    def keep_receipt(self, text: str) -> None:
        """Fail, or keep it."""
        if self.failing == "keep_receipt":
            raise RunError(WORDS)

    def head(self) -> str:
        """Fail, or say nothing."""
        if self.failing == "head":
            raise RunError(WORDS)
        return ""

    def close(self) -> None:
        """Nothing to let go of."""


class Indiscreet(Answering):
    """A domain whose every answer is an error that quotes its data."""

    name = "books"

    def __init__(self, error: Exception) -> None:
        self.error = error

    def release(self, kind: Kind, request: RoundRequest) -> Release:
        """Raise it."""
        raise self.error

    def keep_receipt(self, text: str) -> None:
        """Raise it."""
        raise self.error

    def keep_backbone(self, request: RoundRequest) -> None:
        """Raise it."""
        raise self.error

    def epsilon(self) -> float:
        """Nothing spent."""
        return 0.0

    def head(self) -> str:
        """No ledger."""
        return ""

    def close(self) -> None:
        """Nothing to let go of."""


def real_request(party: Party) -> RoundRequest:
    """A request that passes every check before the data: a whitening of the right shape, the recipe's parameters."""
    whitening = {"mean": np.zeros(64, np.float32), "matrix": np.eye(64, dtype=np.float32)}
    shared = shared_parameters(Backbone(64, party.federation.backbone))
    return RoundRequest(
        run="r1",
        round=1,
        recipe=recipe_of(party.federation, arrays_digest(whitening).hex()),
        arrays={name: parameter.detach().numpy() for name, parameter in shared.items()},
        whitening=whitening,
    )
