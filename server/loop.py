"""The round loop: from a first contact with every domain to the backbone that is shipped.

    state = run_rounds(grid, federation, run="r1", folder=Path("out"), listener=print_rounds)

Flower's `Strategy.start` can neither resume nor report, so the loop is ours, over the same three
steps: `configure_train`, an exchange of messages, `aggregate_train`. Each finished round is on disk before the
next one starts.

The shipped backbone is the evaluated one (with `average`, the moving average at that round) with the highest noisy gain
over the text prior, and the prior itself where none is above it. A run that began with a backbone that was trained in
the open ships that until a first evaluation was released. The choice looks at released, noisy figures only.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from isthmus.backbone import trained_parameters, without_classifier
from isthmus.config import FederationConfig
from isthmus.errors import Refused, RunError
from isthmus.features.tuned import text_shape
from isthmus.packing import arrays_digest, from_array_record, pack, to_array_record
from isthmus.privacy.requests import sign_request
from isthmus.records import DELIVERY, Recipe, RoundReply, RoundRequest, content_bytes, recipe_of
from isthmus.server.averaging import moving_average
from isthmus.server.checkpoint import RoundRecord, RunState, load_checkpoint, save_checkpoint
from isthmus.server.heads import HeadLog
from isthmus.server.introduction import Meeting
from isthmus.server.starting import first_state, text_prior_of
from isthmus.server.waiting import FOR_EVER, Patience, exchange
from isthmus.strategies.choice import GuardedLeaveOneOut, make_strategy, restore_strategy, strategy_state
from isthmus.strategies.guarded import EXHAUSTED, FAILED, OK, Guarded, Outcome, mean_update

_LOG = logging.getLogger(__name__)
_DELIVER = f"{MessageType.QUERY}.{DELIVERY}"

_LAST_SECONDS = 120.0  # that a deployed run waits for its backbone to be taken: no round depends on it

Listener = Callable[[RunState], None]
"""Told the state after each finished round (and once before the first)."""


def run_rounds(  # noqa: PLR0913 - keyword-only
    grid: Grid,
    federation: FederationConfig,
    *,
    run: str,
    rounds: int,
    folder: Path,
    heads: HeadLog,
    listener: Listener,
    patience: Patience = FOR_EVER,
) -> RunState:
    """Run a federation to its last round, from wherever an earlier process left off.

    Args:
        grid: Flower grid that reaches the domains.
        federation: The recipe.
        run: Id of the run.
        rounds: Last round.
        folder: Where the checkpoint lives.
        heads: Where the domains' ledgers stood is noted there; its keys sign the requests.
        listener: Told about progress.
        patience: How long to wait for whom.

    Raises:
        ConfigError: If a text encoder is to be trained that is not here; nobody was asked for anything then.
        RunError: If too few domains answer, or the checkpoint is another run's. What is finished is on disk.
    """
    text_shape(federation.features, federation.training)
    # 1. Meet the domains: their names, and the moments of their public text.
    meeting = Meeting(grid, RoundRequest(run=run, round=0, recipe=recipe_of(federation, "")), heads, patience)
    meeting.gather()
    checkpoint = folder / "checkpoint.safetensors"
    state = load_checkpoint(checkpoint, run=run, digest=federation.digest())
    if state is None:
        state = first_state(federation, meeting.moments, run)
        save_checkpoint(checkpoint, state)
    recipe = recipe_of(federation, arrays_digest(state.whitening).hex())
    form = federation.training.update_format
    trained = trained_parameters(state.arrays, federation.training.train)
    strategy = make_strategy(
        federation.strategy, form=form, trained=trained, run=run, roster=meeting.roster, keys=heads.keys
    )
    strategy.receipts = meeting.receipts
    restore_strategy(strategy, state.strategy)
    listener(state)
    # 2. Whitening and parameters go along whole with the first request, and again to whoever did not answer the one
    #    before; to everybody else goes what changed.
    strategy.whitening = pack(state.whitening)
    for round_ in range(state.round + 1, rounds + 1):
        meeting.gather()  # whoever came, or came back, since the last round
        strategy.roster, strategy.spent = meeting.roster, _spent(state)
        state = _one_round(grid, federation, strategy, recipe, replace(state, round=round_), heads, patience)
        standing = _standing(state, strategy)
        _require_an_answer(state.round, standing, patience)
        save_checkpoint(checkpoint, state)
        listener(state)
        if not _some_may_give(standing):
            break  # nobody has anything left to give; asking again changes nothing
    # 5. The backbone that is shipped, and receipts for the last replies; nothing is asked any more.
    shipped = RoundRequest(run=run, round=state.best_round, recipe=recipe, arrays=without_classifier(state.best))
    _deliver(grid, strategy, shipped, state, replace(patience, deadline=_shorter(patience.deadline, _LAST_SECONDS)))
    return state


def _shorter(deadline: float | None, seconds: float) -> float | None:
    """A deadline, if there is one, of at most so many seconds."""
    return None if deadline is None else min(deadline, seconds)


def _one_round(  # noqa: PLR0913, PLR0917 - the parts of a round
    grid: Grid,
    federation: FederationConfig,
    strategy: Guarded,
    recipe: Recipe,
    state: RunState,
    heads: HeadLog,
    patience: Patience,
) -> RunState:
    """Train, aggregate, perhaps evaluate: the state after round `state.round`."""
    ask = RoundRequest(run=state.run, round=state.round, recipe=recipe)
    before = to_array_record(state.arrays)
    # 3. Ask every domain for an update; average what passes validation.
    questions = list(strategy.configure_train(state.round, before, ask.config(), grid))
    state, replies = _exchange(grid, questions, state, patience)
    _note(replies, strategy, heads)
    after, _ = strategy.aggregate_train(state.round, replies)
    outcomes = _with_the_silent(strategy, questions, patience)
    arrays = state.arrays if after is None else from_array_record(after)
    record = RoundRecord(round=state.round, update_norm=mean_update(state.arrays, arrays), outcomes=outcomes)
    state = replace(state, arrays=arrays, strategy=strategy_state(strategy))
    decay = federation.strategy.average
    if decay and after is not None:
        average = moving_average(state.average, arrays, decay=decay, round_=state.round)
        state = replace(state, average=average)
    # 4. Every so often, ask what the new backbone is worth, in noisy figures.
    every = federation.strategy.evaluate_every
    if every and state.round % every == 0 and after is not None:
        judged = state.average or arrays
        questions = list(strategy.configure_evaluate(state.round, to_array_record(judged), ask.config(), grid))
        state, replies = _exchange(grid, questions, state, patience)
        _note(replies, strategy, heads)
        metrics = strategy.aggregate_evaluate(state.round, replies)
        record = replace(record, evaluations=_with_the_silent(strategy, questions, patience))
        if metrics is not None:
            gain, stddev = float(metrics["gain"]), float(metrics["gain-stddev"])  # type: ignore[arg-type]
            record = replace(record, gain=gain, gain_stddev=stddev)
            if gain > state.best_gain:
                state = replace(state, best=judged, best_round=state.round, best_gain=gain)
            elif state.best_round == 0 and federation.start_path is not None:
                # What came of the start is not above the prior, so the start is not believed either.
                state = replace(state, best=text_prior_of(state.best, federation.backbone.shape))
    elif (
        isinstance(strategy, GuardedLeaveOneOut)
        and after is not None
        and state.round % (federation.strategy.compare_every or 1) == 0
    ):
        state, evaluations = _compare(grid, strategy, ask, state, heads, patience)
        record = replace(record, evaluations=evaluations)
    return replace(state, history=(*state.history, record))


def _compare(  # noqa: PLR0913, PLR0917 - the parts of a round
    grid: Grid, strategy: GuardedLeaveOneOut, ask: RoundRequest, state: RunState, heads: HeadLog, patience: Patience
) -> tuple[RunState, dict[str, Outcome]]:
    """Ask all domains but one, the next in turn, what its updates do to them, in noisy figures."""
    about = strategy.comparison(state.arrays)
    if about is None:
        return state, {}
    questions = list(
        strategy.configure_comparison(state.round, about.shared, about.reference, about.domain, ask.config(), grid)
    )
    state, replies = _exchange(grid, questions, state, patience)
    _note(replies, strategy, heads)
    strategy.heed(about.domain, strategy.gains(state.round, replies))
    outcomes = _with_the_silent(strategy, questions, patience)
    return replace(state, strategy=strategy_state(strategy)), outcomes


def _exchange(
    grid: Grid, messages: list[Message], state: RunState, patience: Patience
) -> tuple[RunState, list[Message]]:
    """Send, wait, and count what crossed."""
    replies = exchange(grid, messages, patience)
    down, up = sum(map(content_bytes, messages)), sum(map(content_bytes, replies))
    return replace(state, bytes_down=state.bytes_down + down, bytes_up=state.bytes_up + up), replies


def _deliver(grid: Grid, strategy: Guarded, shipped: RoundRequest, state: RunState, patience: Patience) -> None:
    """Hand the backbone that a run ended with to every domain."""
    keys = strategy.keys
    signature = sign_request(shipped.digest(DELIVERY), keys)
    shipped = replace(shipped, whitening=state.whitening, coordinator=keys.public.hex(), signature=signature)
    messages = [
        Message(replace(shipped, receipt=strategy.receipts.get(node, "")).to_records(), node, _DELIVER)
        for node in strategy.roster
    ]
    for message in exchange(grid, messages, patience):
        try:
            reason = message.error.reason if message.has_error() else RoundReply.from_records(message.content).refusal
        except Refused as refusal:
            reason = str(refusal)
        if reason:
            _LOG.info("%s took no backbone: %s", strategy.roster[message.metadata.src_node_id], reason)


def _with_the_silent(strategy: Guarded, questions: list[Message], patience: Patience) -> dict[str, Outcome]:
    """What became of each domain, those included that said nothing; not of those that a round did not draw."""
    asked = {question.metadata.dst_node_id for question in questions}
    late = "" if patience.deadline is None else f" within {patience.deadline:g} s"
    silent = {
        name: Outcome(status=FAILED, reason=f"no answer{late}" if node in asked else "not connected")
        for node, name in strategy.roster.items()
        if name not in strategy.outcomes and name not in strategy.passed_over
    }
    return dict(sorted({**silent, **strategy.outcomes}.items()))


def _spent(state: RunState) -> frozenset[str]:
    """Domains that said, when they were asked last, that their budget is spent."""
    return frozenset(name for name, outcome in _latest(state).items() if outcome.status == EXHAUSTED)


def _latest(state: RunState) -> dict[str, Outcome]:
    """What became of each domain's update in the last round that asked it."""
    latest: dict[str, Outcome] = {}
    for record in state.history:
        latest |= record.outcomes
    return latest


