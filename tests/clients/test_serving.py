"""A vault behind a socket answers as one in the same process does, and its border holds."""

import contextlib
import dataclasses
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from tests.clients.test_app import Party
from tests.clients.vault_process import VaultProcess, running, start
from tests.conftest import TinyDomain, TinyFederation

from isthmus.clients.app import app
from isthmus.clients.connection import leave_simulation
from isthmus.clients.remote import RemoteVault, remote_vault
from isthmus.clients.wire.methods import LARGEST_MESSAGE, METHODS, SERVICE
from isthmus.errors import ConfigError, Refused, RunError
from isthmus.grid import InProcessGrid
from isthmus.packing import arrays_digest
from isthmus.privacy.ledger import Ledger
from isthmus.records import Kind, RoundReply, RoundRequest

pytestmark = pytest.mark.slow


@dataclasses.dataclass(kw_only=True)
class Side:
    """A domain behind a socket, and the same domain in this process to compare with.

    Attributes:
        party: The one in this process; makes real requests.
        folder: Of the domain.
        options: That its vault is started with.
        log: What its vaults say.
        ledger: That its vaults write.
    """

    party: Party
    folder: Path
    options: tuple[str, ...]
    log: Path
    ledger: Path


@contextlib.contextmanager
def two_sides(write: TinyFederation, folder: Path) -> Iterator[Side]:
    """Domain `books` with 40 users, seeded in both places."""
    party = Party(write(domains={"books": 40}), folder / "run")
    ledger = folder / "vault.db"
    options = ("--socket", str(folder / "v.sock"), "--seed", "5", "--ledger", str(ledger))
    yield Side(party=party, folder=party.folder, options=options, log=folder / "vault.log", ledger=ledger)
    leave_simulation(party.plan)


@pytest.fixture
def side(tiny_federation: TinyFederation, tmp_path: Path) -> Iterator[Side]:
    """Of one test."""
    with two_sides(tiny_federation, tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Side, VaultProcess]]:
    """One with its vault running, for tests that do not mind what others have asked it: starting one takes seconds."""
    folder = tmp_path_factory.mktemp("lasting")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ISTHMUS_CACHE", str(folder / "cache"))
        write = TinyFederation(TinyDomain(folder / "tiny"))
        with two_sides(write, folder) as made, running(made.folder, *made.options, log=made.log) as process:
            yield made, process


@pytest.fixture
def behind(side: Side) -> Iterator[VaultProcess]:
    """Its vault, running."""
    with running(side.folder, *side.options, log=side.log) as process:
        yield process


def through_flower(process: VaultProcess, request: RoundRequest, kind: Kind) -> RoundReply:
    """What a ClientApp answers whose node's configuration names the socket."""
    kinds = {Kind.CATALOGUE: "query.catalogue", Kind.UPDATE: "train", Kind.METRIC: "evaluate"}
    grid = InProcessGrid(app, nodes=1, run_config={}, node_config={"vault": process.address})
    (reply,) = grid.send_and_receive([grid.create_message(request.to_records(), kinds[kind], 2, "g")])
    assert not reply.has_error(), reply.error.reason
    return RoundReply.from_records(reply.content)


def test_the_answers_are_those_of_a_vault_in_the_same_process(side: Side, behind: VaultProcess) -> None:
    """Catalogue, update and evaluation through the real ClientApp, to the last bit; the ledger is charged the same."""
    request = side.party.request()
    for kind in Kind:
        asked = request if kind is not Kind.CATALOGUE else side.party.first_contact()
        here, there = side.party.ask(kind, asked), through_flower(behind, asked, kind)
        assert there.refusal == ""
        assert arrays_digest(there.arrays) == arrays_digest(here.arrays)
        assert (there.domain, there.run, there.round, there.values, there.epsilon) == (
            here.domain,
            here.run,
            here.round,
            here.values,
            here.epsilon,
        )
    assert behind.stop() == 0
    ledger = Ledger(side.ledger)
    assert [(entry.kind, entry.released) for entry in ledger.entries()] == [(kind.value, True) for kind in Kind]
    ledger.close()


