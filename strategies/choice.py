"""From the name in a federation file to a guarded Flower strategy, and its state to and from disk.

    strategy = make_strategy(config.strategy, form=form, trained=names, run="r1", roster={2: "books"}, keys=keys)
    state = strategy_state(strategy)          # goes into a checkpoint
    restore_strategy(strategy, state)

| name           | what                                                 | reference                                    |
|----------------|------------------------------------------------------|----------------------------------------------|
| `fedavg`       | weighted mean, declared public weights               | McMahan et al., AISTATS 2017                 |
| `fedadam`      | Adam on the mean update                              | Reddi et al., ICLR 2021, algorithm 2         |
| `fedprox`      | FedAvg, local steps pulled back (after the noise)    | Li et al., MLSys 2020                        |
| `median`       | median of each coordinate                            | Yin et al., ICML 2018                        |
| `trimmed_mean` | mean of each coordinate without f highest and lowest | Yin et al., ICML 2018                        |
| `krum`         | the one update that n - f - 2 others are closest to  | Blanchard et al., NeurIPS 2017               |
| `reptile`      | a share of the weighted mean update                  | Nichol, Achiam and Schulman, 2018            |
| `feddf`        | FedAvg, then distillation of the domains' ensemble   | Lin et al., NeurIPS 2020                     |
| `leave_one_out`| FedAvg; who harms the others counts less             | Song et al., 2019; Xie et al., ICML 2019     |

`median`, `trimmed_mean` and `krum` withstand f outliers (`outliers`) among the domains, and pay for it: they count
every domain alike, and what they leave out of n updates would have averaged noise away (docs/transfer.md has figures).
"""

from collections.abc import Callable, Iterable, Mapping

from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian, FedProx, FedTrimmedAvg, Krum

from isthmus.config import StrategyConfig, StrategyName, UpdateFormat
from isthmus.encoding import Arrays
from isthmus.packing import pack, to_array_record
from isthmus.privacy.keys import Keys
from isthmus.strategies.beginning import FromBeginning
from isthmus.strategies.distillation import FedDF
from isthmus.strategies.guarded import Guarded
from isthmus.strategies.leave_one_out import LeaveOneOut
from isthmus.strategies.sampling import DomainSampling


class GuardedFedAvg(Guarded, FedAvg):
    """FedAvg behind our validation."""


class GuardedFedAdam(Guarded, FedAdam):
    """FedAdam behind our validation."""


class GuardedFedProx(Guarded, FedProx):
    """FedProx behind our validation."""


class GuardedMedian(Guarded, FedMedian):
    """The median behind our validation."""


class TrimmedByCount(FedTrimmedAvg):
    """Flower's trimmed mean, which leaves out a share of the updates, told a number instead.

    Attributes:
        outliers: Updates left out at either end of each coordinate, however many came in.
    """

    outliers: int

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """As Flower's, which rounds the share down: half an update more is never one less."""
        replies = list(replies)
        self.beta = min((self.outliers + 0.5) / len(replies), 0.5 - 1e-9)
        return super().aggregate_train(server_round, replies)


class GuardedTrimmedMean(Guarded, TrimmedByCount):
    """The trimmed mean behind our validation."""


class GuardedKrum(Guarded, Krum):
    """Krum behind our validation."""


class Reptile(FromBeginning):
    """Batched Reptile: towards the mean of where the domains' own steps lead, and not all of the way.

    Attributes:
        share: Of the way, in (0, 1]; 1 is FedAvg.
    """

    share: float

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """FedAvg's mean, and a share of the way there."""
        mean, metrics = super().aggregate_train(server_round, replies)
        if mean is None:
            return None, metrics
        ends = {name: packed.numpy() for name, packed in mean.items()}
        moved = {name: before + self.share * (ends[name] - before) for name, before in self.beginning.items()}
        return to_array_record(moved), metrics


class GuardedReptile(Guarded, Reptile):
    """Reptile behind our validation."""


