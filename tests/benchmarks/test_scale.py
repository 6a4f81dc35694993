"""The scale and evaluation benchmarks: a small run works, gives the agreed fields, and a missed bar is said."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).parents[2]
FIELDS = ("name", "ours", "peer", "peer_name", "ratio", "bar", "unit", "met")


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`compare.py` of a benchmark, as another script imports it."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location(f"compare_{name}", REPOSITORY / "benchmarks" / name / "compare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_small_log_is_made_and_imported(tmp_path: Path) -> None:
    """The first two phases, as the benchmark runs them."""
    for phase in ("make", "import"):
        command = [
            sys.executable,
            str(REPOSITORY / "benchmarks/scale/phases.py"),
            phase,
            str(tmp_path),
            "--users",
            "40",
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={"PYTHONPATH": "src"}, cwd=REPOSITORY
        )
        assert done.returncode == 0, done.stderr
        assert set(json.loads(done.stdout)) == {"cpu", "wall", "peak_mib"}
    assert (tmp_path / "shop" / "domain.toml").is_file()


def test_growth_and_memory_are_judged_by_their_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linear growth within 4 GiB meets both; one byte more, or a quarter more than linear, does not."""
    compare = script("scale", monkeypatch)

    def costs(cpu: float, peak: float) -> dict:
        small = {phase: compare.Cost(cpu=1.0, wall=1.0, peak_mib=100.0) for phase in compare.PHASES}
        return {10: small, 100: {phase: compare.Cost(cpu, 1.0, peak) for phase in compare.PHASES}}

    lines = compare.judged(costs(10.0, 4096.0))
    assert [line._fields for line in lines] == [FIELDS] * 2
    assert [(line.ratio, line.met) for line in lines] == [(1.0, True), (1.0, True)]
    assert [line.met for line in compare.judged(costs(12.5, 4097.0))] == [False, False]
    assert "NOT met" in compare.page(costs(12.5, 1.0), compare.judged(costs(12.5, 1.0)))


def test_ranks_that_no_near_tie_explains_end_the_evaluation_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speed counts only for the same ranks."""
    compare = script("evaluation", monkeypatch)
    compare.require_same_ranks({"ranks": [3, 8]}, {"ranks": [3, 7], "near": [0, 1]})
    with pytest.raises(RuntimeError, match="user 1 must have rank 7"):
        compare.require_same_ranks({"ranks": [3, 8]}, {"ranks": [3, 7], "near": [5, 0]})
    one = {"cpu": 1.0, "peak_mib": 100.0, "users": 5, "items": 9}
    found = {("a", "blend", "ours"): [one], ("a", "blend", "naive"): [one | {"cpu": 4.0}]}
    lines = compare.summary("a", "blend", found)
    assert [line._fields for line in lines] == [FIELDS] * 2
    assert [(line.ratio, line.met) for line in lines] == [(4.0, False), (1.0, True)]
