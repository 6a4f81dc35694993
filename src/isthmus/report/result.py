"""The result of a run: its types, its JSON schema and its canonical bytes.

    write_result(result, "run/result.json")
    result = read_result("run/result.json")
    result.domains["shopping"].test.federated.ndcg

Canonical means: keys sorted, floats rounded to `SIGNIFICANT_DIGITS` significant digits, NaN and
infinity refused, UTF-8, one newline at the end. Two runs with equal results give equal bytes, apart
from the fields that `VOLATILE` lists. `result.schema.json` (draft 2020-12), beside this file, is
written from these models by `json_schema` and describes every field.

Everything in a `Result` except releases, `history[].gain` and `factor` is raw: a simulation can see it, a
coordinator never does, and publishing it is a release that nobody accounted for.
"""

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from isthmus.errors import RunError
from isthmus.settings import is_none

SCHEMA_VERSION = 1
SIGNIFICANT_DIGITS = 6
VOLATILE: tuple[tuple[str, ...], ...] = (("federation", "seconds"),)
"""Paths of the fields that differ between two runs with equal results."""


def _ordered(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] > interval[1]:
        raise ValueError(f"an interval is [low, high], got [{interval[0]}, {interval[1]}]")
    return interval


Share = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
Interval = Annotated[tuple[float, float], AfterValidator(_ordered)]
Method = Literal["federated", "local_only", "item_cf", "text_knn", "popularity"]
LocalMethod = Literal["local_only", "item_cf", "text_knn", "popularity"]
Status = Literal["ok", "refused", "budget exhausted", "error"]


class Part(BaseModel):
    """Base of every object in `result.json`: frozen, no unknown keys, no coercion, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, populate_by_name=True)


class MethodScores(Part):
    """How one method did on the test users of one domain."""

    hr: Annotated[Share, Field(alias="hr@10", description="Share of test users whose item is in the top 10.")]
    ndcg: Annotated[Share, Field(alias="ndcg@10", description="Mean NDCG@10 over test users.")]
    mrr: Annotated[Share, Field(description="Mean reciprocal rank over the whole catalogue.")]
    ndcg_ci95: Annotated[
        Interval,
        Field(alias="ndcg@10_ci95", description="95% bootstrap interval of NDCG@10, over test users."),
    ]


class Comparison(Part):
    """Every method on the same test users of one domain."""

    federated: Annotated[MethodScores, Field(description="Shipped backbone with the domain's private head.")]
    local_only: Annotated[
        MethodScores,
        Field(
            description="The best blend of what this domain knows by itself, a backbone trained in it alone included."
        ),
    ]
    item_cf: Annotated[MethodScores, Field(description="Item-item co-occurrence, local.")]
    text_knn: Annotated[MethodScores, Field(description="Nearest neighbours of public item text, untrained.")]
    popularity: Annotated[MethodScores, Field(description="Most popular items of the domain, local.")]

    def of(self, method: Method) -> MethodScores:
        """Scores of one method by its name."""
        scores: MethodScores = getattr(self, method)
        return scores


class TransferGain(Part):
    """Federated minus the best local method, paired over test users."""

    ndcg: Annotated[float, Field(alias="ndcg@10", description="Mean difference in NDCG@10; above 0, transfer helps.")]
    ci95: Annotated[Interval, Field(description="95% interval of the difference, paired bootstrap over test users.")]
    best_local: Annotated[
        LocalMethod,
        Field(description="The local method compared with: the one with the highest test NDCG@10."),
    ]


class HeadSummary(Part):
    """What the domain's private head settled on, by local validation, after the last release."""

    verdict: Annotated[
        Literal["transfer", "no transfer"],
        Field(description="`no transfer`: the backbone did not beat the best local method, which the head kept."),
    ]
    weights: Annotated[dict[str, float], Field(description="Weight of each signal in the blend, by signal.")]


class ReleaseRecord(Part):
    """One thing that left a domain."""

    round: Annotated[Count, Field(description="Round of the release; 0 is before the first round.")]
    kind: Annotated[
        str,
        Field(
            min_length=1,
            description="What left: `update`, `metric` or `catalogue` (public text only, costs nothing).",
        ),
    ]
    epsilon_after: Annotated[NonNegative, Field(description="Epsilon spent on this data set once it had left.")]


class DomainRound(Part):
    """One domain in one round."""

    status: Annotated[Status, Field(description="How the domain answered.")]
    reason: Annotated[str | None, Field(description="Why it did not take part, in its words; null when it did.")]
    epsilon: Annotated[NonNegative, Field(description="Epsilon spent on this data set so far, over all runs.")]


