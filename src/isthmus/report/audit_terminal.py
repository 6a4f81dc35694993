"""An audit in the terminal: a verdict, one table that fits 80 columns, findings and remarks.

print_audit(audit, console)
"""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from isthmus.report import attack_words, audit_words, numbers
from isthmus.report.audit import Audit

MOST_FINDINGS = 20
"""In the terminal; the signed audit holds them all."""


def print_audit(audit: Audit, console: Console) -> None:
    """Print a summary; names and texts are printed as text, never as markup."""
    console.print(Text(audit_words.verdict(audit), style="bold red" if audit.findings else "bold green"))
    seeded = audit_words.not_private(audit)
    if seeded:
        console.print(Text(f"NOT PRIVATE: noise can be repeated in {numbers.visible(seeded)}.", style="bold red"))
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("data set", overflow="fold")
    for column in ("epsilon", "limit", "left", "delta", "rounds"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("state")
    for data_set in audit.data_sets:
        rounds, elsewhere = data_set.more_rounds, audit_words.at_delta(data_set)
        table.add_row(
            Text(numbers.visible(data_set.name)),
            audit_words.limited(data_set.epsilon),
            f"{audit_words.limit(data_set)} {elsewhere}".strip(),
            f"{audit_words.remaining(data_set)} {elsewhere}".strip(),
            numbers.delta(data_set.delta),
            "-" if rounds is None else f"{rounds:,}",
            Text(audit_words.state(audit, data_set)),
        )
    console.print(table)
    _say(console, "rounds: how many more like the last one fit. All epsilons are over all runs, rounded up.", "dim")
    if audit_words.unwitnessed(audit):
        _say(console, f"No witness: {audit_words.unwitnessed(audit)}. {audit_words.NO_WITNESS}", "bold yellow")
    person, bound = audit.person, audit.person.bound
    if len(audit.data_sets) > 1:
        declared = "as declared" if person.declared else "not all declare who may be in several domains"
        _say(
            console,
            f"one person in several of them: epsilon {audit_words.limited(bound.epsilon)} at delta "
            f"{numbers.delta(person.delta)} ({declared}); in all of them "
            f"{audit_words.limited(person.cautious.epsilon)}",
        )
    _print_attacks(audit, console)
    for finding in audit.findings[:MOST_FINDINGS]:
        where = f", line {finding.line}" if finding.line else ""
        _say(console, f"finding: {finding.data_set}{where}: {finding.rule}: {finding.text}", "red")
        _say(console, f"         {audit_words.meaning(finding)}")
    if len(audit.findings) > MOST_FINDINGS:
        _say(console, f"and {len(audit.findings) - MOST_FINDINGS} more findings; --json lists all", "red")
    for data_set in audit.data_sets:
        for remark in data_set.remarks:
            _say(console, f"note: {data_set.name}: {remark}", "yellow")


def _print_attacks(audit: Audit, console: Console) -> None:
    """For each attack the bound beside the claim, who was found, and what it can and cannot see."""
    for number, attack in enumerate(audit.empirical):
        if not number:
            _say(console, f"attacks on the real program, with made-up users: {attack.attacked}")
        _say(console, attack_words.proven(attack), "green" if attack.passed else "bold red")
        if attack_words.found_members(attack):
            _say(console, f"  {attack_words.found_members(attack)}")
        _say(console, f"  it would see: {attack.sees}", "dim")
        _say(console, f"  it is blind to: {attack.blind_to}", "dim")


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(Text(numbers.visible(text), style=style), highlight=False, soft_wrap=True)
