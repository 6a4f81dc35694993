"""A sweep says what epsilon costs, stays within every policy, and loses nothing when it is stopped."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import TinyDomain, TinyFederation

from isthmus.errors import BudgetExhausted, ConfigError, Refused, RunError
from isthmus.metrics import ndcg_at_k
from isthmus.report.result import read_result
from isthmus.report.study import Study, read_study
from isthmus.server.checkpoint import RunState
from isthmus.simulation.measuring import kept_measured
from isthmus.simulation.sweep import sweep

POLICY = 'approved_by = "us"\napproved_on = 2026-11-24\n[budget]\nepsilon = 4.0\ndelta = 1e-6\n'


class Silent:
    """A watcher that plays Ctrl-C at the first stage that holds some words."""

    def __init__(self, stop_at: str | None = None) -> None:
        self.stages: list[str] = []
        self._stop_at = stop_at

    def stage(self, what: str) -> None:
        """Remember."""
        self.stages.append(what)
        if self._stop_at is not None and self._stop_at in what:
            raise KeyboardInterrupt

    def texts(self, done: int, total: int) -> None:
        """Nothing to do."""

    def round(self, state: RunState, rounds: int, spent: dict[str, float]) -> None:
        """Nothing to do."""


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Silent, Study]]:
    """A sweep of two epsilons and no noise, stopped in its second run and continued: folder, who watched, outcome."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("sweep")
        patch.setenv("ISTHMUS_CACHE", str(folder / "cache"))
        file = TinyFederation(TinyDomain(folder / "tiny"))(domains={"books": 60, "games": 20}, rounds=1, seed=None)
        how = {"out": folder / "out", "epsilons": (8.0, 4.0), "seeds": 1, "noise_free": True, "negatives": 5}
        with pytest.raises(KeyboardInterrupt):
            sweep(file, **how, watcher=Silent("run 2 of 3"))  # type: ignore[arg-type]
        second = Silent()
        yield folder, second, sweep(file, **how, watcher=second)  # type: ignore[arg-type]


def test_every_epsilon_has_its_noise_and_its_nominal_cost(stopped: tuple[Path, Silent, Study]) -> None:
    """Less epsilon, more noise; what is spent is the ledger's figure and within what was asked."""
    folder, _, study = stopped
    books = [one for one in study.conditions if one.domain == "books"]
    assert [one.at for one in books] == [4.0, 8.0, None]
    for one in books[:2]:
        domain = read_result(folder / "out" / f"epsilon-{one.at:g}" / "seed-0" / "result.json").domains["books"]
        assert one.epsilon == pytest.approx(domain.epsilon)
        assert 0 < (one.epsilon or 0) <= (one.at or 0)
    assert (books[0].noise_multiplier or 0) > (books[1].noise_multiplier or 0) > 0
    # Batches and noise follow from the run's id: the same one, so that runs differ by their epsilon alone.
    ids = {json.loads(file.read_text())["run"] for file in (folder / "out").glob("epsilon-*/seed-0/run.json")}
    assert len(ids) == 1


def test_nothing_of_a_sweep_claims_to_be_private(stopped: tuple[Path, Silent, Study]) -> None:
    """JSON, CSV, page, every run; the condition without noise has no epsilon; no ledger lies beside the data."""
    folder, _, study = stopped
    assert study.private is False
    last = study.conditions[2]
    assert (last.noise, last.epsilon, last.noise_multiplier) == ("none", None, None)
    assert "NOT PRIVATE" in last.label
    page = (folder / "out" / "sweep.html").read_text()
    assert "NOT private" in page
    assert "3 runs" in page
    assert "search for settings" in page
    rows = list(csv.DictReader((folder / "out" / "sweep.csv").read_text().splitlines()))
    assert {row["private"] for row in rows} == {"no"}
    assert list((folder / "tiny").rglob("ledger.db")) == []
    assert not any(read_result(file).federation.private for file in folder.rglob("result.json"))


