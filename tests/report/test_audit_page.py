"""The views of an audit: page, document and terminal say the same, need no network, and trust no name."""

import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from scipy.optimize import brentq
from scipy.stats import norm
from tests.privacy.audited import Federation, everyday, policy
from tests.report.test_browser import CHROMIUM, measured

import isthmus.privacy
from isthmus.errors import RunError
from isthmus.privacy.audit import make_audit, read_sources
from isthmus.report import audit_words, numbers
from isthmus.report.audit import Audit, AuditFinding, Empirical
from isthmus.report.audit_page import MOST_ENTRIES, render_audit, render_audit_page
from isthmus.report.audit_pdf import pdf_bytes, write_pdf
from isthmus.report.audit_terminal import print_audit

ATTACK: dict[str, Any] = {
    "name": "canaries",
    "claimed_epsilon": 4.0,
    "delta": 1e-6,
    "lower_bound": 1.37,
    "confidence": 0.95,
    "bounds": [{"form": "(epsilon, delta)", "assumption": "fair coins", "epsilon": 1.37, "confidence": 0.975}],
    "checks": [{"name": "noise", "passed": True, "detail": "1.0003 of the accounted deviation"}],
    "area": 0.52,
    "roc": [
        {
            "false_positives": {"successes": wrong, "trials": 2000, "low": wrong / 4000, "high": wrong / 1000},
            "true_positives": {"successes": found, "trials": 2000, "low": found / 4000, "high": found / 1000},
        }
        for wrong, found in ((2, 3), (20, 25), (200, 220))
    ],
    "settings": {"steps": 4, "noise_multiplier": 1.7},
    "cpu_seconds": 1.5,
    "sees": "too little noise",
    "blind_to": "what happens between rounds",
}


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    """An everyday audit, nothing found."""
    books = everyday(tmp_path_factory.mktemp("everyday"))
    return make_audit(read_sources([books.folder]))


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    """An audit of a simulation with a hostile run name and more entries than a page shows."""
    federation = Federation(tmp_path_factory.mktemp("seeded"), policies={"books": policy()})
    federation.run("</td><script>alert(1)</script>", rounds=40, private=False)
    federation.close()
    return make_audit(read_sources([federation.folder]))


def with_finding(audit: Audit, rule: str = "truncated", text: str = "line 30 was shown to others") -> Audit:
    """The same with something found."""
    finding = AuditFinding(data_set="books", line=0, rule=rule, text=text)
    return audit.model_copy(update={"findings": (finding,)})


def with_attack(audit: Audit, attack: dict[str, Any]) -> Audit:
    """The same with an attack's outcome."""
    return audit.model_copy(update={"empirical": (Empirical.of(attack, attacked="a policy"),)})


def gaussian_delta(mu: float, epsilon: float) -> float:
    """Delta of a Gaussian mechanism (Balle and Wang, ICML 2018, theorem 5)."""
    return float(norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu))


def printed(audit: Audit) -> str:
    """The terminal's text."""
    stream = io.StringIO()
    print_audit(audit, Console(file=stream, width=80))
    return stream.getvalue()