def test_it_says_who_it_is_what_is_spent_and_that_it_is_healthy(side: Side, behind: VaultProcess) -> None:
    """Description and budget come from the ledger and the policy; the health service says that it serves."""
    vault = behind.remote()
    found, spent = vault.describe(), vault.budget()
    assert (found.domain, found.private, list(found.kinds)) == ("books", False, ["catalogue", "update", "metric"])
    assert len(found.program) == len(found.key) == 64
    assert (spent.epsilon, spent.limit, spent.delta) == (0.0, 8.0, 1e-6)
    vault.answer(Kind.UPDATE, side.party.request())
    assert 0 < vault.budget().epsilon < 8
    assert behind.healthy()
    behind.process.terminate()
    assert behind.process.wait(timeout=30) == 0
    assert not behind.healthy()
    assert "NOT PRIVATE" in behind.said()


def test_a_vault_killed_in_the_middle_answers_the_same_question_when_it_is_back(side: Side) -> None:
    """Kill -9 while it trains: the client waits, the next vault works under the charge that was paid, once."""
    request = side.party.request()
    replies: list[RoundReply] = []
    with running(side.folder, *side.options, log=side.log) as first:
        asker = threading.Thread(target=lambda: replies.append(first.remote().answer(Kind.UPDATE, request)))
        asker.start()
        wait_for_charge(side.ledger)
        first.kill()
    with running(side.folder, *side.options, log=side.log):
        asker.join(timeout=60)
    (reply,) = replies
    assert reply.refusal == ""
    assert arrays_digest(reply.arrays) == arrays_digest(side.party.ask(Kind.UPDATE, request).arrays)
    ledger = Ledger(side.ledger)
    assert [(entry.round, entry.released) for entry in ledger.entries()] == [(1, True)]
    ledger.close()


