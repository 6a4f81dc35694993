"""The items of a domain: ids, titles, and the public text that a model reads.

    found = read_catalogue(config)
    found.catalogue.texts[0]          # the `text` template, filled in

The catalogue is public by declaration (`items.public = true`); it is sorted by id (byte order), so that an
item's index does not depend on the order of a file. Repairs are counted in `ItemCounts`: a row without an id
is dropped, of rows with the same id the first counts, an item without text gets its title or its id.
"""

import string
from dataclasses import dataclass

import polars as pl

from isthmus.clients.data.tables import Source, open_table
from isthmus.config import DomainConfig
from isthmus.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """Items of a domain, sorted by id; all three have one entry per item. Public.

    Attributes:
        ids: Unique ids.
        titles: What people are shown; the id where the table has no title.
        texts: What the text encoder reads; never empty.
    """

    ids: tuple[str, ...]
    titles: tuple[str, ...]
    texts: tuple[str, ...]

    def __len__(self) -> int:
        """How many items there are."""
        return len(self.ids)


@dataclass(frozen=True, kw_only=True)
class ItemCounts:
    """What the item table held.

    Attributes:
        items: Distinct items, the catalogue.
        item_rows: Rows of the table.
        item_rows_without_id: Rows dropped because the id is empty.
        duplicate_item_ids: Rows dropped because an earlier row has the same id.
        items_without_title: Items shown by their id.
        items_without_text: Items whose template was empty; their title or id stands in.
    """

    items: int
    item_rows: int
    item_rows_without_id: int
    duplicate_item_ids: int
    items_without_title: int
    items_without_text: int


@dataclass(frozen=True, kw_only=True)
class FoundItems:
    """A catalogue, what was counted while it was read, and the sentences that say so."""

    catalogue: Catalogue
    counts: ItemCounts
    notes: tuple[str, ...]
    blank_lines: int


def template_columns(template: str) -> tuple[str, ...]:
    """Columns that a text template names, in its order.

    Raises:
        ConfigError: If the braces do not pair, name no column, or ask for more than a column.

    >>> template_columns("{title}, {category}")
    ('title', 'category')
    """
    return tuple(name for _, name in _parts(template) if name is not None)


def read_catalogue(config: DomainConfig) -> FoundItems:
    """Read the item table that a domain declares.

    Raises:
        ConfigError: If the catalogue is not declared public, or the text template is wrong.
        DataError: If the table cannot be read, lacks a column, or holds no item.
    """
    if not config.items.public:
        raise ConfigError(
            f"{config.folder / 'domain.toml'}: items.public must be true, got false: the moments of its text "
            "leave the domain. A catalogue that is not public cannot join a federation."
        )
    parts = _parts(config.items.text)
    source = open_table(config.items_path, declared=config.items.format)
    return _read(config, source, parts)


def _read(config: DomainConfig, source: Source, parts: list[tuple[str, str | None]]) -> FoundItems:
    keys = {"items.id": config.items.id, "items.title": config.items.title}
    for _, name in parts:
        if name is not None:
            keys[f"items.text, {{{name}}}"] = name
    table = source.read(keys)
    filled = [pl.lit(literal) if name is None else table.text(name) for literal, name in parts]
    words = [table.text(name).str.strip_chars() for _, name in parts if name is not None]
    frame = pl.select(
        id=table.ids(config.items.id),
        title=table.text(config.items.title),
        text=pl.concat_str(filled).str.strip_chars(),
        empty=pl.all_horizontal(word == "" for word in words),
    )
    nameless = frame["id"].str.strip_chars() == ""
    again = frame["id"].is_first_distinct().not_() & ~nameless
    keep = frame.filter(~nameless & ~again).sort("id")
    if not keep.height:
        raise DataError(f"{table.path}: none of its {frame.height} rows has an id in column '{config.items.id}'")
    untitled = keep["title"].str.strip_chars() == ""
    keep = keep.with_columns(title=pl.when(untitled).then("id").otherwise("title"))
    keep = keep.with_columns(text=pl.when("empty").then(pl.col("title").str.strip_chars()).otherwise("text"))
    counts = ItemCounts(
        items=keep.height,
        item_rows=frame.height,
        item_rows_without_id=int(nameless.sum()),
        duplicate_item_ids=int(again.sum()),
        items_without_title=int(untitled.sum()),
        items_without_text=int(keep["empty"].sum()),
    )
    notes = []
    if counts.item_rows_without_id:
        first = table.where(int(nameless.arg_true()[0]))
        notes.append(f"{counts.item_rows_without_id} item rows have no id and were dropped; first: {first}.")
    if counts.duplicate_item_ids:
        at = int(again.arg_true()[0])
        notes.append(
            f"{counts.duplicate_item_ids} item rows repeat an id and were dropped, the first row of an id counts; "
            f"first: '{frame['id'][at]}' on {table.where(at)}."
        )
    if counts.items_without_title:
        notes.append(f"{counts.items_without_title} items have no title and are shown by their id.")
    if counts.items_without_text:
        one = keep.filter("empty")["id"][0]
        notes.append(
            f"{counts.items_without_text} items have no text and are described by their title or id; first: '{one}'."
        )
    catalogue = Catalogue(
        ids=tuple(keep["id"].to_list()),
        titles=tuple(keep["title"].to_list()),
        texts=tuple(keep["text"].to_list()),
    )
    return FoundItems(catalogue=catalogue, counts=counts, notes=tuple(notes), blank_lines=table.blank_lines)


def _parts(template: str) -> list[tuple[str, str | None]]:
    """A template as literals (text, None) and columns ("", name)."""
    parts: list[tuple[str, str | None]] = []
    try:
        for literal, name, form, conversion in string.Formatter().parse(template):
            if literal:
                parts.append((literal, None))
            if name is not None:
                if not name or form or conversion:
                    raise ConfigError(f"items.text: a brace holds a column name and nothing else, got '{template}'")
                parts.append(("", name))
    except ValueError as error:
        raise ConfigError(f"items.text: {error}, got '{template}'. A literal brace is written twice.") from None
    if all(name is None for _, name in parts):
        raise ConfigError(f"items.text names no column, got '{template}'. Write for example '{{title}}'.")
    return parts
