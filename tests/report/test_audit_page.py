"""The views of an audit: page, document and terminal say the same, need no network, and trust no name."""

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console
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

ATTACK = {
    "name": "canaries",
    "claimed_epsilon": 4.0,
    "delta": 1e-6,
    "lower_bound": 1.37,
    "confidence": 0.95,
    "bounds": [{"form": "(epsilon, delta)", "assumption": "fair coins", "epsilon": 1.37, "confidence": 0.975}],
    "checks": [{"name": "noise", "passed": True, "detail": "1.0003 of the accounted deviation"}],
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
    page = render_audit_page(audit.model_copy(update={"empirical": (Empirical.of(ATTACK),)}))
    for words in ("at least 1.37", "95% confidence", "fair coins", "1.0003", "too little noise", "between rounds"):
        assert words in page


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
    sizes = measured(render_audit_page(Audit.model_validate_json(json.dumps(content))), tmp_path, width)
    assert sizes["client"] in {width, width - 15}  # without or with a scroll bar
    assert sizes["scroll"] <= sizes["client"]
    assert sizes["fetched"] == 0
    assert sizes["figures"] == 2
    assert sizes["cut"] == 0
    assert sizes["overlaps"] == 0
    assert sizes["smallest"] >= 10  # font size, CSS pixels
