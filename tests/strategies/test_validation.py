"""A reply is accepted only if nothing at all is wrong with it."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import ArrayRecord, MetricRecord, RecordDict

from isthmus.config import UpdateFormat
from isthmus.encoding import decode, encode
from isthmus.errors import BudgetExhausted, ReplyRefused
from isthmus.records import RoundReply
from isthmus.strategies.validation import ReplyJudge

SHAPES: dict[str, tuple[int, ...]] = {"head.weight": (3, 2), "norm.bias": (4,)}
JUDGE = ReplyJudge(run="r1", round=3, shapes=SHAPES, trained=tuple(SHAPES), max_norm=10.0, form=UpdateFormat.FLOAT32)
GOOD = RoundReply(
    domain="books",
    run="r1",
    round=3,
    arrays={name: np.full(shape, 0.5, np.float32) for name, shape in SHAPES.items()},
    epsilon=1.0,
)
METRIC = RoundReply(domain="books", run="r1", round=3, values={"gain": 2.0, "users": 40.0, "noise_stddev": 5.0})
JUDGES: dict[str, tuple[RoundReply, Callable[..., RoundReply]]] = {
    "update": (GOOD, JUDGE.update),
    "metric": (METRIC, JUDGE.metric),
}


def with_entry(value: float) -> RoundReply:
    """The good reply with one entry of one tensor changed."""
    weight = GOOD.arrays["head.weight"].copy()
    weight[1, 1] = value
    return dataclasses.replace(GOOD, arrays={**GOOD.arrays, "head.weight": weight})


def of_norm(norm: float) -> RoundReply:
    """An update whose L2 norm is `norm`, in one entry."""
    arrays = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    arrays["norm.bias"][2] = -norm
    return dataclasses.replace(GOOD, arrays=arrays)


def test_a_good_reply_is_accepted_as_it_is() -> None:
    """Update and evaluation, unchanged to the bit."""
    reply = JUDGE.update(GOOD.to_records(), domain="books")
    assert all(np.array_equal(reply.arrays[name], GOOD.arrays[name]) for name in SHAPES)
    assert JUDGE.metric(METRIC.to_records(), domain="books") == METRIC


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (math.nan, "not finite"),
        (math.inf, "not finite"),
        (-math.inf, "not finite"),
        (1e38, "above the limit 10"),
        (-1e38, "above the limit 10"),
        (3.4e38, "above the limit 10"),
    ],
)
def test_one_bad_entry_refuses_the_update(value: float, words: str) -> None:
    """A single NaN, infinity or 1e38 (whose square is not even a float32) is enough."""
    with pytest.raises(ReplyRefused, match=words):
        JUDGE.update(with_entry(value).to_records(), domain="books")


def test_the_norm_limit_counts_all_tensors_together() -> None:
    """At the limit is accepted, just above is not; and two tensors below it may be above it together."""
    assert JUDGE.update(of_norm(10.0).to_records(), domain="books")
    with pytest.raises(ReplyRefused, match="norm 10 is above the limit 10"):
        JUDGE.update(of_norm(float(np.nextafter(np.float32(10), np.float32(11)))).to_records(), domain="books")
    both = {"head.weight": np.full((3, 2), 8 / math.sqrt(6)), "norm.bias": np.full(4, 8 / math.sqrt(4))}
    arrays = {name: array.astype(np.float32) for name, array in both.items()}
    with pytest.raises(ReplyRefused, match=r"norm 11\.31 is above"):
        JUDGE.update(dataclasses.replace(GOOD, arrays=arrays).to_records(), domain="books")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({}, "missing or surplus: .'head.weight', 'norm.bias'"),
        ({"head.weight": GOOD.arrays["head.weight"]}, "missing or surplus: .'norm.bias'"),
        ({**GOOD.arrays, "spy": np.zeros(1, np.float32)}, "missing or surplus: .'spy'"),
        ({**GOOD.arrays, "norm.bias": np.zeros(5, np.float32)}, r"shape \(5,\), expected \(4,\)"),
        ({**GOOD.arrays, "norm.bias": np.zeros((4, 1), np.float32)}, r"shape \(4, 1\), expected \(4,\)"),
        ({**GOOD.arrays, "head.weight": np.zeros((2, 3), np.float32)}, r"shape \(2, 3\), expected \(3, 2\)"),
        ({**GOOD.arrays, "norm.bias": np.zeros(0, np.float32)}, r"shape \(0,\), expected \(4,\)"),
    ],
)
def test_other_tensors_than_the_shared_ones_refuse_the_update(arrays: dict[str, np.ndarray], words: str) -> None:
    """None, one missing, one too many, one that would broadcast or is transposed."""
    with pytest.raises(ReplyRefused, match=words):
        JUDGE.update(dataclasses.replace(GOOD, arrays=arrays).to_records(), domain="books")


def test_another_dtype_refuses_the_update() -> None:
    """Float64 is not quietly converted."""
    content = dataclasses.replace(GOOD, arrays={**GOOD.arrays, "norm.bias": np.zeros(4)}).to_records()
    with pytest.raises(ReplyRefused, match="dtype 'float64'"):
        JUDGE.update(content, domain="books")


def test_a_message_that_is_no_reply_is_refused() -> None:
    """An empty one, or somebody else's."""
    for content in (RecordDict(), RecordDict({"arrays": ArrayRecord(), "metrics": MetricRecord({"num-examples": 9})})):
        for _, judge in JUDGES.values():
            with pytest.raises(ReplyRefused, match="no record"):
                judge(content, domain="books")


