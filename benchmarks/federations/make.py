"""Make the benchmark federations: domain folders that point to the real tables where they lie.

    python benchmarks/federations/make.py --data ../shared/data --out benchmarks/runs
    isthmus simulate benchmarks/runs/office_industrial/federation.toml --out benchmarks/runs/office_industrial/seed0

The data sets forbid redistribution, so nothing is copied: `domains/NAME.toml` beside this file is a template whose
`{data}` becomes the absolute path of the data folder. The federations share the made domain folders, so that each
data set keeps one ledger. Made again, the configuration is written anew and a ledger is left as it is.
"""

import argparse
import json
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]


class MissingTableError(Exception):
    """A template names a table that is not in the data folder."""


def main() -> int:
    """Parse, make, print the federation files; returns the exit code."""
    parser = argparse.ArgumentParser(
        description="Make the benchmark federations from real data sets; nothing is copied.",
        epilog="Example: python benchmarks/federations/make.py --out benchmarks/runs",
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=CHECKOUT.parent / "shared" / "data",
        help="folder of the data sets (default: ../shared/data beside the checkout)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=CHECKOUT / "benchmarks" / "runs",
        help="where the folders are made (default: benchmarks/runs, which git ignores)",
    )
    arguments = parser.parse_args()
    try:
        made = write_federations(arguments.data.resolve(), arguments.out.resolve())
    except MissingTableError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for file in made:
        print(file)
    return 0


def write_federations(data: Path, out: Path) -> list[Path]:
    """Write `domains/NAME/domain.toml` and `FEDERATION/federation.toml` below `out`.

    Args:
        data: Absolute folder of the data sets.
        out: Made if absent.

    Returns:
        The federation files.

    Raises:
        MissingTableError: If a table is absent; nothing was written then.
    """
    domains = {template.stem: filled(template, data) for template in sorted((HERE / "domains").glob("*.toml"))}
    for name, text in domains.items():
        folder = out / "domains" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "domain.toml").write_text(text, encoding="utf-8")
    made = []
    for template in sorted(HERE.glob("*.toml")):
        file = out / template.stem / "federation.toml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(template.read_text(encoding="utf-8"), encoding="utf-8")
        made.append(file)
    return made


def filled(template: Path, data: Path) -> str:
    """Text of a domain.toml whose tables lie in `data`; they must exist."""
    quoted = json.dumps(str(data), ensure_ascii=False)[1:-1]  # as it stands between the quotes of a TOML string
    text = template.read_text(encoding="utf-8").replace("{data}", quoted)
    tables = tomllib.loads(text)
    for section in ("interactions", "items"):
        path = Path(tables[section]["path"])
        if not path.is_file():
            raise MissingTableError(
                f"{path}: no such file; {template.stem} needs it. Say where the data sets are with --data."
            )
    return text


if __name__ == "__main__":
    sys.exit(main())