def _standing(state: RunState, strategy: Guarded) -> dict[str, Outcome | None]:
    """The latest of each domain that is still there and can be asked; None for one that no round has asked yet.

    Where rounds ask everybody, that is what became of this round's updates.
    """
    latest = _latest(state)
    return {name: latest.get(name) for name in strategy.roster.values() if strategy.may_be_asked(name)}


def _some_may_give(standing: Mapping[str, Outcome | None]) -> bool:
    """Whether another round may bring an update of somebody's."""
    return any(outcome is None or outcome.status == OK for outcome in standing.values())


def _require_an_answer(round_: int, standing: Mapping[str, Outcome | None], patience: Patience) -> None:
    """Stop, to be resumed at this very round, where nobody's update came in and somebody's still may."""
    if patience.deadline is None or _some_may_give(standing):
        return
    missing = [f"{name}: {each.reason}" for name, each in sorted(standing.items()) if each and each.status == FAILED]
    if missing:
        raise RunError(f"round {round_}: nobody's update came in: {'; '.join(missing)}")


def _note(replies: Iterable[Message], strategy: Guarded, heads: HeadLog) -> None:
    """Note where the ledgers stand, and have a receipt ready for each domain's next request."""
    for message in replies:
        node = message.metadata.src_node_id
        if not message.has_content() or node not in strategy.roster:
            continue
        try:
            reply = RoundReply.from_records(message.content)
            strategy.receipts[node] = heads.note(reply, domain=strategy.roster[node])
        except Refused as refusal:  # of the reply itself, the strategy says why
            strategy.receipts.pop(node, None)
            _LOG.warning("no receipt: %s", refusal)
