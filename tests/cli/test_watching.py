"""What a simulation shows of a budget is what is enforced."""

import pytest
from tests.conftest import TinyDomain

from isthmus.cli.watching import LiveWatcher
from isthmus.config import load_domain
from isthmus.server.checkpoint import RunState

STATE = RunState(
    run="run",
    digest="",
    round=1,
    arrays={},
    best={},
    best_round=0,
    best_gain=0.0,
    whitening={},
    strategy={},
)
"""After a first round; nothing of it is looked at but its number."""


@pytest.mark.parametrize(("policy", "limit"), [(None, "8"), (3.5, "3.5")])
def test_the_limit_shown_is_the_policys(
    tiny_domain: TinyDomain, capsys: pytest.CaptureFixture[str], policy: float | None, limit: str
) -> None:
    """policy.toml's epsilon over all runs where there is one, else domain.toml's."""
    folder = tiny_domain(name="books")
    if policy:
        (folder / "policy.toml").write_text(
            f'approved_by = "A. Officer"\napproved_on = 2026-01-31\n\n[budget]\nepsilon = {policy}\ndelta = 1e-6\n'
        )
    with LiveWatcher((load_domain(folder),)) as watcher:
        watcher.round(STATE, 4, {"books": 1.25})
    assert f"round 1 of 4: epsilon at most 1.25 of {limit} (books)" in capsys.readouterr().err
