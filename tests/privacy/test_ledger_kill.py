"""kill -9 at 200 random points of charge, compute, keep, send: what is over-counted, never under-counted.

A child process answers round after round through the gate and writes each answer to a pipe, as a client sends a reply.
It is killed without warning. What came out of the pipe has left; all of it must be paid for in the ledger that is
found afterwards, and everything that is found must be a whole chain.
"""

import dataclasses
import os
import random
import signal
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tests.privacy.conftest import DELTA, EVENT, FORK, WIDE, charge_of, copy_of
from tests.privacy.test_ledger_crash import Unfinished

from isthmus.privacy.accounting import epsilon
from isthmus.privacy.custody import key_path
from isthmus.privacy.entries import Charge, LedgerEntry
from isthmus.privacy.gate import _GATE_ONLY, Gate, Payload, Release
from isthmus.privacy.ledger import Ledger
from isthmus.privacy.lines import Released
from isthmus.privacy.reading import read_ledger

# Real processes are what is tested; newer Pythons warn of a fork beside the threads of a numerical library.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

KILLS = 200
ANSWER = struct.Struct("<qd")
"""What is sent: the round, and a number that no second computation would give."""

Maker = Callable[[Path], Gate]


def computed() -> Payload:
    """Something that takes as long as the rest, and is never the same twice."""
    time.sleep(0.002)
    arrays = {"update": np.frombuffer(os.urandom(4096), dtype=np.uint16).astype(np.float32)}
    return Payload(arrays=arrays, values={"number": random.SystemRandom().random()})


def real_gate(path: Path) -> Gate:
    """The one way out."""
    return Gate(ledger=Ledger(path), limits=WIDE)


class SendsFirst(Gate):
    """Mutant: what was computed leaves, and is charged afterwards."""

    def release(self, charge: Charge, compute: Callable[[], Payload]) -> Release:
        """Hand out at once; a moment later, pay."""
        payload = compute()
        os.write(self.sent_to, ANSWER.pack(charge.round, payload.values["number"]))  # type: ignore[attr-defined]
        super().release(charge, lambda: payload)
        return Release(payload, entry_like(charge), made_by=_GATE_ONLY)


def entry_like(charge: Charge) -> LedgerEntry:
    """A proof that proves nothing."""
    fields = {field.name: getattr(charge, field.name) for field in dataclasses.fields(charge)}
    del fields["layers"]  # which an entry refers to and does not hold
    return LedgerEntry(seq=1, time="", version="", released=True, **fields)


def unfinished_gate(path: Path) -> Gate:
    """Mutant: a charge is not committed when it returns."""
    return Gate(ledger=Unfinished(path), limits=WIDE)


def late_gate(path: Path) -> Gate:
    """Mutant: pays afterwards."""
    return SendsFirst(ledger=Ledger(path), limits=WIDE)


def answer(make: Maker, path: Path, ready: int, sent: int) -> None:
    """What the child does: open the ledger, say so, and answer one round after the other."""
    os.write(ready, b"!")
    gate = make(path)
    object.__setattr__(gate, "sent_to", sent)
    os.write(ready, b"!")
    for number in range(10_000):
        release = gate.release(charge_of(number), computed)
        if not isinstance(gate, SendsFirst):
            os.write(sent, ANSWER.pack(number, release.payload.values["number"]))


@dataclass(kw_only=True)
class Aftermath:
    """What a killed child left behind.

    Attributes:
        received: Answers that came out, by round.
        entries: Of the ledger.
        unsent: Rounds that the next start calls charged and not sent.
        problems: What is wrong; empty if nothing is.
    """

    received: dict[int, float]
    entries: tuple[LedgerEntry, ...]
    unsent: list[int]
    problems: list[str]


def killed(make: Maker, path: Path, delay: float, *, opened: bool) -> Aftermath:
    """Start a child, kill it after a delay, and look.

    Args:
        make: Of the gate that it uses.
        path: Of the ledger, which may not be there yet.
        delay: In seconds.
        opened: Whether the delay starts once the ledger is open, or before.
    """
    waiting, ready = os.pipe()
    receiving, sent = os.pipe()
    process = FORK.Process(target=answer, args=(make, path, ready, sent))
    process.start()
    os.close(ready)
    os.close(sent)
    os.read(waiting, 1)
    if opened:
        os.read(waiting, 1)
    time.sleep(delay)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with os.fdopen(receiving, "rb") as pipe, os.fdopen(waiting, "rb"):
        received = dict(ANSWER.iter_unpack(pipe.read()))
    return aftermath(path, received)


