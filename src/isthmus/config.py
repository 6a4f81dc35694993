"""Configuration: what a domain folder and a federation file say, checked at birth.

    domain = load_domain("shopping")            # the folder, or its domain.toml
    federation = load_federation("demo.toml")   # names its domains' folders

Both files are strict TOML: an unknown key is an error that names the file, the key and the
nearest valid key. Everything is frozen after loading; paths are absolute. Settings that change
a privacy guarantee (`PrivacyPolicy`) live in the domain's file and nowhere else: a federation
file cannot lower them, because a coordinator's words are not covered by any signature.
"""

import enum
import hashlib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from isthmus.settings import Section, read_settings

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
"""A name that is safe in a path, a message and a log line."""


class TableFormat(enum.StrEnum):
    """How an interaction or item file is laid out."""

    TABLE = "table"  # Parquet, CSV or TSV with a header, by the file's ending; .gz allowed
    RECBOLE = "recbole"  # atomic files: tab-separated, header of name:type
    SEQUENCE = "sequence"  # user <tab> item item item ..., in time order, no header


class Interactions(Section):
    """The interaction table of a domain.

    Attributes:
        path: File, relative to the domain's folder.
        format: Layout; told from the file's ending (`.inter` is RecBole) when absent. `sequence` must be said.
        user: Column of user ids.
        item: Column of item ids.
        timestamp: Column of times (unix seconds, integer or float, or ISO date-times). Without one, the order
            of the file is the order of time.
        event: Column of event types, if any.
        keep_events: Event types that count as interactions; all when absent.
    """

    path: str
    format: Annotated[TableFormat | None, Field(strict=False)] = None
    user: str = "user"
    item: str = "item"
    timestamp: str | None = None
    event: str | None = None
    keep_events: Annotated[tuple[str, ...] | None, Field(strict=False)] = None

    @model_validator(mode="after")
    def _events_need_a_column(self) -> Self:
        if self.keep_events is not None and self.event is None:
            raise ValueError("keep_events needs `event`, the column that holds the event types")
        return self


class Items(Section):
    """The item table (catalogue) of a domain.

    Attributes:
        path: File, relative to the domain's folder.
        format: Layout; told from the file's ending (`.item` is RecBole) when absent.
        id: Column of item ids.
        title: Column shown to people.
        text: Template of the public text of an item, column names in braces.
        public: Must be true: text features and whitening are computed from this table and its moments leave the
            domain. A catalogue that is not public cannot join a federation.
    """

    path: str
    format: Annotated[TableFormat | None, Field(strict=False)] = None
    id: str = "item_id"
    title: str = "title"
    text: str = "{title}"
    public: bool


class Split(Section):
    """Which events train, which validate and which test.

    Attributes:
        kind: `leave-one-out`: a user's last item tests, the one before validates, the rest trains.
            `temporal`: events before `validation_from` train; a user's first event in
            [`validation_from`, `test_from`) validates; the first one at or after `test_from` tests.
        min_events: A user with fewer events trains only (documented in docs/data.md).
        max_history: Only this many of a user's latest events are kept, in events.
        validation_from: Unix seconds; temporal only.
        test_from: Unix seconds; temporal only.
    """

    kind: Literal["leave-one-out", "temporal"] = "leave-one-out"
    min_events: Annotated[int, Field(ge=3)] = 3
    max_history: Annotated[int, Field(ge=2, le=1000)] = 50
    validation_from: int | None = None
    test_from: int | None = None

    @model_validator(mode="after")
    def _temporal_needs_cutoffs(self) -> Self:
        cutoffs = (self.validation_from, self.test_from)
        if self.kind == "temporal":
            if self.validation_from is None or self.test_from is None:
                raise ValueError("a temporal split needs `validation_from` and `test_from` (unix seconds)")
            if self.validation_from >= self.test_from:
                raise ValueError(
                    f"validation_from must be before test_from, got {self.validation_from} and {self.test_from}"
                )
        elif cutoffs != (None, None):
            raise ValueError('validation_from and test_from belong to kind = "temporal"')
        return self


