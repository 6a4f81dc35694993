"""kill -9 at any moment, the same command again: the same backbone, and nobody charged less than released."""

import json
import random
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file
from tests.commands import Command, begin
from tests.simulation.conftest import Factory

from isthmus.privacy.ledger import Ledger

pytestmark = pytest.mark.slow


def start(file: Path, out: Path, *options: str) -> Command:
    """Start `isthmus simulate` as a process of its own."""
    return begin("simulate", file, "--out", out, *options)


def test_a_killed_run_ends_with_the_same_backbone(federation: Factory, tmp_path: Path) -> None:
    """Killed at five random moments of its life, then left alone: bit for bit the run that nobody killed."""
    file = federation()
    started = time.monotonic()
    assert start(file, tmp_path / "whole").wait() == 0
    lifetime = time.monotonic() - started
    moments = random.Random(0)  # noqa: S311 - not a secret
    out, killed = tmp_path / "killed", 0
    for _ in range(5):
        process = start(file, out)
        try:
            process.wait(timeout=moments.uniform(0.3, 0.7) * lifetime)
        except subprocess.TimeoutExpired:
            process.kill()
            killed += 1
        process.wait()
        for name in ("books", "games"):
            _assert_nothing_left_unpaid(out, name)
    assert start(file, out).wait() == 0
    assert killed >= 1
    whole, continued = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == continued.keys()
    assert all(np.array_equal(whole[name], continued[name]) for name in whole)
    for name in ("books", "games"):
        kinds = [(e.kind, e.round) for e in Ledger(out / "ledgers" / f"{name}.db").entries()]
        assert len(kinds) == len(set(kinds)) == 1 + 4 + 2  # catalogue, updates, metrics: each paid once


def _assert_nothing_left_unpaid(out: Path, name: str) -> None:
    """Every round that the server finished is in the domain's ledger."""
    checkpoint, ledger = out / "checkpoint.safetensors", out / "ledgers" / f"{name}.db"
    if not checkpoint.exists():
        return
    with safe_open(checkpoint, framework="np") as file:
        finished = json.loads(file.metadata()["isthmus"].partition(" ")[2])["round"]
    charged = {e.round for e in Ledger(ledger).entries() if e.kind == "update"}
    assert set(range(1, finished + 1)) <= charged
