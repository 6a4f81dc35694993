"""The end of a run in the terminal: one table that fits 80 columns.

console.print(summary_table(result))
"""

from rich import box
from rich.table import Table
from rich.text import Text

from isthmus.report import numbers
from isthmus.report.result import Result
from isthmus.report.words import METHODS, Verdict, counted, headline, not_private, started_from, verdict

_COLOURS = {Verdict.HELPS: "bold green", Verdict.HURTS: "bold red"}


def summary_table(result: Result) -> Table:
    """One row per domain: federated and best local NDCG@10, gain with its interval, epsilon of budget.

    Names are printed as text, never as markup, and their control characters are made visible. A run with
    seeded noise says that it is not private in the caption.
    """
    warning, start = not_private(result), started_from(result)
    caption = Text("95% intervals by paired bootstrap; raw figures of a simulation, do not publish.")
    if warning:
        caption = Text.assemble(("This run is NOT private: its noise is seeded. ", "bold red"), warning)
    for more in (start, counted(result)):
        if more:
            caption.append(f" {more}")
    table = Table(
        title=Text(headline(result), style="bold"),
        caption=caption,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("domain", overflow="fold")
    table.add_column("federated", justify="right")
    table.add_column("best local", justify="right", no_wrap=True)
    table.add_column("gain [95%]", justify="right", no_wrap=True)
    table.add_column("transfer")
    table.add_column("epsilon", justify="right")
    for name, domain in result.domains.items():
        found = verdict(domain)
        federated = local = gain = "-"
        if domain.test is not None and domain.transfer_gain is not None:
            transfer = domain.transfer_gain
            federated = numbers.score(domain.test.federated.ndcg)
            local = f"{numbers.score(domain.test.of(transfer.best_local).ndcg)}\n{METHODS[transfer.best_local]}"
            low, high = (numbers.signed(bound) for bound in transfer.ci95)
            gain = f"{numbers.signed(transfer.ndcg)}\n[{low}, {high}]"
        table.add_row(
            Text(numbers.visible(name)),
            federated,
            local,
            Text(gain),
            Text(f"{found.symbol} {found.words.removeprefix('transfer ')}", style=_COLOURS.get(found, "")),
            f"{numbers.epsilon(domain.epsilon)}\nof {numbers.epsilon(domain.budget)}",
        )
    return table
