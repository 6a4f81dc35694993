"""Three business units with real data, deployed: processes and users of their own, TLS, the simulation's backbone."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from tests.clients.test_delivery import Silent
from tests.deployed.deployment import Deployment
from tests.other_user import needs_root

from isthmus.backbone_file import load_backbone
from isthmus.config import load_federation, seeded_run
from isthmus.privacy.accounting import epsilon
from isthmus.privacy.reading import read_ledger
from isthmus.server.checkpoint import load_checkpoint
from isthmus.simulation import prepare, run

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
NOBODY = 65534
SEED = 5
ROUNDS = 3

pytestmark = [pytest.mark.slow, pytest.mark.deployed, needs_root]

FEDERATION = """name = "three"
domains = ["../office", "../industrial", "../yelp"]
seed = 5

[features]
encoder = "hash:256"
dim = 32

[backbone]
width = 16
layers = 1
heads = 2
feedforward = 32
positions = 20

[training]
rivals = 50

[evaluation]
bootstrap = 100
max_users = 200

[strategy]
rounds = 3
evaluate_every = 3
"""


def domain(place: Path, name: str) -> Path:
    """A closed folder that points to a real table; of Yelp, to its first thousand users and what they visited."""
    folder = place / name
    folder.mkdir(mode=0o700)
    template = (ROOT / "benchmarks/federations/domains" / f"{name}.toml").read_text(encoding="utf-8")
    text = template.replace("{data}", str(DATA))
    if name == "yelp":
        with gzip.open(DATA / "yelp/seq.tsv.gz", "rt", encoding="utf-8") as table:
            rows = [next(table) for _ in range(1000)]
        seen = {item for row in rows for item in row.rstrip("\n").split("\t", 1)[1].split()}
        with gzip.open(DATA / "yelp/items.tsv.gz", "rt", encoding="utf-8") as table:
            items = [row for number, row in enumerate(table) if number == 0 or row.split("\t", 1)[0] in seen]
        (folder / "seq.tsv").write_text("".join(rows), encoding="utf-8")
        (folder / "items.tsv").write_text("".join(items), encoding="utf-8")
        text = text.replace(f"{DATA}/yelp/seq.tsv.gz", "seq.tsv").replace(f"{DATA}/yelp/items.tsv.gz", "items.tsv")
        text = text.replace("expected_batch = 7500.0", "expected_batch = 250.0")
    (folder / "domain.toml").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.realdata
@pytest.mark.skipif(not (DATA / "yelp/seq.tsv.gz").exists(), reason="the real data sets are not beside the checkout")
def test_three_business_units_end_as_the_simulation_does_and_their_books_are_clean(tmp_path: Path) -> None:
    """Same backbone to 1e-5, same charges, three rounds, nothing found in three audits; then they fit and leave."""
    with Deployment() as deployed:
        folders = {name: domain(deployed.folder, name) for name in ("office", "industrial", "yelp")}
        deployed.up(domains=3)
        assert deployed.config is not None
        file = deployed.config.folder / "federation.toml"
        file.write_text(FEDERATION)
        for name, folder in folders.items():
            options = ("--seed", str(SEED), "--ledger", str(folder / "ledger.db"))
            deployed.join(name, folder, *options, user=NOBODY)
        said = deployed.call("server", "run", file)
        assert f"{ROUNDS} of {ROUNDS} rounds" in said
        there = deployed.config.state_folder / "runs" / seeded_run(load_federation(file))

        # The same federation in one process.
        simulation = prepare(file, out=tmp_path / "run", backend="in-process")
        assert simulation.run == there.name
        run(simulation, Silent())
        digest = load_federation(file).digest()
        here, alone = (
            load_checkpoint(path / "checkpoint.safetensors", run=there.name, digest=digest)
            for path in (there, simulation.out)
        )
        assert here is not None
        assert alone is not None
        for name, array in alone.arrays.items():
            assert np.allclose(here.arrays[name], array, atol=1e-5)
        gains = [record.gain for record in alone.history]
        assert [record.gain for record in here.history] == pytest.approx(gains, abs=1e-5)
        shipped = (load_backbone(path / "backbone.safetensors") for path in (there, simulation.out))
        assert len({one.round for one in shipped}) == 1

        # The books.
        for name, folder in folders.items():
            entries = deployed.books(folder).entries
            assert sum(entry.kind == "update" and entry.released for entry in entries) == ROUNDS
            simulated = read_ledger(simulation.out / "ledgers" / f"{name}.db").entries
            assert [(e.round, e.kind, e.event) for e in entries] == [(e.round, e.kind, e.event) for e in simulated]
            assert 0 < epsilon([entry.event for entry in entries], 1e-6) <= 8.0
        heads = deployed.config.heads_log
        audit = deployed.call("audit", *folders.values(), "--heads", heads, "--out", tmp_path / "audit.json")
        assert "Nothing was found wrong in 3 data sets" in " ".join(audit.split())
        deployed.call("verify", tmp_path / "audit.json")

        # What is left at each unit: the backbone, for its private head.
        for name, folder in folders.items():
            delivered = folder / "delivered" / name / "backbone.safetensors"
            assert delivered.read_bytes() == (there / "backbone.safetensors").read_bytes()
        fitted = json.loads(deployed.call("fit", folders["yelp"], "--out", tmp_path / "serving", "--json"))
        assert fitted["run"] == there.name
        deployed.call("leave", folders["yelp"], "--state", deployed.folder / "units" / "yelp")
        assert deployed.processes["yelp"].wait(timeout=60) == 0
        assert not (deployed.folder / "units" / "yelp" / "node" / "node.key").exists()
        # Nothing of the node's user can be read by it: the border between client and vault.
        assert (deployed.folder / "units" / "office" / "node").stat().st_uid == NOBODY
        assert folders["office"].stat().st_mode & 0o077 == 0
