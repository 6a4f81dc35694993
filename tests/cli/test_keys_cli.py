"""`isthmus keys`: who signs a ledger, and how that changes."""

import json
import sqlite3
from pathlib import Path

import pytest
from tests.cli.called import Caller
from tests.privacy.audited import Federation


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """A ledger that a test may change."""
    federation = Federation(tmp_path)
    federation.run("run")
    federation.close()
    return federation.path("books")


def public(ledger: Path) -> str:
    """The key that its key file says."""
    return str(json.loads(ledger.with_suffix(".key").read_text())["public"])


def test_show_needs_no_secret(isthmus: Caller, ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The public key, whole, on one line; of a folder the ledger in it; as JSON."""
    monkeypatch.setenv("ISTHMUS_PASSPHRASE", "not the one that opens it")
    done = isthmus("keys", "show", ledger)
    assert (done.code, done.out) == (0, f"{public(ledger)}  from line 1, in force\n")
    (record,) = json.loads(isthmus("keys", "show", ledger, "--json").out)
    assert record["key"] == public(ledger)


def test_rotate_puts_another_key_in_force(isthmus: Caller, ledger: Path) -> None:
    """Old and new are printed; the ledger stays sound; further rotations go on from there."""
    old = public(ledger)
    done = isthmus("keys", "rotate", ledger, "--reason", "yearly")
    assert done.code == 0
    assert old in done.out
    assert public(ledger) in done.out
    assert public(ledger) != old
    assert isthmus("verify", ledger).code == 0
    assert isthmus("keys", "rotate", ledger, "--reason", "again").code == 0
    shown = isthmus("keys", "show", ledger).out.splitlines()
    assert [line.split(", ")[1] for line in shown] == ["replaced", "replaced (yearly)", "in force (again)"]


def test_a_revoked_key_is_a_finding_from_then_on(isthmus: Caller, ledger: Path) -> None:
    """What it signed from the line on is not believed, and the audit says what that means."""
    old = public(ledger)
    assert isthmus("keys", "revoke", ledger, "--since", 5, "--reason", "laptop stolen").code == 0
    assert f"{old}  from line 1, revoked from line 5 on" in isthmus("keys", "show", ledger).out
    done = isthmus("audit", ledger)
    assert done.code == 1
    assert "revoked" in done.out


def test_the_coordinators_key_is_changed_in_the_same_way(isthmus: Caller, ledger: Path) -> None:
    """Its log is a chain like any other."""
    log = ledger.parents[1] / "heads.db"
    old = public(log)
    assert isthmus("keys", "rotate", log, "--reason", "yearly").code == 0
    assert public(log) != old
    assert isthmus("verify", log).code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show", "{folder}/nowhere.db"], "no such file"),
        (["show", "{folder}"], "ledger.db"),
        (["revoke", "{ledger}", "--since", "999", "--reason", "x"], "`since` must be a line"),
        (["rotate", "{ledger}"], "Missing option '--reason'"),
    ],
)
def test_wrong_use_is_exit_2(isthmus: Caller, ledger: Path, arguments: list[str], words: str) -> None:
    """No such ledger, no such line, no reason; nothing is made or changed."""
    before = public(ledger)
    done = isthmus("keys", *(word.format(ledger=ledger, folder=ledger.parent) for word in arguments))
    assert done.code == 2
    assert words in done.err
    assert public(ledger) == before
    assert not (ledger.parent / "nowhere.db").exists()


def test_a_wrong_secret_changes_nothing(isthmus: Caller, ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key file stays what it was."""
    before = ledger.with_suffix(".key").read_bytes()
    monkeypatch.setenv("ISTHMUS_PASSPHRASE", "not the one that opens it")
    done = isthmus("keys", "rotate", ledger, "--reason", "x")
    assert done.code == 2
    assert "ISTHMUS_PASSPHRASE" in done.err
    assert ledger.with_suffix(".key").read_bytes() == before


def test_the_keys_of_a_changed_ledger_are_not_touched(isthmus: Caller, ledger: Path) -> None:
    """Somebody else's chain is not signed on."""
    db = sqlite3.connect(ledger)
    db.execute("UPDATE chain SET body = replace(body, '1.9', '9.9') WHERE seq = 6")
    db.commit()
    db.close()
    done = isthmus("keys", "rotate", ledger, "--reason", "x")
    assert done.code == 2
    assert "changed by somebody else" in done.err
