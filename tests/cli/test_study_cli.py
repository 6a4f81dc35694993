"""`isthmus evaluate` and `isthmus sweep`: several values at once, and one clear line for a mistake."""

import json
from pathlib import Path

import pytest
import typer
from tests.cli.called import Caller
from tests.cli.test_help import examples
from tests.conftest import TinyFederation

from isthmus.cli.main import app
from isthmus.report.study import read_study


def parsed(verb: str, *words: str) -> dict[str, object]:
    """What a command understands."""
    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    return dict(command.make_context(verb, list(words)).params)


@pytest.mark.parametrize(
    "words",
    [
        ["f.toml", "--out", "o", "--epsilon", "1", "2", "4.5"],
        ["--epsilon", "1", "2", "--epsilon", "4.5", "f.toml", "--out", "o"],
        ["f.toml", "--epsilon", "1", "--out", "o", "--epsilon", "2", "4.5"],
    ],
)
def test_an_option_takes_several_values_at_once(words: list[str]) -> None:
    """As many as follow it, and none of what comes after."""
    found = parsed("sweep", *words)
    assert found["epsilon"] == (1.0, 2.0, 4.5)
    assert str(found["federation"]) == "f.toml"
    assert str(found["out"]) == "o"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--scenario new-domain --users 1", "--scenario new-domain needs it"),
        ("--scenario new-users", "--scenario new-users needs it"),
        ("--events 1", "does not belong to --scenario usual"),
        ("--scenario new-users --events 0", "at least 1, got [0]"),
        ("--scenario new-users --events 1 1", "must differ"),
        ("--scenario new-domain --hold-out films --users 0", "domains are books, games"),
        ("--seeds 0", "0 is not in the range"),
        ("--rounds 0", "at least 1 round, got 0"),
    ],
)
def test_a_mistake_gets_one_clear_error(
    tiny_federation: TinyFederation, isthmus: Caller, tmp_path: Path, words: str, said: str
) -> None:
    """Exit code 2, the words, no traceback, and nothing on stdout."""
    called = isthmus("evaluate", tiny_federation(), "--out", tmp_path / "out", *words.split())
    assert called.code == 2
    assert said in called.err.replace("│ ", "")
    assert "Traceback" not in called.err
    assert called.out == ""


def printed(verb: str, *, file: Path, out: Path) -> list[str]:
    """The example at the end of a command's help, with another federation file and folder."""
    _, *words = examples()[f"isthmus {verb}"].split()
    words[words.index("isthmus-demo/federation.toml")] = str(file)
    words[words.index("--out") + 1] = str(out)
    return words


def test_the_example_of_sweep_works_and_again_trains_nothing(
    tiny_federation: TinyFederation, isthmus: Caller, tmp_path: Path
) -> None:
    """Table, warning and report; the same command again prints the same."""
    words = printed("sweep", file=tiny_federation(), out=tmp_path / "out")
    first = isthmus(*words)
    assert first.code == 0, first.err
    assert "NOT private" in first.out
    assert "epsilon 8" in first.out
    assert str(tmp_path / "out" / "sweep.html") in first.out.replace("\n", "")
    assert read_study(tmp_path / "out" / "sweep.json").runs == 2
    again = isthmus(*words)
    assert again.out == first.out
    assert "fitting" not in again.err


def test_the_example_of_evaluate_works_and_prints_json_for_machines(
    tiny_federation: TinyFederation, isthmus: Caller, tmp_path: Path
) -> None:
    """As printed, on tiny domains of which one has the name that the example holds out."""
    file = tiny_federation(domains={"books": 40, "social": 140})
    called = isthmus(*printed("evaluate", file=file, out=tmp_path / "out"), "--json")
    assert called.code == 0, called.err
    told = json.loads(called.out)
    assert [(one["domain"], one["at"]) for one in told["conditions"]] == [("social", 0.0), ("social", 64.0)]
    assert told["private"] is False
