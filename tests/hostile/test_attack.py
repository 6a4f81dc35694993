"""Code that a coordinator ships gets policy-checked releases and nothing else; the ledger shows the refusals."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.clients.test_app import Party
from tests.clients.vault_process import running
from tests.conftest import TinyFederation
from tests.hostile.attack import ROUNDS
from tests.other_user import as_user, needs_root

from isthmus.clients.connection import leave_simulation
from isthmus.privacy.reading import read_ledger

ROOT = Path(__file__).parents[2]
NOBODY = 65534

pytestmark = [pytest.mark.slow, needs_root]


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that everybody may walk through, in which the domain's own is closed."""
    folder = Path(tempfile.mkdtemp(prefix="isthmus-hostile-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def attacked(party: Party, place: Path, *, before: Sequence[str]) -> dict[str, Any]:
    """What the attack says that it got; `before` are the words that make another user of it."""
    request = party.request()
    arrays = {f"a.{name}": array for name, array in request.arrays.items()}
    whitening = {f"w.{name}": array for name, array in request.whitening.items()}
    file = place / "request.npz"
    np.savez(file, recipe=np.array(request.recipe.model_dump_json()), **arrays, **whitening)
    file.chmod(0o644)
    domain = place / "domain"
    shutil.copytree(party.folder, domain)
    domain.chmod(0o700)
    (place / "socket").mkdir(mode=0o755)
    options = ("--socket", str(place / "socket" / "v.sock"), "--group", "nogroup")
    with running(domain, *options, log=place / "vault.log") as vault:
        done = subprocess.run(
            [*before, sys.executable, "tests/hostile/attack.py", vault.address, str(domain), str(file)],
            cwd=ROOT,
            env={"PYTHONPATH": str(ROOT / "src"), "PATH": os.environ["PATH"], "FLWR_TELEMETRY_ENABLED": "0"},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert vault.remote().name == "books"  # it is still there
        assert vault.stop() == 0
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_hostile_bundle_gets_nothing_but_policy_checked_releases(
    tiny_federation: TinyFederation, tmp_path: Path, place: Path
) -> None:
    """It reads and writes no file of the domain; answers are noisy releases within the budget; the rest is refused."""
    party = Party(tiny_federation(domains={"books": 40}, seed=None), tmp_path / "run")
    got = attacked(party, place, before=as_user(NOBODY))
    leave_simulation(party.plan)
    # Files, keys and processes of the domain.
    assert (got["read"], got["written"]) == ([], [])
    # What was answered: one update for the first question of a round, until the budget was spent, and no more.
    updates = [what for what, names in got["answers"].items() if "users" not in names]
    assert updates[0] == "the first time"
    assert updates[1:] == [f"round {number}" for number in range(2, len(updates) + 1)]
    assert 4 <= len(updates) < ROUNDS - 1
    assert got["epsilon"] <= 8.0
    books = read_ledger(place / "domain" / "ledger.db")
    assert books.findings == ()
    assert sum(entry.kind == "update" for entry in books.entries) == len(updates)
    assert all(entry.private for entry in books.entries)
    # What was refused, and that the ledger says so.
    for what in ("other layers", "missing layers", "infinite"):
        assert "parameter" in got["refusals"][what]
    assert "is not signed by the coordinator" in got["refusals"]["another's signature"]
    assert "cannot be written into a ledger" in got["refusals"]["a path for a name"]
    for what in ("the same round, otherwise", "the same round, another recipe"):
        assert "A round is answered once" in got["refusals"][what]
    assert "is spent" in got["refusals"][f"round {ROUNDS - 1}"]
    assert {"signature", "replay", "budget", "request"} <= {line.rule for line in books.refusals}
    # Methods and fields that are not there.
    assert got["methods"]["ReadTable"] == "UNIMPLEMENTED"
    assert "is spent" in got["methods"]["Train"]
    assert b"interactions" not in bytes.fromhex(got["methods"].get("http", ""))
    for word in ("books-user-", "interactions.csv", str(place)):
        assert word not in json.dumps(got["answers"] | got["refusals"]) + got["described"]
    assert "an error in the domain" not in json.dumps(got)


def test_the_same_attack_by_the_vaults_own_user_is_seen(
    tiny_federation: TinyFederation, tmp_path: Path, place: Path
) -> None:
    """What holds it off is that its user is another one: as the same one it reads everything, and the check sees it."""
    party = Party(tiny_federation(domains={"books": 40}, seed=None), tmp_path / "run")
    got = attacked(party, place, before=())
    leave_simulation(party.plan)
    assert {line.split(":")[0] for line in got["read"]} >= {"interactions.csv", "ledger.key", "domain"}
    assert "ledger.db" in got["written"]
