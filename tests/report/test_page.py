"""The page: what it says, that it stands alone and that nothing in a result can break out of its text."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from isthmus.errors import RunError
from isthmus.report.page import MOST_DRAWN, render_page, render_report
from isthmus.report.result import Result

ATTACK = "<script>alert('x')</script>"
REFERRING = {"src", "href", "xlink:href", "srcset", "action", "formaction", "poster", "data", "background", "cite"}
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """A page as a reader meets it: its tags, its attributes, its texts and whether it nests properly."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.misnested: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the tag and, unless it is void, that it is open."""
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """A tag of an SVG that closes itself."""
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        """Close the innermost tag, or note that it was another one."""
        if not self.open or self.open.pop() != tag:
            self.misnested.append(tag)

    def handle_data(self, data: str) -> None:
        """Keep what is shown, not the style sheet."""
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        """All text, white space collapsed."""
        return " ".join(" ".join(self.words).split())


def built(content: dict[str, Any]) -> Result:
    """A result from the content of a file."""
    return Result.model_validate_json(json.dumps(content))


def without_figures(content: dict[str, Any]) -> dict[str, Any]:
    """A run that stopped before its first round, in domains without test users."""
    content["federation"] |= {"history": [], "rounds": 0, "shipped_round": 0}
    for domain in content["domains"].values():
        domain |= {"test": None, "transfer_gain": None, "test_users": 0, "releases": [], "rounds_charged": 0}
        domain |= {"epsilon": 0.0, "epsilon_before": 0.0, "head": {"verdict": "no transfer", "weights": {}}}
    return content


@pytest.fixture(scope="module")
def rendered() -> dict[bool, str]:
    """Pages rendered in this module so far, by whether the run was private."""
    return {}


@pytest.fixture
def page(seeded: Result, rendered: dict[bool, str]) -> Page:
    """The page of the seeded run."""
    if False not in rendered:
        rendered[False] = render_page(seeded)
    return Page(rendered[False])


@pytest.fixture
def private_page(private: Result, rendered: dict[bool, str]) -> Page:
    """The page of the run with secret noise."""
    if True not in rendered:
        rendered[True] = render_page(private)
    return Page(rendered[True])


def test_the_page_nests_properly_and_declares_language_charset_and_viewport(page: Page) -> None:
    """Browsers, phones and screen readers get what they need."""
    assert page.misnested == []
    assert page.open == []
    assert ("html", {"lang": "en"}) in page.tags
    assert ("meta", {"charset": "utf-8"}) in page.tags
    assert any(attributes.get("name") == "viewport" for tag, attributes in page.tags if tag == "meta")


def test_the_page_refers_to_nothing_outside_itself(page: Page, rendered: dict[bool, str]) -> None:
    """No address, import or script: every reference is to a place in the page, and it exists."""
    references = [
        value for _, attributes in page.tags for key, value in attributes.items() if key in REFERRING and value
    ]
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert len(references) > 10
    assert [value for value in references if not value.startswith("#") or value[1:] not in ids] == []
    assert set(re.findall(r"https?://[^\s\"'<>;)]+", rendered[False])) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"url\((?!#)|@import", rendered[False])
    assert {"script", "iframe", "link", "img", "object", "form"}.isdisjoint(tag for tag, _ in page.tags)


def test_every_id_is_used_once(page: Page) -> None:
    """Figures and sections share one page without clashes."""
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_every_table_has_a_caption_and_scoped_headers(page: Page) -> None:
    """Tables make sense when read aloud."""
    tags = [tag for tag, _ in page.tags]
    assert tags.count("table") == tags.count("caption") == 9  # summary, settings, 5 domains, missed, releases
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")
    assert tags.count("svg") == 12


def test_the_first_screen_gives_the_verdict_before_any_detail(page: Page) -> None:
    """Headline, warning and summary stand before the first section."""
    opening = page.text.split("What was run 10 rounds")[0]
    assert "nominal epsilon at most 7.97 each; transfer helps 3 of 5." in opening
    assert "This run is NOT private: its noise is seeded." in opening
    assert "+0.0071 (+0.0039 to +0.0103)" in opening
    assert "of 8.00" in opening


def test_only_a_seeded_run_carries_the_banner(page: Page, private_page: Page) -> None:
    """A warning that is always there is never read."""
    for text in ("NOT private", "nominal", "In this run nothing was, because its noise is seeded."):
        assert text in page.text
        assert text not in private_page.text
    assert "Noise came from a secret source." in private_page.text
    assert "none: secret noise" in private_page.text


def test_every_method_of_every_domain_is_in_a_table_with_its_interval(page: Page, seeded: Result) -> None:
    """Nothing of the comparison is left to the figure alone."""
    for domain in seeded.domains.values():
        assert domain.test is not None
        for method in ("federated", "local_only", "item_cf", "text_knn", "popularity"):
            scores = domain.test.of(method)
            low, high = scores.ndcg_ci95
            assert f"{scores.ndcg:.4f} {low:.4f} to {high:.4f} {scores.hr:.4f} {scores.mrr:.4f}" in page.text


def test_what_left_is_grouped_by_kind_with_rounds_counts_and_epsilon(page: Page) -> None:
    """A compliance officer reads it as a list."""
    assert "social Statistics of public item texts before round 1 1 5.02" in page.text
    assert "Model update, clipped and noised 1 to 6 6 7.90" in page.text
    assert "Evaluation, noised 2, 4, 6 3 7.92" in page.text


