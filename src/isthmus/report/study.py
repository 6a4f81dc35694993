"""The outcome of a study as types: what `isthmus evaluate` and `isthmus sweep` write, checked when read and written.

    write_study(study, "out/sweep.json")
    study = read_study("out/sweep.json")
    study_csv(study)                        # one line for each condition, method and metric

A study looks at raw data again and again, with seeds: it is a search on the data that it measures on. Nothing in it is
private and nothing in it may be published as if it were; the file says so in `private` and `raw`.
"""

import csv
import io
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from isthmus.errors import RunError
from isthmus.report import numbers
from isthmus.report.result import Count, Interval, NonNegative, Part, Share, rounded, write_atomically

STUDY_VERSION = 1
METHODS: dict[str, str] = {
    "popularity": "Popularity",
    "item_cf": "Item-CF",
    "text_knn": "Text neighbours",
    "text_item_cf": "Item-CF and text",
    "local_backbone": "Backbone, trained alone",
    "local_only": "Best local blend",
    "backbone": "Backbone, federated",
    "federated": "Federated, as served",
    "centralised_backbone": "Backbone, centralised",
    "centralised": "Centralised, as served",
}
"""Methods in the order of every table, with the names that people read."""
REFERENCES = ("centralised_backbone", "centralised")
"""Methods that pool everybody's data without privacy: what to measure against, not what can be had."""


class Figure(Part):
    """A metric of one method."""

    mean: Annotated[float, Field(description="Mean over users of the mean over seeds.")]
    ci95: Annotated[Interval, Field(description="95% bootstrap interval over users.")]
    seeds: Annotated[tuple[float, ...], Field(min_length=1, description="Mean over users for each seed.")]


class MethodFigures(Part):
    """How one method did."""

    metrics: Annotated[
        dict[str, Figure], Field(description="hr, ndcg, recall, precision and f1 at cut-offs, mrr; whole catalogue.")
    ]
    novelty: Annotated[Figure, Field(description="Mean self-information of the 10 items shown, in bits.")]
    coverage: Annotated[Share, Field(description="Share of the catalogue shown to anybody, mean over seeds.")]
    sampled: Annotated[
        dict[str, float] | None,
        Field(description="The same metrics among sampled negatives. Biased: to compare with papers, only."),
    ]


class Difference(Part):
    """A method minus the best local one, paired over users."""

    mean: Annotated[float, Field(description="Of NDCG@10; above 0 the method is better.")]
    ci95: Annotated[Interval, Field(description="95% paired bootstrap interval over users.")]
    p: Annotated[Share, Field(description="Two-sided, paired randomisation test over users.")]
    p_holm: Annotated[Share, Field(description="The same, adjusted for all comparisons of the study (Holm).")]


class Condition(Part):
    """One domain under one condition."""

    domain: Annotated[str, Field(min_length=1, description="Name of the domain.")]
    label: Annotated[str, Field(min_length=1, description="The condition in words.")]
    at: Annotated[float | None, Field(description="Where it stands on the study's scale; null if nowhere.")]
    noise: Annotated[
        Literal["seeded", "none"],
        Field(description="`seeded`: as strong as the policy asks, and repeatable. `none`: no noise, no epsilon."),
    ]
    epsilon: Annotated[
        float | None, Field(gt=0, description="Nominal, of the whole run; null without noise, or outside of the run.")
    ]
    noise_multiplier: Annotated[
        float | None, Field(gt=0, description="Noise of a step / clipping norm; null without noise.")
    ]
    users: Annotated[int, Field(ge=1, description="Measured on.")]
    methods: Annotated[dict[str, MethodFigures], Field(min_length=1, description="By name.")]
    best_local: Annotated[str, Field(description="The local method with the highest NDCG@10 on these very users.")]
    differences: Annotated[dict[str, Difference], Field(description="Of all that is not local, by name.")]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.noise == "none" and (self.epsilon is not None or self.noise_multiplier is not None):
            raise ValueError("a run without noise has neither an epsilon nor a noise multiplier")
        unknown = sorted({self.best_local, *self.differences} - self.methods.keys())
        if unknown:
            raise ValueError(f"methods that were not measured: {', '.join(unknown)}")
        return self


class Transfer(Part):
    """What one domain's part in training is worth to another domain; not by itself significant for one seed."""

    source: Annotated[str, Field(description="Domain that trains, or does not.")]
    target: Annotated[str, Field(description="Domain that is measured on.")]
    mean: Annotated[float, Field(description="NDCG@10 of the shipped backbone, with minus without the source.")]
    ci95: Annotated[Interval, Field(description="95% paired interval over users; it knows nothing of noise.")]
    p_holm: Annotated[Share, Field(description="Paired randomisation test, adjusted for all pairs (Holm).")]


