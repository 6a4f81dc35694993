"""What a federation file says: its domains, and the recipe that all of them follow."""

import enum
import hashlib
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from isthmus.config.backbone import BackboneConfig, StartingBackbone
from isthmus.config.domain import Name
from isthmus.config.start import StartedFrom, read_start, start_digest
from isthmus.config.strategy import StrategyConfig, StrategyName
from isthmus.settings import Section, is_none, read_settings


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
    TEXT = "text"  # how a text encoder reads histories, by factors, and the latest items


class Align(enum.StrEnum):
    """How representations of different domains are made alike in training."""

    DANN = "dann"  # a domain classifier behind a gradient reversal: Ganin et al., JMLR 2016


_STILL = (Trained.RECENCY, Trained.HEAD, Trained.TEXT)  # with these, nothing moves that a domain classifier reads


RECENCY = {"learning_rate": 5.0, "rivals": 200, "loss": LossName.NDCG, "temperature": 0.03}
"""What `train = "recency"` and "text" are trained with unless a federation file says otherwise."""
_BY_AGE = (Trained.RECENCY, Trained.TEXT)


class TrainingConfig(Section):
    """How a noisy gradient is used and what the loss looks at; none of it changes a guarantee.

    The default recipe is the one that helps domains which are new or small: `recency`, with the loss, the rivals, the
    temperature and the learning rate that it was measured with (`RECENCY`); `text` has the same. The other defaults are
    those of everything else that can be trained.

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
        rank: Of the factors of `lora` and `text`.
        align: How domains are made alike; not at all where absent.
        align_weight: Of the domain loss beside a user's own loss.
        align_domains: Names of all domains that may take part, sorted when read: a domain's place is its label.
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
    inner_learning_rate: Annotated[float | None, Field(gt=0, exclude_if=is_none)] = None
    align: Annotated[Align | None, Field(strict=False, exclude_if=is_none)] = None
    align_weight: Annotated[float | None, Field(gt=0, exclude_if=is_none)] = None
    align_domains: Annotated[
        tuple[Name, ...] | None, Field(strict=False, min_length=2, max_length=200, exclude_if=is_none)
    ] = None

    @property
    def classes(self) -> int:
        """Domains that the domain classifier tells apart; 0 where there is none."""
        return len(self.align_domains or ())

    @property
    def learns_axes(self) -> bool:
        """Whether what is learned depends on the axes of item features, so that every domain must have the same."""
        return self.train is not Trained.RECENCY

    @field_validator("align_domains")
    @classmethod
    def _sorted_and_once(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and len(set(value)) < len(value):
            raise ValueError("names each domain once")
        return value and tuple(sorted(value))

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_recency(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("train", Trained.RECENCY) not in _BY_AGE:
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
        if (self.train in (Trained.LORA, Trained.TEXT)) != (self.rank is not None):
            raise ValueError(
                f'`train = "{self.train}"` needs the `rank` of its factors, 4 for example'
                if self.rank is None
                else f'`rank` belongs to `train = "lora"` and "text"; {self.train} has no factors, so leave it out'
            )
        return self

    @model_validator(mode="after")
    def _alignment_is_whole(self) -> Self:
        if self.align is None:
            if self.align_weight is not None or self.align_domains is not None:
                raise ValueError(
                    "`align_weight` and `align_domains` belong to `align`, which is absent; leave them out"
                )
            return self
        if self.align_weight is None or self.align_domains is None:
            raise ValueError(
                f'`align = "{self.align}"` needs an `align_weight`, of its loss beside the other, and `align_domains`, '
                "the names of all domains that may take part, now or later"
            )
        if self.train in _STILL:
            moving = ", ".join(train for train in Trained if train not in _STILL)
            raise ValueError(
                f'`align = "{self.align}"` moves the encoder, and `train = "{self.train}"` leaves it as it is; train '
                f"one of {moving}, or leave `align` out"
            )
        return self


def require_trainable(backbone: BackboneConfig, training: TrainingConfig) -> None:
    """Refuse to train a part of a backbone whose parts nobody has named.

    Raises:
        ValueError: If it is a custom one and anything but all of it is asked for, or a domain classifier beside it.
    """
    if backbone.module is None:
        return
    custom = f'`backbone.module = "{backbone.module}"`'
    if training.train is not Trained.ALL:
        raise ValueError(
            f'{custom} needs `train = "all"` in [training]: "{training.train}" names parts of the built-in backbone'
        )
    if training.align is not None:
        raise ValueError(f"`training.align` reads the built-in backbone's encoder; leave it out beside {custom}")


def require_text_encoder(features: FeatureConfig, training: TrainingConfig) -> None:
    """Refuse to train a text encoder that cannot be.

    Raises:
        ValueError: If it is asked for and the encoder is none with weights to change, or those are in 8 bits.
    """
    if training.train is not Trained.TEXT:
        return
    hashed = features.encoder.partition(":")[0] == "hash"
    if hashed or features.encoder.endswith(":int8"):
        why = "has no weights" if hashed else "computes in 8 bits, through which no gradient comes"
        raise ValueError(
            f'`train = "text"` changes the text encoder, and `features.encoder = "{features.encoder}"` {why}; use '
            "`minilm`, or a local transformers folder of a BERT"
        )


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
        asked, never = self.strategy.domains_per_round, list(self.strategy.weights.values()).count(0)
        if asked is not None and asked > len(self.domains) - never:
            raise ValueError(
                f"`strategy.domains_per_round` is {asked}, and {len(self.domains) - never} of the {len(self.domains)} "
                f"domains can be drawn (with weight 0 a domain never is); lower it, or leave it out to ask all of them"
            )
        return self

    @model_validator(mode="after")
    def _a_mean_of_labels(self) -> Self:
        """Each domain pulls the domain classifier its own way, so each is the outlier of its own class."""
        if self.training.align is not None and self.strategy.robust:
            raise ValueError(
                f'`training.align` needs a mean over domains, and `strategy.name = "{self.strategy.name}"` leaves out '
                "what differs, which is what each domain says of itself; use another strategy, or leave `align` out"
            )
        return self

    @model_validator(mode="after")
    def _text_encoder_can_be_trained(self) -> Self:
        require_text_encoder(self.features, self.training)
        if self.training.train is not Trained.TEXT:
            return self
        if self.strategy.name is StrategyName.FEDDF:
            raise ValueError(
                '`strategy.name = "feddf"` predicts after made-up histories, which have no text; choose another beside '
                '`train = "text"`'
            )
        if self.backbone.start is not None:
            raise ValueError('`backbone.start` begins with no text encoder; leave it out beside `train = "text"`')
        return self

    @model_validator(mode="after")
    def _custom_backbone_fits(self) -> Self:
        require_trainable(self.backbone, self.training)
        custom = f'`backbone.module = "{self.backbone.module}"`'
        if self.backbone.module is not None and self.strategy.name is StrategyName.FEDDF:
            raise ValueError(
                f'`strategy.name = "feddf"` predicts with the built-in backbone; choose another beside {custom}'
            )
        if self.backbone.module is not None and self.backbone.start is not None:
            raise ValueError(f"`backbone.start` is a built-in backbone; leave it out beside {custom}")
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
