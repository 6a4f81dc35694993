"""What the documentation shows exists and works: links, commands, decisions; no machine leaks into it."""

import re
import subprocess
from pathlib import Path

import pytest
from tests.cli.test_help import commands

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/**/*.md")])


def tracked() -> list[Path]:
    """Text files under version control."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not listed:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed if (ROOT / name).is_file() and not (ROOT / name).is_symlink()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    """A link to a file of the project names a file that is there."""
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    missing = [t for t in targets if "://" not in t and not (page.parent / t).exists()]
    assert missing == []


def test_every_decision_is_in_the_index() -> None:
    """The index of decisions lists each page once."""
    index = (ROOT / "docs/adr/README.md").read_text(encoding="utf-8")
    for page in ROOT.glob("docs/adr/0*.md"):
        assert index.count(f"({page.name})") == 1


def test_every_verb_is_in_the_readme() -> None:
    """A reader of the README meets every command."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [words for words in commands() if words not in readme] == []


def test_every_make_target_of_the_documentation_exists() -> None:
    """`make something` in a page is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in PAGES:
        assert set(re.findall(r"`make ([a-z]+)`", page.read_text(encoding="utf-8"))) <= targets, page


def test_no_path_of_a_machine_is_in_the_project() -> None:
    """Nothing under version control names a folder of somebody's machine."""
    machine = re.compile(r"(?<![\w.])/(?:work|root|home|tmp|opt)/(?!cache)[a-z]")
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()[:80]}"
        for path in tracked()
        if path.suffix in {".py", ".md", ".toml", ".yml", ".txt", ".json"} and path != Path(__file__)
        for line in path.read_text(encoding="utf-8").splitlines()
        if machine.search(line)
    ]
    assert found == []
