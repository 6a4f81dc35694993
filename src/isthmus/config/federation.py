"""What a federation file says: its domains, and the recipe that all of them follow."""

import enum
import hashlib
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from isthmus.config.domain import Name
from isthmus.config.start import StartedFrom, read_start, start_digest
from isthmus.settings import Section, read_settings


def _is_none(value: object) -> bool:
    return value is None


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


class StartingBackbone(BackboneConfig):
    """The shape of the shared sequence encoder, and what it starts from.

    Attributes:
        start: File of `isthmus pretrain`, relative to the federation file; the text prior where absent. It stays with
            the coordinator: domains are told the shape, and what was public.
    """

    start: Annotated[str | None, Field(min_length=1, exclude_if=_is_none)] = None

    @property
    def shape(self) -> BackboneConfig:
        """The shape alone."""
        return BackboneConfig(**{name: getattr(self, name) for name in BackboneConfig.model_fields})


class StrategyName(enum.StrEnum):
    """Aggregation strategies."""

    FEDAVG = "fedavg"
    FEDADAM = "fedadam"
    FEDPROX = "fedprox"
    MEDIAN = "median"
    TRIMMED_MEAN = "trimmed_mean"
    KRUM = "krum"
    REPTILE = "reptile"
    FEDDF = "feddf"


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
        server_learning_rate: FedAdam's eta; of `reptile`, which has no default, how much of the mean step is taken.
        proximal_mu: FedProx's mu.
        outliers: Of `median`, `trimmed_mean` and `krum`: domains whose updates may be anything that passes validation.
            They count every domain alike, so declared weights are an error beside them.
        average: Decay, from round to round, of the moving average of the shared parameters that is evaluated and
            shipped in their place (De et al., 2022), while training goes on from themselves; 0 for no average.
    """

    name: Annotated[StrategyName, Field(strict=False)] = StrategyName.FEDAVG
    rounds: Annotated[int, Field(ge=1)] = 10
    evaluate_every: Annotated[int, Field(ge=0)] = 5
    weights: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    max_update_norm: Annotated[float, Field(gt=0)] = 100.0
    server_learning_rate: Annotated[float, Field(gt=0)] = 0.01
    proximal_mu: Annotated[float, Field(ge=0)] = 0.0
    outliers: Annotated[int, Field(ge=1)] | None = None
    average: Annotated[float, Field(ge=0, lt=1)] = 0.0

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
        share = self.server_learning_rate if "server_learning_rate" in self.model_fields_set else 0.0
        if self.name is StrategyName.REPTILE and not 0 < share <= 1:
            raise ValueError(
                '`name = "reptile"` needs a `server_learning_rate` in (0, 1], 0.5 for example: its share of the mean'
            )
        return self


class UpdateFormat(enum.StrEnum):
    """What a domain's update, and the server's step, are rounded to before they cross."""

    FLOAT32 = "float32"  # not rounded
    BFLOAT16 = "bfloat16"  # half the bytes; 8 significant bits
    INT8 = "int8"  # a quarter; one scale per tensor


class LossName(enum.StrEnum):
    """How an item is told from its rivals."""

    CROSS_ENTROPY = "cross_entropy"
    NDCG = "ndcg"  # smoothed NDCG, ApproxNDCG of Qin, Liu and Li, Information Retrieval 2010


class Clipping(enum.StrEnum):
    """How a user's gradient is brought to a norm of at most C."""

    FLAT = "flat"  # longer ones to C, shorter ones as they are
    AUTOMATIC = "automatic"  # all of them to about C: AUTO-S of Bu et al., NeurIPS 2023


class OptimizerName(enum.StrEnum):
    """What a domain makes of noisy gradients; forgotten at the end of a round."""

    SGD = "sgd"
    ADAM_BC = "adam_bc"  # DP-AdamBC of Tang, Shpilevskiy and Lecuyer, AAAI 2024
    PER_FEDAVG = "per_fedavg"  # first-order Per-FedAvg of Fallah, Mokhtari and Ozdaglar, NeurIPS 2020


class Augment(enum.StrEnum):
    """What is done to a user's own history before a step looks at it: the operators of Xie et al., ICDE 2022."""

    NONE = "none"
    CROP = "crop"  # a part of it
    MASK = "mask"  # some items without features
    REORDER = "reorder"  # a part of it in another order


class Trained(enum.StrEnum):
    """Which parameters are trained, and carry noise; the others keep their first values."""

    ALL = "all"
    RECENCY = "recency"  # how much each of the latest items counts: `prior_items` numbers
    ENDS = "ends"  # the adaptor and the last layer
    HEAD = "head"  # the last layer
    LORA = "lora"  # the adaptor's and the attention's matrices by factors of low rank, the last layer whole


RECENCY = {"learning_rate": 5.0, "rivals": 200, "loss": LossName.NDCG, "temperature": 0.03}
"""What `train = "recency"` is trained with unless a federation file says otherwise."""


