"""The figures: what they say, that they are repeatable and that they stand alone."""

import itertools
import json
import re
from typing import Any
from xml.etree import ElementTree as ET

import matplotlib as mpl
import pytest

from isthmus.report.figures import LONGEST_LABEL, epsilon_figure, methods_figure, transfer_figure, utility_figure
from isthmus.report.result import Result

SVG = "{http://www.w3.org/2000/svg}"


def all_figures(result: Result) -> dict[str, str]:
    """One figure of each sort, by name."""
    return {
        "methods": methods_figure("shopping", result.domains["shopping"], "methods"),
        "transfer": transfer_figure(result, "transfer"),
        "epsilon": epsilon_figure("social", result, "epsilon"),
        "utility": utility_figure(result, "utility"),
    }


def parsed(svg: str) -> ET.Element:
    """A figure as a tree; fails where it is not well-formed."""
    return ET.fromstring(svg)  # noqa: S314 - our own output


def shown_texts(svg: str) -> list[str]:
    """Every piece of text drawn in a figure."""
    return ["".join(element.itertext()).strip() for element in parsed(svg).iter(f"{SVG}text")]


def described(svg: str) -> tuple[str, str]:
    """Title and description of a figure."""
    root = parsed(svg)
    return root.findtext(f"{SVG}title") or "", root.findtext(f"{SVG}desc") or ""


def with_name(content: dict[str, Any], name: str) -> Result:
    """The five-domain run with `shopping` called otherwise."""
    content["domains"] = {name if key == "shopping" else key: part for key, part in content["domains"].items()}
    for record in content["federation"]["history"]:
        record["domains"][name] = record["domains"].pop("shopping")
    return Result.model_validate_json(json.dumps(content))


def test_the_same_result_gives_the_same_figures_whatever_the_readers_settings(seeded: Result) -> None:
    """No date, no random id, and no matplotlibrc of the machine in the bytes."""
    first = all_figures(seeded)
    with mpl.rc_context({"axes.linewidth": 9.0, "font.size": 30, "svg.fonttype": "path"}):
        assert all_figures(seeded) == first


def test_a_figure_leaves_matplotlibs_settings_as_they_were(seeded: Result) -> None:
    """A caller who plots too sees no change."""
    before = dict(mpl.rcParams)
    all_figures(seeded)
    assert dict(mpl.rcParams) == before


def test_every_figure_has_a_title_a_description_and_the_role_of_an_image(seeded: Result) -> None:
    """A screen reader announces what is drawn."""
    for name, svg in all_figures(seeded).items():
        root = parsed(svg)
        assert root.get("role") == "img"
        assert root.get("aria-labelledby") == f"{name}-title"
        assert root.get("aria-describedby") == f"{name}-desc"
        title, description = described(svg)
        assert title, name
        assert description, name


def test_ids_are_unique_within_and_between_figures_and_every_reference_resolves(seeded: Result) -> None:
    """Several figures share one page, so one must not point into another."""
    figures = all_figures(seeded).values()
    ids = [re.findall(r'\sid="([^"]+)"', svg) for svg in figures]
    flat = list(itertools.chain(*ids))
    assert len(flat) == len(set(flat))
    for svg, own in zip(figures, ids, strict=True):
        references = re.findall(r'href="#([^"]+)"', svg) + re.findall(r"url\(#([^)]+)\)", svg)
        assert references
        assert set(references) <= set(own)


def test_no_figure_refers_to_anything_outside(seeded: Result) -> None:
    """No document type, metadata or link: the only address is the name of the SVG language."""
    for svg in all_figures(seeded).values():
        assert set(re.findall(r"https?://[^\s\"'<>]+", svg)) == {"http://www.w3.org/2000/svg"}
        assert "<!DOCTYPE" not in svg
        assert "<script" not in svg