class _References(HTMLParser):
    """Collects what a page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.found += [
            (name, value or "") for name, value in attrs if name in {"href", "src", "srcset", "action", "data"}
        ]


def references(page: str) -> _References:
    parser = _References()
    parser.feed(page)
    return parser


# No network, no trust.


def test_the_page_refers_to_nothing_outside_itself(audit: Audit) -> None:
    """Links lead into the page, their targets exist, there is no script, and the policy forbids all else."""
    page = render_audit_page(audit)
    found = references(page)
    assert all(value.startswith("#") for _, value in found.found)
    assert {value for _, value in found.found} - {f"#{name}" for name in re.findall(r'id="([^"]+)"', page)} == set()
    assert not {"script", "img", "link", "iframe", "object"} & found.tags
    assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", page)
    assert "@import" not in page
    assert "default-src 'none'; style-src 'unsafe-inline'" in page


def test_a_hostile_name_stays_text(seeded: Audit) -> None:
    """It is escaped on the page, and no view obeys it."""
    page = render_audit_page(seeded)
    assert "<script>" not in page
    assert "&lt;/td&gt;&lt;s" in page
    assert pdf_bytes(seeded).startswith(b"%PDF-")
    assert "Traceback" not in printed(seeded)


def test_what_one_user_was_clipped_to_stands_beside_the_noise(audit: Audit) -> None:
    """With each entry and with what was released; an evaluation has no clip of its own."""
    page = render_audit_page(audit)
    assert "10 steps, noise 1.9, each user drawn with chance 0.05, clip 1<" in page
    assert "1 release with noise 20<" in page


def test_the_same_audit_gives_the_same_bytes(audit: Audit) -> None:
    """Page and document alike."""
    assert render_audit_page(audit) == render_audit_page(audit)
    assert pdf_bytes(audit) == pdf_bytes(audit)


# What they say.


def test_page_one_says_it_in_words(audit: Audit) -> None:
    """Verdict, what epsilon means, the table, one person, and what is not covered, before anything for experts."""
    first, _, expert = render_audit_page(audit).partition('<div class="expert">')
    for words in (
        "Nothing was found wrong in 2 data sets.",
        "1 in 1,000,000",
        "A. Officer, 2026-01-31",
        audit_words.NOT_COVERED,
        "epsilon 1.57",
    ):
        assert words in first, words
    for data_set in audit.data_sets:
        assert f"<strong>{audit_words.limited(data_set.epsilon)}</strong>" in first
    assert "Renyi" not in first
    assert "Renyi" in expert


def test_the_factor_on_page_one_is_that_of_the_largest_epsilon(audit: Audit) -> None:
    """exp(epsilon), rounded up; a large one is called weak."""
    worst = max(data_set.epsilon or 0 for data_set in audit.data_sets)
    assert f"at most {numbers.factor(worst)} times as likely" in audit_words.promise(audit)[0]
    assert len(audit_words.promise(audit)) == 1
    loud = audit.data_sets[0].model_copy(update={"epsilon": 7.5})
    assert "weak promise" in audit_words.promise(audit.model_copy(update={"data_sets": (loud,)}))[1]
    none = audit.data_sets[0].model_copy(update={"epsilon": None})
    assert "nothing can be promised" in audit_words.promise(audit.model_copy(update={"data_sets": (none,)}))[0]


def test_every_rule_that_the_judge_knows_is_explained() -> None:
    """Each rule that is written in the sources of a finding has its sentence."""
    folder = Path(isthmus.privacy.__file__).parent
    files = [*folder.glob("audit/*.py"), folder / "examination.py", folder / "reading.py"]
    text = "".join(file.read_text() for file in files)
    named = re.findall(r'rule="([a-z_-]+)"|find\([^"]*"([a-z-]+)"|seen\["([a-z-]+)"|_finding\([^"]*"([a-z-]+)"', text)
    rules = {name for found in named for name in found if name}
    assert {"digest", "truncated", "overspent", "recomputed", "payload", "no-policy"} <= rules
    assert rules - audit_words.RULES.keys() == set()


@pytest.mark.parametrize("rule", sorted(audit_words.RULES))
def test_every_finding_is_shown_and_explained(audit: Audit, rule: str) -> None:
    """On page one, in its table with what was seen, and in the terminal."""
    found = with_finding(audit, rule=rule)
    first, _, expert = render_audit_page(found).partition('<div class="expert">')
    assert audit_words.RULES[rule].replace("'", "&#39;") in first
    assert "line 30 was shown to others" in expert
    assert "1 finding in 2 data sets" in first
    assert audit_words.RULES[rule] in printed(found)


def test_a_seeded_data_set_is_not_called_private(seeded: Audit) -> None:
    """A banner on the page and a line in the terminal; the long list of entries is cut, and that is said."""
    page = render_audit_page(seeded)
    assert "NOT private: books" in page
    assert "NOT PRIVATE" in printed(seeded)
    assert f"The last {MOST_ENTRIES} of {len(seeded.data_sets[0].entries)}" in page


def test_attacks_stand_beside_the_claims(audit: Audit) -> None:
    """Bound, confidence, assumption, checks, what it sees and what not; without one, that there is none."""
    assert "None is part of this audit" in render_audit_page(audit)
    attacked = audit.model_copy(update={"empirical": (Empirical.of(ATTACK, attacked="policy of <books>"),)})
    page = render_audit_page(attacked)
    words = (
        "1.37",
        "4.00",
        "95%",
        "fair coins",
        "1.0003",
        "too little noise",
        "between rounds",
        "noise multiplier 1.7",
    )
    for said in (*words, "policy of &lt;books&gt;", "0.15% of members are found", "(2 of 2,000)", "0.520"):
        assert said in page, said
    assert "ROC of the attack" not in page, "only membership inference has a figure"
    for said in (
        "at least 1.37",
        "95% confidence",
        "4.00 is claimed",
        "0.15% of members",
        "too little noise",
        "between",
    ):
        assert said in " ".join(printed(attacked).split()), said
    assert pdf_bytes(attacked) != pdf_bytes(audit)


def test_membership_inference_has_its_roc_as_a_figure(audit: Audit) -> None:
    """With the diagonal of guessing, and a description for who cannot see it; none without a single find."""
    membership = {**ATTACK, "name": "membership"}
    page = render_audit_page(with_attack(audit, membership))
    assert "ROC of the attack membership" in page
    assert "At 0.10% of outsiders 0.15% of members are found" in page
    first, _, _ = page.partition('<div class="expert">')
    assert "1 attack on made-up users did not contradict what it charges for" in first
    assert "0.07% to 0.30% of those who were in the data (95% interval)" in first
    empty = {"false_positives": ATTACK["roc"][0]["false_positives"] | {"successes": 0}}
    none = {**membership, "roc": [{**ATTACK["roc"][0], **empty}]}
    assert "ROC of the attack" not in render_audit_page(with_attack(audit, none))


def test_a_failed_attack_is_called_failed_everywhere(audit: Audit) -> None:
    """On the page, in the document's text and in the terminal, with the name of the check."""
    failed = {**ATTACK, "checks": [{"name": "noise", "passed": False, "detail": "half of it"}]}
    found = with_attack(audit, failed)
    first, _, expert = render_audit_page(found).partition('<div class="expert">')
    assert "canaries showed that it does not do what it charges for" in first
    assert "FAILED" in expert
    assert "FAILED: noise" in printed(found)


