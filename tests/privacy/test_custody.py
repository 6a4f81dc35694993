"""A ledger and its keys: made once, changed without a gap, whatever moment a process dies at."""

import os
import signal
import sqlite3
from pathlib import Path

import pytest
from tests.privacy.conftest import DELTA, EVENT, FORK, OTHER_SECRET, SECRET, WIDE, charge_of, content, copy_of, rules

from isthmus.errors import RunError
from isthmus.privacy import custody
from isthmus.privacy.accounting import epsilon
from isthmus.privacy.chain import Chain
from isthmus.privacy.custody import key_path, open_chain, revoke_key, rotate_key
from isthmus.privacy.keys import Secret, claimed_key, fresh_keys, open_keys, save_keys
from isthmus.privacy.ledger import Ledger
from isthmus.privacy.lines import Rotated

# Real processes are what is tested; newer Pythons warn of a fork beside the threads of a numerical library.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

FILES = ["ledger.db", "ledger.key"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger with one charge, closed."""
    path = tmp_path / "books" / "ledger.db"
    ledger = Ledger(path, secret=SECRET)
    ledger.charge(charge_of(0), WIDE)
    ledger.close()
    return path


def names(path: Path) -> list[str]:
    """Files beside a ledger, itself included."""
    return sorted(file.name for file in path.parent.iterdir())


# Making and opening.


def test_a_ledger_and_its_key_are_made_together(path: Path) -> None:
    """Two files, and what is opened again is the same."""
    assert names(path) == FILES
    ledger = Ledger(path, secret=SECRET)
    assert open_keys(key_path(path), SECRET).public == ledger.chain.key_in_force()
    ledger.close()


def test_a_ledger_that_is_missing_beside_its_key_is_not_made_anew(path: Path) -> None:
    """Deleted, emptied, or emptied of its tables: a new one would forget what was spent."""
    path.unlink()
    with pytest.raises(RunError, match="this ledger is missing, and its key ledger.key is there. Restore the ledger"):
        Ledger(path, secret=SECRET)
    assert names(path) == ["ledger.key"]
    path.touch()
    with pytest.raises(RunError, match="cannot be used as a ledger: it has no table of lines"):
        Ledger(path, secret=SECRET)
    assert path.stat().st_size == 0


def test_a_key_that_is_missing_beside_its_ledger_is_not_made_anew(path: Path) -> None:
    """Its lines could not be continued."""
    key_path(path).unlink()
    with pytest.raises(RunError, match="the ledger's key is missing"):
        Ledger(path, secret=SECRET)
    assert names(path) == ["ledger.db"]


def test_another_ledgers_key_is_refused(path: Path) -> None:
    """Opened by the right secret, and still not the one that signed these lines."""
    save_keys(key_path(path), fresh_keys(), SECRET)
    with pytest.raises(RunError, match=r"ledger\.key: holds key [0-9a-f]{16}, and the ledger's lines are signed by"):
        Ledger(path, secret=SECRET)


def test_a_wrong_secret_opens_nothing_and_changes_nothing(path: Path) -> None:
    """Both files stay as they are."""
    before = [(path.parent / name).read_bytes() for name in FILES]
    with pytest.raises(RunError, match="another key file does not open it"):
        Ledger(path, secret=OTHER_SECRET)
    assert [(path.parent / name).read_bytes() for name in FILES] == before


def test_a_place_where_nothing_can_be_made_is_said_in_words(tmp_path: Path) -> None:
    """A file where a folder should be."""
    (tmp_path / "books").write_text("not a folder")
    with pytest.raises(RunError, match="a ledger cannot be made there: "):
        Ledger(tmp_path / "books" / "ledger.db", secret=SECRET)


# Changing keys.


def test_after_a_rotation_the_new_key_signs(path: Path) -> None:
    """The old one is nowhere any more, the chain says what happened, and the data is the same data as before."""
    ledger = Ledger(path, secret=SECRET)
    old = ledger.chain.keys
    rotate_key(ledger.chain, SECRET, reason="yearly\nforged line")
    entry = ledger.charge(charge_of(1), WIDE)
    assert ledger.chain.last().key == ledger.chain.keys.public != old.public
    assert [known.dataset for known in content(ledger)] == [entry.dataset] * 2
    rotated = ledger.chain.line(3)
    assert isinstance(rotated, Rotated)
    assert (rotated.key, rotated.reason) == (ledger.chain.keys.public.hex(), "yearly forged line")
    ledger.close()
    assert names(path) == FILES
    for file in path.parent.iterdir():
        assert old.signing.private_bytes_raw() not in file.read_bytes()
    assert open_keys(key_path(path), SECRET).public != old.public
    Ledger(path, secret=SECRET).close()


def test_a_rotation_can_change_the_secret(path: Path) -> None:
    """From a key file to a passphrase: afterwards only the new one opens it."""
    phrase = Secret(content=b"correct horse battery", stretch=True, source="the passphrase")
    ledger = Ledger(path, secret=SECRET)
    rotate_key(ledger.chain, phrase, reason="passphrases from now on")
    ledger.close()
    with pytest.raises(RunError, match="sealed with a passphrase, and a key file was given"):
        Ledger(path, secret=SECRET)
    Ledger(path, secret=phrase).close()


def test_a_rotation_under_another_process_is_a_clear_error_there(path: Path) -> None:
    """It neither charges nor rotates with the key that it still has; opened again it goes on."""
    mine, other = Ledger(path, secret=SECRET), Ledger(path, secret=SECRET)
    rotate_key(other.chain, SECRET, reason="yearly")
    for use in (
        lambda: mine.charge(charge_of(1), WIDE),
        lambda: rotate_key(mine.chain, SECRET, reason="me too"),
        lambda: revoke_key(mine.chain, SECRET, since=1, reason="me too"),
    ):
        with pytest.raises(RunError, match="it was rotated meanwhile. Start again"):
            use()
    mine.close()
    other.charge(charge_of(1), WIDE)
    other.close()
    assert names(path) == FILES
    again = Ledger(path, secret=SECRET)
    assert len(content(again)) == 2
    again.close()


def test_lines_of_a_key_that_was_replaced_cannot_be_revoked_with_the_one_in_force(path: Path) -> None:
    """They are not its lines: nothing would be doubted, and the answer would say that something is."""
    ledger = Ledger(path, secret=SECRET)
    rotate_key(ledger.chain, SECRET, reason="yearly")
    rotated = ledger.chain.last().seq
    with pytest.raises(RunError, match=rf"from {rotated + 1}, the first that the key in force signed"):
        revoke_key(ledger.chain, SECRET, since=rotated, reason="lost")
    revoke_key(ledger.chain, SECRET, since=rotated + 1, reason="lost")
    ledger.close()


@pytest.mark.parametrize("since", [0, -1, 4, 10**9])
def test_a_revocation_names_a_line_that_is_there(path: Path, since: int) -> None:
    """Or the next one; anything else changes nothing."""
    ledger = Ledger(path, secret=SECRET)
    with pytest.raises(RunError, match=rf"must be a line from 1, .* to 3, the next one; got {since}"):
        revoke_key(ledger.chain, SECRET, since=since, reason="lost")
    assert ledger.chain.last().seq == 2
    ledger.close()
    assert names(path) == FILES


def test_a_rotation_that_cannot_be_written_changes_nothing(path: Path) -> None:
    """No room for the new key, no room in the chain: the old key goes on, and no half-made key lies around."""
    ledger = Ledger(path, secret=SECRET)
    blocked = path.with_name("ledger.key.next.part")
    blocked.mkdir()
    with pytest.raises(RunError, match="the ledger's key cannot be written"):
        rotate_key(ledger.chain, SECRET, reason="yearly")
    blocked.rmdir()
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    ledger.chain.db.execute("PRAGMA busy_timeout = 50")
    with pytest.raises(RunError, match="the ledger cannot be written: database is locked"):
        rotate_key(ledger.chain, SECRET, reason="yearly")
    holder.execute("ROLLBACK")
    holder.close()
    ledger.charge(charge_of(1), WIDE)
    ledger.close()
    assert names(path) == FILES
    Ledger(path, secret=SECRET).close()


# Dying in the middle.


class Dying(Chain):
    """A chain whose process dies at a step of its transaction: real, and then SIGKILL."""

    step = ""

    def append(self, *args: object, **kwargs: object) -> object:  # type: ignore[override]
        """Add a line, and die before or after."""
        die_if(self.step == "before the line")
        line = super().append(*args, **kwargs)  # type: ignore[arg-type]
        die_if(self.step == "before the commit")
        return line


def die_if(condition: bool) -> None:
    """As by kill -9."""
    if condition:
        os.kill(os.getpid(), signal.SIGKILL)


STEPS = ("before the key", "before the line", "before the commit", "before the name", "after the name")


NAME = Path.replace


def die(*args: object, **kwargs: object) -> None:
    """In the place of a step."""
    die_if(True)


def die_at_the_name(self: Path, target: Path) -> Path:
    """Rename a file; a key that is to get its name is not."""
    die_if(self.name.endswith(".next"))
    return NAME(self, target)


def rotate_and_die(path: Path, step: str, secret: Secret, since: int | None) -> None:
    """Change the key of a ledger, and die at a step; runs in a process of its own, so nothing is put back."""
    ledger = Ledger(path, secret=SECRET)
    ledger.chain.__class__ = Dying
    Dying.step = step
    if step == "before the key":
        custody.save_keys = die
    if step == "before the name":
        Path.replace = die_at_the_name  # type: ignore[method-assign, assignment]
    if since is None:
        rotate_key(ledger.chain, secret, reason="yearly")
    else:
        revoke_key(ledger.chain, secret, since=since, reason="lost")
    die()


@pytest.mark.parametrize("since", [None, 3])
@pytest.mark.parametrize("secret", [SECRET, OTHER_SECRET])
@pytest.mark.parametrize("step", STEPS)
def test_a_rotation_killed_at_any_step_leaves_a_ledger_that_opens(
    path: Path, step: str, secret: Secret, since: int | None
) -> None:
    """With the old secret before the chain has the new key, with the new one after: always with one of them."""
    before = claimed_key(key_path(path))
    process = FORK.Process(target=rotate_and_die, args=(path, step, secret, since))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    changed = step in {"before the name", "after the name"}
    ledger = Ledger(path, secret=secret if changed else SECRET)
    assert (ledger.chain.key_in_force() != before) == changed
    ledger.charge(charge_of(1), WIDE)
    assert ledger.epsilon(DELTA) == epsilon([EVENT] * 2, DELTA)
    rotate_key(ledger.chain, SECRET, reason="and it can be rotated again")
    ledger.close()
    assert names(path) == FILES
    assert rules(path) == set()
    Ledger(path, secret=SECRET).close()


def test_a_living_process_does_not_write_over_the_key_of_one_that_died(path: Path) -> None:
    """One died after the chain had its key and before the key had its name; another still holds the old one."""
    living = Ledger(path, secret=SECRET)
    process = FORK.Process(target=rotate_and_die, args=(path, "before the name", SECRET, None))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with pytest.raises(RunError, match="it was rotated meanwhile"):
        rotate_key(living.chain, SECRET, reason="me too")
    living.close()
    Ledger(path, secret=SECRET).close()
    assert names(path) == FILES


def make_and_die(path: Path, step: str) -> None:
    """Make a ledger, and die at a step; runs in a process of its own, so nothing is put back."""
    if step == "before the chain":
        custody.Chain = die  # type: ignore[assignment, misc]
    if step == "before its tables":
        Chain._create = die  # type: ignore[method-assign, assignment]
    if step == "before its commit":
        Chain._insert = die  # type: ignore[method-assign, assignment]
    if step == "before the name":
        Path.replace = die_at_the_name  # type: ignore[method-assign, assignment]
    Ledger(path, secret=SECRET)
    die()


@pytest.mark.parametrize(
    "step", ["before the chain", "before its tables", "before its commit", "before the name", "after the name"]
)
def test_a_ledger_whose_making_was_killed_is_made_at_the_next_start(tmp_path: Path, step: str) -> None:
    """With the key that was on disk first: the first line, if there is one, is signed by it."""
    path = tmp_path / "books" / "ledger.db"
    process = FORK.Process(target=make_and_die, args=(path, step))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (file,) = path.parent.glob("ledger.key*")
    first = claimed_key(file)
    ledger = Ledger(path, secret=SECRET)
    assert ledger.chain.key_in_force() == first
    ledger.charge(charge_of(), WIDE)
    ledger.close()
    assert names(path) == FILES
    assert rules(path) == set()


class Interrupted:
    """A database at whose commit somebody presses Ctrl-C: just before it, or just after."""

    def __init__(self, real: sqlite3.Connection, when: str) -> None:
        self._real = real
        self._when = when

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)

    def execute(self, sql: str, *parameters: tuple[object, ...]) -> sqlite3.Cursor:
        """Run it, or not."""
        if sql == "COMMIT" and self._when == "before":
            raise KeyboardInterrupt
        cursor = self._real.execute(sql, *parameters)
        if sql == "COMMIT":
            raise KeyboardInterrupt
        return cursor


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interrupt_at_the_commit_loses_no_key(path: Path, when: str) -> None:
    """Ctrl-C just before the chain has the new key, or just after: the key in force is on disk under its name."""
    ledger = Ledger(path, secret=SECRET)
    real = ledger.chain.db
    ledger.chain.db = Interrupted(real, when)  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        rotate_key(ledger.chain, SECRET, reason="yearly")
    ledger.chain.db = real
    ledger.close()
    assert names(path) == FILES
    again = Ledger(path, secret=SECRET)
    assert again.chain.last().seq == (2 if when == "before" else 3)
    again.charge(charge_of(1), WIDE)
    again.close()


def test_a_copy_with_its_key_is_the_same_ledger(path: Path, tmp_path: Path) -> None:
    """Both files together can be moved to another machine, with the secret."""
    copy = copy_of(path, tmp_path / "moved")
    here, there = Ledger(path, secret=SECRET), Ledger(copy, secret=SECRET)
    assert here.head() == there.head()
    here.close()
    there.close()


def test_a_chain_of_a_coordinator_has_keys_too(tmp_path: Path) -> None:
    """The same rules, under its own name."""
    path = tmp_path / "heads.db"
    open_chain(path, owner="coordinator", name="c", secret=SECRET).close()
    assert names(path) == ["heads.db", "heads.key"]
    path.unlink()
    with pytest.raises(RunError, match="this ledger is missing, and its key heads.key is there"):
        open_chain(path, owner="coordinator", name="c", secret=SECRET)