@pytest.mark.parametrize("kind", list(JUDGES))
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"round": 2}, "asked for round 3 .* got round 2"),
        ({"round": 4}, "asked for round 3 .* got round 4"),
        ({"run": "r2"}, "of run 'r1', got round 3 of 'r2'"),
        ({"domain": "games"}, "the sender is 'books' and the reply says it is 'games'"),
        ({"refusal": "not today"}, "refused by the domain: not today"),
    ],
)
def test_an_envelope_that_does_not_fit_is_refused(kind: str, change: dict[str, object], words: str) -> None:
    """Another round, run or sender (a replay), or the domain's own refusal: whatever else is in the reply."""
    reply, judge = JUDGES[kind]
    with pytest.raises(ReplyRefused, match=words):
        judge(dataclasses.replace(reply, **change).to_records(), domain="books")  # type: ignore[arg-type]


# What updates are worth: encoded ones.

INT8 = dataclasses.replace(JUDGE, form=UpdateFormat.INT8)
ENCODED = encode(GOOD.arrays, UpdateFormat.INT8, np.random.default_rng(0).random)
GOOD_INT8 = dataclasses.replace(GOOD, arrays=ENCODED.arrays, values=ENCODED.scales)


def test_an_encoded_update_is_accepted_decoded() -> None:
    """As float32, from which everything else is computed; its scales are used up."""
    reply = INT8.update(GOOD_INT8.to_records(), domain="books")
    assert reply.values == {}
    for name, array in decode(ENCODED).items():
        assert reply.arrays[name].dtype == np.float32
        assert reply.arrays[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("scale", [math.nan, math.inf, 0.0, -0.004, 1e-300, 1e300])
def test_a_scale_that_is_none_is_refused(scale: float) -> None:
    """Whatever the int8 values beside it are."""
    values = {**GOOD_INT8.values, "norm.bias": scale}
    with pytest.raises(ReplyRefused, match=r"the scale of 'norm\.bias' must be in"):
        INT8.update(dataclasses.replace(GOOD_INT8, values=values).to_records(), domain="books")


@pytest.mark.parametrize("values", [{}, {"norm.bias": 0.1}, {**GOOD_INT8.values, "num-examples": 1e6}])
def test_missing_and_surplus_scales_are_refused(values: dict[str, float]) -> None:
    """One for each tensor."""
    with pytest.raises(ReplyRefused, match=r"one scale; missing or surplus|the scale of .* must be in .*, got nan"):
        INT8.update(dataclasses.replace(GOOD_INT8, values=values).to_records(), domain="books")


@pytest.mark.parametrize("form", list(UpdateFormat))
@pytest.mark.parametrize("came", list(UpdateFormat))
def test_an_update_in_another_format_is_refused(form: UpdateFormat, came: UpdateFormat) -> None:
    """A run has one; a tensor of it in another one is enough."""
    judge = dataclasses.replace(JUDGE, form=form)
    for names in (SHAPES, ["norm.bias"]):
        own = encode(GOOD.arrays, form, np.random.default_rng(0).random)
        other = encode({name: GOOD.arrays[name] for name in names}, came, np.random.default_rng(0).random)
        arrays, values = {**own.arrays, **other.arrays}, {**own.scales, **other.scales}
        reply = dataclasses.replace(GOOD, arrays=arrays, values=values)
        if came is form:
            assert judge.update(reply.to_records(), domain="books").arrays["norm.bias"].dtype == np.float32
        else:
            with pytest.raises(ReplyRefused, match=f"this run exchanges {form}"):
                judge.update(reply.to_records(), domain="books")


@pytest.mark.parametrize(("steps", "accepted"), [(100, True), (-100, True), (101, False), (-101, False), (-128, False)])
def test_the_norm_limit_is_on_what_was_decoded(steps: int, accepted: bool) -> None:
    """100 steps of 0.1 are the limit of 10; the int8 values alone would be far above it, or below with a large step."""
    arrays = {name: np.zeros(shape, np.int8) for name, shape in SHAPES.items()}
    arrays["norm.bias"][2] = steps
    reply = dataclasses.replace(GOOD, arrays=arrays, values={"head.weight": 1.0, "norm.bias": 0.1 - 1e-9})
    if accepted:
        INT8.update(reply.to_records(), domain="books")
    else:
        with pytest.raises(ReplyRefused, match="above the limit 10"):
            INT8.update(reply.to_records(), domain="books")


@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC0, 0xFFFF])
def test_bfloat16_bits_that_are_not_finite_are_refused(bits: int) -> None:
    """Infinities and NaNs, as integers harmless."""
    encoded = encode(GOOD.arrays, UpdateFormat.BFLOAT16, np.random.default_rng(0).random)
    encoded.arrays["norm.bias"][1] = bits
    reply = dataclasses.replace(GOOD, arrays=encoded.arrays)
    with pytest.raises(ReplyRefused, match="'norm.bias' holds a value that is not finite"):
        dataclasses.replace(JUDGE, form=UpdateFormat.BFLOAT16).update(reply.to_records(), domain="books")


