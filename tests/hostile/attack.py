"""Code that a hostile coordinator might ship: what it can get hold of in the client's process, as the client's user.

    python attack.py ADDRESS DATA_FOLDER REQUEST_FILE     # prints what it got, as JSON
    attack(address, folder, request)                      # the same, from a ClientApp that was shipped

It knows everything that a client knows and more: where the data lie, and a request that the domain would answer. It
is no part of the product and uses its client only to speak to the vault.
"""

import contextlib
import dataclasses
import json
import os
import pickle  # noqa: TID251 - an attacker's tool
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from isthmus.clients.remote import remote_vault
from isthmus.clients.wire.messages import to_question
from isthmus.clients.wire.methods import SERVICE
from isthmus.clients.wire.vault_pb2 import Answer, Question
from isthmus.records import Kind, RoundReply, RoundRequest, read_recipe

ROUNDS = 60


def request_from(file: Path) -> RoundRequest:
    """A request as a coordinator would make it, from a file of arrays."""
    with np.load(file) as packed:
        arrays = {name[2:]: packed[name] for name in packed.files if name.startswith("a.")}
        whitening = {name[2:]: packed[name] for name in packed.files if name.startswith("w.")}
        recipe = read_recipe(str(packed["recipe"]))
    return RoundRequest(run="hostile", round=1, recipe=recipe, arrays=arrays, whitening=whitening)


def readable(folder: Path) -> list[str]:
    """Every file of the data folder that can be opened, the folder itself, and how others' processes were started."""
    got = []
    names = ("interactions.csv", "items.csv", "domain.toml", "policy.toml", "ledger.db", "ledger.key", "ledger.secret")
    for file in (*(folder / name for name in names), folder):
        with contextlib.suppress(OSError):
            got.append(f"{file.name}: {len(list(file.iterdir()) if file.is_dir() else file.read_bytes())}")
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                if process.stat().st_uid == os.geteuid():
                    continue  # of the node, and no secret to its own client
                if b"vault" in (process / "cmdline").read_bytes() and (process / "environ").read_bytes():
                    got.append(f"environment of process {process.name}")
    return got


def writable(folder: Path) -> list[str]:
    """Every place of the domain that can be written to."""
    got = []
    for file in (folder / "ledger.db", folder / "policy.toml", folder / "new"):
        with contextlib.suppress(OSError), file.open("ab"):
            got.append(file.name)
    return got


def questions(request: RoundRequest) -> Iterator[tuple[str, Kind, RoundRequest]]:
    """What a client may say, bent."""
    name = next(iter(request.arrays))
    extra = {**request.arrays, "clients.head.weight": np.zeros((2, 2), np.float32)}
    missing = {key: value for key, value in request.arrays.items() if key != name}
    huge = {**request.arrays, name: request.arrays[name] * np.float32("inf")}
    training = request.recipe.training
    yield "other layers", Kind.UPDATE, dataclasses.replace(request, arrays=extra)
    yield "missing layers", Kind.UPDATE, dataclasses.replace(request, arrays=missing)
    yield "infinite", Kind.UPDATE, dataclasses.replace(request, arrays=huge)
    yield "another's signature", Kind.UPDATE, dataclasses.replace(request, coordinator="ab" * 32, signature="cd" * 64)
    yield "a path for a name", Kind.UPDATE, dataclasses.replace(request, run="../../../etc/passwd\n0")
    yield "no receipt", Kind.UPDATE, dataclasses.replace(request, receipt="{}")
    yield "the first time", Kind.UPDATE, request
    moved = {key: value + np.float32(1) for key, value in request.arrays.items()}
    yield "the same round, otherwise", Kind.UPDATE, dataclasses.replace(request, arrays=moved)
    faster = request.recipe.model_copy(update={"training": training.model_copy(update={"learning_rate": 0.001})})
    yield "the same round, another recipe", Kind.UPDATE, dataclasses.replace(request, recipe=faster)
    for round_ in range(2, ROUNDS):
        yield f"round {round_}", Kind.UPDATE, dataclasses.replace(request, round=round_)
    for number in range(ROUNDS):
        yield f"run {number}", Kind.METRIC, dataclasses.replace(request, run=f"hostile-{number}")


def raw_fields(question: Question) -> bytes:
    """The question with fields that no message has: a noise of 0, a clip of 1e9, a table to send along."""
    lower = bytes([0x9A, 0x06]) + bytes([14]) + b"noise_multipli" + bytes([0xA1, 0x06]) + np.float64(0).tobytes()
    return question.SerializeToString() + lower


def attack(address: str, folder: Path, request: RoundRequest) -> dict[str, Any]:
    """Try everything; what came of it."""
    got: dict[str, Any] = {"read": readable(folder), "written": writable(folder), "answers": {}, "refusals": {}}
    vault = remote_vault({"vault": address})
    got["described"] = str(vault.describe())
    for what, kind, question in questions(request):
        reply: RoundReply = vault.answer(kind, question)
        got["refusals" if reply.refusal else "answers"][what] = reply.refusal or sorted(reply.arrays or reply.values)
    got["epsilon"] = vault.budget().epsilon
    got["methods"] = raw_methods(address, request)
    return got


def raw_methods(address: str, request: RoundRequest) -> dict[str, str]:
    """Methods that are not there, a pickle, unknown fields, and no gRPC at all."""
    got = {}
    credentials = grpc.local_channel_credentials(grpc.LocalConnectionType.UDS)
    later = to_question(dataclasses.replace(request, round=ROUNDS + 1))
    with grpc.secure_channel(address, credentials) as channel:
        for method, body in {
            "ReadTable": b"interactions.csv",
            "Describe": pickle.dumps(os.system),
            "Train": raw_fields(later),
            "Receive": to_question(request).SerializeToString(),
        }.items():
            try:
                said: bytes = channel.unary_unary(f"/{SERVICE}/{method}")(body, timeout=60)
                got[method] = Answer.FromString(said).refusal if method in ("Train", "Receive") else said.hex()
            except grpc.RpcError as error:
                got[method] = error.code().name
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(address.removeprefix("unix:"))
        line.sendall(b"GET /../../interactions.csv HTTP/1.1\r\nHost: vault\r\n\r\n" * 100)
        with contextlib.suppress(OSError):
            line.settimeout(2)
            got["http"] = line.recv(100_000).hex()
    return got


def main() -> None:
    """Print what it got."""
    address, folder, file = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    sys.stdout.write(json.dumps(attack(address, folder, request_from(file))) + "\n")


if __name__ == "__main__":
    main()
