"""What crosses the border to a vault: both ways without loss, refused unless it is exactly a request."""

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from isthmus.clients.wire import vault_pb2
from isthmus.clients.wire.messages import MOST_TENSORS, from_answer, from_question, to_answer, to_question
from isthmus.clients.wire.methods import METHODS, OF_KIND, SERVICE
from isthmus.clients.wire.vault_pb2 import Question, Tensor
from isthmus.config import BackboneConfig, FeatureConfig, TrainingConfig
from isthmus.errors import Refused
from isthmus.packing import arrays_digest
from isthmus.records import Kind, Recipe, RoundReply, RoundRequest

ROOT = Path(__file__).parents[3]
RECIPE = Recipe(features=FeatureConfig(), backbone=BackboneConfig(), training=TrainingConfig(), whitening="ab" * 32)
NAMES = st.text("abc.é", min_size=1, max_size=9)
SHAPES = arrays_of.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
FLOATS = st.dictionaries(NAMES, arrays_of.arrays(np.float32, SHAPES), max_size=4)
TENSORS = st.dictionaries(
    NAMES, arrays_of.arrays(st.sampled_from([np.float32, np.uint16, np.int8]), SHAPES), max_size=4
)
SCALES = st.dictionaries(NAMES, st.floats(allow_nan=False), max_size=3)
DIGESTS = st.sampled_from([{}, {"base": "12" * 32, "parameters": "34" * 32}])


def types(arrays: dict[str, np.ndarray]) -> dict[str, np.dtype]:
    """Of each tensor; the values are compared by their digest."""
    return {name: array.dtype for name, array in arrays.items()}


@given(
    sent=st.fixed_dictionaries({"arrays": TENSORS, "whitening": FLOATS, "reference": FLOATS, "scales": SCALES}),
    digests=DIGESTS,
    round_=st.integers(0, 2**31 - 1),
    run=st.text("abc-", max_size=20),
)
def test_a_request_comes_through_whole(
    sent: dict[str, dict[str, Any]], digests: dict[str, str], round_: int, run: str
) -> None:
    """Any tensors and texts, to the last bit, and so the digest that was signed."""
    request = RoundRequest(
        run=run,
        round=round_,
        recipe=RECIPE,
        **sent,
        **digests,
        proximal_mu=0.1,
        coordinator="c0",
        signature="5e",
        receipt="{}",
    )
    there = from_question(Question.FromString(to_question(request).SerializeToString()))
    assert there.digest(Kind.UPDATE) == request.digest(Kind.UPDATE)
    assert arrays_digest(there.arrays) == arrays_digest(request.arrays)
    assert types(there.arrays) == types(request.arrays)
    assert arrays_digest(there.whitening) == arrays_digest(request.whitening)
    assert arrays_digest(there.reference) == arrays_digest(request.reference)
    for name in (
        "scales",
        "base",
        "parameters",
        "run",
        "round",
        "recipe",
        "proximal_mu",
        "coordinator",
        "signature",
        "receipt",
    ):
        assert getattr(there, name) == getattr(request, name)


@given(arrays=TENSORS, values=st.dictionaries(st.text("ab", min_size=1, max_size=3), st.floats(allow_nan=False)))
def test_a_reply_comes_through_whole(arrays: dict[str, np.ndarray], values: dict[str, float]) -> None:
    """Release, refusal, figures and head."""
    reply = RoundReply(
        domain="books",
        run="r",
        round=3,
        arrays=arrays,
        values=values,
        refusal="no",
        exhausted=True,
        epsilon=1.5,
        head="h",
    )
    there = from_answer(type(to_answer(reply)).FromString(to_answer(reply).SerializeToString()))
    assert arrays_digest(there.arrays) == arrays_digest(reply.arrays)
    assert types(there.arrays) == types(reply.arrays)
    for name in ("domain", "run", "round", "values", "refusal", "exhausted", "epsilon", "head"):
        assert getattr(there, name) == getattr(reply, name)


