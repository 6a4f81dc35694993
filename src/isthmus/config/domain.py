"""What `domain.toml` says: where a domain's tables are, how they are read, and what may be spent on them."""

import enum
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from isthmus.settings import Section, read_settings

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
"""A name that is safe in a path, a message and a log line."""


def _is_false(value: object) -> bool:
    return value is False


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
        public: True only where everybody may know every history in the table: `isthmus pretrain` trains on it without
            noise, and what comes of it is handed out. It takes no noise away anywhere else.
    """

    path: str
    format: Annotated[TableFormat | None, Field(strict=False)] = None
    user: str = "user"
    item: str = "item"
    timestamp: str | None = None
    event: str | None = None
    keep_events: Annotated[tuple[str, ...] | None, Field(strict=False)] = None
    public: Annotated[bool, Field(exclude_if=_is_false)] = False

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
