"""Events are written the same way for ever: a round trip, golden bytes, refusals, and the page on it."""

import json
import re
from pathlib import Path

import dp_accounting
import pytest
from dp_accounting import DpEvent
from hypothesis import given
from hypothesis import strategies as st

from isthmus.privacy import accounting
from isthmus.privacy.accounting import NOTHING, decode_event, encode_event, gaussian, poisson_gaussian


@given(
    event=st.one_of(
        st.just(NOTHING),
        st.builds(gaussian, st.floats(1e-3, 1e6), st.integers(1, 10**9)),
        st.builds(poisson_gaussian, st.floats(1e-12, 1.0), st.floats(1e-3, 1e6), st.integers(1, 10**9)),
    )
)
def test_an_event_comes_back_from_its_text(event: DpEvent) -> None:
    """Every number to the last bit, and the same text again."""
    text = encode_event(event)
    assert decode_event(text) == event
    assert encode_event(decode_event(text)) == text


GOLDEN = (
    (NOTHING, b'{"kind":"none","v":1}'),
    (gaussian(20.0), b'{"count":1,"kind":"gaussian","noise":20.0,"v":1}'),
    (gaussian(9, 3), b'{"count":3,"kind":"gaussian","noise":9.0,"v":1}'),
    (gaussian(1e22, 10**12), b'{"count":1000000000000,"kind":"gaussian","noise":1e+22,"v":1}'),
    (poisson_gaussian(0.05, 1.9, 5), b'{"count":5,"kind":"poisson-gaussian","noise":1.9,"rate":0.05,"v":1}'),
    (poisson_gaussian(1, 2.0, 1), b'{"count":1,"kind":"poisson-gaussian","noise":2.0,"rate":1.0,"v":1}'),
    (
        poisson_gaussian(1 / 3, 0.1 + 0.2, 7),
        b'{"count":7,"kind":"poisson-gaussian","noise":0.30000000000000004,"rate":0.3333333333333333,"v":1}',
    ),
    (poisson_gaussian(1e-12, 1e-3, 1), b'{"count":1,"kind":"poisson-gaussian","noise":0.001,"rate":1e-12,"v":1}'),
)
"""Bytes that stand in ledgers: the list may grow, a line of it must never change."""


@pytest.mark.parametrize(("event", "written"), GOLDEN)
def test_version_1_bytes_never_change(event: DpEvent, written: bytes) -> None:
    """What is written in ledgers today is read for ever, and written the same way."""
    assert encode_event(event).encode() == written
    read = decode_event(written.decode())
    assert accounting._parts(read)[1:] == accounting._parts(event)[1:]
    assert encode_event(read).encode() == written


def test_version_1_kinds_keep_their_meaning() -> None:
    """Each kind stands for the mechanism that the documentation names, built here from the library's own parts."""
    assert decode_event(GOLDEN[0][1].decode()) == dp_accounting.NoOpDpEvent()
    assert decode_event(GOLDEN[1][1].decode()) == dp_accounting.SelfComposedDpEvent(
        dp_accounting.GaussianDpEvent(20.0), 1
    )
    assert decode_event(GOLDEN[4][1].decode()) == dp_accounting.SelfComposedDpEvent(
        dp_accounting.PoissonSampledDpEvent(0.05, dp_accounting.GaussianDpEvent(1.9)), 5
    )


def test_the_documentation_of_the_encoding_is_true() -> None:
    """Its examples are lines that are written, its table names every kind, and no other."""
    page = (Path(__file__).parents[2] / "docs" / "event-encoding.md").read_text(encoding="utf-8")
    examples = [line for line in page.splitlines() if line.startswith("{")]
    assert [encode_event(decode_event(line)) for line in examples] == examples
    kinds = {json.loads(written)["kind"] for _, written in GOLDEN}
    assert {json.loads(line)["kind"] for line in examples} == kinds
    table = page.split("| kind | meaning |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `([a-z-]+)`", table, flags=re.MULTILINE)) == kinds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        "[]",
        "7",
        "null",
        "{}",
        '{"kind":"none"}',
        '{"kind":"none","v":2}',
        '{"kind":"laplace","noise":1.0,"v":1}',
        '{"kind":"gaussian","noise":1.0,"v":1}',
        '{"kind":"gaussian","noise":null,"count":1,"v":1}',
        '{"kind":"gaussian","noise":0.0,"count":1,"v":1}',
        '{"kind":"gaussian","noise":-1.0,"count":1,"v":1}',
        '{"kind":"gaussian","noise":NaN,"count":1,"v":1}',
        '{"kind":"gaussian","noise":Infinity,"count":1,"v":1}',
        '{"kind":"gaussian","noise":1.0,"count":0,"v":1}',
        '{"kind":"gaussian","noise":1.0,"count":-3,"v":1}',
        '{"kind":"gaussian","noise":1.0,"count":1.9,"v":1}',
        '{"kind":"gaussian","noise":1.0,"count":true,"v":1}',
        '{"kind":"gaussian","noise":1.0,"count":"4","v":1}',
        '{"kind":"poisson-gaussian","noise":1.0,"count":1,"v":1}',
        '{"kind":"poisson-gaussian","noise":1.0,"count":1,"rate":0.0,"v":1}',
        '{"kind":"poisson-gaussian","noise":1.0,"count":1,"rate":1.5,"v":1}',
        '{"kind":"poisson-gaussian","noise":1.0,"count":1,"rate":NaN,"v":1}',
    ],
)
def test_a_text_that_is_no_version_1_event_is_refused(text: str) -> None:
    """Unknown kinds and versions, missing fields and impossible numbers: never guessed, never rounded down."""
    with pytest.raises(ValueError, match="not an event of encoding version 1"):
        decode_event(text)
