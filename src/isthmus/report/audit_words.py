"""An audit in words, the same for the page, the document and the terminal.

    verdict(audit)                  # "Nothing was found wrong in 2 data sets."
    release_groups(data_set)        # what left, by run, kind and who asked
    event_words(entry.event)        # "10 steps, noise 1.9, each user drawn with chance 0.05"

Nothing here computes an epsilon.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from isthmus.report import numbers
from isthmus.report.audit import Audit, AuditFinding, DataSet, Entry, Flood

RULES = {
    "accountant": "An independent way of computing epsilon contradicts the number.",
    "coordinators": "Somebody was answered whom the policy does not name.",
    "denied": "A coordinator gave a receipt for something that its own log does not hold.",
    "digest": "A line's text was changed after it was written.",
    "empirical": "An attack on the real program showed that it does not do what it is charged for.",
    "empty": "The ledger holds nothing.",
    "event": "What a release cost cannot be read.",
    "file": "The ledger's file holds something that the product does not write.",
    "finite": "An amount of noise is not a number.",
    "flood": "A count of refusals that were not written is missing, or counts what was not there.",
    "foreign-head": "A statement about this ledger is signed by a key it never had: by itself no evidence against it.",
    "fork": "Two copies of one ledger went different ways.",
    "form": "A line is not in the form that the product writes.",
    "head": "A statement in a coordinator's log is signed by nobody.",
    "key": "Somebody else than expected has signed.",
    "kinds": "Something left that the policy does not allow to leave.",
    "largest_clip": "One user could add more to a step than the policy allows.",
    "layers": "Parameters left that the policy does not allow to leave.",
    "least_metric_noise": "An evaluation had less noise than the policy asks for.",
    "least_noise": "A step had less noise than the policy asks for.",
    "link": "A line was inserted, removed or moved.",
    "names": "Which parameters left is not said, or not as it claims to be.",
    "no-policy": "Something left under rules that were not in force.",
    "not-private": "Repeatable noise in a ledger takes the meaning from every epsilon in it.",
    "opening": "The ledger does not begin as a ledger begins.",
    "order": "Lines are missing, repeated or out of order.",
    "outcome": "Something left that was not paid for.",
    "overspent": "More was spent than the policy in force allowed.",
    "payload": "A kept copy of what was released was changed afterwards.",
    "policy": "A policy in the ledger cannot be read, or is not the one it claims to be.",
    "programs": "A program answered that the policy does not name.",
    "receipt": "A receipt beside the ledger is signed by nobody.",
    "recomputed": "A number does not follow from the entries.",
    "retired-head": "Others were shown lines under a replaced or revoked key: an older copy, or a misused key.",
    "revoked": "Lines are signed by a key that had been given up as stolen or lost.",
    "rewritten": "Others were shown a different past.",
    "rotation": "A key was replaced without its successor's agreement.",
    "second-ledger": "A second ledger was begun for the same domain: what the first one spent is not in it.",
    "seeded": "Noise that can be repeated was used, which the policy forbids.",
    "signature": "A line is not signed by the key that it names.",
    "truncated": "Lines that others have seen are missing at the end: a cut or an older copy.",
    "twice": "One question was charged twice.",
}
"""What each rule of a finding means, for a reader who knows no cryptography."""

KINDS = {
    "update": "model updates, clipped and noised",
    "metric": "evaluations, noised",
    "catalogue": "statistics of public item texts",
}
"""Kinds of release; another kind is shown by its own name."""


WHAT_WAS_DONE = (
    "Each data set holds the histories of one business unit's users. What was learned from them left the unit mixed "
    "with random noise, and each time the price was written into a ledger beforehand. This audit read the ledgers, "
    "checked whether anybody had changed them, and added up every price again, over all runs."
)
NOT_COVERED = (
    "Not covered: what a program may have done beside its ledger, groups of users, side channels such as timing, and "
    "conclusions about people in general."
)
NOT_COVERED_EITHER = (
    (
        "Groups: k users together are protected with k times the epsilon, at a delta that is (e^(k epsilon) - 1) / "
        "(e^epsilon - 1) times as large. Soon that is nothing: epsilon 8 at delta 1e-6 means epsilon 16 at delta 0.003 "
        "for two users, and no protection for three."
    ),
    "Side channels: that a unit takes part, when it answers, how large its messages are.",
    "Item texts, which count as public. The private head, which must stay in the unit.",
    "Choosing among runs by looking at raw scores.",
    "What is true of people in general, whether or not one of them took part.",
)
"""For an expert, a sentence or two each. Groups: Vadhan, "The Complexity of Differential Privacy", 2017, lemma 2.2."""
NO_WITNESS = (
    "Neither a coordinator's receipt nor a coordinator's log was at hand, so if lines were missing at the end, this "
    "audit would not show it. More may have been spent than it says."
)
MOST_SENTENCES = 8
"""Of what was found, on page one."""
WEAK = 3.0
"""Above this epsilon the promise by itself is called weak: exp(3) is 20."""


@dataclass(frozen=True, kw_only=True)
class ReleaseGroup:
    """Releases of one kind in one run to one coordinator.

    Attributes:
        run: Id of the run.
        what: The kind, in words.
        coordinator: Public key, hex; empty if the requests were not signed.
        rounds: As ranges.
        count: That may have left.
        held: That were charged and did not leave.
        cost: Events, in words.
        first: Time of the first.
        last: Time of the last.
        private: Whether all noise was secret.
    """

    run: str
    what: str
    coordinator: str
    rounds: str
    count: int
    held: int
    cost: str
    first: str
    last: str
    private: bool


def verdict(audit: Audit) -> str:
    """The outcome in one sentence."""
    where = numbers.plural(len(audit.data_sets), "data set")
    if not audit.findings:
        return f"Nothing was found wrong in {where}."
    found = numbers.plural(len(audit.findings), "finding")
    return f"{found} in {where}: what follows cannot be relied on until each is explained."


def promise(audit: Audit) -> tuple[str, ...]:
    """What the largest epsilon means, a paragraph each, for a reader who knows no statistics."""
    spent = [data_set.epsilon for data_set in audit.data_sets if data_set.epsilon is not None]
    if len(spent) < len(audit.data_sets):
        return ("For at least one data set nothing can be promised: there was too little noise.",)
    worst, delta = max(spent), max(data_set.delta for data_set in audit.data_sets)
    first = (
        f"Take anything that somebody could conclude from all that left a unit. With any one user's history among "
        f"the data, it is at most {numbers.factor(worst)} times as likely as without (exp(epsilon), with epsilon at "
        f"most {numbers.epsilon(worst)}), plus {_one_in(delta)} (delta); and the other way round. The smaller epsilon, "
        f"the better one user is hidden; 0 would mean that nothing at all was revealed."
    )
    if worst <= WEAK:
        return (first,)
    weak = (
        "A factor as large as this is a weak promise by itself. How much an attacker really gains is usually far less, "
        "but that is experience, not proof: "
        + ("see the attacks on the program." if audit.empirical else "no attack on the program is part of this audit.")
    )
    return first, weak


def together(audit: Audit) -> str:
    """What one person in several units may expect; empty where only one was audited."""
    if len(audit.data_sets) < 2:
        return ""
    if audit.person.declared:
        return (
            f"By what the units declare about that, everything together protects such a person with epsilon "
            f"{limited(audit.person.bound.epsilon)}."
        )
    return (
        f"Not every unit declares whether that happens. Cautiously, anybody may be in all of them: then everything "
        f"together protects such a person with epsilon {limited(audit.person.cautious.epsilon)} at worst."
    )


def state(audit: Audit, data_set: DataSet) -> str:
    """One data set's outcome in a few words."""
    mine = findings_of(audit, data_set)
    if mine:
        return numbers.plural(len(mine), "finding")
    seen = "" if data_set.witnesses.seen else ", no witness"
    return f"in order{seen}" if data_set.private else f"in order{seen}, NOT PRIVATE"