def question(**changes: object) -> Question:
    """A good one, but for the changes."""
    good = to_question(RoundRequest(run="r", round=1, recipe=RECIPE))
    for key, value in changes.items():
        if isinstance(value, list):
            getattr(good, key).extend(value)
        else:
            setattr(good, key, value)
    return good


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"protocol": 2}, "speaks protocol 2"),
        ({"run": "r" * 3000}, "3000 characters"),
        ({"receipt": "r" * 3000}, "3000 characters"),
        ({"round": 2**31}, "'server-round' must be from 0"),
        ({"recipe": "{}"}, "recipe is not valid"),
        ({"recipe": " " * 30_000}, "'recipe' has 30000 characters"),
        ({"proximal_mu": float("nan")}, "finite and not negative"),
        ({"proximal_mu": -1.0}, "finite and not negative"),
        ({"arrays": [Tensor(name="w", shape=[2**31, 2**31], values=b"1234")]}, "4 bytes are no float32"),
        ({"arrays": [Tensor(name="w", shape=[1] * 9, values=b"1234")]}, "9 axes"),
        ({"arrays": [Tensor(name="w", shape=[1], values=b"12345678")]}, "8 bytes are no float32"),
        ({"arrays": [Tensor(name="w", shape=[2], values=b"1234", type=Tensor.INT8)]}, "4 bytes are no int8"),
        ({"arrays": [Tensor(name="w", shape=[4], values=b"1234", type=Tensor.UINT16)]}, "4 bytes are no uint16"),
        ({"arrays": [Tensor(name="w", shape=[1], values=b"1234", type=7)]}, "type 7"),
        ({"whitening": [Tensor(name="mean", shape=[4], values=b"1234", type=Tensor.INT8)]}, "is not float32"),
        ({"base": "../x", "parameters": "12" * 32}, "'base' must be 64 hex digits"),
        ({"arrays": [Tensor(name="w\n", shape=[1], values=b"1234")]}, "must be its own, visible"),
        ({"arrays": [Tensor(name="", shape=[1], values=b"1234")]}, "must be its own, visible"),
        ({"arrays": [Tensor(name="w", shape=[0])] * 2}, "must be its own, visible"),
        ({"whitening": [Tensor(name=f"w{n}", shape=[0]) for n in range(MOST_TENSORS + 1)]}, "more than 1000 tensors"),
    ],
)
def test_what_is_not_a_request_is_refused_with_the_reason(changes: dict[str, object], words: str) -> None:
    """Before anything is allocated for it."""
    with pytest.raises(Refused, match=words):
        from_question(question(**changes))


@given(st.binary(max_size=300))
def test_any_bytes_are_a_request_a_refusal_or_no_message(body: bytes) -> None:
    """Nothing else comes out of the parser."""
    with contextlib.suppress(Refused, DecodeError):
        from_question(Question.FromString(body))


def test_the_border_has_six_questions_and_no_field_for_raw_data() -> None:
    """Every message and field of an answer is in this list; another one needs a look at what it lets out."""
    service = vault_pb2.DESCRIPTOR.services_by_name["Vault"]
    assert service.full_name == SERVICE
    assert {method.name: (method.input_type.name, method.output_type.name) for method in service.methods} == {
        name: (method.question.DESCRIPTOR.name, method.answer.DESCRIPTOR.name) for name, method in METHODS.items()
    }
    assert set(OF_KIND) == set(Kind)
    fields = {
        name: list(message.fields_by_name) for name, message in vault_pb2.DESCRIPTOR.message_types_by_name.items()
    }
    assert fields["Answer"] == [
        *("domain", "run", "round", "arrays", "values", "refusal", "exhausted", "epsilon", "head"),
    ]
    assert fields["Description"] == ["domain", "protocol", "version", "program", "key", "ledger", "kinds", "private"]
    assert fields["BudgetAnswer"] == ["epsilon", "limit", "delta"]
    assert sorted(fields) == sorted(
        [
            *("Answer", "BudgetAnswer", "BudgetRequest", "DescribeRequest", "Description", "Question", "Tensor"),
        ]
    )


@pytest.mark.slow
def test_the_generated_code_is_what_the_description_says(tmp_path: Path) -> None:
    """Made again by the pinned generator, it has the same bytes (`make proto` mends it)."""
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", "-I", "src"),
            *(f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", "src/isthmus/clients/wire/vault.proto"),
        ],
        cwd=ROOT,
        check=True,
    )
    for name in ("vault_pb2.py", "vault_pb2.pyi"):
        assert (tmp_path / "isthmus/clients/wire" / name).read_text() == (ROOT / "clients/wire" / name).read_text()
