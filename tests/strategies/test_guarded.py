"""A bad reply has no influence at all; weights are the declared ones; order and company change no bit."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from isthmus.config import BackboneConfig, FeatureConfig, StrategyConfig, StrategyName, TrainingConfig, UpdateFormat
from isthmus.encoding import DTYPES, changed, decode, encode
from isthmus.errors import Refused
from isthmus.grid import InProcessGrid
from isthmus.packing import arrays_digest, from_array_record, pack, to_array_record
from isthmus.privacy.keys import fresh_keys
from isthmus.privacy.requests import require_asker
from isthmus.records import ARRAYS, Arrays, Kind, Recipe, RoundReply, RoundRequest
from isthmus.strategies.choice import make_strategy
from isthmus.strategies.guarded import EXHAUSTED, FAILED, OK, REFUSED, Guarded, Outcome, mean_update

DOMAINS = ("books", "games", "music")
ROSTER = dict(enumerate(DOMAINS, start=2))
RECIPE = Recipe(
    features=FeatureConfig(encoder="hash:64"), backbone=BackboneConfig(), training=TrainingConfig(), whitening="ab" * 32
)
ROUND = 3
AVERAGING = [StrategyName.FEDAVG, StrategyName.FEDADAM, StrategyName.FEDPROX]
"""Those for which one accepted update is enough; of the others, tests/strategies/test_robust.py."""


def draw(seed: int) -> Arrays:
    """Two tensors of random numbers."""
    generator = np.random.default_rng(seed)
    return {"a": generator.normal(size=(5, 3)).astype(np.float32), "b": generator.normal(size=7).astype(np.float32)}


SHARED = draw(100)
UPDATES = {name: draw(number) for number, name in enumerate(DOMAINS)}


def start(
    *,
    name: StrategyName = StrategyName.FEDAVG,
    weights: Mapping[str, float] | None = None,
    roster: Mapping[int, str] = ROSTER,
    form: UpdateFormat = UpdateFormat.FLOAT32,
) -> tuple[Guarded, dict[str, Message]]:
    """A strategy that has asked its domains for round 3, and what it sent to whom."""
    config = StrategyConfig(name=name, weights=dict(weights or {}), max_update_norm=50.0, proximal_mu=0.5)
    strategy = make_strategy(config, trained=("a", "b"), form=form, run="r1", roster=roster, keys=fresh_keys())
    return strategy, asked(strategy, SHARED)


def asked(strategy: Guarded, shared: Arrays, round_: int = ROUND, *, evaluate: bool = False) -> dict[str, Message]:
    """The messages of a round, by domain, as if they had been sent."""
    grid = InProcessGrid(ClientApp(), nodes=3, run_config={})
    configure = strategy.configure_evaluate if evaluate else strategy.configure_train
    request = RoundRequest(run="r1", round=round_, recipe=RECIPE)
    messages = list(configure(round_, to_array_record(shared), request.config(), grid))
    for message in messages:
        message.metadata.__dict__["_message_id"] = f"to-{message.metadata.dst_node_id}"
    return {strategy.roster[message.metadata.dst_node_id]: message for message in messages}


def good(domain: str) -> RoundReply:
    """The honest reply of a domain."""
    return RoundReply(domain=domain, run="r1", round=ROUND, arrays=UPDATES[domain], epsilon=1.0)


def answers(sent: Mapping[str, Message], *domains: str) -> list[Message]:
    """Honest replies, in the given order."""
    return [Message(good(domain).to_records(), reply_to=sent[domain]) for domain in domains]


def aggregate(strategy: Guarded, replies: Sequence[Message], round_: int = ROUND) -> dict[str, NDArray[np.generic]]:
    """The next shared parameters."""
    arrays, _ = strategy.aggregate_train(round_, replies)
    assert arrays is not None
    return {name: each.numpy() for name, each in arrays.items()}


def same_bits(left: Mapping[str, NDArray[np.generic]], right: Mapping[str, NDArray[np.generic]]) -> bool:
    """Whether all tensors are equal, bit for bit."""
    return left.keys() == right.keys() and all(left[name].tobytes() == right[name].tobytes() for name in left)


def nan(reply: RoundReply) -> RecordDict:
    """One NaN among the update's numbers."""
    arrays = {name: array.copy() for name, array in reply.arrays.items()}
    arrays["a"][2, 1] = np.nan
    return dataclasses.replace(reply, arrays=arrays).to_records()