class Discrepancy(Part):
    """How far apart two domains are, in what the shipped backbone makes of their users."""

    first: Annotated[str, Field(description="One domain.")]
    second: Annotated[str, Field(description="The other.")]
    a_distance: Annotated[float, Field(ge=0, le=2, description="Proxy A-distance: 0 alike, 2 always told apart.")]
    mmd: Annotated[float, Field(description="Squared maximum mean discrepancy, unbiased, so it may be below 0.")]
    coral: Annotated[NonNegative, Field(description="Distance of covariances.")]


class Study(Part):
    """Everything that a study has to say."""

    schema_version: Annotated[Literal[1], Field(description="Version of this layout.")]
    isthmus_version: Annotated[str, Field(min_length=1, description="Version of Isthmus that ran.")]
    kind: Annotated[Literal["evaluation", "sweep"], Field(description="Which command made it.")]
    scenario: Annotated[str, Field(min_length=1, description="What was hidden from training, or varied, in words.")]
    scale: Annotated[str | None, Field(description="What `at` counts; null where conditions have no order.")]
    federation: Annotated[str, Field(min_length=1, description="Name of the federation.")]
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]+$", description="SHA-256 of the federation's recipe, as hex.")]
    rounds: Annotated[Count, Field(description="Rounds of each run.")]
    seeds: Annotated[tuple[int, ...], Field(min_length=1, description="One run for each, in each condition.")]
    runs: Annotated[Count, Field(description="Runs that looked at the data: the size of the search.")]
    negatives: Annotated[Count | None, Field(description="Sampled, for the sampled metrics; null without these.")]
    private: Annotated[Literal[False], Field(description="A study is seeded; nothing in it is private.")]
    raw: Annotated[Literal[True], Field(description="All figures are exact figures of private data.")]
    conditions: Annotated[tuple[Condition, ...], Field(min_length=1, description="In the order of the scale.")]
    transfers: Annotated[tuple[Transfer, ...], Field(description="Who helps whom; empty where that was not asked.")]
    discrepancies: Annotated[
        tuple[Discrepancy, ...], Field(description="Between domains that took part; empty in a sweep.")
    ]
    seconds: Annotated[
        NonNegative, Field(description="Wall-clock time of the last call. Differs between equal studies.")
    ]


def warning(study: Study) -> str:
    """What everybody who sees a study must read."""
    bare = any(condition.noise == "none" for condition in study.conditions)
    reference = " Some runs have no noise at all: no epsilon bounds them." if bare else ""
    runs = numbers.plural(study.runs, "run")
    return (
        f"This study is NOT private: its noise is seeded, and every epsilon shown is nominal.{reference} It looked at "
        f"the same data in {runs}, which is a search for settings on the data that it is measured on: who picks the "
        f"best condition here and claims its epsilon claims too much, and its score is too good."
    )


def json_schema() -> dict[str, Any]:
    """The JSON schema of a study, draft 2020-12; the packaged file is this, written out."""
    schema = Study.model_json_schema(by_alias=True, mode="serialization")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:isthmus:study:{STUDY_VERSION}",
        **schema,
    }


def schema_text() -> str:
    """`json_schema` as the text of `study.schema.json`."""
    return json.dumps(json_schema(), indent=2, sort_keys=True) + "\n"


def write_study(study: Study, path: Path) -> None:
    """Write a study's JSON atomically.

    Raises:
        RunError: If the file cannot be written.
    """
    content = rounded(study.model_dump(mode="python", by_alias=True))
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_atomically((text + "\n").encode(), path)


def read_study(path: Path) -> Study:
    """Read what `write_study` wrote.

    Raises:
        RunError: If the file is absent or is no study.
    """
    try:
        return Study.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise RunError(f"{path}: no such file. `isthmus evaluate` or `isthmus sweep` writes it at its end.") from None
    except (OSError, ValidationError) as error:
        raise RunError(f"{path}: not a study of this version: {str(error).splitlines()[0]}. Run it again.") from None


def study_csv(study: Study) -> str:
    """One line for each condition, method and metric, for a spreadsheet."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    head = ("domain", "condition", study.scale or "at", "noise", "epsilon", "users", "method", "metric")
    table.writerow((*head, "mean", "low95", "high95", "best_local", "difference", "p", "p_holm", "private"))
    for condition in study.conditions:
        about = (condition.domain, condition.label, condition.at, condition.noise, condition.epsilon, condition.users)
        for method, figures in condition.methods.items():
            for metric, figure in {**figures.metrics, "novelty": figures.novelty}.items():
                against = condition.differences.get(method) if metric == "ndcg@10" else None
                said = ("", "", "") if against is None else (_six(against.mean), _six(against.p), _six(against.p_holm))
                row = (method, metric, _six(figure.mean), *map(_six, figure.ci95), condition.best_local, *said, "no")
                table.writerow((*("" if value is None else value for value in about), *row))
    return text.getvalue()


def _six(value: float) -> str:
    return f"{value:.6g}"