def unwitnessed(audit: Audit) -> str:
    """Names of the data sets for whose ledgers nobody but their own domain vouches; empty if there are none."""
    return ", ".join(data_set.name for data_set in audit.data_sets if not data_set.witnesses.seen)


def alarming(audit: Audit, data_set: DataSet) -> bool:
    """Whether a data set's state is one to stop at: a finding, repeatable noise, no witness."""
    return bool(findings_of(audit, data_set)) or not data_set.private or not data_set.witnesses.seen


def findings_of(audit: Audit, data_set: DataSet) -> tuple[AuditFinding, ...]:
    """Those about one data set."""
    return tuple(finding for finding in audit.findings if finding.data_set == data_set.name)


def not_private(audit: Audit) -> str:
    """Names of the data sets for which no privacy is claimed; empty if there are none."""
    return ", ".join(data_set.name for data_set in audit.data_sets if not data_set.private)


def meaning(finding: AuditFinding) -> str:
    """What a finding means, in plain words."""
    return RULES.get(finding.rule, "Something is not as it should be.")


def summary(audit: Audit) -> tuple[str, ...]:
    """What was found, a sentence for each data set and rule, for page one."""
    groups: dict[tuple[str, str], list[AuditFinding]] = {}
    for finding in audit.findings:
        groups.setdefault((finding.data_set, finding.rule), []).append(finding)
    sentences = []
    for (name, _), found in groups.items():
        where = f", line {found[0].line}" if len(found) == 1 and found[0].line else ""
        times = f" ({len(found)} findings)" if len(found) > 1 else ""
        sentences.append(f"{name or 'Attack'}{where}: {meaning(found[0])}{times}")
    return tuple(sentences)


