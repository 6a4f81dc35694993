"""`isthmus certs` as its user sees it."""

import json
from pathlib import Path

from tests.cli.called import Caller


def test_expiry_is_reported_and_a_finding_when_it_is_near(isthmus: Caller, tmp_path: Path) -> None:
    """Exit 0 with a year left, 1 where the user asks for more than that; JSON says the same."""
    folder = tmp_path / "certs"
    assert isthmus("certs", "init", folder, "--address", "coordinator.example").code == 0
    assert isthmus("certs", "show", folder).code == 0
    late = isthmus("certs", "show", folder, "--within", 398, "--json")
    assert late.code == 1
    server, authority = json.loads(late.out)
    assert (server["file"], authority["file"]) == ("server.crt", "ca.crt")
    assert server["names"] == ["coordinator.example", "localhost", "127.0.0.1"]
    assert 396 < server["days_left"] <= 397
    assert authority["days_left"] > 3640


def test_a_mistake_is_one_sentence(isthmus: Caller, tmp_path: Path) -> None:
    """Exit 2, and the way out."""
    done = isthmus("certs", "show", tmp_path)
    assert (done.code, done.out) == (2, "")
    assert "no such file. `isthmus certs init" in done.err
    done = isthmus("certs", "init", tmp_path, "--address", "bücher")
    assert done.code == 2
    assert list(tmp_path.iterdir()) == []  # nothing half made
    assert "neither a host name in ASCII nor an IP address" in done.err