def test_a_stopped_sweep_goes_on_and_a_finished_run_is_not_run_again(stopped: tuple[Path, Silent, Study]) -> None:
    """The second call trains what was missing only; called a third time, it trains nothing and says the same."""
    folder, second, study = stopped
    assert sum("fitting the private head" in stage for stage in second.stages) == 2  # of one run, two domains
    third = Silent()
    again = sweep(
        folder / "tiny" / "federation.toml",
        out=folder / "out",
        epsilons=(4.0, 8.0),
        seeds=1,
        noise_free=True,
        negatives=5,
        watcher=third,
    )
    assert all(stage.startswith("run ") for stage in third.stages)
    assert again.model_copy(update={"seconds": 0.0}) == study.model_copy(update={"seconds": 0.0})
    with pytest.raises(RunError, match="another study"):
        sweep(folder / "tiny" / "federation.toml", out=folder / "out", epsilons=(4.0,), seeds=1, watcher=Silent())


def test_figures_are_those_of_the_ranks_that_were_kept(stopped: tuple[Path, Silent, Study]) -> None:
    """Read from disk and averaged by hand; the file, the spreadsheet and the result of the run say the same."""
    folder, _, study = stopped
    run = folder / "out" / "epsilon-4" / "seed-0"
    kept = kept_measured(run / "measured" / "games.safetensors")
    assert kept is not None
    one = next(one for one in study.conditions if one.domain == "games" and one.at == 4.0)
    result = read_result(run / "result.json").domains["games"].test
    assert result is not None
    for method, ranks in kept.ranks.items():
        by_hand = float(np.mean(ndcg_at_k(ranks, 10)))
        assert one.methods[method].metrics["ndcg@10"].mean == pytest.approx(by_hand)
        if method in {"federated", "local_only", "item_cf", "text_knn", "popularity"}:  # what the run itself has said
            assert getattr(result, method).ndcg == pytest.approx(by_hand, rel=1e-5)
    written = read_study(folder / "out" / "sweep.json")
    assert [one.label for one in written.conditions] == [one.label for one in study.conditions]
    rows = csv.DictReader((folder / "out" / "sweep.csv").read_text().splitlines())
    row = next(r for r in rows if (r["domain"], r["epsilon"], r["method"], r["metric"])[2:] == ("federated", "mrr"))
    assert float(row["mean"]) == pytest.approx(study.conditions[0].methods["federated"].metrics["mrr"].mean, rel=1e-5)
    sampled = one.methods["popularity"].sampled
    assert sampled is not None
    assert sampled["hr@5"] >= one.methods["popularity"].metrics["hr@5"].mean
    assert json.loads((folder / "out" / "sweep.json").read_text())["raw"] is True


@pytest.mark.parametrize(
    ("rule", "error", "words"),
    [
        ("", BudgetExhausted, "epsilon .* of 4"),
        ("[allow]\nseeded = false\n", Refused, "private runs only"),
    ],
)
def test_what_a_policy_forbids_is_refused_before_anything_is_read(
    tiny_federation: TinyFederation, tmp_path: Path, rule: str, error: type[Exception], words: str
) -> None:
    """An epsilon above the policy's, and seeded runs; a table that is gone is not missed."""
    file = tiny_federation()
    (file.parent / "books" / "policy.toml").write_text(POLICY + rule)
    (file.parent / "books" / "interactions.csv").unlink()
    with pytest.raises(error, match=words):
        sweep(file, out=tmp_path / "out", epsilons=(8.0,), seeds=1, watcher=Silent())


def test_epsilons_that_make_no_sweep_are_refused(tiny_federation: TinyFederation, tmp_path: Path) -> None:
    """None, one twice, one out of range; and a folder that holds something else."""
    file = tiny_federation()
    for epsilons, words in (((), "at least one"), ((1.0, 1.0), "each once"), ((0.0,), "above 0")):
        with pytest.raises(ConfigError, match=words):
            sweep(file, out=tmp_path / "out", epsilons=epsilons, seeds=1, watcher=Silent())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("mine")
    with pytest.raises(RunError, match="no study"):
        sweep(file, out=tmp_path / "other", epsilons=(1.0,), seeds=1, watcher=Silent())
