"""What travels comes back as it was; whatever else arrives is refused with a reason, and nothing is unpickled."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

from isthmus.config import BackboneConfig, FeatureConfig, TrainingConfig
from isthmus.errors import Refused
from isthmus.grid import take_identity
from isthmus.packing import arrays_digest, pack
from isthmus.records import Kind, Recipe, RoundReply, RoundRequest, content_bytes

RECIPE = Recipe(
    features=FeatureConfig(encoder="hash:64"), backbone=BackboneConfig(), training=TrainingConfig(), whitening="ab" * 32
)
ARRAYS = {
    "scalar": np.float32(3.5).reshape(()),
    "empty": np.zeros((0, 4), np.float32),
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "strange": np.array([np.nan, np.inf, -0.0, 1e-45], np.float32),
}


def make_request(round_: int = 2) -> RoundRequest:
    """A request with everything in it."""
    return RoundRequest(
        run="r1",
        round=round_,
        recipe=RECIPE,
        arrays=ARRAYS,
        whitening={"mean": np.ones(2, np.float32)},
        reference={"matrix": np.full((2, 3), 0.5, np.float32)},
        proximal_mu=0.25,
    )


def make_reply() -> RoundReply:
    """A reply with everything in it."""
    return RoundReply(
        domain="books",
        run="r1",
        round=2,
        arrays=ARRAYS,
        values={"gain": -0.5},
        refusal="no, ünïcode",
        exhausted=True,
        epsilon=1.5,
    )


def over_the_wire(content: RecordDict) -> RecordDict:
    """What the other side gets: through Flower's protobuf and back."""
    return recorddict_from_proto(recorddict_to_proto(content))


@pytest.mark.parametrize("carry", [over_the_wire, RecordDict])
def test_a_request_comes_back_as_it_was(carry: Callable[[RecordDict], RecordDict]) -> None:
    """Every field, and every bit of every tensor, NaN and minus zero included."""
    request = make_request()
    back = RoundRequest.from_records(carry(request.to_records()))
    assert (back.run, back.round, back.recipe, back.proximal_mu) == ("r1", 2, RECIPE, 0.25)
    assert back.arrays.keys() == ARRAYS.keys()
    assert all(back.arrays[name].tobytes() == array.tobytes() for name, array in ARRAYS.items())
    assert all(back.arrays[name].shape == array.shape for name, array in ARRAYS.items())
    assert back.whitening["mean"].tolist() == [1.0, 1.0]
    assert back.reference["matrix"].tolist() == [[0.5] * 3] * 2
    assert all(back.digest(kind) == request.digest(kind) for kind in Kind)


CHANGED = {"steps": np.array([[-127, 0, 127]], np.int8), "halves": np.array([0x3F80, 0xC000], np.uint16)}
SCALES = {"steps": 2.0**-10}


@pytest.mark.parametrize("carry", [over_the_wire, RecordDict])
def test_encoded_tensors_come_back_as_they_were(carry: Callable[[RecordDict], RecordDict]) -> None:
    """With dtypes and scales, in both directions; as many bytes as values, names and little else."""
    digests = {"base": "12" * 32, "parameters": "34" * 32}
    request = RoundRequest(run="r1", round=2, recipe=RECIPE, arrays=CHANGED, scales=SCALES, **digests)
    asked = RoundRequest.from_records(carry(request.to_records()))
    assert (asked.base, asked.parameters, asked.scales) == (digests["base"], digests["parameters"], SCALES)
    assert all(asked.digest(kind) == request.digest(kind) for kind in Kind)
    reply = RoundReply(domain="books", run="r1", round=2, arrays=CHANGED, values=SCALES)
    answered = RoundReply.from_records(carry(reply.to_records()))
    assert answered.values == SCALES
    for back in (asked.arrays, answered.arrays):
        assert {name: (each.dtype, each.tolist()) for name, each in back.items()} == {
            name: (each.dtype, each.tolist()) for name, each in CHANGED.items()
        }
    take_identity(1)
    message = Message(reply.to_records(), dst_node_id=2, message_type="train")
    values, scale, said = 3 + 4, 4, 80  # what safetensors says of a tensor, and the scales are one
    assert values + scale < content_bytes(message) <= values + scale + 3 * said


