"""Who helps whom: the difference is that of the two runs' own backbones, and a domain's absence is real."""

from pathlib import Path

import numpy as np
import pytest
from tests.conftest import TinyFederation
from tests.simulation.test_sweep import Silent

from isthmus.errors import ConfigError
from isthmus.report.result import read_result
from isthmus.simulation.evaluate import evaluate
from isthmus.simulation.measuring import Measured, kept_measured
from isthmus.simulation.transfer import EVERYBODY, WhoHelpsWhom, transfers


def ndcg(measured: Measured) -> np.ndarray:
    """Of the backbone by itself, by hand."""
    ranks = measured.ranks["backbone"]
    return np.where(ranks <= 10, 1 / np.log2(ranks + 1.0), 0.0)


def test_what_a_domain_is_worth_is_the_difference_of_two_runs(tiny_federation: TinyFederation, tmp_path: Path) -> None:
    """Every pair, from the ranks on disk; the domain that is left out is in no ledger of that run."""
    file = tiny_federation(domains={"books": 60, "games": 40}, rounds=1, evaluate_every=1)
    study = evaluate(file, out=tmp_path / "out", scenario=WhoHelpsWhom(), seeds=1, watcher=Silent())
    assert [(one.source, one.target) for one in study.transfers] == [
        ("books", "books"),
        ("books", "games"),
        ("games", "books"),
        ("games", "games"),
    ]
    for one in study.transfers:
        without = f"without-{one.source}"
        assert one.source not in read_result(tmp_path / "out" / without / "seed-0" / "result.json").domains
        both = [
            kept_measured(tmp_path / "out" / name / "seed-0" / "measured" / f"{one.target}-{name}.safetensors")
            for name in (EVERYBODY, without)
        ]
        assert both[0] is not None
        assert both[1] is not None
        assert one.mean == pytest.approx(float((ndcg(both[0]) - ndcg(both[1])).mean()))
    assert study.runs == 3
    assert len(study.discrepancies) == 1
    assert 0 <= study.discrepancies[0].a_distance <= 2
    page = (tmp_path / "out" / "evaluation.html").read_text()
    assert "Who helps whom" in page
    assert "How far apart" in page


def test_help_that_is_there_is_found_and_help_that_is_not_is_none() -> None:
    """Made-up ranks: games lifts books from the 10th to the first place, and books changes nothing."""

    def of(rank: int) -> list[Measured]:
        ranks = np.full(50, rank)
        return [Measured(races=np.full(50, 99), ranks={"backbone": ranks}, novelty={}, coverage={})]

    found = {
        ("books", "everybody"): of(1),
        ("books", "without-games"): of(10),
        ("games", "everybody"): of(5),
        ("games", "without-books"): of(5),
    }
    made = {(one.source, one.target): one for one in transfers(found, ["books", "games"], resamples=100)}
    assert made["games", "books"].mean == pytest.approx(1 - 1 / np.log2(11))
    assert made["games", "books"].p_holm < 0.01
    assert made["books", "games"].mean == 0.0
    assert made["books", "games"].p_holm == 1.0
    assert ("games", "games") not in made


def test_one_domain_helps_nobody(tiny_federation: TinyFederation, tmp_path: Path) -> None:
    """Refused before anything is trained."""
    file = tiny_federation(domains={"books": 20})
    with pytest.raises(ConfigError, match="at least 2 domains"):
        evaluate(file, out=tmp_path / "out", scenario=WhoHelpsWhom(), seeds=1, watcher=Silent())
