"""The document of an audit: A4, for files and signatures; made without a browser.

    write_pdf(audit, "run/audit.pdf")

The same words and numbers as the page, from the same `Audit`. How it looks is `audit_layout`'s business. The same audit
gives the same bytes.
"""

import io
from collections.abc import Sequence
from pathlib import Path

from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.platypus import Flowable, PageBreak, SimpleDocTemplate, Spacer, Table, TableStyle

from isthmus.report import attack_words, numbers
from isthmus.report import audit_words as words
from isthmus.report.audit import Audit, DataSet, Empirical
from isthmus.report.audit_layout import (
    ALARM,
    BAD,
    CELL,
    GOOD,
    HEAD,
    KICKER,
    NOTE,
    NUMBER,
    PART,
    SECTION,
    SMALL,
    SOFT,
    TEXT,
    TITLE,
    WIDTH,
    facts,
    footer,
    part,
    plot,
    register_fonts,
    say,
    table,
)
from isthmus.report.result import write_atomically

_MOST = 40
"""Rows of a long table; the signed audit holds them all."""


def write_pdf(audit: Audit, path: str | Path) -> None:
    """Write the document atomically.

    Raises:
        RunError: If the file cannot be written.
    """
    write_atomically(pdf_bytes(audit), path)


def pdf_bytes(audit: Audit) -> bytes:
    """The document; the same audit gives the same bytes."""
    register_fonts()
    stream = io.BytesIO()
    document = SimpleDocTemplate(
        stream,
        pagesize=A4,
        leftMargin=18 * mm,
        rightMargin=18 * mm,
        topMargin=16 * mm,
        bottomMargin=18 * mm,
        title="Isthmus privacy audit",
        author=f"Isthmus {audit.isthmus_version}",
        lang="en",
        invariant=1,
    )
    story = [*_first_page(audit), PageBreak(), *_findings(audit)]
    for data_set in audit.data_sets:
        story += _data_set(data_set)
    story += _rest(audit)
    document.build(story, onFirstPage=footer, onLaterPages=footer)
    return stream.getvalue()


def _first_page(audit: Audit) -> list[Flowable]:
    story: list[Flowable] = [
        say(f"Isthmus privacy audit, {words.day(audit.made)} UTC", KICKER),
        say(words.verdict(audit), TITLE),
    ]
    seeded = words.not_private(audit)
    if seeded:
        story.append(say(f"NOT private: {seeded}. Noise was seeded there; its epsilons are nominal.", ALARM))
    found = words.summary(audit)
    story += [say(sentence, ALARM) for sentence in found[: words.MOST_SENTENCES]]
    if len(found) > words.MOST_SENTENCES:
        story.append(say("And more, on the next page.", ALARM))
    if words.unwitnessed(audit):
        story.append(say(f"No witness: {words.unwitnessed(audit)}. {words.NO_WITNESS}", ALARM))
    story.append(say(words.WHAT_WAS_DONE, TEXT))
    story += [say(sentence, TEXT) for sentence in words.promise(audit)]
    rows = [
        [
            say(data_set.name, HEAD),
            say(words.state(audit, data_set), _state_style(audit, data_set)),
            words.limited(data_set.epsilon),
            say(f"{words.limit(data_set)} {words.at_delta(data_set)}", NUMBER),
            say(f"{words.remaining(data_set)} {words.at_delta(data_set)}", NUMBER),
            numbers.delta(data_set.delta),
            say(words.approval(data_set), CELL),
        ]
        for data_set in audit.data_sets
    ]
    story.append(Spacer(1, 4))
    story.append(
        table(
            ["Data set", "State", "Spent", "Limit", "Left", "Delta", "Limit approved by"],
            rows,
            [0.2, 0.2, 0.1, 0.09, 0.09, 0.08, 0.24],
            right=(2, 3, 4, 5),
        )
    )
    story.append(say("Epsilon spent over all runs, the unit's own limit, and what is left of it.", NOTE))
    if words.together(audit):
        story.append(say(f"One person may be a user of several units. {words.together(audit)}", TEXT))
    if audit.empirical:
        story.append(say(f"The program itself was attacked. {attack_words.attacked(audit)}", TEXT))
    story += [say(words.NOT_COVERED, TEXT), Spacer(1, 30), _signatures()]
    return story