@pytest.mark.parametrize("kind", list(JUDGES))
def test_an_exhausted_budget_is_told_from_other_refusals(kind: str) -> None:
    """So that the run can end when all are; but not for somebody else's name."""
    reply, judge = JUDGES[kind]
    spent = dataclasses.replace(reply, refusal="epsilon 8 of 8 is spent", exhausted=True)
    with pytest.raises(BudgetExhausted, match="8 of 8"):
        judge(spent.to_records(), domain="books")
    with pytest.raises(ReplyRefused, match="the sender is 'games'"):
        judge(spent.to_records(), domain="games")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gain": math.nan}, "not a finite number"),
        ({"users": math.inf}, "not a finite number"),
        ({"gain": 1e12}, "below 1e12"),
        ({"users": -1e30}, "below 1e12"),
        ({"noise_stddev": 0.0}, "noise must be above 0"),
        ({"noise_stddev": -1.0}, "noise must be above 0"),
        ({"accuracy": 0.9}, "an evaluation holds gain, users, noise_stddev"),
    ],
)
def test_an_evaluation_with_a_bad_figure_is_refused(change: dict[str, float], words: str) -> None:
    """Not finite, beyond belief, without noise, or with something that nobody asked for."""
    with pytest.raises(ReplyRefused, match=words):
        JUDGE.metric(dataclasses.replace(METRIC, values={**METRIC.values, **change}).to_records(), domain="books")


@pytest.mark.parametrize("missing", ["gain", "users", "noise_stddev"])
def test_an_evaluation_without_a_figure_is_refused(missing: str) -> None:
    """All three or nothing."""
    values = {name: value for name, value in METRIC.values.items() if name != missing}
    with pytest.raises(ReplyRefused, match="an evaluation holds"):
        JUDGE.metric(dataclasses.replace(METRIC, values=values).to_records(), domain="books")


def test_an_update_of_a_part_holds_that_part_and_is_zero_elsewhere() -> None:
    """Exactly the trained tensors are sent; whole updates are refused then, zeros or not."""
    judge = dataclasses.replace(JUDGE, trained=("head.weight",))
    part = dataclasses.replace(GOOD, arrays={"head.weight": GOOD.arrays["head.weight"]})
    accepted = judge.update(part.to_records(), domain="books")
    assert {name: array.shape for name, array in accepted.arrays.items()} == SHAPES
    assert np.array_equal(accepted.arrays["head.weight"], GOOD.arrays["head.weight"])
    assert not accepted.arrays["norm.bias"].any()
    zeros = dataclasses.replace(GOOD, arrays={**GOOD.arrays, "norm.bias": np.zeros(4, np.float32)})
    for wrong in (GOOD, zeros, dataclasses.replace(GOOD, arrays={"norm.bias": GOOD.arrays["norm.bias"]})):
        with pytest.raises(ReplyRefused, match="exactly the trained parameters"):
            judge.update(wrong.to_records(), domain="books")
