"""An audit: its types, its JSON schema and its canonical text.

    audit.data_sets[0].epsilon, audit.person.epsilon, audit.findings
    text = to_text(SignedAudit(audit=audit, key=..., signature=...))
    signed = read_text(text)

What `isthmus audit` has to say about ledgers, made by `isthmus.privacy.audit` from the ledgers themselves. The page,
the PDF and the terminal are views of it and compute nothing. It holds every entry, so that whoever gets the JSON can
compute each epsilon again. `audit.schema.json` (draft 2020-12), beside this file, is written from these models.

An epsilon that is null cannot be proven to be finite: there was too little noise.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError

from isthmus.report.result import Count, NonNegative, Part

SCHEMA_VERSION = 1

Epsilon = Annotated[float | None, Field(ge=0)]
Hex = Annotated[str, Field(pattern=r"^[0-9a-f]*$")]
Outcome = Literal["released", "withheld", "not sent"]


class AuditFinding(Part):
    """Something that is not as it should be."""

    data_set: Annotated[str, Field(description="Name of the data set; empty if it is about all of them.")]
    line: Annotated[Count, Field(description="Of its ledger; 0 if it is about the ledger as a whole.")]
    rule: Annotated[str, Field(min_length=1, description="Which check, in one word, stable.")]
    text: Annotated[str, Field(description="What was seen.")]


class Entry(Part):
    """One release that was paid for."""

    line: Annotated[Count, Field(description="Of the ledger.")]
    time: Annotated[str, Field(description="By the domain's clock; UTC, ISO 8601.")]
    run: Annotated[str, Field(description="Of the federation.")]
    round: Annotated[Count, Field(description="Of the run.")]
    kind: Annotated[str, Field(description="What was released: `update`, `metric` or `catalogue`.")]
    event: Annotated[str, Field(description="What it cost, in the encoding of docs/event-encoding.md.")]
    clip: Annotated[
        float | None, Field(gt=0, description="Norm to which one user's contribution was clipped; null for none.")
    ]
    layers: Annotated[Hex, Field(description="Digest of the names of the parameters in it; empty for none.")]
    private: Annotated[bool, Field(description="False if its noise can be repeated.")]
    coordinator: Annotated[Hex, Field(description="Public key of who asked; empty if the request was not signed.")]
    outcome: Annotated[Outcome, Field(description="`not sent`: charged, and a crash came before the release.")]
    reason: Annotated[str, Field(description="Why it was withheld.")]
    data: Annotated[Hex, Field(description="Keyed hash of the data; says nothing about their content.")]
    version: Annotated[str, Field(description="Of Isthmus.")]
    code: Annotated[Hex, Field(description="Hash of the program.")]
    policy: Annotated[Hex, Field(description="Digest of the policy it names; empty for none.")]


class Run(Part):
    """One run's part in a ledger."""

    run: Annotated[str, Field(description="Its id.")]
    first: Annotated[str, Field(description="Time of its first entry.")]
    last: Annotated[str, Field(description="Time of its last entry.")]
    entries: Annotated[Count, Field(description="Releases that were paid for.")]
    sent: Annotated[Count, Field(description="Those of them that may have left.")]
    private: Annotated[bool, Field(description="False if any noise in it can be repeated.")]
    epsilon: Annotated[Epsilon, Field(description="Of this run alone.")]


class Point(Part):
    """Epsilon once an entry was charged, on a grid that never says less than the truth."""

    line: Annotated[Count, Field(description="Of the ledger.")]
    time: Annotated[str, Field(description="Of the entry.")]
    run: Annotated[str, Field(description="Of the entry.")]
    epsilon: Annotated[Epsilon, Field(description="Over everything up to this entry.")]


class PolicyRecord(Part):
    """A policy that was in force."""

    line: Annotated[Count, Field(description="From which on.")]
    time: Annotated[str, Field(description="From which on.")]
    digest: Annotated[Hex, Field(description="SHA-256 of its text.")]
    text: Annotated[str, Field(description="Canonical JSON.")]
    approved_by: Annotated[str, Field(description="Who answers for it; empty where its text cannot be read.")]
    approved_on: Annotated[str, Field(description="ISO date.")]
    implied: Annotated[bool, Field(description="There was no policy.toml: the limits are those of domain.toml.")]
    epsilon: Annotated[float | None, Field(description="Limit over all runs.")]
    delta: Annotated[float | None, Field(description="Over all runs.")]
    run_epsilon: Annotated[float | None, Field(description="Limit of one run; null for none of its own.")]
    overlap: Annotated[bool | None, Field(description="Whether people may be in other domains; null: not declared.")]
    k_max: Annotated[int | None, Field(description="In how many domains one person is at most; null: not declared.")]