class PrivacyPolicy(Section):
    """What a domain is willing to spend on its data, and the public constants of its training.

    The unit of privacy is one user's whole history in this domain, add/remove adjacency. All of these are
    public: none may be derived from the data (an exact user count must not leak).

    Attributes:
        epsilon: Limit over all runs on this data set.
        delta: Probability of failure, over all runs on this data set.
        clip: L2 norm to which one user's gradient is clipped (C).
        sample_rate: Probability that a user is in a batch (Poisson), in (0, 1].
        expected_batch: Divisor of a summed gradient, in users. A public constant, never a count.
        steps_per_round: Noisy gradient steps in one round.
        rounds: Rounds for which the noise is calibrated; with that noise, epsilon is spent when they are over.
        evaluations: Noisy evaluations for which the noise is calibrated; with 0, none is released.
        metric_noise_multiplier: Noise standard deviation of an evaluation / its L2 sensitivity.
    """

    epsilon: Annotated[float, Field(gt=0, le=100)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    clip: Annotated[float, Field(gt=0)]
    sample_rate: Annotated[float, Field(gt=0, le=1)]
    expected_batch: Annotated[float, Field(gt=0)]
    steps_per_round: Annotated[int, Field(ge=1, le=100_000)]
    rounds: Annotated[int, Field(ge=1, le=100_000)]
    evaluations: Annotated[int, Field(ge=0, le=100_000)]
    metric_noise_multiplier: Annotated[float, Field(gt=0)]


class EngineName(enum.StrEnum):
    """How users' gradients are clipped; the sum is the same."""

    BOOKKEEPING = "bookkeeping"
    OPACUS = "opacus"


class Precision(enum.StrEnum):
    """In which precision layers multiply; norms, clipped sums and noise are in the parameters' own."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class DomainCompute(Section):
    """How a domain computes; nothing here changes a guarantee.

    Attributes:
        engine: `bookkeeping` (norms and clipped sums without any user's gradient), or `opacus`, the reference.
        device: Where a round trains: `cpu`, `cuda`, or `cuda:N`. Everything else is on the CPU.
        precision: Of products inside layers. `bfloat16` needs the book-keeping engine.
    """

    engine: Annotated[EngineName, Field(strict=False)] = EngineName.BOOKKEEPING
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")] = "cpu"
    precision: Annotated[Precision, Field(strict=False)] = Precision.FLOAT32

    @model_validator(mode="after")
    def _norms_need_books(self) -> Self:
        """Opacus computes norms in the precision of the layer."""
        if self.precision is not Precision.FLOAT32 and self.engine is not EngineName.BOOKKEEPING:
            raise ValueError(
                f'`precision = "{self.precision}"` needs `engine = "bookkeeping"`: Opacus would compute norms in it'
            )
        return self


class DomainConfig(Section):
    """One domain: where its tables are, how they are read, what may be spent on them."""

    name: Name
    interactions: Interactions
    items: Items
    split: Split = Split()
    privacy: PrivacyPolicy
    compute: DomainCompute = DomainCompute()
    folder: Path = Field(default=Path(), exclude=True)

    @property
    def interactions_path(self) -> Path:
        """Absolute path of the interaction table."""
        return self.folder / self.interactions.path

    @property
    def items_path(self) -> Path:
        """Absolute path of the item table."""
        return self.folder / self.items.path

    @property
    def ledger_path(self) -> Path:
        """The one ledger of this data set; it stays beside the data, whatever run spends from it."""
        return self.folder / "ledger.db"


class FeatureConfig(Section):
    """How public text becomes item features.

    Attributes:
        encoder: `minilm` (packaged), `hash` (no model, for tests), or a local transformers folder or hub id; with
            `:int8` at the end of the name its matrix products are in 8 bits, which is faster and not the same vectors.
        dim: Features kept after whitening, in dimensions; all when absent.
        whitening_eps: Ridge added to the eigenvalues of the pooled covariance, relative to their mean.
    """

    encoder: str = "minilm"
    dim: Annotated[int, Field(ge=2)] | None = None
    whitening_eps: Annotated[float, Field(gt=0)] = 1e-3


class BackboneConfig(Section):
    """The shape of the shared sequence encoder.

    Attributes:
        width: Model width d; divisible by `heads`.
        layers: Transformer blocks.
        heads: Attention heads.
        feedforward: Width of the feed-forward layer.
        positions: Longest history the encoder sees, in items.
        prior_items: Items of the history that make the text prior.
        prior_decay: Weight of each older item of the prior, in (0, 1].
    """

    width: Annotated[int, Field(ge=2)] = 64
    layers: Annotated[int, Field(ge=1)] = 2
    heads: Annotated[int, Field(ge=1)] = 2
    feedforward: Annotated[int, Field(ge=2)] = 128
    positions: Annotated[int, Field(ge=2, le=1000)] = 20
    prior_items: Annotated[int, Field(ge=1)] = 10
    prior_decay: Annotated[float, Field(gt=0, le=1)] = 0.8

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads must divide width, got {self.heads} and {self.width}")
        return self


class StrategyName(enum.StrEnum):
    """Aggregation strategies."""

    FEDAVG = "fedavg"
    FEDADAM = "fedadam"
    FEDPROX = "fedprox"
    MEDIAN = "median"
    TRIMMED_MEAN = "trimmed_mean"
    KRUM = "krum"


_NEEDED = {
    StrategyName.MEDIAN: lambda outliers: 2 * outliers + 1,
    StrategyName.TRIMMED_MEAN: lambda outliers: 2 * outliers + 1,
    StrategyName.KRUM: lambda outliers: 2 * outliers + 3,
}
"""Of the robust ones: updates without which they tolerate no such number of outliers."""


class StrategyConfig(Section):
    """How updates become the next backbone.

    Attributes:
        name: Aggregation rule.
        rounds: Rounds of the run.
        evaluate_every: A noisy evaluation after every so many rounds; 0 for none.
        weights: Declared public weight of each domain; 1 where absent. Never a user count.
        max_update_norm: A reply whose update has a larger L2 norm is refused.
        server_learning_rate: FedAdam's eta.
        proximal_mu: FedProx's mu.
        outliers: Of `median`, `trimmed_mean` and `krum`: domains whose updates may be anything that passes validation.
            They count every domain alike, so declared weights are an error beside them.
    """

    name: Annotated[StrategyName, Field(strict=False)] = StrategyName.FEDAVG
    rounds: Annotated[int, Field(ge=1)] = 10
    evaluate_every: Annotated[int, Field(ge=0)] = 5
    weights: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    max_update_norm: Annotated[float, Field(gt=0)] = 100.0
    server_learning_rate: Annotated[float, Field(gt=0)] = 0.01
    proximal_mu: Annotated[float, Field(ge=0)] = 0.0
    outliers: Annotated[int, Field(ge=1)] | None = None

    @property
    def needed(self) -> int:
        """Updates without which a round changes nothing."""
        return _NEEDED[self.name](self.outliers or 1) if self.name in _NEEDED else 1

    @model_validator(mode="after")
    def _robust_or_weighted(self) -> Self:
        if self.name in _NEEDED and self.weights:
            raise ValueError(f'`name = "{self.name}"` counts every domain alike; leave `weights` out')
        if self.name not in _NEEDED and self.outliers is not None:
            robust = ", ".join(_NEEDED)
            raise ValueError(f"`outliers` belongs to {robust}; {self.name} tolerates none")
        return self


class UpdateFormat(enum.StrEnum):
    """What a domain's update, and the server's step, are rounded to before they cross."""

    FLOAT32 = "float32"  # not rounded
    BFLOAT16 = "bfloat16"  # half the bytes; 8 significant bits
    INT8 = "int8"  # a quarter; one scale per tensor


class TrainingConfig(Section):
    """How a noisy gradient is used and what the loss looks at; none of it changes a guarantee.

    Attributes:
        learning_rate: Step size of the local optimizer.
        momentum: Of the local optimizer, in [0, 1).
        rivals: Items that the text prior ranks highest for a position and that the next item is told from; a
            position whose next item is not among them carries no loss.
        temperature: Of the softmax over scores.
        positions: Last positions of a history that may carry a loss.
        update_format: What updates are rounded to, after the noise and without bias, before they cross.
    """

    learning_rate: Annotated[float, Field(gt=0)] = 1.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    rivals: Annotated[int, Field(ge=2, le=1000)] = 50
    temperature: Annotated[float, Field(gt=0)] = 0.1
    positions: Annotated[int, Field(ge=1)] = 10
    update_format: Annotated[UpdateFormat, Field(strict=False)] = UpdateFormat.INT8


class EvaluationConfig(Section):
    """How methods are compared in a simulation.

    Attributes:
        max_users: Test users per domain, drawn with a fixed seed; all when there are fewer.
        bootstrap: Resamples of a confidence interval.
    """

    max_users: Annotated[int, Field(ge=1)] = 4000
    bootstrap: Annotated[int, Field(ge=100)] = 1000


class ComputeConfig(Section):
    """Speed only: nothing here changes a result by more than rounding.

    Attributes:
        threads: Torch threads of one process.
    """

    threads: Annotated[int, Field(ge=1, le=256)] = 1


class FederationConfig(Section):
    """One federation: its domains and the recipe that all of them follow.

    Attributes:
        name: Of the federation.
        domains: Folders that hold a `domain.toml`, relative to the federation file.
        seed: Makes a run repeatable, noise included. Such a run is **not private** and says so everywhere.
    """

    name: Name
    domains: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    features: FeatureConfig = FeatureConfig()
    backbone: BackboneConfig = BackboneConfig()
    strategy: StrategyConfig = StrategyConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    compute: ComputeConfig = ComputeConfig()
    folder: Path = Field(default=Path(), exclude=True)

    @field_validator("domains")
    @classmethod
    def _no_domain_twice(cls, value: tuple[str, ...], _: ValidationInfo) -> tuple[str, ...]:
        twice = sorted({name for name in value if value.count(name) > 1})
        if twice:
            raise ValueError(f"each domain joins once, got {', '.join(twice)} twice")
        return value

    @model_validator(mode="after")
    def _enough_domains(self) -> Self:
        """A robust strategy that could never keep its promise is refused before anybody is asked."""
        needed = self.strategy.needed
        if len(self.domains) < needed:
            raise ValueError(
                f'`strategy.name = "{self.strategy.name}"` with {self.strategy.outliers or 1} outliers needs at least '
                f"{needed} domains, got {len(self.domains)}"
            )
        return self

    def domain_folders(self) -> tuple[Path, ...]:
        """Absolute folders of the domains, in the file's order."""
        return tuple((self.folder / name).resolve() for name in self.domains)

    def digest(self) -> str:
        """Hash of everything that decides a run's result (speed settings aside), as hex."""
        text = self.model_dump_json(exclude={"compute"})
        return hashlib.sha256(text.encode()).hexdigest()


def seeded_run(federation: FederationConfig) -> str:
    """Id of a run whose noise can be repeated: the same wherever it runs, because the noise follows from it."""
    return f"seeded-{federation.digest()[:24]}"


def load_domain(path: str | Path) -> DomainConfig:
    """Read a domain's configuration.

    Args:
        path: The domain's folder, or the `domain.toml` in it.

    Raises:
        ConfigError: If the file is absent or any key or value in it is wrong.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "domain.toml"
    return read_settings(file, DomainConfig)


def load_federation(path: str | Path) -> FederationConfig:
    """Read a federation file.

    Raises:
        ConfigError: If the file is absent or any key or value in it is wrong.
    """
    return read_settings(Path(path), FederationConfig)
