"""The Ray backend runs the same apps and comes to the same backbone."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.simulation.conftest import Factory
from tests.simulation.test_kill import start

pytestmark = pytest.mark.slow


def test_ray_and_in_process_give_the_same_backbone(federation: Factory, tmp_path: Path) -> None:
    """Workers in other processes, the same messages: the same backbone to 1e-5, the same books."""
    pytest.importorskip("ray")
    file = federation()
    for backend in ("in-process", "ray"):
        assert start(file, tmp_path / backend, "--backend", backend).wait() == 0
    here, there = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("in-process", "ray"))
    assert here.keys() == there.keys()
    for name in here:
        np.testing.assert_allclose(there[name], here[name], atol=1e-5)