class Refusal(Part):
    """A rule said no; nothing was charged."""

    line: Annotated[Count, Field(description="Of the ledger.")]
    time: Annotated[str, Field(description="UTC, ISO 8601.")]
    run: Annotated[str, Field(description="Of the federation.")]
    round: Annotated[Count, Field(description="Of the run.")]
    kind: Annotated[str, Field(description="Of the release that was asked for.")]
    rule: Annotated[str, Field(description="Which one.")]
    asked: Annotated[str, Field(description="Value that was asked for.")]
    limit: Annotated[str, Field(description="Value that the rule allows.")]
    coordinator: Annotated[Hex, Field(description="Public key of who asked; empty if not signed.")]


class Flood(Part):
    """A day (UTC) with so many refusals that not all of them were written."""

    line: Annotated[Count, Field(description="Of the ledger, from which on they were only counted.")]
    time: Annotated[str, Field(description="Of that line.")]
    most: Annotated[Count, Field(description="Refusals that a day's lines hold.")]
    count: Annotated[Count | None, Field(description="That were only counted; null where no line says so yet.")]


class LayersRecord(Part):
    """The parameters that releases hold."""

    line: Annotated[Count, Field(description="That names them.")]
    digest: Annotated[Hex, Field(description="By which entries refer to them.")]
    names: Annotated[tuple[str, ...], Field(description="Sorted.")]


class KeyRecord(Part):
    """A key that signed lines."""

    key: Annotated[Hex, Field(description="Public key.")]
    line: Annotated[Count, Field(description="That put it in force.")]
    reason: Annotated[str, Field(description="Why it replaced the one before.")]
    revoked_from: Annotated[Count | None, Field(description="Line from which on it is not believed; null: never.")]


class Program(Part):
    """A version of Isthmus that wrote entries."""

    version: Annotated[str, Field(description="Its number.")]
    code: Annotated[Hex, Field(description="Hash of its source.")]
    entries: Annotated[Count, Field(description="That it wrote.")]


class SecondOpinion(Part):
    """What other accountants say about the same entries."""

    agrees: Annotated[bool, Field(description="Whether nothing contradicts the number.")]
    error: Annotated[Epsilon, Field(description="How much the number may be above the truth, by its grid.")]
    renyi: Annotated[Epsilon, Field(description="By Renyi DP, an upper bound.")]
    floor: Annotated[Epsilon, Field(description="Closed form of the releases without sampling, a lower bound.")]
    ceiling: Annotated[Epsilon, Field(description="Closed form as if nothing was sampled, an upper bound.")]
    library: Annotated[Epsilon, Field(description="By the library's own composition, on a coarser grid.")]
    why: Annotated[str, Field(description="In words.")]


class Witnesses(Part):
    """What others know of a ledger, so that a cut or an exchanged one is noticed."""

    lines: Annotated[Count, Field(description="Of the ledger.")]
    head: Annotated[Hex, Field(description="Digest of its last line.")]
    heads: Annotated[Count, Field(description="Statements in coordinators' logs that it was compared with.")]
    receipts: Annotated[Count, Field(description="Coordinators' receipts that are kept beside it.")]
    seen: Annotated[Count, Field(description="Newest line that others are known to have seen; 0 for none.")]


class DataSet(Part):
    """One data set: everything in its ledger, and what it comes to."""

    name: Annotated[str, Field(description="Of the domain, as its ledger says.")]
    path: Annotated[str, Field(description="Of the file, as it was given.")]
    ledger: Annotated[Hex, Field(description="Random id of the ledger.")]
    private: Annotated[bool, Field(description="False if any noise can be repeated: then no privacy is claimed.")]
    epsilon: Annotated[Epsilon, Field(description="Spent, over all runs.")]
    delta: Annotated[float, Field(gt=0, lt=1, description="At which `epsilon`, runs and timeline are stated.")]
    budget: Annotated[float | None, Field(description="Limit of the policy in force; null without a policy.")]
    budget_delta: Annotated[float | None, Field(description="At which that limit holds; null without a policy.")]
    spent: Annotated[Epsilon, Field(description="Spent over all runs at `budget_delta`; null: no policy or no proof.")]
    left: Annotated[Epsilon, Field(description="Budget less spent, at `budget_delta`, at least 0; null: no policy.")]
    more_rounds: Annotated[Count | None, Field(description="Rounds like the last that still fit; null: not known.")]
    like: Annotated[str, Field(description="Event of that last round; empty if there was none.")]
    opinion: Annotated[SecondOpinion, Field(description="Of other accountants.")]
    runs: Annotated[tuple[Run, ...], Field(description="In order of their first entry.")]
    timeline: Annotated[tuple[Point, ...], Field(description="For a plot; thinned out where there are many entries.")]
    entries: Annotated[tuple[Entry, ...], Field(description="Every release that was paid for, oldest first.")]
    refusals: Annotated[tuple[Refusal, ...], Field(description="What was refused, oldest first.")]
    floods: Annotated[tuple[Flood, ...], Field(description="When refusals were only counted, oldest first.")]
    layers: Annotated[tuple[LayersRecord, ...], Field(description="Sets of parameters that entries name.")]
    policies: Annotated[tuple[PolicyRecord, ...], Field(description="That were in force, oldest first.")]
    keys: Annotated[tuple[KeyRecord, ...], Field(description="That signed the ledger, oldest first.")]
    programs: Annotated[tuple[Program, ...], Field(description="That wrote it.")]
    witnesses: Annotated[Witnesses, Field(description="Who else knows of it.")]
    remarks: Annotated[tuple[str, ...], Field(description="What a reader should know, a sentence each.")]


