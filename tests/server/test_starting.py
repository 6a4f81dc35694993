"""A run begins with what was trained in the open, and ships it only while nothing released speaks against it."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.conftest import TinyFederation
from tests.server.scripted import Gains, run_script
from tests.starts import arrays_of, start_from, write_start

from isthmus.backbone import Backbone, text_prior
from isthmus.backbone_file import save_backbone
from isthmus.config import load_federation
from isthmus.errors import ConfigError
from isthmus.server.shipping import shipped_backbone
from isthmus.text_changes import TextShape


@pytest.mark.parametrize(
    ("gains", "best", "prior"),
    [
        ({1: 2.0, 2: 9.0, 3: 5.0, 4: 8.9}, 2, False),
        ({1: -1.0, 2: 2.0, 3: -0.1, 4: -2.0}, 2, False),
        ({1: -1.0, 2: -9.0, 3: -0.1, 4: -2.0}, 0, True),
        ({1: 0.0, 2: 0.0, 3: 0.0, 4: 0.0}, 0, True),
    ],
)
def test_a_start_of_which_nothing_good_comes_is_not_shipped(
    tiny_federation: TinyFederation, tmp_path: Path, gains: dict[int, float], best: int, prior: bool
) -> None:
    """The best released gain above the prior's; where none is above it the prior, as if untrained."""
    file = tiny_federation(evaluate_every=1)
    write_start(file.parent / "start.safetensors", file, axes=True, dim=4)
    start_from(file, "start.safetensors")
    states = run_script(file, Gains(gains), tmp_path / "a")
    assert states[-1].best_round == best
    shipped = shipped_backbone(states[-1], load_federation(file))
    if not prior:
        assert all(states[-1].best[name].tobytes() == array.tobytes() for name, array in states[best].arrays.items())
        return
    history = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    config = load_federation(file).backbone.shape
    assert torch.allclose(shipped.backbone(history), text_prior(history, config), atol=1e-6)
    assert torch.equal(shipped.backbone.recency.weight, Backbone(4, config).recency.weight)


def test_without_evaluations_the_start_is_shipped_and_it_says_what_it_is(
    tiny_federation: TinyFederation, tmp_path: Path
) -> None:
    """Round 0: heads do not believe it beyond what their own validation users say."""
    file = tiny_federation(evaluate_every=0)
    start = write_start(file.parent / "start.safetensors", file, axes=True, dim=4)
    start_from(file, "start.safetensors")
    state = run_script(file, Gains({}), tmp_path / "a")[-1]
    shipped = shipped_backbone(state, load_federation(file))
    assert shipped.round == 0
    assert shipped.start == load_federation(file).started_from()
    assert all(np.array_equal(array, state.best[name]) for name, array in arrays_of(start).items())
    assert not all(np.array_equal(array, state.arrays[name]) for name, array in arrays_of(start).items())


@pytest.mark.parametrize("axes", [True, False])
def test_a_run_begins_at_the_start_in_the_axes_that_it_knows(
    tiny_federation: TinyFederation, tmp_path: Path, axes: bool
) -> None:
    """Its own whitening if it has learned something about axes, that of the federation's catalogues if not."""
    file = tiny_federation(evaluate_every=0)
    plain = run_script(file, Gains({}), tmp_path / "plain", rounds=1)[0]
    start = write_start(file.parent / "start.safetensors", file, axes=axes, dim=4)
    start_from(file, "start.safetensors")
    first = run_script(file, Gains({}), tmp_path / "a", rounds=1)[0]
    assert first.round == 0
    assert all(np.array_equal(array, first.arrays[name]) for name, array in arrays_of(start).items())
    assert np.array_equal(first.whitening["matrix"], start.whitening.matrix if axes else plain.whitening["matrix"])


def test_an_aligned_run_adds_a_classifier_to_its_start(tiny_federation: TinyFederation, tmp_path: Path) -> None:
    """At zero, beside what was trained in the open: the file that a run starts from has none."""
    file = tiny_federation(evaluate_every=0)
    start = write_start(file.parent / "start.safetensors", file, axes=True, dim=4)
    start_from(file, "start.safetensors")
    align = 'align = "dann"\nalign_weight = 1.0\nalign_domains = ["books", "films", "games"]'
    file.write_text(file.read_text().replace("rivals = 10", f"rivals = 10\n{align}"))
    first, second = run_script(file, Gains({}), tmp_path / "a", rounds=1)
    assert all(np.array_equal(array, first.arrays[name]) for name, array in arrays_of(start).items())
    classifier = first.arrays.keys() - arrays_of(start).keys()
    assert {first.arrays[name].shape for name in classifier} == {(3, 8), (3,)}
    assert not any(first.arrays[name].any() for name in classifier)
    assert all(outcome.status == "ok" for outcome in second.history[-1].outcomes.values())


def test_a_start_that_changes_a_text_encoder_is_refused(tiny_federation: TinyFederation, tmp_path: Path) -> None:
    """No command writes such a file; a run from it would end with every domain's refusal."""
    file = tiny_federation(evaluate_every=0)
    path = file.parent / "start.safetensors"
    start = write_start(path, file, axes=True, dim=4)
    changed = Backbone(4, start.backbone.config, text=TextShape(layers=1, width=4, rank=2))
    save_backbone(path, dataclasses.replace(start, backbone=changed))
    start_from(file, "start.safetensors")
    with pytest.raises(ConfigError, match="changes a text encoder, and no federation can begin so"):
        run_script(file, Gains({}), tmp_path / "a", rounds=1)