def _signatures() -> Flowable:
    """Where two people may put their names."""
    names = [say("Auditor, date", NOTE), "", say("For the business unit, date", NOTE)]
    made = Table([["", "", ""], names], [0.46 * WIDTH, 0.08 * WIDTH, 0.46 * WIDTH])
    made.setStyle(TableStyle([("LINEBELOW", (at, 0), (at, 0), 0.5, SOFT) for at in (0, 2)]))
    return made


def _findings(audit: Audit) -> list[Flowable]:
    if not audit.findings:
        return []
    rows = [
        [
            say(finding.data_set or "attack", CELL),
            str(finding.line or "all"),
            say(finding.rule, CELL),
            [say(words.meaning(finding), CELL), say(finding.text, SMALL)],
        ]
        for finding in audit.findings[:_MOST]
    ]
    story = [
        say("Findings", SECTION),
        table(["Where", "Line", "Rule", "Meaning, and what was seen"], rows, [0.2, 0.08, 0.16, 0.56]),
    ]
    if len(audit.findings) > _MOST:
        story.append(say(f"And {len(audit.findings) - _MOST} more, in the signed audit.", NOTE))
    return story


def _data_set(data_set: DataSet) -> list[Flowable]:
    witnesses = data_set.witnesses
    opinion = "agrees" if data_set.opinion.agrees else "CONTRADICTS"
    fit = "" if data_set.more_rounds is None else f"; {data_set.more_rounds:,} more rounds like the last fit"
    told = [
        ("Epsilon", f"{words.limited(data_set.epsilon)} at delta {numbers.delta(data_set.delta)}"),
        ("Second opinion", f"{opinion}. {data_set.opinion.why}"),
        ("Left", f"{words.remaining(data_set)} {words.at_delta(data_set)}".strip() + fit),
        (
            "Least noise",
            f"{words.least_noise(data_set)}; {'all secret' if data_set.private else 'some can be repeated'}",
        ),
        ("Clipping rate", "Not recorded: it would be a release of its own."),
        ("People elsewhere", words.people(data_set)),
        *(("Note", remark) for remark in data_set.remarks),
        *((f"Key from line {key.line}", _key_words(key.key, key.reason, key.revoked_from)) for key in data_set.keys),
        *(
            (f"Isthmus {one.version}", f"wrote {one.entries} entries; program {one.code or 'unknown'}")
            for one in data_set.programs
        ),
        ("Ledger", f"{data_set.ledger}, {numbers.plural(witnesses.lines, 'line')}, in {data_set.path}"),
        ("Last line", witnesses.head),
        (
            "Witnesses",
            f"{witnesses.heads} statements, {witnesses.receipts} receipts; newest of line {witnesses.seen or 'none'}",
        ),
    ]
    story: list[Flowable] = [say(data_set.name, SECTION), *plot(data_set), facts(told)]
    runs = [
        [
            words.short(run.run),
            words.day(run.first),
            words.day(run.last),
            str(run.entries),
            str(run.sent),
            words.limited(run.epsilon),
            "secret" if run.private else "SEEDED",
        ]
        for run in data_set.runs[-_MOST:]
    ]
    columns = ["Run", "From", "To", "Charged", "Sent", "Epsilon alone", "Noise"]
    story += part("Runs", columns, runs, [0.2, 0.19, 0.19, 0.1, 0.08, 0.14, 0.1], right=(3, 4, 5))
    groups = [
        [
            words.short(group.run),
            say(group.what, CELL),
            words.short(group.coordinator) or "not known",
            say(group.rounds, CELL),
            str(group.count),
            str(group.held),
            say(group.cost, CELL),
        ]
        for group in words.release_groups(data_set)[-_MOST:]
    ]
    columns = ["Run", "What", "To (key)", "Rounds", "Sent", "Not sent", "Cost of each"]
    story += part("What was released, to whom", columns, groups, [0.16, 0.2, 0.15, 0.1, 0.06, 0.09, 0.24], right=(4, 5))
    refusals = [
        [
            words.day(one.time),
            words.short(one.run),
            str(one.round),
            say(one.rule, CELL),
            say(one.asked, CELL),
            say(one.limit, CELL),
        ]
        for one in data_set.refusals[-_MOST:]
    ]
    columns = ["Time", "Run", "Round", "Rule", "Asked", "Limit"]
    story += part("Refusals", columns, refusals, [0.18, 0.16, 0.08, 0.16, 0.21, 0.21], right=(2,))
    story += [say(words.flood_words(flood), NOTE) for flood in data_set.floods[-_MOST:]]
    policies = [
        [
            words.day(one.time),
            say("nobody: domain.toml" if one.implied else one.approved_by or "not readable", CELL),
            "-" if one.implied else one.approved_on,
            _number(one.epsilon),
            _number(one.run_epsilon),
            words.short(one.digest),
        ]
        for one in data_set.policies[-_MOST:]
    ]
    columns = ["From", "Approved by", "On", "Epsilon", "Of one run", "Digest"]
    story += part("Policies", columns, policies, [0.19, 0.27, 0.14, 0.12, 0.12, 0.16], right=(3, 4))
    return story


