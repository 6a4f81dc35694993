"""The verdict in words."""

import json
from typing import Any

import pytest

from isthmus.report.page import render_page
from isthmus.report.result import Result, canonical_bytes
from isthmus.report.terminal import summary_table
from isthmus.report.words import Verdict, counted, headline, not_private, shipped, started_from, verdict


def with_intervals(content: dict[str, Any], intervals: list[list[float]]) -> Result:
    """The five-domain run with the given intervals of the gain, in the order of its domains."""
    for domain, interval in zip(content["domains"].values(), intervals, strict=True):
        domain["transfer_gain"]["ci95"] = interval
    return Result.model_validate_json(json.dumps(content))


@pytest.mark.parametrize(
    ("interval", "wanted"),
    [
        ([0.001, 0.002], Verdict.HELPS),
        ([-0.002, -0.001], Verdict.HURTS),
        ([-0.001, 0.001], Verdict.UNDECIDED),
        ([0.0, 0.001], Verdict.UNDECIDED),
        ([-0.001, 0.0], Verdict.UNDECIDED),
    ],
)
def test_the_verdict_follows_the_paired_interval(
    content: dict[str, Any], interval: list[float], wanted: Verdict
) -> None:
    """An interval that touches zero decides nothing; a head that kept a local method then says no transfer."""
    for served in ("transfer", "no transfer"):
        for domain in content["domains"].values():
            domain["head"]["verdict"] = served
        result = with_intervals(content, [interval] * 5)
        kept = wanted is Verdict.UNDECIDED and served == "no transfer"
        expected = Verdict.NO_TRANSFER if kept else wanted
        assert {verdict(domain) for domain in result.domains.values()} == {expected}


def test_headline_counts_what_helps_and_what_hurts(content: dict[str, Any]) -> None:
    """Harm is in the first sentence, where it cannot be missed."""
    help_, harm, none = [0.1, 0.2], [-0.2, -0.1], [-0.1, 0.1]
    result = with_intervals(content, [help_, help_, harm, none, none])
    assert headline(result) == (
        "5 domains, 10 rounds, nominal epsilon at most 7.97 each; transfer helps 2 of 5 and hurts 1."
    )


def test_headline_of_a_private_run_does_not_say_nominal(private: Result) -> None:
    """The word belongs to seeded runs alone."""
    assert headline(private) == "5 domains, 10 rounds, epsilon at most 7.97 each; transfer helps 3 of 5."


def test_headline_counts_only_domains_with_test_users(content: dict[str, Any]) -> None:
    """A domain without test users neither helps nor counts."""
    for name in ("shopping", "dining"):
        content["domains"][name] |= {"test": None, "transfer_gain": None, "test_users": 0}
    assert headline(Result.model_validate_json(json.dumps(content))).endswith("transfer helps 1 of 3.")
    for domain in content["domains"].values():
        domain |= {"test": None, "transfer_gain": None, "test_users": 0}
    assert headline(Result.model_validate_json(json.dumps(content))).endswith("no domain had test users.")


def test_only_a_seeded_run_says_why_it_is_not_private(seeded: Result, private: Result) -> None:
    """The reason names the seed, so that a reader can check it."""
    assert "seed 7" in not_private(seeded)
    assert not_private(private) == ""


def test_a_run_that_began_in_the_open_says_so_in_its_page(content: dict[str, Any]) -> None:
    """Users and domains, escaped like all names; and what was shipped, where it is the start itself."""
    plain = Result.model_validate_json(json.dumps(content))
    assert started_from(plain) == ""
    assert b'"start"' not in canonical_bytes(plain)
    domains = [{"name": "<b>here</b>", "users": 1200}, {"name": "there", "users": 34}]
    content["federation"]["start"] = {"digest": "ab" * 32, "domains": domains, "shipped": True}
    with pytest.raises(ValueError, match="the start is shipped as round 0"):
        Result.model_validate_json(json.dumps(content))
    content["federation"]["shipped_round"] = 0
    result = Result.model_validate_json(json.dumps(content))
    assert "without noise, on 1,234 users of <b>here</b>, there" in started_from(result)
    assert shipped(result).startswith("No evaluation was released, so what the run began with was shipped")
    page = render_page(result)
    assert "on 1,234 users of &lt;b&gt;here&lt;/b&gt;, there" in page
    assert "<b>here" not in page
    assert "<dd>the start</dd>" in page
    assert Result.model_validate_json(canonical_bytes(result)).federation.start == result.federation.start


def test_who_counted_less_is_said_where_it_was_judged(content: dict[str, Any]) -> None:
    """In page and terminal, names escaped; results of other strategies hold no word of it."""
    plain = Result.model_validate_json(json.dumps(content))
    assert counted(plain) == ""
    assert b'"factor"' not in canonical_bytes(plain)
    for domain in content["domains"].values():
        domain["factor"] = 1.0
    assert "every domain's updates counted as declared" in counted(Result.model_validate_json(json.dumps(content)))
    content["domains"]["music"]["factor"], content["domains"]["ads"]["factor"] = 0.25, 0.0625
    content["domains"] = {{"ads": "<b>ads</b>"}.get(name, name): one for name, one in content["domains"].items()}
    for record in content["federation"]["history"]:
        record["domains"].pop("ads")
    result = Result.model_validate_json(json.dumps(content))
    assert counted(result).endswith("a share of their declared weight: music 0.25, <b>ads</b> 0.0625.")
    assert "music 0.25, &lt;b&gt;ads&lt;/b&gt; 0.0625." in render_page(result)
    assert "music 0.25" in str(summary_table(result).caption)
    assert Result.model_validate_json(canonical_bytes(result)).domains["music"].factor == 0.25
    for wrong in (0.0, 1.5):
        content["domains"]["music"]["factor"] = wrong
        with pytest.raises(ValueError, match="factor"):
            Result.model_validate_json(json.dumps(content))
