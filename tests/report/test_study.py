"""A study's files: schema, bytes, what they must say about privacy, and names that nobody can trust."""

import csv
import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from isthmus.errors import RunError
from isthmus.report import study as module
from isthmus.report.study import Condition, Study, json_schema, read_study, schema_text, study_csv, warning, write_study
from isthmus.report.study_page import render_study, write_all
from isthmus.simulation.measuring import Measured
from isthmus.simulation.study import Observed, figures

NAME = '<script>alert("x")</script>'


def measured(seed: int, users: int = 40) -> Measured:
    """Made-up ranks of a few methods, the federated one ahead of the local ones."""
    draw = np.random.default_rng(seed)
    best = {"popularity": 200, "item_cf": 60, "backbone": 40, "federated": 12}
    return Measured(
        races=np.full(users, 300),
        ranks={name: draw.integers(1, worst + 1, users) for name, worst in best.items()},
        novelty={name: draw.random(users) for name in best},
        coverage=dict.fromkeys(best, 0.25),
    )


@pytest.fixture(scope="module")
def study() -> Study:
    """Two conditions of a domain with a hostile name, one of them without noise."""
    observed = [
        Observed(domain=NAME, label="epsilon 4", at=4.0, epsilon=3.5, noise_multiplier=1.5, measured=[measured(0)]),
        Observed(domain=NAME, label="no noise: NOT PRIVATE", noise="none", measured=[measured(1)]),
    ]
    return Study(
        schema_version=1,
        isthmus_version="0",
        kind="sweep",
        scenario="made up",
        scale="epsilon",
        federation="tiny",
        digest="ab",
        rounds=2,
        seeds=(0,),
        runs=2,
        negatives=99,
        private=False,
        raw=True,
        conditions=figures(observed, resamples=100, negatives=99),
        transfers=(),
        discrepancies=(),
        seconds=1.5,
    )


def test_the_packaged_schema_is_the_one_the_models_give_and_fits_what_is_written(study: Study, tmp_path: Path) -> None:
    """It is valid, describes every property, and a written study follows it and reads back."""
    schema = json_schema()
    assert Path(module.__file__).with_name("study.schema.json").read_text(encoding="utf-8") == schema_text()
    jsonschema.Draft202012Validator.check_schema(schema)
    parts = [schema, *schema["$defs"].values()]
    assert [key for part in parts for key, field in part["properties"].items() if not field.get("description")] == []
    write_study(study, tmp_path / "sweep.json")
    jsonschema.validate(json.loads((tmp_path / "sweep.json").read_text()), schema)
    again = read_study(tmp_path / "sweep.json")
    assert again.conditions[0].best_local == study.conditions[0].best_local == "item_cf"
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(RunError, match="not a study"):
        read_study(tmp_path / "sweep.json")


def test_every_form_of_a_study_says_that_it_is_not_private(study: Study, tmp_path: Path) -> None:
    """The page, the lines of the spreadsheet, the JSON; and that it was a search, and that some runs have no noise."""
    assert "no epsilon bounds them" in warning(study)
    assert "no epsilon bounds them" not in warning(study.model_copy(update={"conditions": study.conditions[:1]}))
    write_all(study, tmp_path)
    page = (tmp_path / "sweep.html").read_text()
    assert "NOT private" in page
    assert "search for settings" in page
    assert "no epsilon bounds this run" in page
    rows = list(csv.DictReader(study_csv(study).splitlines()))
    assert {row["private"] for row in rows} == {"no"}
    assert {row["noise"] for row in rows if row["condition"].startswith("no noise")} == {"none"}
    assert json.loads((tmp_path / "sweep.json").read_text())["private"] is False


def test_a_run_without_noise_cannot_be_given_an_epsilon(study: Study) -> None:
    """Nor can a study be called private."""
    content = study.conditions[1].model_dump()
    with pytest.raises(ValueError, match="neither an epsilon"):
        Condition.model_validate({**content, "epsilon": 8.0})
    with pytest.raises(ValueError, match="private"):
        Study.model_validate({**study.model_dump(), "private": True})


def test_a_page_runs_no_script_of_a_name_and_asks_no_network(study: Study) -> None:
    """The name is shown as text; nothing is loaded; the same study gives the same bytes."""
    page = render_study(study)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "default-src 'none'" in page
    assert page == render_study(study)


def test_differences_are_tested_on_all_comparisons_together(study: Study) -> None:
    """Four comparisons: the smallest p counts four times, and what is clear stays clear."""
    every = [difference for one in study.conditions for difference in one.differences.values()]
    assert len(every) == 4
    smallest = min(every, key=lambda one: one.p)
    assert smallest.p_holm == pytest.approx(min(1.0, 4 * smallest.p))
    assert all(one.p <= one.p_holm for one in every)
    assert study.conditions[0].differences["federated"].p_holm < 0.05