class PersonBound(Part):
    """Epsilon of one person under some declarations."""

    epsilon: Annotated[Epsilon, Field(description="At the total delta.")]
    domains: Annotated[tuple[str, ...], Field(description="The worst set that one person may be in.")]
    exact: Annotated[bool, Field(description="Whether every admissible set was looked at; else an upper bound.")]
    rule: Annotated[str, Field(description="Which declarations were used, in words.")]


class Person(Part):
    """One person who may be a user of several of these domains."""

    delta: Annotated[float, Field(gt=0, lt=1, description="Total: the smallest of the data sets'.")]
    declared: Annotated[bool, Field(description="Whether every policy in force says who may be in several domains.")]
    bound: Annotated[PersonBound, Field(description="With what the policies declare.")]
    cautious: Annotated[PersonBound, Field(description="If everybody may be in all of these domains.")]


class EmpiricalBound(Part):
    """A lower bound that an attack proved."""

    form: Annotated[str, Field(description="Under which view of the mechanism.")]
    assumption: Annotated[str, Field(description="What it takes for granted.")]
    epsilon: Annotated[NonNegative, Field(description="The true one is at least this, with the confidence.")]
    confidence: Annotated[float, Field(gt=0, lt=1, description="Of this bound alone.")]


class EmpiricalCheck(Part):
    """One question that the measurement answers."""

    name: Annotated[str, Field(description="Stable.")]
    passed: Annotated[bool, Field(description="False is a finding.")]
    detail: Annotated[str, Field(description="One sentence with the figures.")]


class EmpiricalRate(Part):
    """A share of trials."""

    successes: Annotated[Count, Field(description="Of the trials.")]
    trials: Annotated[Count, Field(description="How many.")]
    low: Annotated[float, Field(ge=0, le=1, description="Lower end of its interval.")]
    high: Annotated[float, Field(ge=0, le=1, description="Upper end of its interval.")]

    @property
    def value(self) -> float:
        """The share itself; 0 without trials."""
        return self.successes / self.trials if self.trials else 0.0


class EmpiricalPoint(Part):
    """An operating point of an attack, on its ROC."""

    false_positives: Annotated[EmpiricalRate, Field(description="Outsiders who were called members.")]
    true_positives: Annotated[EmpiricalRate, Field(description="Members who were called members.")]


class Empirical(Part):
    """What attacking the real code proved, beside what was claimed of the run that was attacked."""

    name: Annotated[str, Field(description="Of the attack: `canaries`, `planted` or `membership`.")]
    attacked: Annotated[str, Field(description="What was attacked, in words: whose policy, which backbone.")]
    settings: Annotated[dict[str, float], Field(description="Public figures of the attacked run.")]
    claimed_epsilon: Annotated[NonNegative, Field(description="Of the attacked run.")]
    delta: Annotated[float, Field(ge=0, lt=1, description="Of claim and bounds.")]
    lower_bound: Annotated[NonNegative, Field(description="The best of the bounds.")]
    confidence: Annotated[float, Field(gt=0, lt=1, description="With which all bounds hold together.")]
    bounds: Annotated[tuple[EmpiricalBound, ...], Field(description="Each with its assumption.")]
    checks: Annotated[tuple[EmpiricalCheck, ...], Field(description="Each passed, or is a finding.")]
    area: Annotated[float, Field(ge=0, le=1, description="Under the ROC curve; 0.5 is guessing.")]
    roc: Annotated[tuple[EmpiricalPoint, ...], Field(description="By rising false-positive rate.")]
    seconds: Annotated[NonNegative, Field(description="Of one core, for this attack.")]
    sees: Annotated[str, Field(description="What it would notice.")]
    blind_to: Annotated[str, Field(description="What it would not.")]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(check.passed for check in self.checks)

    @classmethod
    def of(cls, evidence: Mapping[str, Any], *, attacked: str) -> Self:
        """From the plain values of an `isthmus.clients.audit` evidence (its `to_dict()`); other keys are left out.

        Args:
            evidence: Plain values.
            attacked: Whose policy and which backbone, in words.
        """
        content = {name: evidence[name] for name in cls.model_fields if name in evidence}
        bounds = [{name: each[name] for name in EmpiricalBound.model_fields} for each in evidence["bounds"]]
        checks = [{name: each[name] for name in EmpiricalCheck.model_fields} for each in evidence["checks"]]
        parts = {"bounds": bounds, "checks": checks, "attacked": attacked, "seconds": evidence["cpu_seconds"]}
        return cls.model_validate_json(json.dumps({**content, **parts}))


