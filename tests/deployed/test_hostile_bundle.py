"""A coordinator that ships hostile code to real nodes gets policy-checked releases of vaults, and nothing else."""

import json
from pathlib import Path

import pytest
from tests.conftest import TinyDomain, TinyFederation
from tests.deployed.deployment import Deployment, eventually
from tests.hostile.attack import ROUNDS
from tests.other_user import needs_root

from isthmus.privacy.kit import read_kit
from isthmus.server.deploy.bundle import Bundle, make_bundle
from isthmus.server.deploy.runs import begin_run, progress_of
from isthmus.strategies.guarded import EXHAUSTED, OK

HERE = Path(__file__).parent
SECRET = "correct horse"  # noqa: S105 - of nobody
USERS = {"books": 65534, "games": 1}

pytestmark = [pytest.mark.slow, pytest.mark.deployed, needs_root]


def hostile(folders: dict[str, Path]) -> Bundle:
    """A bundle with the attack, and with what an attacker may have heard: where each domain's data lie."""
    files = {
        "hostile_client.py": (HERE / "hostile_client.py").read_bytes(),
        "attack.py": (HERE.parent / "hostile" / "attack.py").read_bytes(),
        "targets.py": f"TARGETS = { ({name: str(folder) for name, folder in folders.items()})!r}\n".encode(),
    }
    return make_bundle(files, clientapp="hostile_client:app")


def test_a_shipped_attack_gets_nothing_but_policy_checked_releases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two units, each node a user of its own: no file, no key, no variable of the vault's, no neighbour.

    `books` answers anybody within its budget, which the attack spends; `games` names its coordinator, so that only
    what that one really asks is answered. The round goes on in both, and the ledgers say what was refused.
    """
    monkeypatch.setenv("DATABASE_PASSWORD", SECRET)  # of whoever types `isthmus join`; the vault has it, too
    with Deployment() as deployed:
        file = TinyFederation(TinyDomain(deployed.folder))(evaluate_every=0, seed=None)
        folders = {name: deployed.folder / name for name in USERS}
        deployed.up(domains=2, extra="deadline = 240\njoining = 60\n")
        assert deployed.config is not None
        kits = {name: deployed.invite(name) for name in USERS}
        coordinator = read_kit(kits["games"])[0].key
        (folders["games"] / "policy.toml").write_text(
            f'approved_by = "Ada"\napproved_on = 2026-01-31\n[budget]\nepsilon = 8.0\ndelta = 1e-6\n'
            f'[allow]\ncoordinators = ["{coordinator}"]\n'
        )
        for name, user in USERS.items():
            folders[name].chmod(0o700)
            deployed.join(name, folders[name], kit=kits[name], user=user)
        run = begin_run(deployed.config, file, rounds=2, seed=None, bundle=hostile(folders))
        config = deployed.config
        eventually(lambda: progress_of(config, run).over, 240, f"the run is over\n{deployed.logs()}")
        ended = progress_of(config, run)
        assert ended.state is not None, deployed.logs()
        first, second = (
            {name: outcome.status for name, outcome in record.outcomes.items()} for record in ended.state.history
        )
        assert first == {"books": OK, "games": OK}, ended.state.history
        assert second == {"books": EXHAUSTED, "games": OK}

        got = {name: json.loads((deployed.folder / "units" / name / "node" / "got.json").read_text()) for name in USERS}
        for name, user in USERS.items():
            assert got[name]["user"] == user
            assert (got[name]["read"], got[name]["written"], got[name]["neighbours"]) == ([], [], [])
            assert SECRET not in got[name]["environment"].values()
            assert not any(variable.startswith("ISTHMUS_") for variable in got[name]["environment"])
            assert got[name]["methods"]["ReadTable"] == "UNIMPLEMENTED"
            assert "is not signed by the coordinator" in got[name]["signed"]
            said = json.dumps(got[name]["answers"] | got[name]["refusals"]) + got[name]["described"]
            for word in (f"{name}-user-", "interactions.csv", str(folders[name]), "an error in the domain"):
                assert word not in said
            books = deployed.books(folders[name])
            assert books.findings == ()
            assert all(entry.private for entry in books.entries)
            assert got[name]["epsilon"] <= 8.0

        # books: releases of rounds that nobody needs, each charged, until nothing is left.
        updates = [what for what, released in got["books"]["answers"].items() if "users" not in released]
        assert updates == ["the first time", *(f"round {number}" for number in range(2, len(updates) + 1))]
        charged = [entry for entry in deployed.books(folders["books"]).entries if entry.kind == "update"]
        assert len(charged) == 1 + len(updates) < ROUNDS
        for what in ("other layers", "missing layers", "infinite"):
            assert "parameter" in got["books"]["refusals"][what]
        assert "A round is answered once" in got["books"]["refusals"]["the same round, otherwise"]
        assert "is spent" in got["books"]["refusals"][f"round {ROUNDS - 1}"]
        assert "is spent" in got["books"]["methods"]["Train"]
        rules = {line.rule for line in deployed.books(folders["books"]).refusals}
        assert {"signature", "replay", "budget", "request"} <= rules

        # games: the two rounds that the coordinator asked for.
        assert got["games"]["answers"] == {}
        ledger = deployed.books(folders["games"])
        assert [(entry.run, entry.round) for entry in ledger.entries if entry.kind == "update"] == [
            (run.run, 1),
            (run.run, 2),
        ]
        assert {"signature", "coordinators"} <= {line.rule for line in ledger.refusals}