def test_how_parameters_are_sent_does_not_change_the_request() -> None:
    """Whole, as a change of earlier ones, or not at all: one digest, so one signature and one answer."""
    whole = RoundRequest(run="r1", round=2, recipe=RECIPE, arrays=ARRAYS)
    digests = {"base": "12" * 32, "parameters": arrays_digest(ARRAYS).hex()}
    change = RoundRequest(run="r1", round=2, recipe=RECIPE, arrays=CHANGED, scales=SCALES, **digests)
    nothing = RoundRequest(
        run="r1", round=2, recipe=RECIPE, base=digests["parameters"], parameters=digests["parameters"]
    )
    others = RoundRequest(run="r1", round=2, recipe=RECIPE, base="12" * 32, parameters="56" * 32)
    assert whole.digest(Kind.UPDATE) == change.digest(Kind.UPDATE) == nothing.digest(Kind.UPDATE)
    assert whole.digest(Kind.UPDATE) != others.digest(Kind.UPDATE)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base": "12" * 32}, "'parameters' must be 64 hex digits"),
        ({"base": "12" * 32, "parameters": "x" * 64}, "'parameters' must be 64 hex digits"),
        ({"base": "../../etc/passwd", "parameters": "12" * 32}, "'base' must be 64 hex digits"),
        ({"base": "AB" * 32, "parameters": "12" * 32}, "'base' must be 64 hex digits"),
        ({"parameters": "12" * 32}, "one of both"),
        ({"whitening": {"mean": np.ones(2, np.int8)}}, "whitening that came along is not float32"),
        ({"reference": {"a": np.ones(2, np.int8)}}, "reference that came along is not float32"),
    ],
)
def test_a_request_that_names_its_parameters_badly_is_refused(changes: dict[str, object], words: str) -> None:
    """A digest is a digest, and there are two of them or none."""
    with pytest.raises(Refused, match=words):
        RoundRequest(run="r1", round=2, recipe=RECIPE, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("carry", [over_the_wire, RecordDict])
def test_a_reply_comes_back_as_it_was(carry: Callable[[RecordDict], RecordDict]) -> None:
    """Release, refusal and figures alike."""
    reply = make_reply()
    back = RoundReply.from_records(carry(reply.to_records()))
    assert (back.domain, back.run, back.round, back.values) == ("books", "r1", 2, {"gain": -0.5})
    assert (back.refusal, back.exhausted, back.epsilon) == ("no, ünïcode", True, 1.5)
    assert all(back.arrays[name].tobytes() == array.tobytes() for name, array in ARRAYS.items())


def test_the_digest_of_a_request_covers_everything_a_release_depends_on() -> None:
    """Another run, round, kind, recipe, pull, parameter or reference is another request; the whitening along is not."""
    request = make_request()
    reference = request.reference["matrix"]
    fields = {"run": "r1", "round": 2, "recipe": RECIPE, "arrays": ARRAYS, "proximal_mu": 0.25}
    fields["reference"] = request.reference
    nudged = {**ARRAYS, "matrix": np.nextafter(ARRAYS["matrix"], np.float32(9))}
    renamed = {**{k: v for k, v in ARRAYS.items() if k != "matrix"}, "matriy": ARRAYS["matrix"]}
    reshaped = {**ARRAYS, "matrix": ARRAYS["matrix"].reshape(3, 2)}
    changes: list[dict[str, object]] = [
        {},
        {"run": "r2"},
        {"round": 3},
        {"proximal_mu": 0.5},
        {"recipe": RECIPE.model_copy(update={"whitening": "cd" * 32})},
        {"recipe": RECIPE.model_copy(update={"training": TrainingConfig(temperature=0.2)})},
        {"arrays": nudged},
        {"arrays": renamed},
        {"arrays": reshaped},
        {"reference": {}},
        {"reference": {"matrix": np.nextafter(reference, np.float32(9))}},
        {"reference": {"strange": reference}},
    ]
    digests = [RoundRequest(**{**fields, **change}).digest(Kind.UPDATE) for change in changes]  # type: ignore[arg-type]
    assert digests[0] == request.digest(Kind.UPDATE) != request.digest(Kind.METRIC)
    assert len(set(digests)) == len(changes)
    assert arrays_digest(ARRAYS) == arrays_digest(dict(reversed(ARRAYS.items())))


@pytest.mark.parametrize("parse", [RoundRequest.from_records, RoundReply.from_records])
@pytest.mark.parametrize(("missing", "words"), [("config", "no record 'config'"), ("arrays", "no record 'arrays'")])
def test_a_missing_record_is_refused(parse: Callable[[RecordDict], object], missing: str, words: str) -> None:
    """By name, with what there was instead; a record of another type under that name is missing, too."""
    content = make_request().to_records() if parse == RoundRequest.from_records else make_reply().to_records()
    del content[missing]
    with pytest.raises(Refused, match=words):
        parse(content)
    content[missing] = MetricRecord({"round": 1})
    with pytest.raises(Refused, match=words):
        parse(content)
    with pytest.raises(Refused, match="no record"):
        parse(RecordDict())


@pytest.mark.parametrize("protocol", [0, 2, "1", 1.0, True, None])
def test_another_protocol_is_refused(protocol: object) -> None:
    """Only the very number is our version: neither its text nor something that equals it."""
    for content, parse in (
        (make_request().to_records(), RoundRequest.from_records),
        (make_reply().to_records(), RoundReply.from_records),
    ):
        config = content.config_records["config"]
        if protocol is None:
            del config["protocol"]
        else:
            config["protocol"] = protocol  # type: ignore[assignment]
        with pytest.raises(Refused, match="protocol"):
            parse(content)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("run", 1),
        ("run", "r" * 5000),
        ("server-round", True),
        ("server-round", 1.0),
        ("server-round", "1"),
        ("server-round", -1),
        ("proximal-mu", 1),
        ("proximal-mu", math.nan),
        ("proximal-mu", math.inf),
        ("proximal-mu", -0.5),
        ("recipe", b"{}"),
        ("recipe", "{}"),
        ("recipe", "NaN"),
        ("recipe", "[" * 3000),
        ("recipe", RECIPE.model_dump_json().replace("0.03", "NaN")),
        ("recipe", RECIPE.model_dump_json().replace('"whitening"', '"epsilon"')),
        ("recipe", "x" * 1_000_000),
    ],
)
def test_a_request_with_a_wrong_setting_is_refused(key: str, value: object) -> None:
    """Wrong type, not finite, negative, too long, an unknown key in the recipe: named, in few words."""
    content = make_request().to_records()
    content.config_records["config"][key] = value  # type: ignore[assignment]
    with pytest.raises(Refused, match=key.partition("-")[2] or key) as caught:
        RoundRequest.from_records(content)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("key", ["run", "server-round", "recipe"])
