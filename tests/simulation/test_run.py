"""A simulation as a whole: what it writes, that it repeats, resumes, refuses, and tells the truth about privacy."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.simulation.conftest import Factory

from isthmus.backbone_file import load_backbone
from isthmus.clients.data import load_domain_data
from isthmus.clients.finish import LOCAL_BACKBONE
from isthmus.config import load_domain, load_federation
from isthmus.errors import BudgetExhausted, DataError, RunError
from isthmus.features import default_cache_dir, encode_texts, own_axes
from isthmus.privacy.accounting import NOTHING
from isthmus.privacy.budget import PrivacyBudget
from isthmus.privacy.entries import Charge, Limits
from isthmus.privacy.ledger import Ledger
from isthmus.privacy.reading import read_heads, read_ledger
from isthmus.report.result import Result, canonical_bytes
from isthmus.server.checkpoint import RunState
from isthmus.simulation import prepare, run
from isthmus.simulation.recommend import recommend_items
from isthmus.simulation.study import Study, known


class Silent:
    """A watcher that keeps what it was told."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.rounds: list[int] = []
        self._stop_after = stop_after

    def stage(self, what: str) -> None:
        """Nothing to do."""

    def texts(self, done: int, total: int) -> None:
        """Nothing to do."""

    def round(self, state: RunState, rounds: int, spent: dict[str, float]) -> None:
        """Remember, and play Ctrl-C if that is the test."""
        assert state.round <= rounds
        assert len(spent) == 2
        self.rounds.append(state.round)
        if state.round == self._stop_after:
            raise KeyboardInterrupt


def simulate(
    file: Path, out: Path, *, stop_after: int | None = None, backend: str = "in-process", **how: int
) -> Result:
    """Prepare and run."""
    return run(prepare(file, out=out, backend=backend, **how), Silent(stop_after))  # type: ignore[arg-type]


def test_a_run_leaves_everything_that_the_manual_lists(federation: Factory, tmp_path: Path) -> None:
    """Result, report, backbone, ledgers and heads are there, and agree with each other."""
    result = simulate(federation(), tmp_path / "out")
    out = tmp_path / "out"
    assert (out / "report.html").read_text().count("NOT private")
    assert json.loads((out / "result.json").read_text())["federation"]["rounds"] == 4
    assert "head.weight" in load_file(out / "backbone.safetensors")
    for name in ("books", "games"):
        assert (out / "heads" / name / "head.json").exists()
        entries = list(Ledger(out / "ledgers" / f"{name}.db").entries())
        assert [e.kind for e in entries].count("update") == result.domains[name].rounds_charged == 4
        assert [e.kind for e in entries].count("metric") == 2
        assert not any(e.private for e in entries)
        assert 0 < result.domains[name].epsilon <= result.domains[name].budget
        assert len(result.domains[name].releases) == len(entries)


def test_the_same_seed_gives_the_same_result_bytes(federation: Factory, tmp_path: Path) -> None:
    """Two runs in two folders: equal bytes, seconds aside; another seed gives another backbone."""
    file = federation()
    first, second = (canonical_bytes(simulate(file, tmp_path / name), volatile=False) for name in ("a", "b"))
    assert first == second
    simulate(file, tmp_path / "c", seed=6)
    backbones = [(tmp_path / name / "checkpoint.safetensors").read_bytes() for name in ("a", "b", "c")]
    assert backbones[0] == backbones[1] != backbones[2]


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam", "fedprox"])
def test_a_stopped_run_continues_to_the_same_backbone(federation: Factory, tmp_path: Path, strategy: str) -> None:
    """Ctrl-C after any round, then the same command: bit for bit the uninterrupted backbone, nobody charged twice."""
    file = federation(strategy=strategy)
    simulate(file, tmp_path / "whole")
    expected = load_file(tmp_path / "whole" / "checkpoint.safetensors")
    for stop in (0, 1, 3):
        out = tmp_path / f"stopped-{stop}"
        with pytest.raises(KeyboardInterrupt):
            simulate(file, out, stop_after=stop)
        result = simulate(file, out)
        continued = load_file(out / "checkpoint.safetensors")
        assert continued.keys() == expected.keys()
        assert all(np.array_equal(continued[name], expected[name]) for name in expected)
        assert all(domain.rounds_charged == 4 for domain in result.domains.values())


def test_a_finished_run_is_not_run_again(federation: Factory, tmp_path: Path) -> None:
    """The same command on a finished folder returns its result and charges nothing."""
    file = federation()
    first = simulate(file, tmp_path / "out")
    watcher = Silent()
    assert run(prepare(file, out=tmp_path / "out", backend="in-process"), watcher) == first
    assert watcher.rounds == []


