"""What travels between server and domain, as Flower records.

    content = request.to_records()                  # RecordDict for a Flower Message
    request = RoundRequest.from_records(content)    # refuses what is not one

A request carries shared parameters and the recipe; a reply carries a release or a refusal. Both
sides parse the other's message as hostile input: a wrong protocol version, key, type or shape is
`Refused` with the reason, and nothing in here ever unpickles.
"""

import enum
import hashlib
import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Self

import numpy as np
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from pydantic import Field, ValidationError, model_validator

from isthmus.config import (
    BackboneConfig,
    FeatureConfig,
    FederationConfig,
    StartedFrom,
    TrainingConfig,
    require_text_encoder,
    require_trainable,
)
from isthmus.encoding import Arrays, Encoded, Tensors
from isthmus.errors import Refused
from isthmus.packing import arrays_digest, pack, unpack
from isthmus.settings import Section, is_none

PROTOCOL = 1
"""Version of the messages; both sides must speak the same."""

ARRAYS, VALUES, CONFIG, WHITENING, REFERENCE = "arrays", "values", "config", "whitening", "reference"

_LONGEST_TEXT, _LONGEST_RECIPE = 2000, 20_000  # characters that are read of what the other side says


class Kind(enum.StrEnum):
    """What a release is computed by, and the name under which the ledger keeps it."""

    CATALOGUE = "catalogue"  # moments of the public catalogue text
    UPDATE = "update"  # a round of DP-SGD
    METRIC = "metric"  # noisy validation gain and user count


DELIVERY = "backbone"
"""What a coordinator signs besides questions: the backbone that a run ended with."""


class Recipe(Section):
    """What every domain must do alike for its update to mean the same: shape, features, optimisation."""

    features: FeatureConfig
    backbone: BackboneConfig
    training: TrainingConfig
    whitening: str
    """Digest of the whitening that makes the features; empty before there is one."""
    start: Annotated[StartedFrom | None, Field(exclude_if=is_none)] = None
    """What the run began with, if that was trained in the open, by the coordinator's word; no guarantee needs it."""

    @model_validator(mode="after")
    def _parts_are_known(self) -> Self:
        require_trainable(self.backbone, self.training)
        require_text_encoder(self.features, self.training)
        return self


def read_recipe(text: str) -> Recipe:
    """A recipe from its JSON.

    Raises:
        Refused: If it is none, or too long to be one.
    """
    _require_short("recipe", text, _LONGEST_RECIPE)
    try:
        return Recipe.model_validate_json(text)
    except ValidationError as error:
        raise Refused(f"the request's recipe is not valid: {error.errors()[0]['msg']}") from None


def recipe_of(federation: FederationConfig, whitening: str) -> Recipe:
    """The recipe that a federation file prescribes, with the whitening's digest once there is one."""
    return Recipe(
        features=federation.features,
        backbone=federation.backbone.shape,
        training=federation.training,
        whitening=whitening,
        start=federation.started_from(),
    )