# Witnesses and deltas.


def test_page_one_says_when_nobody_else_vouches_for_a_ledger(audit: Audit, tmp_path: Path) -> None:
    """Neither receipt nor log: named on page one, in the table, in the terminal; silent where there is a witness."""
    assert audit_words.unwitnessed(audit) == ""
    assert "No witness" not in render_audit_page(audit)
    alone = Federation(tmp_path, policies={"books": policy()})
    alone.run("run", receipts=False)
    alone.close()
    found = make_audit(read_sources([alone.path("books")]))
    first, _, _ = render_audit_page(found).partition('<div class="expert">')
    assert "No witness: books" in first
    assert audit_words.NO_WITNESS.replace("'", "&#39;") in first
    assert "in order, no witness" in first
    assert "No witness: books." in printed(found)
    logged = make_audit(read_sources([alone.path("books")], heads=[alone.log_path]))
    assert "No witness" in render_audit_page(logged), "the log says nothing of this ledger"


def test_a_row_at_another_delta_says_at_which_its_limit_holds(audit: Audit, tmp_path: Path) -> None:
    """Spent is at the delta that was asked for; limit and left are labelled with the policy's; else no label."""
    other = make_audit(read_sources([Path(audit.data_sets[0].path)]), delta=1e-9)
    (books,) = other.data_sets
    assert (books.delta, books.budget_delta) == (1e-9, 1e-6)
    assert books.epsilon > books.spent == audit.data_sets[0].epsilon
    assert books.left == pytest.approx(books.budget - books.spent)
    first, _, _ = render_audit_page(other).partition('<div class="expert">')
    assert first.count("<small>at 1e-6</small>") == 2
    assert "8.00 at 1e-6" in printed(other)
    assert f"epsilon spent is {numbers.epsilon(books.spent)}" in " ".join(printed(other).split())
    assert "limit 8.00" not in render_audit_page(other), "the figure draws no limit at another delta"
    assert "at 1e-6</small>" not in render_audit_page(audit)


