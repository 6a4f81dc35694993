"""Persist a run after every round, atomically, and start again from it.

    save_checkpoint(folder / "checkpoint.safetensors", state)
    state = load_checkpoint(folder / "checkpoint.safetensors", run="r1", digest="ab12")

One safetensors file holds everything: shared parameters, the best ones so far, the whitening, what the
strategy remembers, and the history as JSON in its header. It is written beside the old one, synced and
renamed over it, so that a crash at any moment leaves the old or the new one, whole. A checksum over all of it tells
a damaged file. No pickle.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from isthmus.durable import write_durably
from isthmus.encoding import Arrays
from isthmus.errors import RunError
from isthmus.strategies.guarded import Outcome


@dataclass(frozen=True, kw_only=True)
class RoundRecord:
    """What happened in one round.

    Attributes:
        round: From 1.
        update_norm: L2 norm of the step that the shared parameters took; 0 if nobody's update was accepted.
        gain: Noisy mean gain of validation NDCG@10 over the text prior, if evaluated.
        gain_stddev: Standard deviation of the noise in it.
        outcomes: Of each domain's update.
        evaluations: Of each domain's evaluation, if there was one.
    """

    round: int
    update_norm: float
    gain: float | None = None
    gain_stddev: float | None = None
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    evaluations: dict[str, Outcome] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunState:
    """Everything the server needs to go on after a finished round.

    Attributes:
        run: Id of the run.
        digest: Of the configuration.
        round: Last finished round; 0 before the first.
        arrays: Shared parameters.
        best: Shared parameters that will be shipped.
        best_round: Round they are from; 0 is the text prior.
        best_gain: Noisy gain they had; 0 for the prior by definition.
        whitening: `mean` and `matrix`.
        strategy: What the strategy remembers.
        average: Moving average of the shared parameters; empty where none is kept.
        bytes_up: Tensors received from domains so far, in bytes.
        bytes_down: Tensors sent to domains so far, in bytes.
        history: One record per finished round.
    """

    run: str
    digest: str
    round: int
    arrays: Arrays
    best: Arrays
    best_round: int
    best_gain: float
    whitening: Arrays
    strategy: Arrays
    average: Arrays = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0
    history: tuple[RoundRecord, ...] = ()


_GROUPS = ("arrays", "best", "whitening", "strategy", "average")


def save_checkpoint(path: Path, state: RunState) -> None:
    """Replace the checkpoint at `path`, durably."""
    tensors = {f"{group}:{name}": array for group in _GROUPS for name, array in getattr(state, group).items()}
    header = {f.name: getattr(state, f.name) for f in fields(state) if f.name not in (*_GROUPS, "history")}
    header["history"] = [asdict(record) for record in state.history]
    text = json.dumps(header)
    # One entry: safetensors writes several in an order of its own, and equal states should give equal bytes.
    write_durably(path, save(tensors, metadata={"isthmus": f"{_checksum(text, tensors)} {text}"}))


def load_checkpoint(path: Path, *, run: str, digest: str) -> RunState | None:
    """The state of an earlier process of this run; None if it finished no round.

    Raises:
        RunError: If the file is damaged or belongs to another run.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="np") as file:
            checksum, _, text = file.metadata()["isthmus"].partition(" ")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        if _checksum(text, tensors) != checksum:
            raise ValueError("its checksum does not fit, so it is damaged")
        header = json.loads(text)
        groups: dict[str, Arrays] = {group: {} for group in _GROUPS}
        for key, tensor in tensors.items():
            group, _, name = key.partition(":")
            groups[group][name] = tensor
        state = RunState(
            run=str(header["run"]),
            digest=str(header["digest"]),
            round=int(header["round"]),
            best_round=int(header["best_round"]),
            best_gain=float(header["best_gain"]),
            bytes_up=int(header["bytes_up"]),
            bytes_down=int(header["bytes_down"]),
            arrays=groups["arrays"],
            best=groups["best"],
            whitening=groups["whitening"],
            strategy=groups["strategy"],
            average=groups["average"],
            history=tuple(_record(raw) for raw in header["history"]),
        )
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{path}: not a checkpoint of this version: {error}. Start again in a new folder.") from None
    if (state.run, state.digest) != (run, digest):
        raise RunError(
            f"{path}: belongs to run {state.run!r} of another configuration ({state.digest[:12]}, now {digest[:12]}). "
            f"Use another folder, or put the configuration back."
        )
    return state


def _checksum(text: str, tensors: Arrays) -> str:
    """SHA-256 of the header and of every tensor's name, dtype, shape and bytes, as hex."""
    running = hashlib.sha256(text.encode())
    for name, array in sorted(tensors.items()):
        running.update(f"\n{name} {array.dtype} {array.shape}\n".encode())
        running.update(array.tobytes())
    return running.hexdigest()


def _record(raw: dict[str, object]) -> RoundRecord:
    values = dict(raw)
    for name in ("outcomes", "evaluations"):
        values[name] = {domain: Outcome(**outcome) for domain, outcome in values[name].items()}  # type: ignore[attr-defined]
    return RoundRecord(**values)  # type: ignore[arg-type]