@dataclass(frozen=True, kw_only=True)
class RoundRequest:
    """What the server asks of a domain.

    Attributes:
        run: Of the federation.
        round: Of the run, from 1; 0 for the catalogue.
        recipe: Shared settings.
        arrays: Shared parameters by name; or, with a `base`, what changed since (see `isthmus.encoding.changed`).
        scales: Of those that are int8.
        base: Digest of parameters that were sent earlier, hex; empty where `arrays` are all of them.
        parameters: Digest of the shared parameters that come of it, hex; that of `arrays` where there is no base.
        whitening: Arrays of the whitening that the recipe names, where it is sent along.
        reference: Of an evaluation: what those parameters are compared with, by name; the others are the same in both.
            Empty where that is the text prior.
        proximal_mu: FedProx's pull towards the shared parameters.
        coordinator: Public key of who asks, hex; empty if nobody signs.
        signature: By that key, of the request's digest, hex.
        receipt: For the head of the domain's last reply.

    Raises:
        Refused: If a text is too long, the round out of range, the pull not a finite figure from 0 on, a digest none,
            or the whitening or the reference not float32.
    """

    run: str
    round: int
    recipe: Recipe
    arrays: Tensors = field(default_factory=dict)
    scales: dict[str, float] = field(default_factory=dict)
    base: str = ""
    parameters: str = ""
    whitening: Arrays = field(default_factory=dict)
    reference: Arrays = field(default_factory=dict)
    proximal_mu: float = 0.0
    coordinator: str = ""
    signature: str = ""
    receipt: str = ""

    def __post_init__(self) -> None:
        for key in ("run", "coordinator", "signature", "receipt"):
            _require_short(key, getattr(self, key))
        _require_round(self.round)
        _require_figure("proximal-mu", self.proximal_mu)
        if self.base:
            _require_digest("base", self.base)
            _require_digest("parameters", self.parameters)
        elif self.parameters:
            raise Refused("the message names what its parameters come to, and sends them whole; it may do one of both")
        for what, arrays in (("whitening", self.whitening), ("reference", self.reference)):
            if any(array.dtype != np.float32 for array in arrays.values()):
                raise Refused(f"the {what} that came along is not float32")

    @property
    def sent(self) -> Encoded:
        """What came of the shared parameters."""
        return Encoded(arrays=self.arrays, scales=self.scales)

    def parameters_digest(self) -> bytes:
        """Hash of the shared parameters that it is about, however they came."""
        return bytes.fromhex(self.parameters) if self.base else arrays_digest(self.arrays)

    def digest(self, kind: str) -> bytes:
        """Hash of everything that a release of this kind (or a delivery) depends on besides the domain's data.

        The whitening counts by the digest in the recipe, and the parameters by theirs, so sending more or less of them
        along does not change the request.
        """
        running = hashlib.sha256(f"{PROTOCOL}\n{kind}\n{self.run}\n{self.round}\n{self.proximal_mu!r}\n".encode())
        running.update(self.recipe.model_dump_json().encode())
        running.update(self.parameters_digest())
        if self.reference:
            running.update(arrays_digest(self.reference))
        return running.digest()

    def config(self) -> ConfigRecord:
        """Everything but the arrays; Flower's strategies add `server-round` (and `proximal-mu`)."""
        return ConfigRecord({"protocol": PROTOCOL, "run": self.run, "recipe": self.recipe.model_dump_json()})

    def to_records(self) -> RecordDict:
        """The content of a message that asks this."""
        config = self.config()
        config["server-round"] = self.round
        config["proximal-mu"] = self.proximal_mu
        config["coordinator"] = self.coordinator
        config["signature"] = self.signature
        config["receipt"] = self.receipt
        config["base"] = self.base
        config["parameters"] = self.parameters
        records = RecordDict({ARRAYS: pack(self.arrays, self.scales), CONFIG: config})
        if self.whitening:
            records[WHITENING] = pack(self.whitening)
        if self.reference:
            records[REFERENCE] = pack(self.reference)
        return records

    @staticmethod
    def from_records(content: RecordDict) -> "RoundRequest":
        """Parse a message.

        Raises:
            Refused: If it is not a request of this protocol.
        """
        config = _section(content.config_records, CONFIG)
        require_protocol(config.get("protocol"))
        arrays, scales = unpack(_section(content.array_records, ARRAYS))
        return RoundRequest(
            run=_text(config, "run"),
            round=_round(config),
            recipe=read_recipe(_typed(config, "recipe", str)),
            arrays=arrays,
            scales=scales,
            base=_text(config, "base") if "base" in config else "",
            parameters=_text(config, "parameters") if "parameters" in config else "",
            whitening=_optional(content, WHITENING),
            reference=_optional(content, REFERENCE),
            proximal_mu=_figure(config, "proximal-mu") if "proximal-mu" in config else 0.0,
            coordinator=_text(config, "coordinator") if "coordinator" in config else "",
            signature=_text(config, "signature") if "signature" in config else "",
            receipt=_text(config, "receipt") if "receipt" in config else "",
        )


