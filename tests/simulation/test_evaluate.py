"""An evaluation compares what the run served with everything else, on users that training did not know."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import TinyDomain, TinyFederation
from tests.simulation.test_sweep import Silent
from tests.starts import ORIGIN, start_from, write_start

from isthmus.clients.data import load_domain_data
from isthmus.config import PublicDomain, load_domain
from isthmus.errors import ConfigError, PolicyRefused, Refused
from isthmus.metrics import paired_bootstrap_ci
from isthmus.report.result import read_result
from isthmus.report.study import METHODS, REFERENCES, Study
from isthmus.simulation.evaluate import evaluate
from isthmus.simulation.measuring import kept_measured
from isthmus.simulation.methods import LOCAL
from isthmus.simulation.scenario_kinds import HeldOut, NewItems, NewUsers, Usual
from isthmus.simulation.scenarios import new_domain

POLICY = 'approved_by = "us"\napproved_on = 2026-11-24\n[budget]\nepsilon = 8.0\ndelta = 1e-6\n[allow]\n'


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A federation of two domains of 90 and 60 users, one round."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("evaluate")
        patch.setenv("ISTHMUS_CACHE", str(folder / "cache"))
        yield TinyFederation(TinyDomain(folder / "tiny"))(
            domains={"books": 90, "games": 60}, rounds=1, evaluate_every=1
        )


def test_as_it_is_every_method_is_measured_and_federated_is_what_the_run_served(file: Path, tmp_path: Path) -> None:
    """All methods in each domain; those that the run measured itself have the figures of its own result."""
    study = evaluate(file, out=tmp_path / "out", scenario=Usual(), seeds=1, watcher=Silent())
    assert [one.domain for one in study.conditions] == ["books", "games"]
    result = read_result(tmp_path / "out" / "run" / "seed-0" / "result.json")
    for one in study.conditions:
        assert list(one.methods) == list(METHODS)
        assert set(one.differences) == set(METHODS) - set(LOCAL)
        test = result.domains[one.domain].test
        assert test is not None
        for method in ("federated", "local_only", "item_cf", "text_knn", "popularity"):
            figures = one.methods[method].metrics
            assert figures["ndcg@10"].mean == pytest.approx(getattr(test, method).ndcg, rel=1e-5)
            assert figures["ndcg@10"].ci95 == pytest.approx(getattr(test, method).ndcg_ci95, rel=1e-5)
            assert figures["mrr"].mean == pytest.approx(getattr(test, method).mrr, rel=1e-5)
    assert study.private is False


def check_new_domain(study: Study, out: Path, file: Path) -> None:
    """The promises of a new domain: no part in the run, nobody measured who supported, one set of users."""
    run = out / "run" / "seed-0"
    assert set(read_result(run / "result.json").domains) == {"books"}
    assert not (run / "ledgers" / "games.db").exists()
    assert [one.at for one in study.conditions] == [0.0, 30.0]
    data = load_domain_data(load_domain(file.parent / "games"))
    split = new_domain(data, most=4000)
    assert {one.users for one in study.conditions} == {len(split.tested)}
    assert all(one.epsilon is None for one in study.conditions)


def test_a_new_domain_took_no_part_and_is_measured_on_other_users(file: Path, tmp_path: Path) -> None:
    """Without users everything local is the text prior or worse; the paired difference is that of the kept ranks."""
    scenario = HeldOut(domain="games", users=(0, 30))
    study = evaluate(file, out=tmp_path / "out", scenario=scenario, seeds=1, watcher=Silent())
    check_new_domain(study, tmp_path / "out", file)
    nobody, some = study.conditions
    kept = kept_measured(tmp_path / "out" / "run" / "seed-0" / "measured" / "games-0-users.safetensors")
    assert kept is not None
    assert (kept.ranks["popularity"] == kept.races).all()  # a constant model is the worst one
    for method in ("local_only", "text_item_cf", "federated"):
        assert (kept.ranks[method] == kept.ranks["text_knn"]).all()
    later = kept_measured(tmp_path / "out" / "run" / "seed-0" / "measured" / "games-30-users.safetensors")
    assert later is not None
    assert (later.races == kept.races).all()
    assert (later.ranks["backbone"] == kept.ranks["backbone"]).all()  # frozen: support teaches the head alone
    assert (later.ranks["popularity"] != kept.ranks["popularity"]).any()
    ndcg = {name: np.where(ranks <= 10, 1 / np.log2(ranks + 1.0), 0.0) for name, ranks in later.ranks.items()}
    difference = some.differences["backbone"]
    assert difference.mean == pytest.approx(float((ndcg["backbone"] - ndcg[some.best_local]).mean()))
    low, high = paired_bootstrap_ci(ndcg["backbone"], ndcg[some.best_local], resamples=100, seed=0)
    assert difference.ci95 == pytest.approx((low, high))
    assert difference.p <= difference.p_holm <= 1
    assert nobody.label == "0 support users"


def test_seeds_average_over_runs_and_not_over_users(file: Path, tmp_path: Path) -> None:
    """Two seeds: as many users as with one, the mean of both runs, and no more certainty from repeating."""
    study = evaluate(
        file, out=tmp_path / "out", scenario=NewUsers(events=(1, 2)), seeds=2, ceiling=False, watcher=Silent()
    )
    assert [(one.domain, one.at) for one in study.conditions][:2] == [("books", 1.0), ("books", 2.0)]
    for one in study.conditions:
        assert not set(REFERENCES) & set(one.methods)
        for figures in one.methods.values():
            metric = figures.metrics["ndcg@10"]
            assert len(metric.seeds) == 2
            assert metric.mean == pytest.approx(sum(metric.seeds) / 2)
    fixed = study.conditions[0].methods["popularity"]  # the same in both runs
    assert fixed.metrics["hr@10"].seeds[0] == fixed.metrics["hr@10"].seeds[1]
    assert study.conditions[0].users == study.conditions[1].users < 90


def test_item_cf_and_popularity_know_nothing_of_new_items(file: Path, tmp_path: Path) -> None:
    """They rank a hidden item behind everything that was met; text alone can find it."""
    study = evaluate(file, out=tmp_path / "out", scenario=NewItems(), seeds=1, ceiling=False, watcher=Silent())
    books = study.conditions[0]
    kept = kept_measured(tmp_path / "out" / "run" / "seed-0" / "measured" / "books-new-items.safetensors")
    assert kept is not None
    hidden = 2  # of 24 items
    assert (kept.ranks["popularity"] > kept.races - hidden).all()
    assert books.methods["text_knn"].metrics["hr@10"].mean > books.methods["popularity"].metrics["hr@10"].mean


@pytest.mark.parametrize(
    ("scenario", "words"),
    [
        (HeldOut(domain="films", users=(0,)), "domains are books, games"),
        (HeldOut(domain="games", users=(1000,)), "Ask for at most 30"),
    ],
)
def test_a_scenario_that_cannot_be_is_refused_before_anything_is_trained(
    file: Path, tmp_path: Path, scenario: HeldOut, words: str
) -> None:
    """An unknown domain and too many users."""
    watcher = Silent()
    with pytest.raises(ConfigError, match=words):
        evaluate(file, out=tmp_path / "out", scenario=scenario, seeds=1, watcher=watcher)
    assert watcher.stages == []


def test_a_start_that_knows_what_is_hidden_is_refused_before_anything_is_trained(
    tiny_federation: TinyFederation, tmp_path: Path
) -> None:
    """It was trained on a domain of this name; a start from elsewhere is none of it."""
    file = tiny_federation()
    here = ORIGIN.model_copy(update={"domains": (PublicDomain(name="games", users=9, fingerprint="ab" * 32),)})
    write_start(file.parent / "start.safetensors", file, axes=False, origin=here)
    start_from(file, "start.safetensors")
    with pytest.raises(ConfigError, match=r"was trained on games, of which scenario new-items hides something"):
        evaluate(file, out=tmp_path / "out", scenario=NewItems(), seeds=1, watcher=Silent())
    assert not (tmp_path / "out" / "run").exists()


def test_a_policy_can_forbid_the_pooled_reference_and_any_study(
    tiny_federation: TinyFederation, tmp_path: Path
) -> None:
    """`least_noise` forbids what has none; `seeded = false` forbids all, of a domain that takes no part as well."""
    file = tiny_federation()
    policy = file.parent / "games" / "policy.toml"
    policy.write_text(POLICY + "least_noise = 0.1\n")
    with pytest.raises(Refused, match="--no-ceiling"):
        evaluate(file, out=tmp_path / "a", scenario=Usual(), seeds=1, watcher=Silent())
    policy.write_text(POLICY + "seeded = false\n")
    held_out = HeldOut(domain="games", users=(0,))
    with pytest.raises(PolicyRefused, match="private runs only"):
        evaluate(file, out=tmp_path / "b", scenario=held_out, seeds=1, ceiling=False, watcher=Silent())
    with pytest.raises(Refused, match="private runs only"):
        evaluate(file, out=tmp_path / "c", scenario=Usual(), seeds=1, ceiling=False, watcher=Silent())
