"""The chain grows by whole, signed lines, in constant time, and only by who holds the key in force."""

import dataclasses
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.privacy.conftest import DELTA, EVENT, SECRET, WIDE, charge_of, fields_of, rules

from isthmus.errors import Refused, RunError
from isthmus.privacy.accounting import epsilon
from isthmus.privacy.chain import Chain
from isthmus.privacy.custody import key_path, open_chain
from isthmus.privacy.keys import check_signature, fresh_keys
from isthmus.privacy.ledger import Ledger
from isthmus.privacy.lines import Charged, Noted, RefusedLine, Released, Revoked, Rotated, Withheld, from_text
from isthmus.privacy.links import link_digest, link_message, read_links
from isthmus.privacy.policy import Policy


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Chain]:
    """A chain of a domain, just opened."""
    opened = open_chain(tmp_path / "chain.db", owner="domain", name="books", secret=SECRET)
    yield opened
    opened.close()


def charge(chain: Chain, number: int = 0) -> Charged:
    """Append a line in a transaction of its own."""
    with chain.transaction():
        return chain.append(Charged, fields_of(charge_of(number)))


def test_a_new_chain_begins_with_its_owner_and_key(chain: Chain) -> None:
    """Line 1 says what it is, whose it is and who signs; its id is its own."""
    first = chain.line(1)
    assert (first.type, first.seq) == ("opened", 1)
    assert (chain.name, len(chain.ledger)) == ("books", 32)
    assert chain.key_in_force() == chain.keys.public
    other = open_chain(chain.path.parent / "other" / "chain.db", owner="domain", name="books", secret=SECRET)
    assert other.ledger != chain.ledger
    other.close()


def test_each_line_is_linked_to_the_one_before_and_signed(chain: Chain) -> None:
    """Recomputed here by the formulas of the documentation."""
    for number in range(3):
        charge(chain, number)
    links = list(chain.links())
    before = bytes(32)
    for position, link in enumerate(links, start=1):
        assert (link.seq, link.previous) == (position, before)
        assert link.digest == link_digest(before, link.body)
        check_signature(chain.keys.public, link_message(link.digest), link.signature)
        assert from_text(link.body).seq == position
        before = link.digest
    assert list(chain.links(after=2)) == links[2:]
    assert chain.last() == links[-1]


def test_a_failed_transaction_leaves_nothing(chain: Chain) -> None:
    """Neither its lines nor their numbers."""
    with pytest.raises(ZeroDivisionError):
        append_and_fail(chain)
    assert chain.last().seq == 1
    assert charge(chain).seq == 2


def append_and_fail(chain: Chain) -> None:
    """Two lines that never were."""
    with chain.transaction():
        chain.append(Charged, fields_of(charge_of(0)))
        chain.append(Charged, fields_of(charge_of(1)))
        raise ZeroDivisionError


HOSTILE = ["a\nb", "\x1b[2J", "\u202e", "a\u2028b", "\x00", "\ud800"]
WRITTEN = [
    (Charged, fields_of(charge_of()), ["run", "kind", "event", "version", "dataset", "request", "code", "policy"]),
    (Released, {"charge": 2, "payload": "00" * 32}, ["payload"]),
    (Withheld, {"charge": 2, "reason": ""}, ["reason"]),
    (
        RefusedLine,
        {"run": "", "round": 0, "kind": "", "rule": "", "asked": "", "limit": "", "coordinator": ""},
        ["run", "kind", "rule", "asked", "limit", "coordinator"],
    ),
    (Rotated, {"key": "00" * 32, "proof": "00" * 64, "reason": ""}, ["key", "proof", "reason"]),
    (Revoked, {"key": "00" * 32, "since": 1, "reason": ""}, ["key", "reason"]),
    (Noted, {"domain": "", "run": "", "round": 0, "head": ""}, ["domain", "run", "head"]),
]


