"""What a supervised program inherits."""

import json
import os
import sys
from pathlib import Path

import pytest
from tests.other_user import needs_root

from isthmus.supervision import Part, _Child

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
