"""The catalogue: what is repaired is counted, what cannot be an item table is refused."""

import pytest

from isthmus.clients.data.catalogue import template_columns
from isthmus.errors import ConfigError, DataError


def test_items_are_sorted_by_id_whatever_the_row_order(toy) -> None:
    """An item's index does not depend on the order of the file."""
    lines = (toy.folder / "items.csv").read_text().splitlines()
    toy.write("items.csv", "\n".join([lines[0], *reversed(lines[1:])]))
    catalogue = toy.load().catalogue
    assert catalogue.ids == ("a", "b", "c", "d")
    assert catalogue.titles == ("Apple", "Bread", "Cake", "Dill")
    assert len(catalogue) == 4


def test_the_first_row_of_an_id_counts(toy) -> None:
    """Later rows of the same id are dropped, counted and shown."""
    toy.write("items.csv", "item_id,title\na,Apple\nb,Bread\na,Other\na,Third\n")
    data = toy.load()
    assert data.catalogue.titles == ("Apple", "Bread")
    assert (data.report.item_rows, data.report.items, data.report.duplicate_item_ids) == (4, 2, 2)
    assert any("2 item rows repeat an id" in note and "'a' on line 4" in note for note in data.report.notes)


def test_an_item_without_text_is_described_by_its_title_or_id(toy) -> None:
    """The encoder never sees an empty text, and the report says for how many items."""
    toy.write("items.csv", "item_id,title,category\na,Apple,\nb,,bakery\nc, ,  \n")
    data = toy.load(items={"text": "{category}"})
    assert data.catalogue.texts == ("Apple", "bakery", "c")
    assert data.catalogue.titles == ("Apple", "b", "c")
    assert (data.report.items_without_text, data.report.items_without_title) == (2, 2)
    assert any("2 items have no text" in note for note in data.report.notes)


def test_literals_of_a_template_alone_are_not_text(toy) -> None:
    """An item whose columns are all empty counts as empty although the template has words of its own."""
    toy.write("items.csv", "item_id,title,category\na,Apple,fruit\nb,,\n")
    data = toy.load(items={"text": "A {category} called {title}"})
    assert data.catalogue.texts == ("A fruit called Apple", "b")
    assert data.report.items_without_text == 1


def test_a_row_without_an_id_is_dropped_and_counted(toy) -> None:
    """Three rows without id are three rows without id, not duplicates."""
    toy.write("items.csv", "item_id,title\na,Apple\n,Ghost\n,Ghost\n ,Ghost\n")
    report = toy.load().report
    assert (report.items, report.item_rows_without_id, report.duplicate_item_ids) == (1, 3, 0)
    assert any("3 item rows have no id" in note and "line 3" in note for note in report.notes)


def test_a_table_without_any_id_is_refused(toy) -> None:
    """There is no catalogue in it."""
    toy.write("items.csv", "item_id,title\n,Apple\n,Bread\n")
    with pytest.raises(DataError, match="none of its 2 rows has an id in column 'item_id'"):
        toy.load()


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ({"id": "itemid"}, ["no column 'itemid'", "items.id", "Did you mean 'item_id'?"]),
        ({"title": "titel"}, ["no column 'titel'", "items.title", "Did you mean 'title'?"]),
        ({"text": "{title} {categories}"}, ["no column 'categories'", "items.text", "Did you mean 'category'?"]),
    ],
)
def test_a_missing_column_is_refused_with_the_nearest_name(toy, items, words) -> None:
    """The message names the key of domain.toml to change."""
    with pytest.raises(DataError) as refused:
        toy.load(items=items)
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize("template", ["{title", "{}", "{title:>9}", "{title!r}", "plain words", ""])
def test_a_template_that_is_not_columns_in_braces_is_refused(toy, template) -> None:
    """The value seen is in the message."""
    with pytest.raises(ConfigError, match=r"items\.text") as refused:
        toy.load(items={"text": template})
    assert repr(template) in str(refused.value)


def test_a_template_may_hold_literal_braces() -> None:
    """A brace written twice is a character."""
    assert template_columns("{{x}} {title} {category}") == ("title", "category")


def test_a_catalogue_that_is_not_public_is_refused(toy) -> None:
    """Moments of its text would leave the domain."""
    with pytest.raises(ConfigError, match=r"items\.public must be true, got false"):
        toy.load(items={"public": False})