def scaled(reply: RoundReply, factor: float) -> RecordDict:
    """Every number of the update times `factor`."""
    with np.errstate(over="ignore"):
        arrays = {name: array * np.float32(factor) for name, array in reply.arrays.items()}
    return dataclasses.replace(reply, arrays=arrays).to_records()


def without(reply: RoundReply, name: str) -> RecordDict:
    """One tensor missing."""
    arrays = {each: array for each, array in reply.arrays.items() if each != name}
    return dataclasses.replace(reply, arrays=arrays).to_records()


def float64(reply: RoundReply) -> RecordDict:
    """One tensor in double precision."""
    arrays = {**reply.arrays, "b": reply.arrays["b"].astype(np.float64)}
    return dataclasses.replace(reply, arrays=arrays).to_records()


def counting(reply: RoundReply) -> RecordDict:
    """A NaN together with a huge count, as Flower's own clients send one."""
    content = nan(reply)
    content["metrics"] = MetricRecord({"num-examples": 1_000_000})
    return content


BAD: dict[str, Callable[[RoundReply], RecordDict]] = {
    "NaN": nan,
    "inf": lambda reply: scaled(reply, np.inf),
    "1e38": lambda reply: scaled(reply, 1e38),
    "norm above the limit": lambda reply: scaled(reply, 20.0),
    "missing tensor": lambda reply: without(reply, "b"),
    "no tensor": lambda reply: dataclasses.replace(reply, arrays={}).to_records(),
    "surplus tensor": lambda reply: dataclasses.replace(
        reply, arrays={**reply.arrays, "c": np.zeros(1, np.float32)}
    ).to_records(),
    "wrong shape": lambda reply: dataclasses.replace(
        reply, arrays={**reply.arrays, "a": reply.arrays["a"].T}
    ).to_records(),
    "wrong dtype": float64,
    "surplus figure": lambda reply: dataclasses.replace(reply, values={"num-examples": 1e6}).to_records(),
    "wrong round": lambda reply: dataclasses.replace(reply, round=ROUND - 1).to_records(),
    "wrong run": lambda reply: dataclasses.replace(reply, run="r0").to_records(),
    "wrong sender": lambda reply: dataclasses.replace(reply, domain="books").to_records(),
    "refusal beside an update": lambda reply: dataclasses.replace(reply, refusal="no").to_records(),
    "exhausted beside an update": lambda reply: dataclasses.replace(reply, refusal="no", exhausted=True).to_records(),
    "bytes that are no tensor": lambda reply: RecordDict(
        {**reply.to_records(), ARRAYS: ArrayRecord({"tensors": Array("uint8", (4,), "safetensors", b"PK\x03\x04")})}
    ),
    "empty message": lambda _: RecordDict(),
    "NaN with a count": counting,
}


@pytest.mark.parametrize("strategy_name", AVERAGING)
@pytest.mark.parametrize("what", list(BAD))
def test_a_bad_reply_has_no_influence(strategy_name: StrategyName, what: str) -> None:
    """The aggregate is the one without that reply, bit for bit, and the outcome says why."""
    strategy, sent = start(name=strategy_name)
    expected = aggregate(strategy, answers(sent, "books", "music"))
    other, sent = start(name=strategy_name)
    bad = Message(BAD[what](good("games")), reply_to=sent["games"])
    books, music = answers(sent, "books", "music")
    assert same_bits(aggregate(other, [books, bad, music]), expected)
    assert other.outcomes["games"].status == (EXHAUSTED if what.startswith("exhausted") else REFUSED)
    assert other.outcomes["games"].reason
    assert [other.outcomes[name].status for name in ("books", "music")] == [OK, OK]


