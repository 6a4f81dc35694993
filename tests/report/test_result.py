"""`result.json`: its bytes, its schema and its refusals."""

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus.errors import RunError
from isthmus.report import result as module
from isthmus.report.result import (
    VOLATILE,
    Result,
    TransferGain,
    canonical_bytes,
    json_schema,
    read_result,
    schema_text,
    write_result,
)

PACKAGED_SCHEMA = Path(module.__file__).with_name("result.schema.json")


def objects_in(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object of the schema that lists its properties, with a name."""
    yield "Result", schema
    yield from schema["$defs"].items()


def test_packaged_schema_is_the_one_the_models_give() -> None:
    """The file in the wheel cannot drift from the code that writes results."""
    assert PACKAGED_SCHEMA.read_text(encoding="utf-8") == schema_text()


def test_schema_is_valid_draft_2020_12_and_describes_every_property() -> None:
    """A reader finds out from the schema alone what each field means."""
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    undescribed = [
        f"{name}.{key}"
        for name, part in objects_in(schema)
        for key, field in part["properties"].items()
        if not field.get("description")
    ]
    assert undescribed == []


def test_schema_has_the_names_that_were_promised() -> None:
    """The names of `result.json` are a public interface."""
    schema = json_schema()
    promised = {
        "DomainResult": {"users", "items", "epsilon", "delta", "budget", "noise_multiplier", "rounds_charged"},
        "MethodScores": {"hr@10", "ndcg@10", "mrr", "ndcg@10_ci95"},
        "Comparison": {"federated", "local_only", "item_cf", "text_knn", "popularity"},
        "TransferGain": {"ndcg@10", "ci95"},
        "FederationSummary": {"rounds", "seconds", "bytes_up", "bytes_down", "private"},
    }
    for name, keys in promised.items():
        assert keys <= set(schema["$defs"][name]["required"]), name


def test_written_result_validates_against_the_schema(seeded: Result) -> None:
    """What is written is what is documented."""
    content = json.loads(canonical_bytes(seeded))
    jsonschema.Draft202012Validator(json_schema()).validate(content)


def test_schema_refuses_an_unknown_field(seeded: Result) -> None:
    """The schema is closed, at the top and inside."""
    content = json.loads(canonical_bytes(seeded))
    content["domains"]["shopping"]["secret"] = 1
    with pytest.raises(jsonschema.ValidationError, match="secret"):
        jsonschema.Draft202012Validator(json_schema()).validate(content)


def test_result_survives_writing_and_reading(seeded: Result, tmp_path: Path) -> None:
    """Reading gives what was written, up to six significant digits, and writes the same bytes again."""
    file = tmp_path / "result.json"
    write_result(seeded, file)
    again = read_result(file)
    assert canonical_bytes(again) == file.read_bytes() == canonical_bytes(seeded)
    wanted, got = seeded.domains["shopping"].epsilon, again.domains["shopping"].epsilon
    assert math.isclose(got, wanted, rel_tol=5e-6)


def test_bytes_are_sorted_utf8_with_one_newline_at_the_end(content: dict[str, Any]) -> None:
    """The canonical form can be checked without our code."""
    content["federation"]["name"] = "Läden"
    raw = canonical_bytes(Result.model_validate_json(json.dumps(content)))
    text = raw.decode("utf-8")
    assert "Läden" in text
    assert text.endswith("}\n")
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def test_only_volatile_fields_differ_between_equal_runs(content: dict[str, Any]) -> None:
    """Two runs that differ in time alone are equal once the volatile fields are left out."""
    first = Result.model_validate_json(json.dumps(content))
    content["federation"]["seconds"] += 1.0
    content["domains"] = dict(reversed(content["domains"].items()))
    second = Result.model_validate_json(json.dumps(content))
    assert canonical_bytes(first) != canonical_bytes(second)
    assert canonical_bytes(first, volatile=False) == canonical_bytes(second, volatile=False)
    assert VOLATILE == (("federation", "seconds"),)


@given(value=st.floats(min_value=-1e300, max_value=1e300))
def test_floats_are_rounded_to_six_significant_digits_once(value: float) -> None:
    """Rounding again changes nothing, and moves a number by at most half a unit of its sixth digit."""
    once = module.rounded(value)
    assert module.rounded(once) == once
    assert math.isclose(once, value, rel_tol=5.0001e-6, abs_tol=5e-324)
    assert math.copysign(1, once) == 1 or once < 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused_at_birth_and_when_written(bad: float, seeded: Result) -> None:
    """No NaN or infinity reaches a file, even past the models' own check."""
    with pytest.raises(ValueError, match="finite"):
        TransferGain(ndcg=bad, ci95=(0.0, 1.0), best_local="item_cf")
    smuggled = seeded.model_copy(update={"federation": seeded.federation.model_copy(update={"seconds": bad})})
    with pytest.raises(RunError, match="finite numbers only"):
        canonical_bytes(smuggled)


def test_a_seeded_run_cannot_claim_to_be_private(content: dict[str, Any]) -> None:
    """A known seed makes noise removable, so the two never stand together in a result."""
    content["federation"]["private"] = True
    with pytest.raises(ValueError, match="a seeded run is not private"):
        Result.model_validate_json(json.dumps(content))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("domains", "shopping", "transfer_gain", "ci95"), [0.2, 0.1], "an interval is"),
        (("domains", "shopping", "test"), None, "if and only if test_users is 0"),
        (("domains", "shopping", "epsilon_before"), 9.0, "epsilon_before must be at most epsilon"),
        (("domains", "shopping", "test", "federated", "ndcg@10"), 1.2, "less than or equal to 1"),
        (("domains", "shopping", "transfer_gain", "best_local"), "federated", "item_cf"),
        (("federation", "shipped_round"), 11, "shipped_round must be at most rounds"),
        (("federation", "digest"), "not hex", "pattern"),
        (("federation", "history", 1, "round"), 1, "each round once"),
        (("federation", "history", 0, "domains", "moon"), {"status": "ok", "reason": None, "epsilon": 0.0}, "moon"),
        (("domains", "shopping", "raw"), False, "True"),
        (("extra",), 1, "Extra inputs"),
    ],
)
def test_an_impossible_result_is_refused_with_its_reason(
    content: dict[str, Any], path: tuple[Any, ...], value: Any, message: str, tmp_path: Path
) -> None:
    """Reading names the file, the field and the rule."""
    holder: Any = content
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    file = tmp_path / "result.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(RunError, match=message) as caught:
        read_result(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "not a readable result"),
        (b'{"schema_version": 1', "not a readable result"),
        (b"\xff\xfe", "not a readable result"),
        (b"[]", "schema_version must be 1, got None"),
        (b'{"schema_version": 2}', "schema_version must be 1, got 2"),
        (b'{"schema_version": 1}', "isthmus_version"),
        (b"[" * 100_000, "not a readable result"),
    ],
)
def test_a_broken_file_is_a_clear_error(raw: bytes, message: str, tmp_path: Path) -> None:
    """Half a file, another layout or garbage: one sentence, no traceback."""
    file = tmp_path / "result.json"
    file.write_bytes(raw)
    with pytest.raises(RunError, match=message):
        read_result(file)