def approval(data_set: DataSet) -> str:
    """Who answers for the limits in force."""
    if not data_set.policies:
        return "nobody: no policy"
    policy = data_set.policies[-1]
    if policy.implied:
        return "nobody: limits of domain.toml"
    return f"{policy.approved_by}, {policy.approved_on}" if policy.approved_by else "not readable"


def release_groups(data_set: DataSet) -> tuple[ReleaseGroup, ...]:
    """What left, and what was charged and did not: by run, kind and who asked."""
    members: dict[tuple[str, str, str], list[Entry]] = {}
    for entry in data_set.entries:
        members.setdefault((entry.run, entry.kind, entry.coordinator), []).append(entry)
    return tuple(
        ReleaseGroup(
            run=run,
            what=KINDS.get(kind, kind),
            coordinator=coordinator,
            rounds=numbers.rounds([entry.round for entry in mine]),
            count=sum(entry.outcome == "released" for entry in mine),
            held=sum(entry.outcome != "released" for entry in mine),
            cost=_costs(mine),
            first=mine[0].time,
            last=mine[-1].time,
            private=all(entry.private for entry in mine),
        )
        for (run, kind, coordinator), mine in members.items()
    )


def event_words(text: str) -> str:
    """What a release cost, from its encoding.

    >>> event_words('{"count":10,"kind":"poisson-gaussian","noise":1.9,"rate":0.05,"v":1}')
    '10 steps, noise 1.9, each user drawn with chance 0.05'
    """
    fields = json.loads(text)
    if fields["kind"] == "none":
        return "nothing: public data only"
    count = fields["count"]
    if fields["kind"] == "gaussian":
        return f"{numbers.plural(count, 'release')} with noise {fields['noise']:g}"
    chance = f"each user drawn with chance {fields['rate']:g}"
    return f"{numbers.plural(count, 'step')}, noise {fields['noise']:g}, {chance}"


def entry_words(entry: Entry) -> str:
    """What a release cost, and the norm to which one user's part in it was clipped."""
    return event_words(entry.event) + ("" if entry.clip is None else f", clip {entry.clip:g}")


def flood_words(flood: Flood) -> str:
    """How many refusals a day had besides those that were written."""
    count = "more, not counted yet" if flood.count is None else f"{flood.count:,} more"
    return f"{flood.time[:10]}: {flood.most:,} refusals were written, and {count} (from line {flood.line} on)."


def least_noise(data_set: DataSet) -> str:
    """Evidence of noise in the entries: the least there was, by kind of release."""
    least: dict[str, float] = {}
    for entry in data_set.entries:
        noise = json.loads(entry.event).get("noise")
        if noise is not None:
            least[entry.kind] = min(noise, least.get(entry.kind, noise))
    return ", ".join(f"{kind} {noise:g}" for kind, noise in least.items()) or "nothing noisy was released"


def people(data_set: DataSet) -> str:
    """What the policy in force declares about people in several domains."""
    policy = data_set.policies[-1] if data_set.policies else None
    if policy is None or policy.overlap is None:
        return "not declared"
    if not policy.overlap:
        return "declared to be in no other domain"
    return f"may be in {policy.k_max} domains at most" if policy.k_max else "may be in any of the other domains"


def short(text: str) -> str:
    """A key, hash or id that is long enough to tell it from others."""
    return text if len(text) <= 16 else f"{text[:12]}\u2026"


def day(time: str) -> str:
    """A time to the minute.

    >>> day("2026-11-24T20:45:37.123+00:00")
    '2026-11-24 20:45'
    """
    return time[:16].replace("T", " ")


def limited(value: float | None) -> str:
    """An epsilon, rounded up, or that there is none."""
    return "not provable" if value is None else numbers.epsilon(value)


def remaining(data_set: DataSet) -> str:
    """What is left, rounded down."""
    return "-" if data_set.left is None else f"{int(data_set.left * 100 + 1e-7) / 100:.2f}"


def limit(data_set: DataSet) -> str:
    """The limit in force, or that there is none."""
    return "none" if data_set.budget is None else numbers.epsilon(data_set.budget)


def at_delta(data_set: DataSet) -> str:
    """At which delta limit and what is left are, where it is not the row's own; else empty."""
    if data_set.budget_delta is None or data_set.budget_delta == data_set.delta:
        return ""
    return f"at {numbers.delta(data_set.budget_delta)}"


def _one_in(delta: float) -> str:
    """A chance for people."""
    return f"1 in {int(1 / delta + 1e-6):,}"


def _costs(entries: Sequence[Entry]) -> str:
    """The different events among entries, three of them at most."""
    found = list(dict.fromkeys(map(entry_words, entries)))
    shown = "; ".join(found[:3])
    return shown if len(found) <= 3 else f"{shown}; and {len(found) - 3} others"