class RoundRecord(Part):
    """One round of the federation."""

    round: Annotated[int, Field(ge=1, description="Number of the round, from 1.")]
    gain: Annotated[
        float | None,
        Field(description="Validation gain over the text prior as released (noised), weighted over domains."),
    ]
    gain_std: Annotated[
        NonNegative | None, Field(description="Standard deviation of the noise in `gain`; null without one.")
    ]
    update_norm: Annotated[NonNegative, Field(description="L2 norm of the aggregated update.")]
    domains: Annotated[dict[str, DomainRound], Field(description="Each domain's part in the round, by name.")]


class OpenDomain(Part):
    """A domain whose histories are public."""

    name: Annotated[str, Field(min_length=1, description="Of the domain.")]
    users: Annotated[int, Field(ge=1, description="That the start was trained on, without noise.")]


class Start(Part):
    """The backbone that a run began with: trained in the open, on histories that are declared public."""

    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of its file, as hex.")]
    domains: Annotated[tuple[OpenDomain, ...], Field(min_length=1, description="Whose histories.")]
    shipped: Annotated[
        bool,
        Field(description="It was shipped as it is: no evaluation was released that could say what it is worth here."),
    ]


class FederationSummary(Part):
    """The run as a whole."""

    name: Annotated[str, Field(min_length=1, description="Of the federation, as its file says.")]
    rounds: Annotated[Count, Field(description="Rounds finished.")]
    seconds: Annotated[
        NonNegative, Field(description="Wall-clock time of the run. Volatile: differs between equal runs.")
    ]
    bytes_up: Annotated[Count, Field(description="Bytes that domains sent to the server.")]
    bytes_down: Annotated[Count, Field(description="Bytes that the server sent to domains.")]
    private: Annotated[bool, Field(description="False when the noise was seeded: then no privacy is claimed.")]
    seed: Annotated[int | None, Field(description="Seed of the run and of its noise; null when noise was secret.")]
    backend: Annotated[Literal["in-process", "ray"], Field(description="Where the clients ran.")]
    strategy: Annotated[str, Field(min_length=1, description="Aggregation strategy.")]
    encoder: Annotated[str, Field(min_length=1, description="Text encoder of item features.")]
    parameters: Annotated[
        Count, Field(description="Parameters of the shared backbone; `train` says which of them move.")
    ]
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]+$", description="SHA-256 of the configuration, as hex.")]
    shipped_round: Annotated[
        Count,
        Field(description="Round whose backbone was shipped; 0 is the text prior, which no round beat, or the start."),
    ]
    history: Annotated[tuple[RoundRecord, ...], Field(description="One entry for each round finished, in order.")]
    start: Annotated[
        Start | None,
        Field(exclude_if=is_none, description="What the run began with; absent where that was the text prior."),
    ] = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        # A seed makes noise predictable, so it may never stand beside a claim of privacy.
        if self.private and self.seed is not None:
            raise ValueError(f"a seeded run is not private, got private = true with seed {self.seed}")
        if self.shipped_round > self.rounds:
            raise ValueError(f"shipped_round must be at most rounds, got {self.shipped_round} and {self.rounds}")
        if self.start is not None and self.start.shipped and self.shipped_round:
            raise ValueError(f"the start is shipped as round 0, got shipped_round {self.shipped_round}")
        numbers = [record.round for record in self.history]
        if numbers != sorted(set(numbers)):
            raise ValueError(f"history must list each round once and in order, got {numbers}")
        return self


class DomainResult(Part):
    """One domain: its size, what it spent and released, and how every method did in it."""

    users: Annotated[Count, Field(description="Users with at least one training event.")]
    items: Annotated[Count, Field(description="Items in the catalogue.")]
    events: Annotated[Count, Field(description="Interactions kept after the declared repairs.")]
    test_users: Annotated[Count, Field(description="Users on whom methods were compared.")]
    epsilon: Annotated[NonNegative, Field(description="Epsilon spent on this data set, over all runs.")]
    epsilon_before: Annotated[NonNegative, Field(description="Epsilon that was spent before this run.")]
    delta: Annotated[float, Field(gt=0, lt=1, description="Delta at which epsilon is stated.")]
    budget: Annotated[float, Field(gt=0, description="Limit of epsilon over all runs, from the domain's policy.")]
    noise_multiplier: Annotated[
        NonNegative, Field(description="Standard deviation of the noise of a step / the clipping norm.")
    ]
    clip: Annotated[float, Field(gt=0, description="L2 norm to which one user's gradient is clipped.")]
    sample_rate: Annotated[float, Field(gt=0, le=1, description="Probability that a user is in a batch.")]
    rounds_charged: Annotated[Count, Field(description="Rounds of this run that the ledger was charged for.")]
    releases: Annotated[
        tuple[ReleaseRecord, ...], Field(description="Everything that left the domain in this run, in order.")
    ]
    test: Annotated[Comparison | None, Field(description="Scores by method; null when no user could be tested.")]
    transfer_gain: Annotated[
        TransferGain | None,
        Field(description="Federated against the best local method; null without test users."),
    ]
    head: Annotated[HeadSummary, Field(description="The domain's private head. It never leaves the domain.")]
    factor: Annotated[
        float | None,
        Field(
            gt=0,
            le=1,
            exclude_if=is_none,
            description="What the domain's declared weight was multiplied by at the end, by what the others' noisy "
            "evaluations said of its updates; absent unless the strategy is `leave_one_out`.",
        ),
    ] = None
    raw: Annotated[
        Literal[True],
        Field(description="Counts, scores and head are raw: the simulation saw them, no domain released them."),
    ]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.epsilon_before > self.epsilon:
            raise ValueError(f"epsilon_before must be at most epsilon, got {self.epsilon_before} and {self.epsilon}")
        if ((self.test is None), (self.transfer_gain is None)) != (self.test_users == 0,) * 2:
            raise ValueError(f"test and transfer_gain are null if and only if test_users is 0, got {self.test_users}")
        return self