def _rest(audit: Audit) -> list[Flowable]:
    person = audit.person
    told = [
        (
            "As declared" if person.declared else "As far as declared",
            (
                f"Epsilon {words.limited(person.bound.epsilon)} at a total delta of {numbers.delta(person.delta)}. "
                f"{person.bound.rule}"
            ),
        ),
        ("Everybody in all", f"Epsilon {words.limited(person.cautious.epsilon)}. {person.cautious.rule}"),
    ]
    story: list[Flowable] = [say("One person in several data sets", SECTION), facts(told)]
    story.append(say("Attacks on the real program", SECTION))
    story += _attacks(audit.empirical)
    if not audit.empirical:
        story.append(say("None is part of this audit.", TEXT))
    method = audit.method
    told = [
        ("Unit of privacy", method.unit),
        ("Neighbours", method.adjacency),
        ("Accountant", f"{method.accountant}; {method.library}"),
        ("Held against", method.second),
        *(("" if at else "Taken for granted", assumption) for at, assumption in enumerate(method.assumptions)),
        *(("" if at else "Not covered", gap) for at, gap in enumerate(words.NOT_COVERED_EITHER)),
        ("Audited by", f"Isthmus {audit.isthmus_version}, program {audit.program}"),
        ("Made", audit.made),
        *(("Coordinator's log", f"{log.path}, {log.heads} statements, key {log.key}") for log in audit.logs),
    ]
    return [*story, say("Method and assumptions", SECTION), facts(told)]


def _attacks(attacks: Sequence[Empirical]) -> list[Flowable]:
    if not attacks:
        return []
    rows = []
    for attack in attacks:
        point = attack_words.low_rate(attack)
        rows.append(
            [
                say(attack.name.capitalize(), HEAD),
                f"at least {attack_words.lower(attack.lower_bound)}",
                numbers.epsilon(attack.claimed_epsilon),
                f"{attack.confidence:.0%}",
                attack_words.percent(point.true_positives.value) if point else "-",
                f"{attack.area:.3f}",
                say("passed" if attack.passed else "FAILED", GOOD if attack.passed else BAD),
            ]
        )
    columns = ["Attack", "Epsilon proven", "Claimed", "Confidence", "Found", "Area", "Checks"]
    story: list[Flowable] = [
        say(attack_words.ATTACKED, TEXT),
        say(f"What was attacked: {attacks[0].attacked}.", TEXT),
        table(columns, rows, [0.2, 0.18, 0.13, 0.14, 0.12, 0.1, 0.13], right=(1, 2, 3, 4, 5)),
        say(
            f"Found: members, while at most {attack_words.LOW_RATE:.1%} of outsiders are called one. Area: under the "
            f"ROC; 0.5 is guessing.",
            NOTE,
        ),
    ]
    for attack in attacks:
        story += [say(attack.name.capitalize(), PART), _attack(attack)]
    return story


def _attack(attack: Empirical) -> Flowable:
    return facts(
        [
            *(
                (
                    f"Bound, {bound.form}",
                    attack_words.bound(bound),
                )
                for bound in attack.bounds
            ),
            *(
                (check.name.capitalize(), f"{'passed' if check.passed else 'FAILED'}: {check.detail}")
                for check in attack.checks
            ),
            *((("Who is found", attack_words.found_members(attack)),) if attack_words.found_members(attack) else ()),
            ("It would see", attack.sees),
            ("It is blind to", attack.blind_to),
            ("Attacked run", f"{attack_words.settings(attack)}; delta {numbers.delta(attack.delta)}"),
        ]
    )


def _state_style(audit: Audit, data_set: DataSet) -> ParagraphStyle:
    return BAD if words.alarming(audit, data_set) else GOOD


def _key_words(key: str, reason: str, revoked_from: int | None) -> str:
    return f"{key}{f' ({reason})' if reason else ''}{f'; REVOKED from line {revoked_from}' if revoked_from else ''}"


def _number(value: float | None) -> str:
    return "-" if value is None else numbers.epsilon(value)
