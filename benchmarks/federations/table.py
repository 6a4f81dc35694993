"""The table of finished runs: every method on the test items of every domain, one page for several seeds.

    python benchmarks/federations/table.py RUN... --title retail --out benchmarks/federations/RETAIL.md

A RUN is a folder that `isthmus simulate` wrote. Figures are taken from its `result.json` as they are; nothing is
computed but the range over runs.
"""

import argparse
import sys
from pathlib import Path

from isthmus.errors import IsthmusError
from isthmus.report.result import Result, read_result

METHODS = ("popularity", "text_knn", "item_cf", "local_only", "federated")


def main() -> int:
    """Parse, read, write the page; returns the exit code."""
    parser = argparse.ArgumentParser(
        description="Put finished runs into one table.",
        epilog="Example: python benchmarks/federations/table.py seed0 seed1 --title retail",
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder that `isthmus simulate` wrote")
    parser.add_argument("--title", required=True, help="name of the federation")
    parser.add_argument("--out", type=Path, help="file to write (default: print)")
    arguments = parser.parse_args()
    try:
        results = [read_result(run / "result.json") for run in arguments.runs]
    except IsthmusError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    text = page(results, title=arguments.title)
    if arguments.out is None:
        print(text, end="")
    else:
        arguments.out.write_text(text, encoding="utf-8")
    return 0


def page(results: list[Result], *, title: str) -> str:
    """The runs as Markdown.

    Args:
        results: Of one federation, one per seed.
        title: Its name.
    """
    first = results[0].federation
    seeds = ", ".join(str(result.federation.seed) for result in results)
    lines = [
        f"# {title}",
        "",
        f"{len(results)} runs of {first.rounds} rounds, seeds {seeds}; seeded, so **not private**: the noise is as",
        "strong as the policies ask (epsilon 8, delta 1e-6, rounds and evaluations together), but could be computed",
        "again. HR@10 / NDCG@10 of the held-out last item over the whole catalogue, at most 4,000 test users a domain;",
        "in brackets the 95 % interval of NDCG@10. Local methods differ between seeds only where they are trained.",
        "",
        "| domain | users | items | " + " | ".join(METHODS) + " | head | gain over the best local, NDCG@10 |",
        "|---" * (len(METHODS) + 5) + "|",
    ]
    for name in results[0].domains:
        for result in results:
            domain = result.domains[name]
            if domain.test is None or domain.transfer_gain is None:
                continue
            cells = []
            for method in METHODS:
                scores = getattr(domain.test, method)
                low, high = scores.ndcg_ci95
                cells.append(f"{_short(scores.hr)}/{_short(scores.ndcg)} [{_short(low)}, {_short(high)}]")
            low, high = domain.transfer_gain.ci95
            gain = f"{domain.transfer_gain.ndcg:+.4f} [{low:+.4f}, {high:+.4f}]"
            lines.append(
                f"| {name}, seed {result.federation.seed} | {domain.users} | {domain.items} | {' | '.join(cells)} "
                f"| {domain.head.verdict} | {gain} |"
            )
    lines += ["", "| seed | noisy gain of the backbone over the text prior, by round | seconds |", "|---|---|---|"]
    for result in results:
        gains = ", ".join(
            f"{record.round}: {record.gain:+.4f} ± {record.gain_std:.4f}"
            for record in result.federation.history
            if record.gain is not None and record.gain_std is not None
        )
        lines.append(f"| {result.federation.seed} | {gains} | {result.federation.seconds:.0f} |")
    lines += ["", "Made by `python benchmarks/federations/table.py`.", ""]
    return "\n".join(lines)


def _short(value: float) -> str:
    return f"{value:.4f}".removeprefix("0")


if __name__ == "__main__":
    sys.exit(main())