class CoordinatorLog(Part):
    """A coordinator's log that ledgers were compared with."""

    path: Annotated[str, Field(description="Of the file, as it was given.")]
    key: Annotated[Hex, Field(description="Public key in force.")]
    heads: Annotated[Count, Field(description="Statements in it.")]


class Method(Part):
    """How everything was computed, and what it takes for granted."""

    unit: Annotated[str, Field(description="Of privacy.")]
    adjacency: Annotated[str, Field(description="Which data sets are neighbours.")]
    accountant: Annotated[str, Field(description="Whose number it is.")]
    second: Annotated[str, Field(description="Whom it was held against.")]
    library: Annotated[str, Field(description="Name and version.")]
    assumptions: Annotated[tuple[str, ...], Field(description="A sentence each.")]


class Audit(Part):
    """Everything that an audit has to say."""

    schema_version: Annotated[Literal[1], Field(description="Version of this layout.")]
    isthmus_version: Annotated[str, Field(min_length=1, description="Version of Isthmus that audited.")]
    program: Annotated[Hex, Field(description="Hash of its source.")]
    made: Annotated[str, Field(description="When; UTC, ISO 8601.")]
    method: Annotated[Method, Field(description="Of accounting.")]
    data_sets: Annotated[tuple[DataSet, ...], Field(min_length=1, description="One for each ledger.")]
    person: Annotated[Person, Field(description="Across all of them.")]
    logs: Annotated[tuple[CoordinatorLog, ...], Field(description="Of coordinators.")]
    empirical: Annotated[tuple[Empirical, ...], Field(description="Attacks on the real code; empty if none was made.")]
    findings: Annotated[tuple[AuditFinding, ...], Field(description="Empty: everything was as it should be.")]


class SignedAudit(Part):
    """An audit with its auditor's signature: the content of the file."""

    audit: Annotated[Audit, Field(description="What is signed.")]
    key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="Public Ed25519 key of the auditor.")]
    signature: Annotated[
        str,
        Field(
            pattern=r"^[0-9a-f]{128}$",
            description="Ed25519, over the line `isthmus audit 1` and the audit as JSON: sorted, no spaces, ASCII.",
        ),
    ]


def message(audit: Audit) -> bytes:
    """What an auditor signs."""
    text = json.dumps(audit.model_dump(), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return b"isthmus audit 1\n" + text.encode()


def to_text(signed: SignedAudit) -> str:
    """The file: JSON with sorted keys, ASCII, one newline at the end; equal audits give equal texts."""
    return json.dumps(signed.model_dump(), sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False) + "\n"


def read_text(text: str) -> SignedAudit:
    """An audit from its text; its signature is *not* checked here.

    Raises:
        ValueError: If it is not exactly such a text.
    """
    try:
        signed = SignedAudit.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in problem["loc"]) or "(whole file)"
        raise ValueError(f"`{key}`: {problem['msg']}") from None
    if to_text(signed) != text:
        raise ValueError("it is not in canonical form: keys repeated, unsorted, or otherwise written")
    return signed


def json_schema() -> dict[str, Any]:
    """The JSON schema of the file, draft 2020-12; the packaged file is this, written out."""
    schema = SignedAudit.model_json_schema(mode="serialization")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:isthmus:audit:{SCHEMA_VERSION}",
        **schema,
    }


def schema_text() -> str:
    """`json_schema` as the text of `audit.schema.json`."""
    return json.dumps(json_schema(), indent=2, sort_keys=True) + "\n"