@dataclass(frozen=True, kw_only=True)
class RoundReply:
    """What a domain answers.

    Attributes:
        domain: Its name.
        run: Echo of the request.
        round: Echo of the request.
        arrays: Of the release, as it was encoded.
        values: Of the release; with an update, the scales of its int8 tensors.
        refusal: Why there is no release; empty if there is one.
        exhausted: Whether the refusal is about the budget, so that asking again is pointless.
        epsilon: Spent by the domain so far, by its own ledger; for progress only, never for accounting.
        head: Where the domain's ledger stands, signed by the domain.
    """

    domain: str
    run: str
    round: int
    arrays: Tensors = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
    refusal: str = ""
    exhausted: bool = False
    epsilon: float = 0.0
    head: str = ""

    def to_records(self) -> RecordDict:
        """The content of a message that answers this."""
        config = ConfigRecord(
            {
                "protocol": PROTOCOL,
                "domain": self.domain,
                "run": self.run,
                "server-round": self.round,
                "refusal": self.refusal[:_LONGEST_TEXT],
                "exhausted": self.exhausted,
                "epsilon": self.epsilon,
                "head": self.head,
            }
        )
        values = MetricRecord({name: value for name, value in self.values.items() if name not in self.arrays})
        return RecordDict({ARRAYS: pack(self.arrays, self.values), VALUES: values, CONFIG: config})

    @staticmethod
    def from_records(content: RecordDict) -> "RoundReply":
        """Parse a message.

        Raises:
            Refused: If it is not a reply of this protocol.
        """
        config = _section(content.config_records, CONFIG)
        require_protocol(config.get("protocol"))
        arrays, scales = unpack(_section(content.array_records, ARRAYS))
        return RoundReply(
            domain=_text(config, "domain"),
            run=_text(config, "run"),
            round=_round(config),
            arrays=arrays,
            values=_figures(_section(content.metric_records, VALUES)) | scales,
            refusal=_text(config, "refusal"),
            exhausted=_typed(config, "exhausted", bool),
            epsilon=_figure(config, "epsilon"),
            head=_text(config, "head"),
        )


def content_bytes(message: Message) -> int:
    """Size of a message's tensors and figures, in bytes, without framing and settings (about 1 KB); 0 for an error."""
    if not message.has_content():
        return 0
    tensors, figures = message.content.array_records.values(), message.content.metric_records.values()
    return sum(record.count_bytes() for record in tensors) + sum(record.count_bytes() for record in figures)


def _section(records: Any, name: str) -> Any:
    if name not in records:
        raise Refused(f"the message has no record {name!r}; it has {sorted(records)}")
    return records[name]


def _optional(content: RecordDict, name: str) -> Tensors:
    """Tensors of a record that need not be there."""
    return unpack(content.array_records[name])[0] if name in content.array_records else {}


def _typed(config: ConfigRecord, key: str, kind: type) -> Any:
    value = config.get(key)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise Refused(f"the message's {key!r} must be a {kind.__name__}, got {type(value).__name__}")
    return value


def _text(config: ConfigRecord, key: str) -> str:
    text = str(_typed(config, key, str))
    _require_short(key, text)
    return text


def _round(config: ConfigRecord) -> int:
    number = int(_typed(config, "server-round", int))
    _require_round(number)
    return number


def _figures(record: MetricRecord) -> dict[str, float]:
    if not all(isinstance(value, float | int) for value in record.values()):
        raise Refused("the message's values must be numbers")
    return {key: float(value) for key, value in record.items()}  # type: ignore[arg-type]


def _figure(config: ConfigRecord, key: str) -> float:
    figure = float(_typed(config, key, float))
    _require_figure(key, figure)
    return figure


def _require_short(key: str, text: str, longest: int = _LONGEST_TEXT) -> None:
    if len(text) > longest:
        raise Refused(f"the message's {key!r} has {len(text)} characters; at most {longest} are read")


def _require_digest(key: str, text: str) -> None:
    if len(text) != 64 or not set(text) <= set("0123456789abcdef"):
        raise Refused(f"the message's {key!r} must be 64 hex digits, got {text[:70]!r}")


def _require_round(number: int) -> None:
    if not 0 <= number < 2**31:
        raise Refused(f"the message's 'server-round' must be from 0 to 2**31 - 1, got {number}")


def _require_figure(key: str, figure: float) -> None:
    if not 0 <= figure < math.inf:
        raise Refused(f"the message's {key!r} must be finite and not negative, got {figure}")


def require_protocol(spoken: object) -> None:
    """Refuse another version of the messages, or none."""
    if type(spoken) is not int or spoken != PROTOCOL:
        raise Refused(f"the message speaks protocol {spoken!r:.50}, this side speaks {PROTOCOL}")