def test_without_validation_a_bad_reply_would_have_influence() -> None:
    """The cases above can fail: a good reply in the same place changes the aggregate."""
    strategy, sent = start()
    expected = aggregate(strategy, answers(sent, "books", "music"))
    other, sent = start()
    assert not same_bits(aggregate(other, answers(sent, *DOMAINS)), expected)


def test_an_error_message_has_no_influence() -> None:
    """A node that raised is left out, in one printable line of its words; so is one that nobody introduced."""
    strategy, sent = start()
    expected = aggregate(strategy, answers(sent, "books", "music"))
    other, sent = start()
    broken = Message(Error(1, "boom\x1b[31m\n" + "x" * 10_000), reply_to=sent["games"])
    books, music = answers(sent, "books", "music")
    stranger = answers(sent, "games")[0]
    stranger.metadata.__dict__["_src_node_id"] = 99
    assert same_bits(aggregate(other, [stranger, broken, books, music]), expected)
    outcome = other.outcomes["games"]
    assert outcome.status == FAILED
    assert outcome.reason.startswith("boom [31m xxx")
    assert outcome.reason.isprintable()
    assert len(outcome.reason) == 500
    assert sorted(other.outcomes) == ["books", "games", "music"]


@pytest.mark.parametrize("second", ["another update", "NaN", "refusal", "error"])
def test_only_the_first_answer_of_a_round_counts(second: str) -> None:
    """A second reply changes neither the aggregate nor what is said of the first one."""
    strategy, sent = start()
    expected = aggregate(strategy, answers(sent, *DOMAINS))
    again = {
        "another update": lambda: Message(scaled(good("books"), 2.0), reply_to=other_sent["books"]),
        "NaN": lambda: Message(nan(good("books")), reply_to=other_sent["books"]),
        "refusal": lambda: Message(BAD["refusal beside an update"](good("books")), reply_to=other_sent["books"]),
        "error": lambda: Message(Error(1, "late"), reply_to=other_sent["books"]),
    }
    other, other_sent = start()
    replies = [*answers(other_sent, *DOMAINS), again[second]()]
    assert same_bits(aggregate(other, replies), expected)
    assert other.outcomes["books"] == Outcome(status=OK, epsilon=1.0)


def test_when_nobody_is_accepted_nothing_moves() -> None:
    """No aggregate at all rather than one of nothing; the next round works again."""
    strategy, sent = start()
    bad = [Message(nan(good(name)), reply_to=sent[name]) for name in DOMAINS]
    assert strategy.aggregate_train(ROUND, bad) == (None, None)
    assert {outcome.status for outcome in strategy.outcomes.values()} == {REFUSED}
    assert strategy.aggregate_train(ROUND, []) == (None, None)
    assert strategy.outcomes == {}
    assert aggregate(strategy, answers(sent, "books"))


@pytest.mark.parametrize("strategy_name", AVERAGING)
def test_the_order_of_replies_changes_no_bit(strategy_name: StrategyName) -> None:
    """All six orders of three replies give the same bytes, and outcomes in the same order."""
    results = []
    for order in itertools.permutations(DOMAINS):
        strategy, sent = start(name=strategy_name, weights={"books": 3.0, "games": 0.1})
        results.append(aggregate(strategy, answers(sent, *order)))
        assert list(strategy.outcomes) == list(DOMAINS)
    assert all(same_bits(result, results[0]) for result in results)