def test_methods_figure_shows_every_method_with_its_value(seeded: Result) -> None:
    """The values are written beside the marks, and the intervals are in the description."""
    svg = all_figures(seeded)["methods"]
    assert {"Federated", "Local only", "Item-CF", "Text neighbours", "Popularity"} <= set(shown_texts(svg))
    assert {"0.0912", "0.0703", "0.0841", "0.0751", "0.0312"} <= set(shown_texts(svg))
    assert "Item-CF 0.0841 (0.0772 to 0.0910), the best local method" in described(svg)[1]


def test_transfer_figure_tells_help_from_harm_without_colour(content: dict[str, Any]) -> None:
    """Symbols and words carry the verdict."""
    content["domains"]["dining"]["transfer_gain"] |= {"ndcg@10": -0.01, "ci95": [-0.02, -0.005]}
    svg = transfer_figure(Result.model_validate_json(json.dumps(content)), "transfer")
    assert {"+0.0071 ▲", "+0.0042 =", "\u22120.0100 ▼"} <= set(shown_texts(svg))
    assert "dining \u22120.0100 (\u22120.0200 to \u22120.0050), transfer hurts" in described(svg)[1]


def test_epsilon_figure_starts_at_what_was_spent_before_and_marks_missed_rounds(seeded: Result) -> None:
    """A second run on the same data does not start from zero."""
    assert described(epsilon_figure("social", seeded, "e"))[1] == (
        "Epsilon went from 5.02 to 7.92 over 10 rounds; the budget is 8.00. "
        "Crosses mark rounds without a part: 7 to 10."
    )
    assert "Crosses" not in described(epsilon_figure("music", seeded, "e"))[1]
    assert "budget 8.00" in shown_texts(epsilon_figure("music", seeded, "e"))


def test_utility_figure_marks_the_shipped_round_only_where_it_was_measured(content: dict[str, Any]) -> None:
    """The text prior, round 0, has no evaluation to mark."""
    measured = Result.model_validate_json(json.dumps(content))
    content["federation"]["shipped_round"] = 0
    prior = Result.model_validate_json(json.dumps(content))
    assert "shipped" in shown_texts(utility_figure(measured, "u"))
    assert "shipped" not in shown_texts(utility_figure(prior, "u"))
    assert "round 10: +0.0120, two deviations 0.0042" in described(utility_figure(measured, "u"))[1]


def test_there_is_no_figure_where_there_is_nothing_to_draw(content: dict[str, Any]) -> None:
    """No test users, no rounds, no evaluations: an empty string, which the page turns into a sentence."""
    content["federation"] |= {"history": [], "rounds": 0, "shipped_round": 0}
    for domain in content["domains"].values():
        domain |= {"test": None, "transfer_gain": None, "test_users": 0}
    result = Result.model_validate_json(json.dumps(content))
    assert transfer_figure(result, "t") == ""
    assert utility_figure(result, "u") == ""
    assert epsilon_figure("music", result, "e") == ""
    assert methods_figure("music", result.domains["music"], "m") == ""


def test_a_single_round_without_noise_level_can_be_drawn(content: dict[str, Any]) -> None:
    """The smallest run has a figure too, without warnings."""
    content["federation"]["history"] = content["federation"]["history"][1:2]
    content["federation"]["history"][0]["gain_std"] = None
    svg = utility_figure(Result.model_validate_json(json.dumps(content)), "u")
    assert "round 2: +0.0015, two deviations 0.0000" in described(svg)[1]


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", "$\\frac{1}$", "a\x00b\x1b", "漢字の店", "a" * 63, 'q" onload="x', "]]>&amp;"]
)
def test_any_name_can_be_drawn_and_stays_text(content: dict[str, Any], name: str) -> None:
    """Markup, formulas, control characters, other scripts and long names are shown, shortened at most."""
    svg = transfer_figure(with_name(content, name), "transfer")
    root = parsed(svg)
    assert not [element for element in root.iter() if element.tag.endswith("script")]
    assert not [key for element in root.iter() for key in element.attrib if key.startswith("on")]
    safe = name.replace("\x00", "\ufffd").replace("\x1b", "\ufffd")
    label = safe if len(safe) <= LONGEST_LABEL else safe[: LONGEST_LABEL - 1] + "…"
    assert label in shown_texts(svg)
    assert safe in described(svg)[1]
