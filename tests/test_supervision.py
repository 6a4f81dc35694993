"""What a supervised program inherits, and how often it is started again."""

import json
import os
import sys
from pathlib import Path

import pytest
from tests.other_user import needs_root

from isthmus.errors import RunError
from isthmus.supervision import Part, _Child, supervise

SECRETS = {"ISTHMUS_PASSPHRASE": "correct horse battery", "DATABASE_PASSWORD": "staple"}


def inherited(folder: Path, user: tuple[int, int] | None) -> dict[str, str]:
    """The environment that a program sees."""
    seen = folder / "seen.json"
    code = f"import json, os; json.dump(dict(os.environ), open({str(seen)!r}, 'w'))"
    part = Part(
        name="p",
        command=(sys.executable, "-c", code),
        listening="",
        ready=seen.exists,
        environment={"OWN": "1"},
        user=user,
    )
    (folder / "logs").mkdir(exist_ok=True)
    child = _Child(part, folder / "logs" / "p.log")
    child.start()
    assert child.process is not None
    assert child.process.wait(timeout=60) == 0, child.log.read_text()
    found: dict[str, str] = json.loads(seen.read_text())
    return found


@needs_root
def test_a_program_of_another_user_inherits_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths, language and its own variables, and nothing that nobody thought of; one of this user inherits all."""
    for name, text in SECRETS.items():
        monkeypatch.setenv(name, text)
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    apart = inherited(tmp_path, (os.geteuid(), os.getegid()))
    assert not SECRETS.keys() & apart.keys()
    assert (apart["OWN"], apart["LC_ALL"], apart["PATH"]) == ("1", "C.UTF-8", os.environ["PATH"])
    assert inherited(tmp_path, None).items() >= SECRETS.items()  # the mutant


def test_a_program_that_keeps_dying_is_given_up_after_as_many_deaths_as_it_may_have(tmp_path: Path) -> None:
    """Started again twice, and not a third time; the error says how it ended and what it wrote."""
    part = Part(
        name="node",
        command=("sh", "-c", "echo started | tee -a starts; until [ -e up ]; do sleep 0.05; done; exit 3"),
        listening="",
        ready=(tmp_path / "starts").exists,
        most_deaths=2,
        longest_delay=0.1,
    )
    with pytest.raises(RunError, match="(?s)node died 3 times in a row, the last time with code 3.*started"):
        supervise(lambda: [part], state=tmp_path, started=lambda _: (tmp_path / "up").touch())
    assert (tmp_path / "starts").read_text().split() == ["started"] * 3
