"""A checkpoint is whole at any moment, comes back as it was, and is refused when damaged or another run's."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from isthmus.errors import RunError
from isthmus.server.checkpoint import RoundRecord, RunState, load_checkpoint, save_checkpoint
from isthmus.strategies.guarded import Outcome

ROOT = Path(__file__).parents[2]
LOOP = """
import sys
from dataclasses import replace
from pathlib import Path
from isthmus.server.checkpoint import load_checkpoint, save_checkpoint
state = load_checkpoint(Path(sys.argv[1]), run="r1", digest="d1")
while True:
    state = replace(
        state, round=state.round + 1, arrays={name: array + 1 for name, array in state.arrays.items()}
    )
    save_checkpoint(Path(sys.argv[1]), state)
"""


def make_state() -> RunState:
    """A state with something in every field."""
    generator = np.random.default_rng(0)
    return RunState(
        run="r1",
        digest="d1",
        round=2,
        arrays={"a.weight": generator.normal(size=(3, 4)).astype(np.float32), "b": np.float32([np.pi, -0.0])},
        best={"a.weight": np.zeros((3, 4), np.float32), "b": np.ones(2, np.float32)},
        best_round=1,
        best_gain=0.0123456789012345,
        whitening={"mean": np.ones(4, np.float32), "matrix": np.eye(4, dtype=np.float32)},
        strategy={"m/b": generator.normal(size=2), "v/b": np.full(2, 1e-300)},
        bytes_up=2**40,
        bytes_down=17,
        history=(
            RoundRecord(
                round=1,
                update_norm=1.5,
                gain=0.01,
                gain_stddev=0.003,
                outcomes={"books": Outcome(status="ok", epsilon=0.5), "spiel": Outcome(status="refused", reason="ß\n")},
                evaluations={"books": Outcome(status="error", reason="x")},
            ),
            RoundRecord(round=2, update_norm=0.0),
        ),
    )


def read(path: Path) -> RunState | None:
    """The checkpoint of run r1 under configuration d1."""
    return load_checkpoint(path, run="r1", digest="d1")


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    """Every field; tensors to the bit and in their own dtype, double precision included."""
    state, file = make_state(), tmp_path / "new" / "c.safetensors"
    save_checkpoint(file, state)
    back = read(file)
    assert back is not None
    for field in fields(RunState):
        left, right = getattr(state, field.name), getattr(back, field.name)
        if isinstance(left, dict):
            assert left.keys() == right.keys()
            for name, array in left.items():
                assert (array.dtype, array.shape, array.tobytes()) == (
                    right[name].dtype,
                    right[name].shape,
                    right[name].tobytes(),
                )
        else:
            assert left == right, field.name


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    """A run that finished no round begins at the beginning."""
    assert read(tmp_path / "c.safetensors") is None


@pytest.mark.parametrize(("run", "digest"), [("r2", "d1"), ("r1", "d2"), ("", "")])
def test_another_runs_checkpoint_is_refused(tmp_path: Path, run: str, digest: str) -> None:
    """Another id or another configuration: named, with the way out; the file is left alone."""
    file = tmp_path / "c.safetensors"
    save_checkpoint(file, make_state())
    before = file.read_bytes()
    with pytest.raises(RunError, match=r"belongs to run 'r1' of another configuration .*Use another folder"):
        load_checkpoint(file, run=run, digest=digest)
    assert file.read_bytes() == before


def test_any_flipped_bit_is_found(tmp_path: Path) -> None:
    """Header or tensors: a file with one changed bit is refused, never half believed and never a traceback."""
    file = tmp_path / "c.safetensors"
    save_checkpoint(file, make_state())
    whole = bytearray(file.read_bytes())
    places = [*range(16), *np.random.default_rng(0).integers(0, len(whole), 300).tolist(), len(whole) - 1]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        file.write_bytes(damaged)
        try:
            read(file)
        except RunError as error:
            assert str(file) in str(error)  # noqa: PT017 - both ends of the test look at the file
            continue
        assert _is_spelling_only(bytes(whole), bytes(damaged)), f"byte {place} was believed"


def _is_spelling_only(whole: bytes, damaged: bytes) -> bool:
    """Whether the change is in how safetensors spells its header (a space for a space), not in what it says."""
    length = int.from_bytes(whole[:8], "little")
    if whole[:8] != damaged[:8] or whole[8 + length :] != damaged[8 + length :]:
        return False
    try:
        return bool(json.loads(whole[8 : 8 + length]) == json.loads(damaged[8 : 8 + length]))
    except ValueError:
        return False


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 100, -1])
def test_a_file_that_was_cut_is_refused(tmp_path: Path, keep: int) -> None:
    """Empty, in the header, in the tensors, one byte short."""
    file = tmp_path / "c.safetensors"
    save_checkpoint(file, make_state())
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(RunError, match=r"not a checkpoint of this version.*Start again in a new folder"):
        read(file)


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    """A folder, text, somebody else's safetensors, and a header whose checksum was copied along."""
    file = tmp_path / "c.safetensors"
    save_checkpoint(file, make_state())
    tensors = load_file(file)
    with safe_open(file, framework="np") as opened:
        metadata = opened.metadata()
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("a checkpoint, I promise")
    save_file(tensors, tmp_path / "bare")
    checksum, _, text = metadata["isthmus"].partition(" ")
    save_file(tensors, tmp_path / "unsigned", metadata={"isthmus": text})
    forged = json.dumps({**json.loads(text), "round": 1})
    save_file(tensors, tmp_path / "forged", metadata={"isthmus": f"{checksum} {forged}"})
    save_file({**tensors, "best:c": tensors["best:b"]}, tmp_path / "surplus", metadata=metadata)
    for name in ("folder", "text", "bare", "unsigned", "forged", "surplus"):
        with pytest.raises(RunError, match="not a checkpoint of this version"):
            read(tmp_path / name)


def test_a_kill_during_a_save_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    """Killed with -9 five times amid endless saving: always loadable, never older than what was seen before."""
    file = tmp_path / "c.safetensors"
    start = np.arange(200_000, dtype=np.float32)
    save_checkpoint(file, replace(make_state(), round=0, arrays={"w": start}))
    rounds = [0]
    for number in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", LOOP, str(file)], env={**os.environ, "PYTHONPATH": str(ROOT / "src")}
        )
        deadline = time.monotonic() + 60
        while _round(file) == rounds[-1] and time.monotonic() < deadline:  # until it is at work
            time.sleep(0.02)
        time.sleep(0.01 * number)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        state = read(file)
        assert state is not None
        assert np.array_equal(state.arrays["w"], start + state.round)
        rounds.append(state.round)
    assert rounds == sorted(set(rounds))


def _round(file: Path) -> int:
    state = read(file)
    assert state is not None
    return state.round
