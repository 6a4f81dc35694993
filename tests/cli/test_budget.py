"""`isthmus budget`: one line per data set that a script can read."""

import json
import sqlite3
from pathlib import Path

from dp_accounting.pld import PLDAccountant
from tests.cli.called import Caller
from tests.privacy.audited import DELTA, METRIC, UPDATE, Federation

from isthmus.privacy.budget import PrivacyBudget
from isthmus.privacy.entries import Charge, Limits
from isthmus.privacy.ledger import Ledger


def test_one_line_per_data_set_with_seven_columns(isthmus: Caller, books: Federation) -> None:
    """Name, spent, left, limit, delta, more rounds, path; the numbers are dp_accounting's."""
    done = isthmus("budget", books.folder)
    assert done.code == 0
    lines = [line.split("\t") for line in done.out.splitlines()]
    assert [line[0] for line in lines] == ["books", "music"]
    assert [line[6] for line in lines] == [str(books.path(name)) for name in ("books", "music")]
    spent = float(PLDAccountant().compose(UPDATE, 5).compose(METRIC, 2).get_epsilon(DELTA))
    name, said, left, limit, delta, rounds, _ = lines[1]
    assert (name, limit, float(delta)) == ("music", "6", DELTA)
    assert abs(float(said) - spent) < 2e-3
    assert abs(float(said) + float(left) - 6.0) < 2e-4
    assert int(rounds) > 0
    assert [line["name"] for line in json.loads(isthmus("budget", books.folder, "--json").out)] == ["books", "music"]


def test_what_is_not_known_is_a_dash(isthmus: Caller, tmp_path: Path) -> None:
    """No policy: no limit, nothing left, no rounds; the columns stay."""
    ledger = Ledger(tmp_path / "ledger.db", name="data")
    charge = Charge(dataset=b"d", run="run", round=1, kind="update", request=b"r", event=UPDATE, private=True)
    ledger.charge(charge, Limits(lifetime=PrivacyBudget(9.0, DELTA)))
    ledger.close()
    done = isthmus("budget", ledger.path, "--delta", "1e-5")
    assert done.code == 0
    name, _, left, limit, delta, rounds, _ = done.out.rstrip("\n").split("\t")
    assert (name, left, limit, delta, rounds) == ("data", "-", "-", "1e-05", "-")


def test_at_another_delta_there_is_no_limit_to_compare_with(isthmus: Caller, books: Federation) -> None:
    """Spent is stated at it; limit and left, which hold at the policy's, are dashes; rounds are the policy's."""
    plain = isthmus("budget", books.path("books")).out.split("\t")
    name, spent, left, limit, delta, rounds, _ = isthmus("budget", books.path("books"), "--delta", "1e-9").out.split(
        "\t"
    )
    assert (name, left, limit, delta, rounds) == ("books", "-", "-", "1e-09", plain[5])
    assert float(spent) > float(plain[1])


def test_a_ledger_that_cannot_be_believed_is_exit_1(isthmus: Caller, cut: Path) -> None:
    """Its receipts contradict it; the line is printed, the reason on stderr."""
    path = cut / "ledgers" / "books.db"
    _edit(path)
    done = isthmus("budget", cut)
    assert done.code == 1
    assert len(done.out.splitlines()) == 2
    assert "books.db" in done.err
    assert isthmus("budget", cut / "nowhere").code == 2


def _edit(path: Path) -> None:
    """Change a line."""
    db = sqlite3.connect(path)
    db.execute("UPDATE chain SET body = replace(body, '1.9', '9.9') WHERE seq = 6")
    db.commit()
    db.close()
