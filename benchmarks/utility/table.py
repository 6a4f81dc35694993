"""The page of finished studies: what each condition served, and against what, with the bars that were set before.

    python benchmarks/utility/table.py sweep/sweep.json new/evaluation.json --title "Office, Industrial" --out page.md

A STUDY is a JSON file that `isthmus evaluate` or `isthmus sweep` wrote. Figures are taken as they are.
"""

import argparse
import sys
from pathlib import Path

from isthmus.errors import IsthmusError
from isthmus.report.study import Condition, Study, read_study, warning

METHODS = (
    "popularity",
    "item_cf",
    "text_knn",
    "text_item_cf",
    "local_backbone",
    "local_only",
    "backbone",
    "federated",
    "centralised_backbone",
    "centralised",
)


def main() -> int:
    """Parse, read, write the page; returns the exit code."""
    parser = argparse.ArgumentParser(
        description="Put finished studies onto one page.",
        epilog='Example: python benchmarks/utility/table.py sweep/sweep.json --title "Office and Industrial"',
    )
    parser.add_argument("studies", type=Path, nargs="+", metavar="STUDY", help="JSON file of a study")
    parser.add_argument("--title", required=True, help="of the page")
    parser.add_argument("--out", type=Path, help="file to write (default: print)")
    arguments = parser.parse_args()
    try:
        studies = [read_study(path) for path in arguments.studies]
    except IsthmusError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    text = page(studies, title=arguments.title)
    if arguments.out is None:
        print(text, end="")
    else:
        arguments.out.write_text(text, encoding="utf-8")
    return 0


def page(studies: list[Study], *, title: str) -> str:
    """Studies as Markdown, one after the other."""
    said = "NDCG@10 in the whole catalogue, 95 % interval over users in brackets; the best local method in bold."
    lines = [f"# {title}", "", said, ""]
    for study in studies:
        lines += _study(study)
    return "\n".join([*lines, "Made by `python benchmarks/utility/table.py`.", ""])


def _study(study: Study) -> list[str]:
    seeds = ", ".join(map(str, study.seeds))
    there = [name for name in METHODS if any(name in one.methods for one in study.conditions)]
    lines = [
        f"## {study.federation}: {study.scenario}",
        "",
        f"{study.rounds} rounds, seeds {seeds}. {warning(study)}",
        "",
        f"| domain | condition | users | {' | '.join(there)} | federated over best local | p (Holm) |",
        "|---" * (len(there) + 5) + "|",
    ]
    lines += [_row(one, there) for one in study.conditions]
    if study.discrepancies:
        lines += ["", "| domains | proxy A-distance | MMD² | CORAL |", "|---|---|---|---|"]
        lines += [
            f"| {one.first}, {one.second} | {one.a_distance:.2f} | {one.mmd:.4f} | {one.coral:.2e} |"
            for one in study.discrepancies
        ]
    if study.transfers:
        lines += ["", "| trained too | helped | NDCG@10 of the backbone | p (Holm) |", "|---|---|---|---|"]
        for one in study.transfers:
            low, high = one.ci95
            lines.append(
                f"| {one.source} | {one.target} | {one.mean:+.4f} [{low:+.4f}, {high:+.4f}] | {one.p_holm:.2g} |"
            )
    return [*lines, ""]


def _row(one: Condition, there: list[str]) -> str:
    cells = []
    for name in there:
        if name not in one.methods:
            cells.append("")
            continue
        figure = one.methods[name].metrics["ndcg@10"]
        text = f"{_short(figure.mean)} [{_short(figure.ci95[0])}, {_short(figure.ci95[1])}]"
        cells.append(f"**{text}**" if name == one.best_local else text)
    gain = one.differences["federated"]
    low, high = gain.ci95
    return (
        f"| {one.domain} | {one.label} | {one.users} | {' | '.join(cells)} "
        f"| {gain.mean:+.4f} [{low:+.4f}, {high:+.4f}] | {gain.p_holm:.2g} |"
    )


def _short(value: float) -> str:
    return f"{value:.4f}".removeprefix("0")


if __name__ == "__main__":
    sys.exit(main())