def test_a_folder_of_another_run_is_refused(federation: Factory, tmp_path: Path) -> None:
    """Another seed in the same folder is an error, and the folder stays as it was."""
    file = federation()
    simulate(file, tmp_path / "out", rounds=1)
    before = (tmp_path / "out" / "checkpoint.safetensors").read_bytes()
    with pytest.raises(RunError, match="another configuration or seed"):
        prepare(file, out=tmp_path / "out", seed=99, backend="in-process")
    assert (tmp_path / "out" / "checkpoint.safetensors").read_bytes() == before


def test_a_private_run_spends_from_the_ledger_beside_the_data(federation: Factory, tmp_path: Path) -> None:
    """A second private run on the same data starts from what is spent, and is refused before a table is opened."""
    file = federation(seed=None)
    result = simulate(file, tmp_path / "first")
    assert result.federation.private
    assert result.federation.seed is None
    home = file.parent / "books" / "ledger.db"
    spent = Ledger(home).epsilon(1e-6)
    assert spent == pytest.approx(result.domains["books"].epsilon, rel=1e-5)
    assert all(entry.private for entry in Ledger(home).entries())
    heads = read_heads(tmp_path / "first" / "heads.db")
    copy = read_ledger(tmp_path / "first" / "ledgers" / "books.db", heads=heads.heads["books"])
    assert (copy.findings, heads.findings) == ((), ())
    assert copy.entries == tuple(Ledger(home).entries())
    assert len(copy.receipts) == len(heads.heads["books"]) == 1 + 4 + 2  # the catalogue, four rounds, two evaluations
    for name in ("books", "games"):  # whoever opened a table now would fail otherwise
        (file.parent / name / "interactions.csv").unlink()
    with pytest.raises(BudgetExhausted, match=r"books: epsilon .* of 8 is spent"):
        prepare(file, out=tmp_path / "second", backend="in-process")
    assert Ledger(home).epsilon(1e-6) == spent


def test_two_private_runs_differ(federation: Factory, tmp_path: Path) -> None:
    """Noise without a seed cannot be repeated: two private runs of one round release different updates."""
    file = federation(seed=None)
    updates = []
    for name in ("a", "b"):
        simulate(file, tmp_path / name, rounds=1)
        updates.append(load_file(tmp_path / name / "checkpoint.safetensors")["arrays:head.weight"])
    assert not np.array_equal(*updates)


def test_more_rounds_than_planned_are_refused_with_the_way_out(federation: Factory, tmp_path: Path) -> None:
    """The noise was calibrated for four rounds; a fifth would overspend in every domain."""
    with pytest.raises(BudgetExhausted, match=r"(?s)books.*5 rounds .*planned for 4.*games"):
        prepare(federation(), out=tmp_path / "out", rounds=5, backend="in-process")


def test_a_run_that_a_domain_refuses_at_the_start_is_in_its_ledger(federation: Factory, tmp_path: Path) -> None:
    """One that would overspend, and one that a policy is against: once, in that domain's ledger; nothing charged."""
    file = federation(seed=None)
    (file.parent / "games" / "policy.toml").write_text(
        'approved_by = "Ada"\napproved_on = 2026-01-31\n[budget]\nepsilon = 8.0\ndelta = 1e-6\n'
        "[allow]\nlargest_clip = 1e-3\n"
    )
    for _ in range(2):
        with pytest.raises(BudgetExhausted, match=r"(?s)books.*games.*`largest_clip`"):
            prepare(file, out=tmp_path / "out", rounds=5, backend="in-process")
    run_id = json.loads((tmp_path / "out" / "run.json").read_text())["run"]
    for name, rule in (("books", "budget"), ("games", "largest_clip")):
        books = read_ledger(file.parent / name / "ledger.db")
        assert books.findings == ()
        assert books.entries == ()
        assert [(line.run, line.round, line.kind, line.rule) for line in books.refusals] == [(run_id, 0, "run", rule)]
        assert books.refusals[0].limit


def test_a_broken_table_stops_the_run_before_anything_is_charged(federation: Factory, tmp_path: Path) -> None:
    """The last domain's table is broken: the first domain has not spent anything either."""
    file = federation()
    (file.parent / "games" / "interactions.csv").write_text("user,item\nu1\n")
    with pytest.raises(DataError, match=r"interactions\.csv"):
        simulate(file, tmp_path / "out")
    assert read_ledger(tmp_path / "out" / "ledgers" / "books.db").entries == ()