class Result(Part):
    """Everything that a run has to say; the content of `result.json`."""

    schema_version: Annotated[Literal[1], Field(description="Version of this layout.")]
    isthmus_version: Annotated[str, Field(min_length=1, description="Version of Isthmus that ran.")]
    federation: Annotated[FederationSummary, Field(description="What was run, and how its rounds went.")]
    domains: Annotated[dict[str, DomainResult], Field(min_length=1, description="Each domain, by name.")]

    @model_validator(mode="after")
    def _rounds_name_known_domains(self) -> Self:
        named = {name for record in self.federation.history for name in record.domains}
        if unknown := sorted(named - self.domains.keys()):
            raise ValueError(f"history names domains that are not in `domains`: {', '.join(unknown)}")
        return self


def json_schema() -> dict[str, Any]:
    """The JSON schema of `result.json`, draft 2020-12; the packaged file is this, written out."""
    schema = Result.model_json_schema(by_alias=True, mode="serialization")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:isthmus:result:{SCHEMA_VERSION}",
        **schema,
    }


def schema_text() -> str:
    """`json_schema` as the text of `result.schema.json`."""
    return json.dumps(json_schema(), indent=2, sort_keys=True) + "\n"


def canonical_bytes(result: Result, *, volatile: bool = True) -> bytes:
    """The bytes of `result.json`.

    Args:
        result: What to write.
        volatile: Keep the fields listed in `VOLATILE`; without them, equal results give equal bytes.

    Raises:
        RunError: If a number is NaN or infinite.
    """
    content: dict[str, Any] = rounded(result.model_dump(mode="python", by_alias=True))
    if not volatile:
        for *parents, field in VOLATILE:
            holder = content
            for parent in parents:
                holder = holder[parent]
            del holder[field]
    try:
        text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise RunError(
            "result.json holds finite numbers only, got NaN or infinity. Find the metric that failed."
        ) from None
    return (text + "\n").encode()


def write_result(result: Result, path: str | Path) -> None:
    """Write `result.json` atomically: readers see the old file or the new one, never a part.

    Raises:
        RunError: If a number is NaN or infinite, or the file cannot be written.
    """
    write_atomically(canonical_bytes(result), path)


def read_result(path: str | Path) -> Result:
    """Read a `result.json`.

    Raises:
        RunError: If the file is absent, is not a result, or was written with another layout.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
        content = json.loads(text)
    except FileNotFoundError:
        raise RunError(f"{file}: no such file. `isthmus simulate` writes it when a run ends.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{file}: not a readable result ({error}). Run `isthmus simulate` again.") from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise RunError(
            f"{file}: schema_version must be {SCHEMA_VERSION}, got {version!r}. Run `isthmus simulate` again."
        )
    try:
        return Result.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in problem["loc"]) or "(whole file)"
        message = problem["msg"].removeprefix("Value error, ")
        raise RunError(f"{file}: not a result of Isthmus: `{key}`: {message}. Run `isthmus simulate` again.") from None


def write_atomically(content: bytes, path: str | Path) -> None:
    """Write a whole file or nothing, and sync it to disk.

    Raises:
        RunError: If the folder is absent or cannot be written to.
    """
    target = Path(path)
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    except OSError as error:
        raise RunError(f"{target}: cannot be written ({error.strerror}). Choose another --out folder.") from None
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(target)
    except OSError as error:
        raise RunError(f"{target}: cannot be written ({error.strerror}). Choose another --out folder.") from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()


def rounded(value: Any) -> Any:
    """The same tree with every float at `SIGNIFICANT_DIGITS`; minus zero becomes zero."""
    if isinstance(value, float):
        return float(f"{value:.{SIGNIFICANT_DIGITS}g}") + 0.0
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(inner) for inner in value]
    return value