def test_declared_weights_are_used_and_client_sent_counts_are_not() -> None:
    """Weights 3, 0.5 and, undeclared, 1; what clients claim under Flower's key is not even read."""
    strategy, sent = start(weights={"books": 3.0, "games": 0.5})
    replies = answers(sent, *DOMAINS)
    for number, reply in enumerate(replies):
        reply.content["metrics"] = MetricRecord({"num-examples": 10**number})
    found = aggregate(strategy, replies)
    for name, shared in SHARED.items():
        mean = sum(
            weight * UPDATES[domain][name].astype(np.float64)
            for domain, weight in zip(DOMAINS, (3.0, 0.5, 1.0), strict=True)
        )
        np.testing.assert_allclose(found[name], shared + mean / 4.5, rtol=1e-5, atol=1e-6)


def test_a_weight_of_zero_leaves_a_domain_out() -> None:
    """Its update does not count; if nobody else answers, nothing moves and nothing breaks."""
    strategy, sent = start(weights={"games": 0.0})
    expected = aggregate(strategy, answers(sent, "books", "music"))
    other, sent = start(weights={"games": 0.0})
    assert same_bits(aggregate(other, answers(sent, *DOMAINS)), expected)
    alone, sent = start(weights={"games": 0.0})
    assert alone.aggregate_train(ROUND, answers(sent, "games")) == (None, None)
    assert alone.outcomes["games"].status == OK


def test_only_domains_that_introduced_themselves_are_asked() -> None:
    """A node outside the roster gets no message."""
    _, sent = start(roster={2: "books", 4: "music"})
    assert sorted(sent) == ["books", "music"]
    assert [RoundRequest.from_records(message.content).round for message in sent.values()] == [ROUND, ROUND]


def test_the_whitening_goes_to_whoever_did_not_answer_the_last_question() -> None:
    """To all at first; then to the one that was silent and the one that refused; then to nobody."""
    strategy, _ = start()
    strategy.whitening = pack({"mean": np.ones(2, np.float32)})
    sent = asked(strategy, SHARED)
    assert with_whitening(sent) == ["books", "games", "music"]
    refusal = RoundReply(
        domain="games", run="r1", round=ROUND, refusal="whitening 0011 is not known here; send it along"
    )
    aggregate(strategy, [*answers(sent, "books"), Message(refusal.to_records(), reply_to=sent["games"])])
    sent = asked(strategy, SHARED)
    assert with_whitening(sent) == ["games", "music"]
    aggregate(strategy, answers(sent, "books", "games", "music"))
    assert with_whitening(asked(strategy, SHARED, evaluate=True)) == []


def with_whitening(sent: Mapping[str, Message]) -> list[str]:
    """Domains whose message holds the whitening, whole."""
    requests = {name: RoundRequest.from_records(message.content) for name, message in sent.items()}
    return sorted(name for name, each in requests.items() if each.whitening and each.whitening["mean"].sum() == 2)


def encoded_answers(
    sent: Mapping[str, Message], form: UpdateFormat, *domains: str, updates: Mapping[str, Arrays] = UPDATES
) -> list[Message]:
    """Honest replies of the given domains in a format."""
    replies = []
    for number, domain in enumerate(domains):
        update = encode(updates[domain], form, np.random.default_rng(number).random)
        reply = dataclasses.replace(good(domain), arrays=update.arrays, values=update.scales)
        replies.append(Message(reply.to_records(), reply_to=sent[domain]))
    return replies


@pytest.mark.parametrize("form", list(UpdateFormat))
@pytest.mark.parametrize("strategy_name", AVERAGING)
def test_a_domain_makes_the_servers_parameters_of_what_it_is_sent(
    strategy_name: StrategyName, form: UpdateFormat
) -> None:
    """Over four rounds, to the bit, from what it held and what came; one question to all, however it was sent."""
    strategy, _ = start(name=strategy_name, form=form)
    shared, held = SHARED, {}
    for round_ in range(ROUND, ROUND + 4):
        sent = asked(strategy, shared, ROUND)
        requests = {name: RoundRequest.from_records(message.content) for name, message in sent.items()}
        for name, request in requests.items():
            held[name] = changed(held[name] if request.base else {}, request.sent)
            assert same_bits(held[name], shared)
            assert request.parameters_digest() == arrays_digest(shared)
        assert len({request.digest(Kind.UPDATE) for request in requests.values()}) == 1
        assert {name for name, request in requests.items() if request.base} == (
            set(DOMAINS) if round_ > ROUND else set()
        )
        if round_ > ROUND:
            assert {array.dtype for request in requests.values() for array in request.arrays.values()} == {DTYPES[form]}
        shared = aggregate(strategy, encoded_answers(sent, form, *DOMAINS))


