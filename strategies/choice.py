"""From the name in a federation file to a guarded Flower strategy, and its state to and from disk.

    strategy = make_strategy(config.strategy, form=UpdateFormat.INT8, run="r1", roster={2: "books"}, keys=keys)
    state = strategy_state(strategy)          # goes into a checkpoint
    restore_strategy(strategy, state)

| name      | what                                   | reference                                      |
|-----------|----------------------------------------|------------------------------------------------|
| `fedavg`  | weighted mean, declared public weights | McMahan et al., AISTATS 2017                   |
| `fedadam` | Adam on the mean update                | Reddi et al., ICLR 2021, algorithm 2           |
| `fedprox` | FedAvg, local steps pulled back        | Li et al., MLSys 2020 (after the noise: free)  |
"""

from collections.abc import Mapping

from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAdam, FedAvg, FedProx

from isthmus.config import StrategyConfig, StrategyName, UpdateFormat
from isthmus.encoding import Arrays
from isthmus.privacy.keys import Keys
from isthmus.strategies.guarded import Guarded


class GuardedFedAvg(Guarded, FedAvg):
    """FedAvg behind our validation."""


class GuardedFedAdam(Guarded, FedAdam):
    """FedAdam behind our validation."""


class GuardedFedProx(Guarded, FedProx):
    """FedProx behind our validation."""


def make_strategy(
    config: StrategyConfig, *, form: UpdateFormat, run: str, roster: Mapping[int, str], keys: Keys
) -> Guarded:
    """The strategy that a federation file names.

    Args:
        config: Of the federation.
        form: Of updates and of changes of the shared parameters.
        run: Id of the run.
        roster: Name of the domain behind each node.
        keys: The coordinator's.
    """
    strategy: Guarded
    if config.name is StrategyName.FEDADAM:
        strategy = GuardedFedAdam(eta=config.server_learning_rate, beta_1=0.9, beta_2=0.99, tau=1e-3)
    elif config.name is StrategyName.FEDPROX:
        strategy = GuardedFedProx(proximal_mu=config.proximal_mu)
    else:
        strategy = GuardedFedAvg()
    strategy.min_train_nodes = strategy.min_evaluate_nodes = strategy.min_available_nodes = (
        1  # one may be all that is left
    )
    strategy.run = run
    strategy.roster = dict(roster)
    strategy.weights = dict(config.weights)
    strategy.max_update_norm = config.max_update_norm
    strategy.outcomes = {}
    strategy.keys, strategy.receipts = keys, {}
    strategy.form, strategy.whitening, strategy.holds, strategy.step = form, ArrayRecord(), {}, None
    return strategy


def strategy_state(strategy: Guarded) -> Arrays:
    """Everything that a strategy remembers between rounds, as named tensors."""
    if not isinstance(strategy, FedAdam):
        return {}
    moments = {"m": strategy.m_t or {}, "v": strategy.v_t or {}}
    return {f"{moment}/{name}": array for moment, arrays in moments.items() for name, array in arrays.items()}


def restore_strategy(strategy: Guarded, state: Arrays) -> None:
    """Give a fresh strategy what an earlier one remembered."""
    if isinstance(strategy, FedAdam) and state:
        strategy.m_t = {name.removeprefix("m/"): array for name, array in state.items() if name.startswith("m/")}
        strategy.v_t = {name.removeprefix("v/"): array for name, array in state.items() if name.startswith("v/")}