class TrainingConfig(Section):
    """How a noisy gradient is used and what the loss looks at; none of it changes a guarantee.

    The default recipe is the one that helps domains which are new or small: `recency`, with the loss, the rivals, the
    temperature and the learning rate that it was measured with (`RECENCY`). The other defaults are those of everything
    else that can be trained.

    Attributes:
        learning_rate: Step size of the local optimizer; `adam_bc` has no default.
        inner_learning_rate: Of `per_fedavg`: how far a domain would adapt the backbone by one step of its own.
        momentum: Of the local optimizer `sgd`, in [0, 1).
        rivals: Items that the text prior ranks highest for a position and that the next item is told from; a
            position whose next item is not among them carries no loss.
        loss: What a user's gradient is of.
        temperature: Of the softmax over scores; of the sigmoids of `ndcg`.
        positions: Last positions of a history that may carry a loss.
        update_format: What updates are rounded to, after the noise and without bias, before they cross.
        clipping: How users' gradients are clipped; the bound C is the domain's own, whichever it is.
        optimizer: What moves the parameters by noisy gradients.
        augment: What is done to histories.
        train: Which parameters move.
        rank: Of the factors of `lora`.
    """

    learning_rate: Annotated[float, Field(gt=0)] = 1.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    rivals: Annotated[int, Field(ge=2, le=1000)] = 50
    loss: Annotated[LossName, Field(strict=False)] = LossName.CROSS_ENTROPY
    temperature: Annotated[float, Field(gt=0)] = 0.1
    positions: Annotated[int, Field(ge=1)] = 10
    update_format: Annotated[UpdateFormat, Field(strict=False)] = UpdateFormat.INT8
    clipping: Annotated[Clipping, Field(strict=False)] = Clipping.FLAT
    optimizer: Annotated[OptimizerName, Field(strict=False)] = OptimizerName.SGD
    augment: Annotated[Augment, Field(strict=False)] = Augment.NONE
    train: Annotated[Trained, Field(strict=False)] = Trained.RECENCY
    rank: Annotated[int, Field(ge=1, le=256)] | None = None
    inner_learning_rate: Annotated[float | None, Field(gt=0, exclude_if=_is_none)] = None

    @property
    def learns_axes(self) -> bool:
        """Whether what is learned depends on the axes of item features, so that every domain must have the same."""
        return self.train is not Trained.RECENCY

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_recency(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("train", Trained.RECENCY) != Trained.RECENCY:
            return given
        needless = {"learning_rate"} if given.get("optimizer") == OptimizerName.ADAM_BC else set()
        needless |= {"temperature"} if given.get("loss", LossName.NDCG) != LossName.NDCG else set()
        return {key: value for key, value in RECENCY.items() if key not in needless} | given

    @model_validator(mode="after")
    def _what_belongs_together(self) -> Self:
        if self.optimizer is not OptimizerName.SGD and self.momentum:
            raise ValueError(f"`momentum` belongs to sgd; {self.optimizer} has its own, so leave it out")
        if self.optimizer is OptimizerName.ADAM_BC and "learning_rate" not in self.model_fields_set:
            raise ValueError(
                '`optimizer = "adam_bc"` needs a `learning_rate` of its own, 0.001 for example: about how far a '
                "coordinate moves in a step"
            )
        if (self.optimizer is OptimizerName.PER_FEDAVG) != (self.inner_learning_rate is not None):
            raise ValueError(
                '`optimizer = "per_fedavg"` needs an `inner_learning_rate`, of its first step of two'
                if self.inner_learning_rate is None
                else f"`inner_learning_rate` belongs to per_fedavg; {self.optimizer} has one step, so leave it out"
            )
        if (self.train is Trained.LORA) != (self.rank is not None):
            raise ValueError(
                '`train = "lora"` needs the `rank` of its factors, 4 for example'
                if self.rank is None
                else f'`rank` belongs to `train = "lora"`; {self.train} has no factors, so leave it out'
            )
        return self


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
    backbone: StartingBackbone = StartingBackbone()
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

    @property
    def start_path(self) -> Path | None:
        """Absolute path of the backbone that is started from; None for the text prior."""
        return None if self.backbone.start is None else (self.folder / self.backbone.start).resolve()

    def started_from(self) -> StartedFrom | None:
        """What was public of what is started from; None for the text prior.

        Raises:
            ConfigError: If the file is gone, is no backbone that was trained in the open, or has another shape.
        """
        path = self.start_path
        return None if path is None else read_start(path, features=self.features, shape=self.backbone.shape)

    def digest(self) -> str:
        """Hash of everything that decides a run's result (speed settings aside), as hex.

        What is started from counts by its content, and not by its place.

        Raises:
            ConfigError: If the file that is started from cannot be read.
        """
        running = hashlib.sha256(self.model_dump_json(exclude={"compute": True, "backbone": {"start"}}).encode())
        if self.start_path is not None:
            running.update(start_digest(self.start_path).encode())
        return running.hexdigest()


def seeded_run(federation: FederationConfig) -> str:
    """Id of a run whose noise can be repeated: the same wherever it runs, because the noise follows from it."""
    return f"seeded-{federation.digest()[:24]}"


def load_federation(path: str | Path) -> FederationConfig:
    """Read a federation file.

    Raises:
        ConfigError: If the file is absent or any key or value in it is wrong, or it starts from a backbone that does
            not fit.
    """
    federation = read_settings(Path(path), FederationConfig)
    federation.started_from()
    return federation