class GuardedFedDF(Guarded, FedDF):
    """Ensemble distillation behind our validation."""


class GuardedLeaveOneOut(Guarded, LeaveOneOut):
    """What domains do to each other, behind our validation."""


def _leave_one_out(_: StrategyConfig) -> Guarded:
    strategy = GuardedLeaveOneOut()
    strategy.standings, strategy.last = {}, ""
    return strategy


def _trimmed_mean(config: StrategyConfig) -> Guarded:
    strategy = GuardedTrimmedMean()
    strategy.outliers = config.outliers or 1
    return strategy


def _reptile(config: StrategyConfig) -> Guarded:
    strategy = GuardedReptile()
    strategy.share = config.server_learning_rate
    return strategy


_MAKERS: dict[StrategyName, Callable[[StrategyConfig], Guarded]] = {
    StrategyName.FEDAVG: lambda _: GuardedFedAvg(),
    StrategyName.FEDADAM: lambda c: GuardedFedAdam(eta=c.server_learning_rate, beta_1=0.9, beta_2=0.99, tau=1e-3),
    StrategyName.FEDPROX: lambda c: GuardedFedProx(proximal_mu=c.proximal_mu),
    StrategyName.MEDIAN: lambda _: GuardedMedian(),
    StrategyName.TRIMMED_MEAN: _trimmed_mean,
    StrategyName.KRUM: lambda c: GuardedKrum(num_malicious_nodes=c.outliers or 1),
    StrategyName.REPTILE: _reptile,
    StrategyName.FEDDF: lambda _: GuardedFedDF(),
    StrategyName.LEAVE_ONE_OUT: _leave_one_out,
}


def make_strategy(  # noqa: PLR0913 - keyword-only
    config: StrategyConfig,
    *,
    form: UpdateFormat,
    trained: tuple[str, ...],
    run: str,
    roster: Mapping[int, str],
    keys: Keys,
) -> Guarded:
    """The strategy that a federation file names.

    Args:
        config: Of the federation.
        form: Of updates and of changes of the shared parameters.
        trained: Names of the shared parameters that an update holds.
        run: Id of the run.
        roster: Name of the domain behind each node.
        keys: The coordinator's.
    """
    strategy = _MAKERS[config.name](config)
    strategy.min_train_nodes = strategy.min_evaluate_nodes = strategy.min_available_nodes = (
        1  # one may be all that is left
    )
    strategy.run = run
    strategy.roster = dict(roster)
    strategy.weights = dict(config.weights)
    strategy.max_update_norm, strategy.needed = config.max_update_norm, config.needed
    strategy.trained, strategy.outcomes = trained, {}
    strategy.keys, strategy.receipts = keys, {}
    strategy.form, strategy.whitening, strategy.holds, strategy.step = form, pack({}), {}, None
    strategy.sampling, strategy.spent, strategy.passed_over = None, frozenset(), frozenset()
    if config.domains_per_round is not None:
        strategy.sampling = DomainSampling(
            count=config.domains_per_round, temperature=config.temperature or 1.0, weights=strategy.weights
        )
    return strategy


def strategy_state(strategy: Guarded) -> Arrays:
    """Everything that a strategy remembers between rounds, as named tensors."""
    if isinstance(strategy, LeaveOneOut):
        return strategy.remembered()
    if not isinstance(strategy, FedAdam):
        return {}
    moments = {"m": strategy.m_t or {}, "v": strategy.v_t or {}}
    return {f"{moment}/{name}": array for moment, arrays in moments.items() for name, array in arrays.items()}


def restore_strategy(strategy: Guarded, state: Arrays) -> None:
    """Give a fresh strategy what an earlier one remembered."""
    if isinstance(strategy, LeaveOneOut):
        strategy.remember(state)
    if isinstance(strategy, FedAdam) and state:
        strategy.m_t = {name.removeprefix("m/"): array for name, array in state.items() if name.startswith("m/")}
        strategy.v_t = {name.removeprefix("v/"): array for name, array in state.items() if name.startswith("v/")}