@pytest.mark.parametrize("hostile", HOSTILE, ids=ascii)
@pytest.mark.parametrize(
    ("kind", "fields", "field"),
    [(kind, fields, name) for kind, fields, names in WRITTEN for name in names],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "__name__", ""),
)
def test_no_field_lets_a_forged_line_in(
    chain: Chain, kind: type[Charged], fields: dict[str, object], field: str, hostile: str
) -> None:
    """Each text of each kind of line: refused before it is written, and the chain is as it was."""
    with pytest.raises(ValueError, match=field), chain.transaction():
        chain.append(kind, {**fields, field: hostile})
    assert chain.last().seq == 1


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31m", "\ud800", "x" * 5000])
def test_a_hostile_name_is_written_as_one_line(tmp_path: Path, name: str) -> None:
    """A folder can be called anything; the first line holds what can be seen of it."""
    opened = open_chain(tmp_path / "chain.db", owner="domain", name=name, secret=SECRET)
    assert opened.name.isprintable()
    assert len(opened.name) <= 2000
    opened.close()
    assert rules(tmp_path / "chain.db") == set()


def test_who_does_not_hold_the_key_in_force_appends_nothing(chain: Chain) -> None:
    """A process that missed a rotation says so, and the chain is as it was."""
    chain.use(fresh_keys())
    with pytest.raises(RunError, match="it was rotated meanwhile. Start again"):
        charge(chain)
    assert chain.last().seq == 1


def test_a_line_that_is_gone_or_unreadable_is_said_in_words(chain: Chain) -> None:
    """With its number and the way out; it is never skipped."""
    charge(chain)
    with pytest.raises(RunError, match="line 3 is missing; restore the ledger"):
        chain.line(3)
    chain.db.execute("UPDATE chain SET body = '{}' WHERE seq = 1")
    with pytest.raises(RunError, match="line 1 cannot be read: .* Use the version of Isthmus that wrote it"):
        chain.line(1)
    with pytest.raises(RunError, match="no line says which key signs"):
        charge(chain)
    chain.db.execute("DELETE FROM chain")
    with pytest.raises(RunError, match="it holds no line any more"):
        chain.last()


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER forget AFTER INSERT ON chain BEGIN DELETE FROM chain WHERE seq = new.seq; END",
        "CREATE TRIGGER forget AFTER INSERT ON releases BEGIN DELETE FROM releases; END",
        "CREATE TABLE more (note TEXT)",
        "CREATE VIEW more AS SELECT 1",
        "DROP INDEX charges",
        "DROP INDEX outcomes",
        "CREATE INDEX more ON chain (digest)",
    ],
)
def test_a_file_that_is_built_otherwise_is_not_a_ledger(tmp_path: Path, statement: str) -> None:
    """A trigger could make a charge vanish, a missing index let a question be answered twice: refused, and found."""
    path = tmp_path / "ledger.db"
    Ledger(path, secret=SECRET).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute(statement)
        db.commit()
    with pytest.raises(RunError, match="cannot be used as a ledger: its tables and indexes are not those of this"):
        Ledger(path, secret=SECRET)
    assert rules(path) == {"file"}


def test_a_ledger_that_changes_under_a_running_process_is_noticed(tmp_path: Path) -> None:
    """Somebody else deletes the last line, or writes another one in its place: no charge on top of that."""
    for number, statement in enumerate(
        ("DELETE FROM chain WHERE seq = 3", "UPDATE chain SET digest = x'00' WHERE seq = 3")
    ):
        ledger = Ledger(tmp_path / str(number) / "ledger.db", secret=SECRET)
        for round_ in range(2):
            ledger.charge(charge_of(round_), WIDE)
        assert ledger.epsilon(DELTA) == epsilon([EVENT] * 2, DELTA)
        with closing(sqlite3.connect(ledger.path)) as db:
            db.execute(statement)
            db.commit()
        for use in (lambda: ledger.charge(charge_of(2), WIDE), lambda: ledger.epsilon(DELTA)):  # noqa: B023 - used at once
            with pytest.raises(RunError, match="line 3 is not what it was when this process read it"):
                use()
        ledger.close()


# Constant time.