def test_a_request_without_a_setting_is_refused(key: str) -> None:
    """Nothing is guessed."""
    content = make_request().to_records()
    del content.config_records["config"][key]
    with pytest.raises(Refused, match=f"'{key}' must be"):
        RoundRequest.from_records(content)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("domain", b"books"),
        ("domain", "b" * 5000),
        ("run", 3),
        ("server-round", False),
        ("server-round", 2.0),
        ("server-round", -1),
        ("refusal", 0),
        ("refusal", "why " * 5000),
        ("exhausted", 1),
        ("exhausted", "no"),
        ("epsilon", 1),
        ("epsilon", math.nan),
        ("epsilon", math.inf),
        ("epsilon", -1.0),
    ],
)
def test_a_reply_with_a_wrong_setting_is_refused(key: str, value: object) -> None:
    """A bool is no int, an int no bool, NaN no figure, and a novel no reason."""
    content = make_reply().to_records()
    content.config_records["config"][key] = value  # type: ignore[assignment]
    with pytest.raises(Refused, match=key.partition("-")[2] or key) as caught:
        RoundReply.from_records(content)
    assert len(str(caught.value)) < 300


def test_values_must_be_numbers() -> None:
    """Lists of numbers are no values."""
    content = make_reply().to_records()
    content["values"] = MetricRecord({"gain": [1.0, 2.0]})
    with pytest.raises(Refused, match="values must be numbers"):
        RoundReply.from_records(content)


def test_the_size_of_a_message_is_that_of_its_tensors() -> None:
    """Four bytes a number and little on top; nothing for an error."""
    take_identity(1)
    message = Message(
        RecordDict({"arrays": pack({"w": np.zeros(1000, np.float32)}), "config": ConfigRecord({"a": 1})}),
        dst_node_id=2,
        message_type="train",
    )
    assert 4000 <= content_bytes(message) <= 4000 + 160  # what safetensors says of it
    message.metadata.__dict__["_message_id"] = "m"
    assert content_bytes(Message(Error(1, "broken"), reply_to=message)) == 0