def test_federated_serves_what_the_head_chose(federation: Factory, tmp_path: Path) -> None:
    """No transfer means: exactly the best local method by validation, and a gain that says so."""
    result = simulate(federation(), tmp_path / "out")
    for name, domain in result.domains.items():
        head = json.loads((tmp_path / "out" / "heads" / name / "head.json").read_text())
        assert domain.head.verdict == head["verdict"]
        assert domain.test is not None
        if head["verdict"] == "no transfer":
            assert domain.test.federated == domain.test.of(head["method"])


def test_a_domain_keeps_and_serves_with_its_own_axes_under_the_default_recipe(
    federation: Factory, tmp_path: Path
) -> None:
    """Beside its head lies the whitening that it was fitted with; a study of the run sees the same features."""
    file = federation()
    file.write_text(file.read_text().replace('train = "all"', 'train = "recency"'))
    simulate(file, tmp_path / "out", rounds=2)
    shipped = load_backbone(tmp_path / "out" / "backbone.safetensors")
    for name in ("books", "games"):
        kept = load_backbone(tmp_path / "out" / "heads" / name / LOCAL_BACKBONE).whitening
        config = load_domain(file.parent / name)
        data = load_domain_data(config)
        encoded = encode_texts(data.catalogue.texts, "hash:64", cache_dir=default_cache_dir(), threads=1)
        np.testing.assert_array_equal(kept.matrix, own_axes(shipped.whitening, encoded).matrix)
        assert not np.allclose(kept.matrix, shipped.whitening.matrix)
        study = Study(out=tmp_path, federation=load_federation(file), domains=(config,), seeds=(0,), rounds=2)
        member = known(study, data, shipped)
        np.testing.assert_array_equal(member.features, kept.apply(encoded))
        np.testing.assert_array_equal(member.pooled, shipped.whitening.apply(encoded))
    assert len(recommend_items(tmp_path / "out", domain="games", user="u003", count=5)) == 5


def test_a_result_says_how_much_each_domains_updates_counted(federation: Factory, tmp_path: Path) -> None:
    """As the checkpoint has it, under `leave_one_out` alone; a domain of which nothing is known counts as declared."""
    file = federation(strategy="leave_one_out")
    file.write_text(f"{file.read_text()}compare_every = 1\n")
    out = tmp_path / "out"
    result = simulate(file, out)
    kept = load_file(out / "checkpoint.safetensors")
    for name, domain in result.domains.items():
        assert domain.factor == kept[f"strategy:factor/{name}"][0]
    assert "updates counted" in (out / "report.html").read_text()
    file.write_text(file.read_text().replace("leave_one_out", "fedadam").replace("compare_every = 1\n", ""))
    plain = simulate(file, tmp_path / "plain", rounds=1)
    assert {domain.factor for domain in plain.domains.values()} == {None}


def test_recommendations_are_unseen_items_best_first(federation: Factory, tmp_path: Path) -> None:
    """Titles and scores come sorted; nothing the user had; unknown users and domains are named."""
    file = federation()
    simulate(file, tmp_path / "out", rounds=2)
    items = recommend_items(tmp_path / "out", domain="games", user="u003", count=5)
    assert len(items) == 5
    assert [i.score for i in items] == sorted((i.score for i in items), reverse=True)
    had = {
        line.split(",")[1]
        for line in (file.parent / "games" / "interactions.csv").read_text().splitlines()
        if line.startswith("u003,")
    }
    assert not had & {i.item for i in items}
    with pytest.raises(DataError, match=r"no user 'u0003'. Did you mean 'u00"):
        recommend_items(tmp_path / "out", domain="games", user="u0003", count=5)
    with pytest.raises(RunError, match="no domain 'toys'; it has books, games"):
        recommend_items(tmp_path / "out", domain="toys", user="u003", count=5)


@pytest.mark.parametrize(("run_id", "words"), [(None, "worked on again"), ("lost", "it stays charged")])
def test_the_next_start_says_what_was_charged_and_not_sent(
    federation: Factory, tmp_path: Path, run_id: str | None, words: str
) -> None:
    """A charge without a release is named, with what becomes of it; nothing else is."""
    file = federation()
    simulation = prepare(file, out=tmp_path / "out", backend="in-process")
    assert simulation.notes == ()
    (books, _) = simulation.domains
    ledger = Ledger(simulation.ledger_path(books), name="books")
    charge = Charge(
        dataset=b"data",
        run=run_id or simulation.run,
        round=0,
        kind="catalogue",
        request=b"request",
        event=NOTHING,
        private=False,
    )
    ledger.charge(charge, Limits(lifetime=PrivacyBudget(8.0, 1e-6)))
    ledger.close()
    (note,) = prepare(file, out=tmp_path / "out", backend="in-process").notes
    assert note.startswith(f"books: the catalogue of round 0 of run {charge.run} was charged on 20")
    assert words in note
