"""The moving average is what is evaluated and shipped; training never sees it; it survives a restart to the bit."""

from pathlib import Path

import numpy as np
import pytest
from tests.conftest import TinyFederation
from tests.server.scripted import Gains, run_script
from tests.server.test_loop import Stopped, Vaults, Watch, assert_equal

from isthmus.config import load_federation
from isthmus.server.averaging import moving_average
from isthmus.server.checkpoint import RunState
from isthmus.server.shipping import shipped_backbone
from isthmus.strategies.guarded import OK


def averaging(file: Path, decay: float) -> Path:
    """The federation, with an average."""
    file.write_text(file.read_text().replace("[strategy]", f"[strategy]\naverage = {decay}"))
    return file


def by_hand(states: list[RunState], decay: float) -> dict[str, np.ndarray]:
    """What De et al. compute, in float64: theta' = d theta' + (1 - d) theta, d warmed up."""
    average = {name: array.astype(np.float64) for name, array in states[0].arrays.items()}
    for state in states[1:]:
        kept = min(decay, (1 + state.round) / (10 + state.round))
        average = {name: kept * average[name] + (1 - kept) * array for name, array in state.arrays.items()}
    return average


def test_it_is_evaluated_and_shipped_and_training_goes_on_without_it(
    tiny_federation: TinyFederation, tmp_path: Path
) -> None:
    """Raw parameters are those of a run without an average; the best state is the average at its round."""
    file = tiny_federation()
    plain = run_script(file, Gains({2: 1.0, 4: 2.0}), tmp_path / "plain")
    ours = run_script(averaging(file, 0.4), Gains({2: 1.0, 4: 2.0}), tmp_path / "average")
    for one, other in zip(plain, ours, strict=True):
        assert all(one.arrays[name].tobytes() == other.arrays[name].tobytes() for name in one.arrays)
        assert one.average == {}
    last, expected = ours[-1], by_hand(ours, 0.4)
    assert last.best_round == 4
    shipped = dict(shipped_backbone(last, load_federation(file)).backbone.named_parameters())
    for name, array in last.best.items():
        assert array.tobytes() == last.average[name].tobytes()
        np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(array, shipped[name].detach().numpy())
        assert (array != last.arrays[name]).any()


def test_a_run_with_an_average_stopped_after_a_round_ends_as_the_uninterrupted_one(
    tiny_federation: TinyFederation, tmp_path: Path
) -> None:
    """Through real vaults: average, parameters, history and charges are equal to the bit."""
    vaults = Vaults(averaging(tiny_federation(), 0.9), tmp_path)
    whole = vaults.start("whole", Watch())
    assert all(record.update_norm > 0 for record in whole.history)
    for record in whole.history[1::2]:
        assert {outcome.status for outcome in record.evaluations.values()} == {OK}
    with pytest.raises(Stopped):
        vaults.start("stopped", Watch(2))
    assert_equal(vaults.start("stopped", Watch()), whole)
    assert vaults.charged("stopped", "books") == vaults.charged("whole", "books")


def test_noise_averages_out_and_what_was_learned_stays() -> None:
    """On a small problem: a constant with noise around it; the average is nearer to it than the last round."""
    generator = np.random.default_rng(0)
    average = {"a": np.ones(2000, np.float32)}
    for round_ in range(1, 201):
        noisy = {"a": (1 + generator.normal(size=2000)).astype(np.float32)}
        average = moving_average(average, noisy, decay=0.9, round_=round_)
    assert average["a"].dtype == np.float32
    error = {"average": np.std(average["a"] - 1), "last": np.std(noisy["a"] - 1)}
    assert error["average"] == pytest.approx(error["last"] * np.sqrt(0.1 / 1.9), rel=0.15)  # of an average with decay d


def test_a_tensor_that_never_changed_is_as_it_was() -> None:
    """To the bit: a part that is not trained is in the average as in everything else."""
    still = {"a": np.float32([np.pi, 1e-30, 3e38])}
    average = still
    for round_ in range(1, 6):
        average = moving_average(average, still, decay=0.9, round_=round_)
    assert average["a"].tobytes() == still["a"].tobytes()