def test_a_missing_file_and_a_missing_folder_are_clear_errors(seeded: Result, tmp_path: Path) -> None:
    """The message says which path, and what makes one."""
    with pytest.raises(RunError, match="no such file"):
        read_result(tmp_path / "result.json")
    with pytest.raises(RunError, match="cannot be written"):
        write_result(seeded, tmp_path / "absent" / "result.json")


def test_writing_replaces_a_file_whole_and_leaves_nothing_beside_it(seeded: Result, tmp_path: Path) -> None:
    """A second write gives the second content, and a failed one leaves the first."""
    file = tmp_path / "result.json"
    file.write_text("old", encoding="utf-8")
    bad = seeded.model_copy(update={"federation": seeded.federation.model_copy(update={"seconds": math.nan})})
    with pytest.raises(RunError):
        write_result(bad, file)
    assert file.read_text(encoding="utf-8") == "old"
    write_result(seeded, file)
    assert file.read_bytes() == canonical_bytes(seeded)
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]


def test_importing_the_result_stays_light() -> None:
    """A command that only reads a result does not pay for plots, templates or torch."""
    heavy = "{'matplotlib', 'jinja2', 'torch', 'flwr', 'rich'}"
    code = f"import sys, isthmus.report.result; print(sorted({heavy} & set(sys.modules)))"
    source = Path(module.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(source)}
    )
    assert done.stdout.strip() == "[]"