def test_what_is_said_of_groups_is_standard_group_privacy() -> None:
    """Epsilon k times, delta (e^(k eps) - 1) / (e^eps - 1) times: Gaussian groups keep it; the example follows it."""

    def grown(epsilon: float, delta: float, size: int) -> float:
        return delta * (math.exp(size * epsilon) - 1) / (math.exp(epsilon) - 1)

    for epsilon, delta in ((0.5, 1e-6), (2.0, 1e-6), (8.0, 1e-6)):
        mu = brentq(lambda mu, at=epsilon, goal=delta: gaussian_delta(mu, at) - goal, 1e-3, 20)
        for size in (2, 3):  # a group moves the sum by `size` times as much
            assert gaussian_delta(size * mu, size * epsilon) <= grown(epsilon, delta, size)
    assert "(e^(k epsilon) - 1) / (e^epsilon - 1)" in audit_words.NOT_COVERED_EITHER[0]
    assert "epsilon 16 at delta 0.003 for two" in audit_words.NOT_COVERED_EITHER[0]
    assert 0.00295 < grown(8.0, 1e-6, 2) < 0.003
    assert grown(8.0, 1e-6, 3) > 1


def test_an_epsilon_that_cannot_be_proven_is_no_number(audit: Audit) -> None:
    """No figure, no zero: words."""
    unproven = audit.data_sets[0].model_copy(
        update={
            "epsilon": None,
            "left": 0.0,
            "timeline": tuple(point.model_copy(update={"epsilon": None}) for point in audit.data_sets[0].timeline),
        }
    )
    found = audit.model_copy(update={"data_sets": (unproven,)})
    page = render_audit_page(found)
    assert "not provable" in page
    assert "<svg" not in page
    assert "not provable" in printed(found)
    assert pdf_bytes(found).startswith(b"%PDF-")


def test_a_data_set_without_anything_is_shown(tmp_path: Path) -> None:
    """A ledger that was just made: epsilon 0, no policy, nothing released."""
    federation = Federation(tmp_path, policies={"books": policy()})
    federation.close()
    audit = make_audit(read_sources([federation.path("books")]))
    assert "None was ever in force" in render_audit_page(audit)
    assert "0.00" in printed(audit)
    assert pdf_bytes(audit).startswith(b"%PDF-")


# Files.


def test_files_are_written_whole_or_refused(audit: Audit, tmp_path: Path) -> None:
    """Into a folder that is there; elsewhere, one clear error."""
    render_audit(audit, tmp_path / "audit.html")
    write_pdf(audit, tmp_path / "audit.pdf")
    assert (tmp_path / "audit.html").read_text() == render_audit_page(audit)
    assert (tmp_path / "audit.pdf").read_bytes().rstrip().endswith(b"%%EOF")
    for write in (render_audit, write_pdf):
        with pytest.raises(RunError, match="cannot be written"):
            write(audit, tmp_path / "nowhere" / "file")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: layout is not checked")
@pytest.mark.parametrize("width", [390, 768, 1280])
def test_the_page_fits_its_screen_and_fetches_nothing(audit: Audit, tmp_path: Path, width: int) -> None:
    """No sideways scrolling on phone, tablet or desk, with long names and findings; figures legible and uncut."""
    content = json.loads(with_finding(audit, text="x" * 400).model_dump_json())
    content["data_sets"][1]["name"] = "w" * 63
    attacked = with_attack(Audit.model_validate_json(json.dumps(content)), {**ATTACK, "name": "membership"})
    sizes = measured(render_audit_page(attacked), tmp_path, width)
    assert sizes["client"] in {width, width - 15}  # without or with a scroll bar
    assert sizes["scroll"] <= sizes["client"]
    assert sizes["fetched"] == 0
    assert sizes["figures"] == 3
    assert sizes["cut"] == 0
    assert sizes["overlaps"] == 0
    assert sizes["smallest"] >= 10  # font size, CSS pixels