def test_missed_rounds_are_listed_with_their_reason(page: Page) -> None:
    """A round without a domain is explained, once for each reason."""
    assert "ads 3 refused the update was not finite" in page.text
    assert "social 7 to 10 budget exhausted epsilon 7.92 is spent of 8.00" in page.text


def test_the_guarantee_is_stated_with_the_figures_of_the_run(page: Page, seeded: Result) -> None:
    """Unit, adjacency, meaning, composition and group privacy, with numbers that can be checked."""
    text = page.text
    assert "one user's whole history in one domain" in text
    assert "one user added or removed" in text
    assert f"exp(7.97) is {math.ceil(math.exp(7.97)):,}" in text
    total = sum(domain.epsilon for domain in seeded.domains.values())
    assert f"epsilon {math.ceil(total * 100 - 1e-6) / 100:.2f} and delta 5e-6" in text
    group = (1 + math.exp(7.97)) * 1e-6  # group privacy of two: Dwork and Roth 2014, theorem 2.2 with delta
    assert f"epsilon 15.94 at delta {math.ceil(group * 1e4) / 1e4}" in text
    for promised in ("Catalogues", "Participation and timing", "Choosing settings", "do not publish them as they are"):
        assert promised in text


def test_provenance_names_version_configuration_seed_strategy_and_encoder(page: Page, seeded: Result) -> None:
    """The run can be found and repeated from its page."""
    for text in ("0.1.0 (result schema 1)", seeded.federation.digest, "Seed 7", "Strategy fedavg", "Encoder minilm"):
        assert text in page.text


def test_the_same_result_gives_the_same_page(
    seeded: Result, page: Page, rendered: dict[bool, str], tmp_path: Path
) -> None:
    """Rendering adds no date, no random id and no order of its own, and the file is the page in UTF-8."""
    render_report(seeded, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_bytes() == rendered[False].encode()


def test_a_page_that_cannot_be_written_is_a_clear_error(content: dict[str, Any], tmp_path: Path) -> None:
    """The message says where."""
    with pytest.raises(RunError, match=r"report\.html: cannot be written"):
        render_report(built(without_figures(content)), tmp_path / "absent" / "report.html")


def test_untrusted_strings_stay_text(content: dict[str, Any]) -> None:
    """Names, reasons, kinds and settings from elsewhere are shown, never obeyed; control characters show."""
    hostile = ATTACK + '" onload="x\x00\x1b\u202e'
    content["federation"] |= {"name": hostile, "strategy": hostile, "encoder": hostile}
    content["isthmus_version"] = hostile
    domain = content["domains"].pop("shopping")
    domain["releases"].append({"round": 1, "kind": hostile, "epsilon_after": 1.0})
    domain["head"]["weights"][hostile] = 0.5
    content["domains"][hostile] = domain
    for record in content["federation"]["history"]:
        record["domains"][hostile] = record["domains"].pop("shopping")
        record["domains"][hostile] |= {"status": "error", "reason": hostile}
    raw = render_page(built(content))
    page = Page(raw)
    assert page.misnested == []
    assert "script" not in {tag for tag, _ in page.tags}
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    assert page.text.count(ATTACK) >= 10
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", raw)
    assert "\ufffd\ufffd\ufffd" in page.text


def test_a_run_that_stopped_before_its_first_round_has_a_page(content: dict[str, Any]) -> None:
    """Empty sections say so in a sentence."""
    page = Page(render_page(built(without_figures(content))))
    assert page.misnested == []
    for sentence in (
        "No round was run.",
        "No evaluation was released in this run.",
        "No domain had test users.",
        "No user of this domain has enough events to be tested.",
        "No round beat the text prior, so the prior itself was shipped.",
        "Nothing 0 0.00",
    ):
        assert sentence in page.text, sentence
    assert "svg" not in {tag for tag, _ in page.tags}


def test_a_huge_epsilon_and_a_single_domain_are_printed_honestly(content: dict[str, Any]) -> None:
    """No overflow, delta of a group at most 1, and no composition over one domain."""
    music = content["domains"]["music"] | {"epsilon": 2000.0, "budget": 2000.0}
    content["domains"] = {"music": music}
    for record in content["federation"]["history"]:
        record["domains"] = {"music": record["domains"]["music"]}
    text = Page(render_page(built(content))).text
    assert "epsilon 4000.00 at delta 1 ." in text
    assert "covered by composition" not in text
    assert "1 domain, 10 rounds" in text


def test_many_domains_are_in_the_tables_and_not_drawn(content: dict[str, Any]) -> None:
    """A thousand domains' figures would take minutes to draw; one more than are drawn, and the page says so."""
    one = next(iter(content["domains"]))
    for number in range(MOST_DRAWN + 1 - len(content["domains"])):
        content["domains"][f"more-{number}"] = content["domains"][one]
        for record in content["federation"]["history"]:
            if one in record["domains"]:
                record["domains"][f"more-{number}"] = record["domains"][one]
    page = Page(render_page(built(content)))
    assert not page.misnested
    assert f"Of {MOST_DRAWN + 1} domains, each has its figures in the tables" in page.text
    assert page.text.count("whole catalogue of") == MOST_DRAWN + 1
    assert sum(tag == "svg" for tag, _ in page.tags) == 1  # the federation's own, over rounds