def filled(path: Path, count: int) -> Ledger:
    """A ledger with that many charges and releases, written in one go."""
    ledger = Ledger(path, secret=SECRET)
    with ledger.chain.transaction():
        for number in range(count):
            line = ledger.chain.append(Charged, {**fields_of(charge_of(number)), "event": '{"kind":"none","v":1}'})
            ledger.chain.append(Released, {"charge": line.seq, "payload": "00" * 32})
            ledger.chain.append(
                RefusedLine,
                {**dict.fromkeys(("run", "kind", "rule", "asked", "limit", "coordinator"), ""), "round": number},
            )
    ledger.spending()
    return ledger


class Steps:
    """Counts what SQLite's virtual machine does: the same on every machine, at every load."""

    def __init__(self) -> None:
        self.taken = 0

    def __call__(self) -> int:
        """One step more."""
        self.taken += 1
        return 0


def steps_of_a_round(ledger: Ledger, number: int) -> int:
    """Steps of everything that a request makes a ledger do: policy, room, charge, keep, refusal, head."""
    steps = Steps()
    ledger.chain.db.set_progress_handler(steps, 1)
    policy = Policy.model_validate(
        {"approved_by": "me", "approved_on": "2026-01-01", "budget": {"epsilon": 50.0, "delta": DELTA}}, strict=False
    )
    assert not ledger.is_charged("run", number, "update")
    ledger.follow(policy.text())
    entry = ledger.charge(dataclasses.replace(charge_of(number), layers=("norm.bias",)), WIDE)
    ledger.keep_release(entry, b"payload")
    ledger.kept_release(entry)
    ledger.refuse(Refused("no", rule="clip"), run="run", round_=number, kind="metric")
    ledger.head()
    ledger.chain.db.set_progress_handler(None, 1)
    return steps.taken


@pytest.mark.slow
def test_appending_takes_the_same_steps_however_long_the_ledger_is(tmp_path: Path) -> None:
    """A round on top of 10,000 others takes at most half more of SQLite's steps than one on top of 100."""
    taken = {}
    for count in (100, 10_000):
        ledger = filled(tmp_path / str(count) / "ledger.db", count)
        steps_of_a_round(ledger, count)  # the first one writes the policy
        taken[count] = steps_of_a_round(ledger, count + 1)
        ledger.close()
    assert 0 < taken[10_000] <= 1.5 * taken[100]


def test_every_question_is_answered_by_an_index(tmp_path: Path) -> None:
    """All statements that a round runs, as they are run: none of them scans a table."""
    ledger = filled(tmp_path / "ledger.db", 10)
    statements: list[str] = []
    ledger.chain.db.set_trace_callback(statements.append)
    steps_of_a_round(ledger, 10)
    ledger.chain.db.set_trace_callback(None)
    asked = [statement for statement in statements if statement.startswith(("SELECT", "DELETE"))]
    plans = {
        statement: " ".join(str(row[3]) for row in ledger.chain.db.execute(f"EXPLAIN QUERY PLAN {statement}"))
        for statement in asked
    }
    ledger.close()
    assert len(plans) >= 10
    # The last line is read from the end of the table; the line last in force from the end of its index.
    scans = {plan for plan in plans.values() if "SCAN" in plan}
    assert scans <= {
        "SCAN chain",
        "SCAN chain USING INDEX chain_keys",
        "SCAN chain USING INDEX policies",
        "SCAN floods",  # which holds one row at most
    }
    assert all("LIMIT 1" in statement for statement, plan in plans.items() if "SCAN" in plan)
    for index in ("charges", "outcomes", "refusals", "days", "policies", "layers", "chain_keys", "kept"):
        assert any(f"USING INDEX {index}" in plan or f"INDEX {index}" in plan for plan in plans.values()), index


def test_a_closed_ledger_leaves_only_its_two_files(tmp_path: Path) -> None:
    """A copy of these two is a copy of the ledger."""
    ledger = filled(tmp_path / "ledger.db", 2)
    ledger.close()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["ledger.db", "ledger.key"]
    assert len(read_links(tmp_path / "ledger.db")) == 7
    assert key_path(tmp_path / "ledger.db").name == "ledger.key"
