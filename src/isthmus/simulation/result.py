"""From what a run left behind to its `Result`.

    result = assemble_result(...)

Everything private in it is raw: a simulation may look, a coordinator never could.
"""

import numpy as np

from isthmus.clients.finish import FinishedDomain
from isthmus.clients.head import Method
from isthmus.clients.vault import Vault
from isthmus.config import EvaluationConfig, FederationConfig
from isthmus.metrics import ndcg_at_k, paired_bootstrap_ci, summarise
from isthmus.privacy.ledger import LedgerEntry
from isthmus.records import Kind
from isthmus.report import result as report
from isthmus.server.checkpoint import RoundRecord, RunState
from isthmus.simulation.prepare import Backend

_K = 10
_BOOTSTRAP_SEED = 0


def assemble_result(  # noqa: PLR0913 - keyword-only, each a part of the outcome
    federation: FederationConfig,
    *,
    backend: Backend,
    state: RunState,
    vaults: list[Vault],
    finished: dict[str, FinishedDomain],
    traffic: tuple[int, int],
    seconds: float,
) -> report.Result:
    """Put a run's outcome into the types of `result.json`.

    Args:
        federation: The recipe, with the run's seed.
        backend: That carried the messages.
        state: The server's last.
        vaults: Of all domains, with their ledgers.
        finished: What each domain came to.
        traffic: Bytes up and down.
        seconds: Wall-clock time.
    """
    up, down = traffic
    return report.Result(
        schema_version=report.SCHEMA_VERSION,
        isthmus_version=isthmus_version(),
        federation=report.FederationSummary(
            name=federation.name,
            rounds=state.round,
            seconds=seconds,
            bytes_up=up,
            bytes_down=down,
            private=federation.seed is None,
            seed=federation.seed,
            backend=backend,
            strategy=federation.strategy.name.value,
            encoder=federation.features.encoder,
            parameters=sum(array.size for array in state.arrays.values()),
            digest=state.digest,
            shipped_round=state.best_round,
            history=tuple(_round(record, state.run, vaults) for record in state.history),
        ),
        domains={
            vault.name: _domain(vault, state.run, finished[vault.name], federation.evaluation) for vault in vaults
        },
    )