def aftermath(path: Path, received: dict[int, float]) -> Aftermath:
    """Check what is there against what came out; the ledger is opened only after others have read it."""
    problems = []
    if key_path(path).exists():  # which has its name only when the first line is there
        problems += [f"{finding.rule}: {finding.text}" for finding in read_ledger(path).findings]
    gate = real_gate(path)
    books = read_ledger(path)
    problems += [f"then {finding.rule}: {finding.text}" for finding in books.findings]
    kept = {entry.round for entry in books.entries if entry.released}
    problems += [f"round {number} came out and is not in the ledger" for number in received.keys() - kept]
    # Somebody outside cannot have more than the ledger says.
    if gate.ledger.epsilon(DELTA) < epsilon([EVENT] * len(received), DELTA):
        problems.append("epsilon of what came out is more than the ledger's")
    unsent = [entry.round for entry in gate.ledger.unsent()]
    if set(unsent) != {entry.round for entry in books.entries} - kept or len(unsent) > 1:
        problems.append(f"charged and not sent are said to be {unsent}")
    # The last question asked again: what came out comes out again, what did not is made under its own charge.
    if received and not problems:
        last = max(received)
        again = gate.release(charge_of(last), computed) if last == max(kept) else None
        if again is not None and again.payload.values["number"] != received[last]:
            problems.append(f"round {last} has a second answer")
    for number in unsent:
        gate.release(charge_of(number), computed)
    if unsent and (gate.ledger.unsent() or len(list(gate.ledger.entries())) != len(books.entries)):
        problems.append(f"rounds {unsent} could not be finished under the charge that was paid")
    gate.ledger.close()
    return Aftermath(received=received, entries=books.entries, unsent=unsent, problems=problems)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger with its key, as it was made."""
    path = tmp_path_factory.mktemp("template") / "ledger.db"
    Ledger(path).close()
    return path


def cycle(template: Path, folder: Path) -> float:
    """Seconds that one round takes here and now."""
    gate = real_gate(copy_of(template, folder))
    start = time.monotonic()
    for number in range(5):
        gate.release(charge_of(number), computed)
    gate.ledger.close()
    return (time.monotonic() - start) / 5


@pytest.mark.slow
def test_200_kills_over_count_and_never_under_count(tmp_path: Path, template: Path) -> None:
    """At random moments of the first rounds: nothing came out unpaid, and the next start says what was not sent."""
    takes = cycle(template, tmp_path / "cycle")
    chance = np.random.default_rng(3)
    found = [
        killed(real_gate, copy_of(template, tmp_path / str(number)), chance.uniform(0, 4 * takes), opened=True)
        for number in range(KILLS)
    ]
    assert [problem for each in found for problem in each.problems] == []
    # The kills were where it matters: before the first answer, after it, and between charge and release.
    assert sum(not each.received for each in found) >= 10
    assert sum(bool(each.received) for each in found) >= 10
    assert sum(bool(each.unsent) for each in found) >= 10


def test_kills_while_a_ledger_is_made_leave_one_that_opens(tmp_path: Path, template: Path) -> None:
    """From the first byte of its key on: the next start finds a ledger or makes one, and nothing came out unpaid."""
    longest = 4 * cycle(template, tmp_path / "cycle")
    chance = np.random.default_rng(4)
    found: list[Aftermath] = []
    for number in range(40):
        if number % 8 == 7 and not any(each.entries for each in found):
            longest *= 2  # on a busy machine a ledger takes longer to make than was measured
        path = tmp_path / str(number) / "ledger.db"
        found.append(killed(real_gate, path, chance.uniform(0, longest), opened=False))
    assert [problem for each in found for problem in each.problems] == []
    assert {bool(each.entries) for each in found} == {True, False}


@pytest.mark.parametrize("mutant", [late_gate, unfinished_gate])
def test_a_mutant_that_pays_late_is_caught_by_the_same_kills(tmp_path: Path, template: Path, mutant: Maker) -> None:
    """Within the same number of kills, by what came out and is not in the ledger."""
    takes = cycle(template, tmp_path / "cycle")
    chance = np.random.default_rng(3)
    for number in range(KILLS):
        path = copy_of(template, tmp_path / str(number))
        if killed(mutant, path, chance.uniform(0, 4 * takes), opened=True).problems:
            return
    pytest.fail(f"{KILLS} kills did not catch it")


# The same at each border between two steps, where a random kill seldom falls.


def die_at(step: str, path: Path, sent: int) -> None:
    """Answer round 0 and die at a step."""
    gate = real_gate(path)
    entry = gate.ledger.charge(charge_of(0), WIDE)
    if step == "charged":
        os.kill(os.getpid(), signal.SIGKILL)
    payload = computed()
    if step == "computed":
        os.kill(os.getpid(), signal.SIGKILL)
    if step == "keeping":
        with gate.ledger.chain.transaction():
            gate.ledger.chain.append(Released, {"charge": entry.seq, "payload": "00" * 32})
            os.kill(os.getpid(), signal.SIGKILL)
    release = gate.release(charge_of(0), lambda: payload)
    assert release.entry.seq == entry.seq
    if step == "kept":
        os.kill(os.getpid(), signal.SIGKILL)
    os.write(sent, ANSWER.pack(0, release.payload.values["number"]))
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("step", "unsent"), [("charged", [0]), ("computed", [0]), ("keeping", [0]), ("kept", []), ("sent", [])]
)
def test_a_kill_at_each_border_is_accounted_for(tmp_path: Path, template: Path, step: str, unsent: list[int]) -> None:
    """Charged and not kept is said at the next start; kept and not sent comes out when it is asked for again."""
    path = copy_of(template, tmp_path / step)
    receiving, sent = os.pipe()
    process = FORK.Process(target=die_at, args=(step, path, sent))
    process.start()
    os.close(sent)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with os.fdopen(receiving, "rb") as pipe:
        received = dict(ANSWER.iter_unpack(pipe.read()))
    assert set(received) == ({0} if step == "sent" else set())
    found = aftermath(path, received)
    assert (found.problems, found.unsent, len(found.entries)) == ([], unsent, 1)
