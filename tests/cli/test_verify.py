"""`isthmus verify`: what is sound, what is not, on a machine with nothing but its few requirements."""

import json
import os
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from tests.building import build
from tests.cli.called import Caller
from tests.privacy.audited import Federation

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "flwr", "opacus", "polars", "pyarrow", "transformers", "safetensors", "grpc", "matplotlib", "jinja2")


def test_sound_files_are_exit_0(isthmus: Caller, books: Federation) -> None:
    """Ledgers and log of a folder, with epsilon from the entries."""
    done = isthmus("verify", books.folder)
    assert done.code == 0
    assert done.out.count("sound") == 3
    assert "epsilon 1.21" in done.out
    assert "NO " not in done.out


def test_a_cut_ledger_is_exit_1(isthmus: Caller, cut: Path) -> None:
    """The failed check and the line are named; by itself the same file is sound, with a note on what that means."""
    done = isthmus("verify", cut)
    assert done.code == 1
    assert "NOT SOUND" in done.out
    assert "NO witnesses" in done.out
    assert "truncated: line 28 was shown to others, this copy ends at 20" in done.out
    assert isthmus("verify", cut / "ledgers" / "books.db").code == 0


def test_a_ledger_that_nobody_has_seen_says_so(isthmus: Caller, tmp_path: Path) -> None:
    """Without heads and receipts a cut would not show."""
    federation = Federation(tmp_path)
    federation.run("run", receipts=False)
    federation.close()
    done = isthmus("verify", federation.path("books"))
    assert done.code == 0
    assert "a cut tail would not show" in done.out


def test_a_signed_audit_is_checked_from_itself(isthmus: Caller, books: Federation, tmp_path: Path) -> None:
    """Sound as written; one changed digit breaks it; a stranger's signature is found given the auditor's key."""
    file = tmp_path / "audit.json"
    assert isthmus("audit", books.folder, "--out", file).code == 0
    key = json.loads(file.read_text())["key"]
    assert isthmus("verify", file, "--key", key).code == 0
    assert isthmus("verify", file, "--key", "ab" * 32).code == 1
    text = file.read_text()
    file.write_text(text.replace('"budget": 8.0', '"budget": 9.0'))
    changed = isthmus("verify", file)
    assert changed.code == 1
    assert "NO signatures" in changed.out
    file.write_text(text[:-20])
    assert isthmus("verify", file).code == 1


def test_machines_get_json(isthmus: Caller, cut: Path) -> None:
    """One object for each file."""
    done = isthmus("verify", cut, "--json")
    found = {one["path"].rsplit("/", 1)[-1]: one for one in json.loads(done.out)}
    assert done.code == 1
    assert not found["books.db"]["sound"]
    assert found["music.db"]["sound"]
    assert {finding["rule"] for finding in found["books.db"]["findings"]} == {"truncated"}
    assert [check["name"] for check in found["books.db"]["checks"] if not check["passed"]] == ["witnesses"]


@pytest.mark.parametrize(
    ("content", "words"), [(None, "no such file"), (b"words", "neither a ledger nor"), (b"{}", "neither")]
)
def test_what_is_neither_is_wrong_use(isthmus: Caller, tmp_path: Path, content: bytes | None, words: str) -> None:
    """An absent file, any text, any JSON."""
    file = tmp_path / "file"
    if content is not None:
        file.write_bytes(content)
    done = isthmus("verify", file)
    assert done.code == 2
    assert words in done.err


@pytest.mark.parametrize("command", [["verify"], ["audit"], ["budget"], ["keys", "show"]])
def test_nothing_heavy_is_imported(books: Federation, command: list[str]) -> None:
    """A fresh process that runs the command has loaded neither torch nor flwr, nor anything else it does not need."""
    path = str(books.path("books"))
    code = (
        "import sys\nfrom isthmus.cli import main\n"
        f"sys.argv = {['isthmus', *command, path]!r}\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        f"print('LOADED', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "LOADED []" in done.stdout


@pytest.mark.slow
def test_it_runs_where_only_its_requirements_are_installed(books: Federation, tmp_path: Path) -> None:
    """The wheel without dependencies, and what docs/verify-requirements.txt names: no torch, no flwr, and it works."""
    build(tmp_path / "dist", "--wheel")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    wheel = next((tmp_path / "dist").glob("*.whl"))
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True)
    lines = (ROOT / "docs" / "verify-requirements.txt").read_text().splitlines()
    _link(_closure([line for line in lines if line and not line.startswith("#")]), _site(python))
    absent = subprocess.run(
        [python, "-c", "import importlib.util as u; print([u.find_spec(n) for n in ('torch', 'flwr', 'opacus')])"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert absent.stdout.strip() == "[None, None, None]"
    isthmus = tmp_path / "venv" / "bin" / "isthmus"
    public = json.loads(books.path("books").with_suffix(".key").read_text())["public"]
    for line, words in (
        (["verify", books.path("books"), "--heads", books.log_path, "--key", public], "sound"),
        (["audit", books.folder, "--out", "audit.json"], "Nothing was found wrong"),
        (["verify", "audit.json"], "sound"),
        (["budget", books.folder], "books\t1.2"),
        (["keys", "show", books.path("music")], "in force"),
    ):
        done = subprocess.run([isthmus, *line], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert words in done.stdout


def _site(python: Path) -> Path:
    done = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    )
    return Path(done.stdout.strip())


def _closure(requirements: list[str]) -> set[str]:
    """Names of the installed distributions that requirements need, and theirs."""
    found: set[str] = set()
    pending = [Requirement(line) for line in requirements]
    while pending:
        requirement = pending.pop()
        name = requirement.name.lower().replace("_", "-")
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        assert metadata.version(name) in requirement.specifier, requirement
        pending += [Requirement(line) for line in metadata.requires(name) or []]
    return found


def _link(names: set[str], site: Path) -> None:
    """Put installed distributions into another environment: nothing is fetched, and nothing else comes along."""
    for name in names:
        files = metadata.files(name) or []
        for top in {Path(file).parts[0] for file in files if Path(file).parts[0] not in ("..", "__pycache__")}:
            target = Path(str(metadata.distribution(name).locate_file(top)))
            if target.exists() and not (site / top).exists():
                (site / top).symlink_to(target)
