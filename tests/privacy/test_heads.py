"""Heads and receipts: signed statements that neither side can deny, and that carry nothing but what they say."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.privacy.chain import now
from isthmus.privacy.heads import Head, Receipt, make_head, make_receipt, read_head, read_receipt
from isthmus.privacy.keys import Keys, fresh_keys

DOMAIN, COORDINATOR = fresh_keys(), fresh_keys()
LEDGER = "ab" * 16
HEAD = make_head(LEDGER, 7, b"\x01" * 32, DOMAIN)
RECEIPT = make_receipt(HEAD, run="r", round=3, time=now(), keys=COORDINATOR)


def resigned(fields: dict[str, object], keys: Keys) -> str:
    """A statement that says something else, rightly signed."""
    said = {name: value for name, value in fields.items() if name != "signature"}
    text = json.dumps(said, sort_keys=True, separators=(",", ":"))
    signature = keys.sign(b"isthmus statement 1\n" + text.encode()).hex()
    return json.dumps({**said, "signature": signature}, sort_keys=True, separators=(",", ":"))


def test_a_head_and_a_receipt_come_back_from_their_text() -> None:
    """One line of ASCII each; the receipt holds the head as it was signed."""
    assert read_head(HEAD.text()) == HEAD
    assert read_receipt(RECEIPT.text()) == RECEIPT
    assert read_head(read_receipt(RECEIPT.text()).head) == HEAD
    assert (HEAD.key, RECEIPT.key) == (DOMAIN.public.hex(), COORDINATOR.public.hex())
    for text in (HEAD.text(), RECEIPT.text()):
        assert text.isascii()
        assert text.isprintable()
    assert resigned(dataclasses.asdict(HEAD), DOMAIN) == HEAD.text()  # so the forgeries below are signed


@pytest.mark.parametrize(("statement", "read"), [(HEAD, read_head), (RECEIPT, read_receipt)], ids=["head", "receipt"])
def test_a_changed_field_is_not_signed(statement: Head | Receipt, read: type) -> None:
    """Each field, by one letter or number."""
    fields = dataclasses.asdict(statement)
    for name, value in fields.items():
        other = value + 1 if isinstance(value, int) else value[:-1] + ("0" if value[-1:] != "0" else "1")
        text = json.dumps({**fields, name: other}, sort_keys=True, separators=(",", ":"))
        with pytest.raises(ValueError, match="not a signed statement about a ledger"):
            read(text)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ledger", "\x1b[2J" + "a" * 28),
        ("ledger", "books\n"),
        ("ledger", "AB" * 16),
        ("ledger", ""),
        ("digest", "ab"),
        ("digest", "\u202e" + "0" * 63),
        ("seq", -1),
        ("seq", 2**53),
        ("seq", 10**400),
        ("seq", True),
        ("seq", 1.0),
        ("seq", None),
    ],
    ids=ascii,
)
def test_a_signed_head_that_says_something_hostile_is_none(field: str, value: object) -> None:
    """Its signer can write anything: terminals and logs see hex digits and small numbers only."""
    with pytest.raises(ValueError, match="not a signed statement") as refusal:
        read_head(resigned({**dataclasses.asdict(HEAD), field: value}, DOMAIN))
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("run", "r\n2026 all is well"),
        ("run", "\x1b[31m"),
        ("run", "\u202eb"),
        ("run", 5),
        ("round", -1),
        ("round", "3"),
        ("time", "yesterday"),
        ("time", "2026-01-01T00:00:00.000+00:00\n"),
        ("head", ""),
        ("head", HEAD.text().replace(LEDGER, "cd" * 16)),
        ("more", "than it has"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_a_signed_receipt_that_says_something_hostile_is_none(field: str, value: object) -> None:
    """The same for the coordinator's; the head in it is checked as well."""
    with pytest.raises(ValueError, match="not a signed statement") as refusal:
        read_receipt(resigned({**dataclasses.asdict(RECEIPT), field: value}, COORDINATOR))
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize("key", ["", "00", "zz" * 32, "AB" * 32, "ff" * 32])
def test_a_key_that_is_none_signs_nothing(key: str) -> None:
    """Whatever its length or letters."""
    with pytest.raises(ValueError, match="not a signed statement"):
        read_head(resigned({**dataclasses.asdict(HEAD), "key": key}, DOMAIN))


def test_a_statement_has_one_text() -> None:
    """Spaces, another order, another spelling: not canonical, so the same statement cannot be kept twice."""
    fields = dataclasses.asdict(HEAD)
    for text in (json.dumps(fields), json.dumps(fields, separators=(",", ":")), HEAD.text() + "\n", " " + HEAD.text()):
        with pytest.raises(ValueError, match="not a signed statement"):
            read_head(text)


def test_a_head_is_no_receipt() -> None:
    """And the other way round; a line's signature is of another kind than a statement's."""
    with pytest.raises(ValueError, match="its fields are not those of one"):
        read_receipt(HEAD.text())
    with pytest.raises(ValueError, match="its fields are not those of one"):
        read_head(RECEIPT.text())


any_json = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.one_of(st.text(max_size=50), any_json.map(json.dumps), st.just("[" * 100_000), st.just("1" * 5000)))
@settings(max_examples=200, deadline=None)
def test_no_text_breaks_the_reader(text: str) -> None:
    """It is a `ValueError` in visible characters."""
    for read in (read_head, read_receipt):
        with pytest.raises(ValueError, match="not a signed statement") as refusal:
            read(text)
        assert str(refusal.value).isprintable()


@pytest.mark.parametrize("thing", [None, 5, b"{}", 1.5])
def test_what_is_no_text_is_none(thing: object) -> None:
    """A column of a file that somebody made can hold anything."""
    with pytest.raises(ValueError, match="not a signed statement"):
        read_receipt(thing)  # type: ignore[arg-type]
