"""From what a run left behind to its `Result`.

    result = assemble_result(...)

Everything private in it is raw: a simulation may look, a coordinator never could.
"""

from collections.abc import Mapping
from typing import cast

import numpy as np
from numpy.typing import NDArray

import isthmus
from isthmus.backbone import shared_parameters
from isthmus.backbone_file import load_backbone
from isthmus.clients.finish import FinishedDomain
from isthmus.clients.head import Method
from isthmus.clients.vault import Vault
from isthmus.config import EvaluationConfig, FederationConfig, StrategyName
from isthmus.metrics import ndcg_at_k, paired_bootstrap_ci, summarise
from isthmus.privacy.entries import LedgerEntry
from isthmus.records import Kind
from isthmus.report import result as report
from isthmus.server.checkpoint import RoundRecord, RunState
from isthmus.simulation.prepare import Backend
from isthmus.strategies.leave_one_out import factors_in

_K = 10
_BOOTSTRAP_SEED = 0


def assemble_result(  # noqa: PLR0913 - keyword-only, each a part of the outcome
    federation: FederationConfig,
    *,
    backend: Backend,
    state: RunState,
    vaults: list[Vault],
    finished: dict[str, FinishedDomain],
    seconds: float,
) -> report.Result:
    """Put a run's outcome into the types of `result.json`.

    Args:
        federation: The recipe, with the run's seed.
        backend: That carried the messages.
        state: The server's last.
        vaults: Of all domains, with their ledgers.
        finished: What each domain came to.
        seconds: Wall-clock time.
    """
    factors = factors_in(state.strategy) if federation.strategy.name is StrategyName.LEAVE_ONE_OUT else None
    return report.Result(
        schema_version=1,
        isthmus_version=isthmus.__version__,
        federation=report.FederationSummary(
            name=federation.name,
            rounds=state.round,
            seconds=seconds,
            bytes_up=state.bytes_up,
            bytes_down=state.bytes_down,
            private=federation.seed is None,
            seed=federation.seed,
            backend=backend,
            strategy=federation.strategy.name.value,
            encoder=federation.features.encoder,
            parameters=sum(array.size for array in state.arrays.values()),
            digest=state.digest,
            shipped_round=state.best_round,
            start=_start(federation, state),
            history=tuple(_round(record, state.run, vaults) for record in state.history),
        ),
        domains={
            vault.name: _domain(vault, state.run, finished[vault.name], federation.evaluation, factors)
            for vault in vaults
        },
    )


def _start(federation: FederationConfig, state: RunState) -> report.Start | None:
    """What the run began with, and whether that is what it ships."""
    said, path = federation.started_from(), federation.start_path
    if said is None or path is None:
        return None
    parameters = shared_parameters(load_backbone(path).backbone).items()
    same = all(np.array_equal(parameter.detach().numpy(), state.best[name]) for name, parameter in parameters)
    return report.Start(
        digest=said.digest,
        domains=tuple(report.OpenDomain(name=domain.name, users=domain.users) for domain in said.domains),
        shipped=same and state.best_round == 0,
    )


def _domain(
    vault: Vault,
    run: str,
    finished: FinishedDomain,
    evaluation: EvaluationConfig,
    factors: Mapping[str, float] | None,
) -> report.DomainResult:
    policy, data = vault.config.privacy, vault.data
    mine = [entry for entry in vault.ledger.entries() if entry.run == run]
    test = None
    if finished.ranks:
        test = report.Comparison(**{method.value: _scores(finished.ranks[method], evaluation) for method in Method})
    return report.DomainResult(
        users=len(data.users),
        items=len(data.catalogue),
        events=data.report.events,
        test_users=len(next(iter(finished.ranks.values()), ())),
        epsilon=vault.epsilon(),
        epsilon_before=vault.ledger.epsilon(vault.budget.delta, without_run=run),
        delta=vault.budget.delta,
        budget=vault.budget.epsilon,
        noise_multiplier=vault.plan.noise_multiplier,
        clip=policy.clip,
        sample_rate=policy.sample_rate,
        rounds_charged=sum(entry.kind == Kind.UPDATE for entry in mine),
        releases=tuple(_release(entry, vault) for entry in mine if entry.released),
        test=test,
        transfer_gain=_gain(finished, evaluation) if test else None,
        head=report.HeadSummary(
            verdict=finished.head.verdict.value,
            weights={signal.value: weight for signal, weight in finished.head.weights.items()},
        ),
        factor=None if factors is None else factors.get(vault.name, 1.0),
        raw=True,
    )


def _scores(ranks: NDArray[np.int64], evaluation: EvaluationConfig) -> report.MethodScores:
    summary = summarise(ranks, k=_K, resamples=evaluation.bootstrap, seed=_BOOTSTRAP_SEED)
    return report.MethodScores(hr=summary.hr, ndcg=summary.ndcg, mrr=summary.mrr, ndcg_ci95=summary.ndcg_ci95)


def _gain(finished: FinishedDomain, evaluation: EvaluationConfig) -> report.TransferGain:
    """Federated against the local method that did best on the test items."""
    ndcg = {method: ndcg_at_k(ranks, _K) for method, ranks in finished.ranks.items()}
    local = max((method for method in Method if method is not Method.FEDERATED), key=lambda m: float(ndcg[m].mean()))
    low, high = paired_bootstrap_ci(
        ndcg[Method.FEDERATED], ndcg[local], resamples=evaluation.bootstrap, seed=_BOOTSTRAP_SEED
    )
    difference = float((ndcg[Method.FEDERATED] - ndcg[local]).mean())
    return report.TransferGain(ndcg=difference, ci95=(low, high), best_local=cast("report.LocalMethod", local.value))


def _release(entry: LedgerEntry, vault: Vault) -> report.ReleaseRecord:
    return report.ReleaseRecord(
        round=entry.round,
        kind=entry.kind,
        epsilon_after=vault.ledger.epsilon(vault.budget.delta, upto=entry.seq),
    )


def _round(record: RoundRecord, run: str, vaults: list[Vault]) -> report.RoundRecord:
    domains = {}
    for vault in vaults:
        outcome = record.outcomes.get(vault.name)
        if outcome is not None:
            domains[vault.name] = report.DomainRound(
                status=cast("report.Status", outcome.status),
                reason=outcome.reason or None,
                epsilon=_epsilon_after(vault, run, record.round),
            )
    return report.RoundRecord(
        round=record.round,
        gain=record.gain,
        gain_std=record.gain_stddev,
        update_norm=record.update_norm,
        domains=domains,
    )


def _epsilon_after(vault: Vault, run: str, round_: int) -> float:
    """Epsilon once everything of a round had been charged, by the ledger and not by what the domain said."""
    done = [entry.seq for entry in vault.ledger.entries() if entry.run == run and entry.round <= round_]
    return vault.ledger.epsilon(vault.budget.delta, upto=max(done, default=0))