@pytest.mark.parametrize("form", list(UpdateFormat))
def test_rounding_moves_the_next_parameters_by_less_than_a_step(form: UpdateFormat) -> None:
    """Beside Flower's own mean of what was accepted: at most a step, which is 1/126 of the largest move."""
    strategy, sent = start(form=form)
    found = aggregate(strategy, encoded_answers(sent, form, *DOMAINS))
    updates = [
        decode(encode(UPDATES[domain], form, np.random.default_rng(number).random))
        for number, domain in enumerate(DOMAINS)
    ]
    for name, before in SHARED.items():
        mean = np.mean([update[name] for update in updates], axis=0)
        step = 0 if form is UpdateFormat.FLOAT32 else np.abs(mean).max() / 126
        assert np.abs(found[name] - before - mean).max() <= step + 1e-6


@pytest.mark.parametrize("form", list(UpdateFormat))
def test_what_did_not_change_is_not_sent(form: UpdateFormat) -> None:
    """Not the parameters that were just evaluated, and not a tensor that no update moved."""
    strategy, sent = start(form=form)
    frozen = {domain: {**update, "b": np.zeros(7, np.float32)} for domain, update in UPDATES.items()}
    shared = aggregate(strategy, encoded_answers(sent, form, *DOMAINS, updates=frozen))
    evaluated = asked(strategy, shared, evaluate=True)
    assert {name: requested(message) for name, message in evaluated.items()} == {name: ["a"] for name in DOMAINS}
    figures = [evaluation(domain, gain=1.0, users=100.0, stddev=1.0) for domain in ("books", "games")]
    strategy.aggregate_evaluate(
        ROUND, [Message(figure.to_records(), reply_to=evaluated[figure.domain]) for figure in figures]
    )
    trained = asked(strategy, shared)
    assert {name: requested(message) for name, message in trained.items()} == {
        "books": [],
        "games": [],
        "music": ["a", "b"],  # did not answer, so nobody knows what it holds
    }


def test_whoever_missed_a_round_gets_everything() -> None:
    """The change is one from parameters that it never held; so does a server that was started again send it to all."""
    strategy, sent = start(form=UpdateFormat.INT8)
    shared = aggregate(strategy, encoded_answers(sent, UpdateFormat.INT8, *DOMAINS))
    sent = asked(strategy, shared)
    shared = aggregate(strategy, encoded_answers(sent, UpdateFormat.INT8, "books", "music"))
    bases = {name: RoundRequest.from_records(each.content).base for name, each in asked(strategy, shared).items()}
    assert {name for name, base in bases.items() if not base} == {"games"}
    again, _ = start(form=UpdateFormat.INT8)
    assert {RoundRequest.from_records(each.content).base for each in asked(again, shared).values()} == {""}


def test_a_server_that_lost_a_round_rounds_it_alike() -> None:
    """The same answers make the same parameters: domains that evaluated them answer nothing else."""
    one, two = (
        aggregate(strategy, encoded_answers(sent, UpdateFormat.INT8, *DOMAINS))
        for strategy, sent in (start(form=UpdateFormat.INT8), start(form=UpdateFormat.INT8))
    )
    assert same_bits(one, two)


def requested(message: Message) -> list[str]:
    """Names of the tensors of shared parameters in a message."""
    return sorted(RoundRequest.from_records(message.content).arrays)