def wait_for_charge(path: Path) -> None:
    """Until something was charged."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        ledger = Ledger(path)
        charged = bool(list(ledger.entries()))
        ledger.close()
        if charged:
            return
        time.sleep(0.005)
    raise AssertionError("nothing was charged")


def test_only_owner_and_group_may_use_the_socket(lasting: tuple[Side, VaultProcess]) -> None:
    """Its permissions are the border: nobody else may write to it, at no moment after it was made."""
    _, behind = lasting
    mode = Path(behind.address.removeprefix("unix:")).stat().st_mode
    assert stat.S_IMODE(mode) == 0o660


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_cannot_ask(lasting: tuple[Side, VaultProcess]) -> None:
    """A process of a user outside the group gets no connection."""
    _, behind = lasting
    path = behind.address.removeprefix("unix:")
    for folder in Path(path).parents:
        folder.chmod(folder.stat().st_mode | 0o011)  # the folders let everybody through; the socket does not
        if folder == Path("/tmp"):  # noqa: S108
            break
    child = os.fork()
    if child == 0:  # pragma: no cover - in the child
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        try:
            with socket.socket(socket.AF_UNIX) as line:
                line.connect(path)
        except PermissionError:
            os._exit(7)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 7


def test_two_vaults_do_not_share_a_socket(lasting: tuple[Side, VaultProcess], tmp_path: Path) -> None:
    """The second one says so and ends; the first goes on."""
    side, behind = lasting
    log = tmp_path / "second.log"
    second = start(str(side.folder), *side.options, log=log)
    assert second.wait(timeout=60) == 2
    assert "another vault listens there" in log.read_text()
    assert behind.remote().name == "books"


def raw_call(process: VaultProcess, method: str, body: bytes) -> bytes:
    """Any bytes to a method, and the bytes of its answer."""
    credentials = grpc.local_channel_credentials(grpc.LocalConnectionType.UDS)
    options = [("grpc.max_send_message_length", -1)]
    with grpc.secure_channel(process.address, credentials, options) as channel:
        answer: bytes = channel.unary_unary(f"/{SERVICE}/{method}")(body, timeout=60)
    return answer


def test_hostile_bytes_get_an_error_or_a_refusal_and_the_vault_goes_on(lasting: tuple[Side, VaultProcess]) -> None:
    """Noise, a message of 200 MB, a method that is not there: no traceback goes out; the next question is answered."""
    side, behind = lasting
    chance = np.random.default_rng(1)
    for size in (1, 10, 1000, LARGEST_MESSAGE + 1, 200_000_000):
        for method in ("Train", "Receive") if size < 10_000 else ("Train",):
            with pytest.raises(grpc.RpcError) as caught:
                raw_call(behind, method, chance.bytes(size))
            assert "Traceback" not in caught.value.details()
            assert str(side.folder) not in caught.value.details()
    with pytest.raises(grpc.RpcError) as caught:
        raw_call(behind, "ReadTable", b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    answer = METHODS["Train"].answer.FromString(raw_call(behind, "Train", b""))
    assert "speaks protocol 0" in answer.refusal
    assert behind.remote().answer(Kind.UPDATE, side.party.request()).refusal == ""


def test_a_flood_of_questions_leaves_room_for_others(side: Side, behind: VaultProcess) -> None:
    """Forty at once: some are refused as too many, who asks for the budget is soon answered, one round is charged."""
    request = side.party.request()
    replies: list[RoundReply] = []
    askers = [
        threading.Thread(target=lambda: replies.append(behind.remote().answer(Kind.UPDATE, request))) for _ in range(40)
    ]
    for asker in askers:
        asker.start()
    limits: list[float] = []
    while not limits:  # a moment with more calls than the server takes is possible; the next one is not
        with contextlib.suppress(Refused):
            limits.append(behind.remote().budget().limit)
    assert limits == [8.0]
    for asker in askers:
        asker.join(timeout=60)
    refusals = {reply.refusal for reply in replies}
    assert len(replies) == 40
    assert "" in refusals
    assert all(not refusal or "no such question" in refusal for refusal in refusals)
    assert len({arrays_digest(reply.arrays) for reply in replies if not reply.refusal}) == 1
    ledger = Ledger(side.ledger)
    assert len([entry for entry in ledger.entries() if entry.kind == "update"]) == 1
    ledger.close()


def test_a_broken_table_ends_the_vault_with_the_reason(side: Side, tmp_path: Path) -> None:
    """Before it is healthy: exit 2, file and row named on its own stderr."""
    (side.folder / "interactions.csv").write_bytes(b"person,thing\na,b\n")
    log = tmp_path / "broken.log"
    assert start(str(side.folder), *side.options, log=log).wait(timeout=60) == 2
    assert "interactions.csv" in log.read_text()
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [(("--socket", "."), "is no socket"), (("--socket", "v.sock", "--group", "no-such-group"), "no-such-group")],
)
def test_a_place_that_cannot_be_used_is_one_error(
    side: Side, tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    """Exit 2, one line, no traceback, and no socket is left behind."""
    log = tmp_path / "wrong.log"
    process = start(str(side.folder), *options, log=log, cwd=tmp_path)
    assert process.wait(timeout=60) == 2
    said = log.read_text()
    assert words in said
    assert "Traceback" not in said
    assert not (tmp_path / "v.sock").exists()


def test_a_vault_that_is_away_is_an_error_that_names_its_address(tmp_path: Path) -> None:
    """After the patience that was set, not for ever."""
    address = f"unix:{tmp_path / 'nobody.sock'}"
    channel = grpc.secure_channel(address, grpc.local_channel_credentials(grpc.LocalConnectionType.UDS))
    vault = RemoteVault(channel, address=address, patience=0.3)
    with pytest.raises(RunError, match="nobody"):
        vault.describe()
    vault.close()


def test_a_question_larger_than_a_vault_takes_is_a_refusal(lasting: tuple[Side, VaultProcess]) -> None:
    """The reply says so; nothing is charged."""
    side, behind = lasting
    large = dataclasses.replace(side.party.request(), arrays={"w": np.zeros(LARGEST_MESSAGE // 4 + 10, np.float32)})
    vault = behind.remote()
    before = vault.budget().epsilon
    reply = vault.answer(Kind.UPDATE, large)
    assert (reply.domain, reply.arrays) == ("books", {})
    assert "takes no such question" in reply.refusal
    assert vault.budget().epsilon == before


def test_a_node_configuration_without_certificates_for_tcp_is_refused() -> None:
    """A vault on a network is reached over mutual TLS or not at all."""
    with pytest.raises(ConfigError, match="'vault-ca' is absent"):
        remote_vault({"vault": "127.0.0.1:4000"})


def test_a_rule_s_words_come_through_whole(side: Side, behind: VaultProcess) -> None:
    """With the figures, and marked where asking again is pointless."""
    request = side.party.request()
    vault = behind.remote()
    for round_ in range(1, 20):
        reply = vault.answer(Kind.UPDATE, dataclasses.replace(request, round=round_))
        if reply.refusal:
            break
    assert reply.exhausted
    assert "of 8 is spent" in reply.refusal
