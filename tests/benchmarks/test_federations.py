"""The benchmark federations: what `make.py` writes loads, points to the tables where they lie, and copies nothing."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from isthmus.clients.data import load_domain_data
from isthmus.clients.scorers import TextNeighbours, rank_users
from isthmus.config import DomainConfig, load_domain, load_federation
from isthmus.features import encode_texts, fit_whitening, text_moments
from isthmus.metrics import summarise

REPOSITORY = Path(__file__).parents[2]
REAL = REPOSITORY / ".." / "shared" / "data"
SCRIPT = REPOSITORY / "benchmarks" / "federations" / "make.py"
SETS = {  # domain: folder of the data set, public round figure of users, events table
    "beauty": ("amazon14_beauty", 22_000, "seq.tsv.gz"),
    "sports": ("amazon14_sports", 35_000, "seq.tsv.gz"),
    "yelp": ("yelp", 30_000, "seq.tsv.gz"),
    "office": ("amazon18_office", 3_200, "seq.tsv.gz"),
    "industrial": ("amazon18_industrial", 3_200, "seq.tsv.gz"),
    "ml_1m": ("ml_1m", 6_000, "inter.tsv.gz"),
    "lastfm": ("lastfm2k", 1_900, "seq.tsv.gz"),
}
FEDERATIONS = {
    "ceiling": ("beauty", "sports"),
    "members": ("office", "industrial", "lastfm"),
    "office_industrial": ("office", "industrial"),
    "retail": ("beauty", "sports", "yelp", "office", "industrial", "ml_1m"),
}
COUNTS = {"office": (3231, 3317, 22447), "industrial": (3285, 3541, 22743)}
"""Users, items that occur in a history, and events, as the data's own README counts them."""
TEXT_FIGURES = {"office": (0.140, 0.083)}
"""HR@10 and NDCG@10 of untrained MiniLM neighbours on 128 whitened dimensions, from the same place. Encoding a second
shop would test the same again."""


def make(data: Path, out: Path) -> "subprocess.CompletedProcess[str]":
    """Run the script as people do."""
    command = [sys.executable, str(SCRIPT), "--data", str(data), "--out", str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def stand_ins(folder: Path) -> Path:
    """A data folder whose tables exist and hold nothing."""
    for place, _, events in SETS.values():
        (folder / place).mkdir(parents=True)
        (folder / place / events).touch()
        (folder / place / "items.tsv.gz").touch()
    return folder


def domains_of(out: Path, federation: str) -> dict[str, DomainConfig]:
    """Configurations of a made federation's domains, by name, in its order."""
    folders = load_federation(out / federation / "federation.toml").domain_folders()
    return {config.name: config for config in map(load_domain, folders)}


def test_every_federation_loads_and_points_into_the_data_folder(tmp_path: Path) -> None:
    """Strictly valid files, the asked-for domains in order, tables at absolute places (with a quote in one)."""
    data = stand_ins(tmp_path / 'da"ta')
    assert make(data, tmp_path / "out").returncode == 0
    for name, members in FEDERATIONS.items():
        found = domains_of(tmp_path / "out", name)
        assert tuple(found) == members
        for domain, config in found.items():
            place, _, events = SETS[domain]
            assert config.interactions_path == (data / place / events).resolve()
            assert config.items_path == (data / place / "items.tsv.gz").resolve()


def test_every_domain_spends_the_same_budget_and_tells_only_its_public_figure(tmp_path: Path) -> None:
    """Epsilon 8 at delta 1e-6 over ten rounds; divisor and weight follow from the round figure, as documented."""
    make(stand_ins(tmp_path / "data"), tmp_path / "out")
    for name in FEDERATIONS:
        weights = load_federation(tmp_path / "out" / name / "federation.toml").strategy.weights
        for domain, config in domains_of(tmp_path / "out", name).items():
            policy, figure = config.privacy, SETS[domain][1]
            assert (policy.epsilon, policy.delta, policy.rounds) == (8.0, 1e-6, 10)
            assert policy.expected_batch == pytest.approx(policy.sample_rate * figure)
            assert weights.get(domain, figure / 1000) == pytest.approx(figure / 1000)


def test_a_run_asks_for_no_more_than_the_policies_were_planned_for(tmp_path: Path) -> None:
    """Rounds and evaluations of the federation file fit into what each domain allows."""
    make(stand_ins(tmp_path / "data"), tmp_path / "out")
    for name in FEDERATIONS:
        strategy = load_federation(tmp_path / "out" / name / "federation.toml").strategy
        for config in domains_of(tmp_path / "out", name).values():
            assert strategy.rounds <= config.privacy.rounds
            assert strategy.rounds // strategy.evaluate_every <= config.privacy.evaluations


def test_nothing_but_configuration_is_written_and_a_ledger_stays(tmp_path: Path) -> None:
    """Data sets are never copied, and making the folders again opens no fresh budget."""
    data, out = stand_ins(tmp_path / "data"), tmp_path / "out"
    make(data, out)
    ledger = out / "domains" / "office" / "ledger.db"
    ledger.write_bytes(b"spent")
    assert make(data, out).returncode == 0
    assert {file.name for file in out.rglob("*") if file.is_file()} == {"domain.toml", "federation.toml", "ledger.db"}
    assert ledger.read_bytes() == b"spent"


def test_a_missing_data_set_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    """One sentence with the file and the way out, exit code 2."""
    data = stand_ins(tmp_path / "data")
    (data / "yelp" / "items.tsv.gz").unlink()
    done = make(data, tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "yelp/items.tsv.gz: no such file" in done.stderr
    assert "--data" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.realdata
def test_office_industrial_holds_the_whole_data_sets(tmp_path: Path) -> None:
    """Users, items and events are those that the data's README counts, and everyone has a test item."""
    if not (REAL / "amazon18_office").is_dir():
        pytest.skip("the real data sets are not beside this checkout")
    done = make(REAL, tmp_path)
    assert done.returncode == 0, done.stderr
    for name, config in domains_of(tmp_path, "office_industrial").items():
        data = load_domain_data(config)
        report = data.report
        assert (report.users, report.items - report.items_without_events, report.events) == COUNTS[name]
        assert report.rows == report.events
        assert report.users_with_test_target == len(data.users)


@pytest.mark.realdata
@pytest.mark.slow
@pytest.mark.parametrize("name", list(TEXT_FIGURES))
def test_text_neighbours_reproduce_the_published_figures(tmp_path: Path, name: str) -> None:
    """Packaged encoder, whitening of this domain alone: both published figures are in our intervals."""
    if not (REAL / "amazon18_office").is_dir():
        pytest.skip("the real data sets are not beside this checkout")
    make(REAL, tmp_path)
    data = load_domain_data(domains_of(tmp_path, "office_industrial")[name])
    features = encode_texts(data.catalogue.texts, "minilm", cache_dir=None, threads=1)
    features = fit_whitening([text_moments(features)], eps=1e-3, dim=128).apply(features)
    users = np.flatnonzero(data.test >= 0)
    ranks = rank_users(TextNeighbours(features=features), data.before_test, users, data.test[users])
    found = summarise(ranks, k=10, resamples=1000, seed=0)
    hr, ndcg = TEXT_FIGURES[name]
    assert found.hr == pytest.approx(hr, abs=1.96 * math.sqrt(hr * (1 - hr) / len(users)))
    assert found.ndcg_ci95[0] <= ndcg <= found.ndcg_ci95[1]