def test_every_request_is_signed_and_carries_its_domains_receipt() -> None:
    """The signature is the coordinator's, of exactly this question; receipts are not mixed up."""
    strategy, _ = start()
    strategy.receipts = {node: f"receipt of {name}" for node, name in strategy.roster.items()}
    for evaluate, kind, other in ((False, Kind.UPDATE, Kind.METRIC), (True, Kind.METRIC, Kind.UPDATE)):
        for name, message in asked(strategy, SHARED, evaluate=evaluate).items():
            request = RoundRequest.from_records(message.content)
            signed = {"coordinator": request.coordinator, "signature": request.signature}
            assert require_asker(request.digest(kind), **signed) == strategy.keys.public.hex()
            with pytest.raises(Refused, match="not signed by the coordinator"):
                require_asker(request.digest(other), **signed)
            assert request.receipt == f"receipt of {name}"


def evaluation(domain: str, *, gain: float, users: float, stddev: float) -> RoundReply:
    """A noisy evaluation."""
    values = {"gain": gain, "users": users, "noise_stddev": stddev}
    return RoundReply(domain=domain, run="r1", round=ROUND, values=values)


def judged(strategy: Guarded, *replies: RoundReply) -> MetricRecord | None:
    """What the strategy makes of evaluations."""
    sent = asked(strategy, SHARED, evaluate=True)
    return strategy.aggregate_evaluate(
        ROUND, [Message(reply.to_records(), reply_to=sent[reply.domain]) for reply in replies]
    )


def test_gains_are_averaged_by_declared_weights_with_the_noise_they_carry() -> None:
    """Closed form: weighted mean of gain / users, and the root of the summed squares of its parts' noise."""
    strategy, _ = start(weights={"books": 2.0})
    found = judged(
        strategy,
        evaluation("books", gain=12.0, users=100.0, stddev=10.0),
        evaluation("games", gain=-3.0, users=50.0, stddev=5.0),
    )
    assert found is not None
    assert found["gain"] == pytest.approx((2 * 0.12 - 0.06) / 3)
    assert found["gain-stddev"] == pytest.approx(math.sqrt((2 * 0.1) ** 2 + 0.1**2) / 3)


def test_a_domain_with_too_few_users_says_nothing_about_the_gain() -> None:
    """At most three standard deviations of noisy users (negative ones too): left out; nobody left: no gain."""
    strategy, _ = start()
    large = evaluation("books", gain=12.0, users=100.0, stddev=10.0)
    for users in (30.0, 0.0, -500.0):
        small = evaluation("games", gain=9.0, users=users, stddev=10.0)
        found = judged(strategy, large, small)
        assert found is not None
        assert found["gain"] == pytest.approx(0.12)
        assert judged(strategy, small) is None
    assert judged(strategy) is None


def test_a_bad_evaluation_has_no_influence() -> None:
    """A NaN gain is left out, and the outcome says so."""
    strategy, _ = start()
    large = evaluation("books", gain=12.0, users=100.0, stddev=10.0)
    expected = judged(strategy, large)
    assert judged(strategy, large, evaluation("games", gain=math.nan, users=100.0, stddev=10.0)) == expected
    assert strategy.outcomes["games"].status == REFUSED


def test_the_length_of_a_step_is_that_of_all_tensors_together() -> None:
    """L2 norm over every coordinate, in double precision."""
    before, after = draw(1), draw(2)
    flat = np.concatenate([(after[name].astype(np.float64) - before[name]).ravel() for name in before])
    assert mean_update(before, after) == pytest.approx(float(np.linalg.norm(flat)), rel=1e-6)
    assert mean_update(before, before) == 0.0


def test_what_a_strategy_sends_is_what_a_domain_reads() -> None:
    """The request of a round parses as one, with the shared parameters to the bit."""
    _, sent = start(name=StrategyName.FEDPROX)
    for message in sent.values():
        request = RoundRequest.from_records(message.content)
        assert (request.run, request.round, request.recipe, request.proximal_mu) == ("r1", ROUND, RECIPE, 0.5)
        assert same_bits(request.arrays, from_array_record(to_array_record(SHARED)))
