"""What a line can say, and that nothing else can be written or read."""

import json
import math
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.privacy.lines import (
    AnyLine,
    Charged,
    Ebbed,
    Flooded,
    Layers,
    Line,
    Noted,
    Opened,
    PolicyInForce,
    RefusedLine,
    Released,
    Revoked,
    Rotated,
    Started,
    Withheld,
    from_text,
    names_digest,
    one_line,
    to_text,
)

PLACE = {"seq": 7, "time": "2026-01-31T23:59:59.999+00:00"}
HASH = "0f" * 32
LINES: list[AnyLine] = [
    Opened(**PLACE, owner="domain", ledger="ab" * 16, name="books & Söhne 😀", key=HASH),
    PolicyInForce(**PLACE, digest=HASH, text="{}"),
    Layers(**PLACE, digest=HASH, names=("adaptor.weight", "norm.bias")),
    Started(**PLACE, run="r 1", start=HASH, domains=("elsewhere",), users=700),
    Charged(
        **PLACE,
        dataset=HASH,
        run="r 1",
        round=3,
        kind="update",
        request="00ff",
        event='{"kind":"none","v":1}',
        clip=0.5,
        layers=HASH,
        private=True,
        version="1",
        code=HASH,
        policy="",
        coordinator="",
    ),
    Released(**PLACE, charge=6, payload=HASH),
    Withheld(**PLACE, charge=6, reason="not finite"),
    RefusedLine(
        **PLACE, run="r", round=1, kind="update", rule="clip", asked="clip 2", limit="at most 1", coordinator=HASH
    ),
    Flooded(**PLACE, most=100),
    Ebbed(**PLACE, flood=7, count=9900),
    Rotated(**PLACE, key=HASH, proof="0f" * 64, reason="yearly"),
    Revoked(**PLACE, key=HASH, since=3, reason="stolen"),
    Noted(**PLACE, domain="books", run="r", round=1, head="{}"),
]
HOSTILE = [
    "a\nb",
    "a\rb",
    "a\tb",
    "\x1b[2Ja",
    "a\x00",
    "a\x7f",
    "a\x85b",
    "\u202eab",
    "a\u2066b",
    "a\u200bb",
    "a\u2028b",
]
HOSTILE += ["a\u2029b", "\ufeffa", "a\xadb", "\ud800"]

each_line = pytest.mark.parametrize("line", LINES, ids=lambda line: line.type)


def fields_of(line: Line) -> list[str]:
    """Its own, apart from place and kind."""
    return sorted(type(line).model_fields.keys() - {"v", "seq", "time", "type"})


def text_fields() -> list[tuple[AnyLine, str]]:
    """Every field of every kind of line that holds text."""
    return [(line, name) for line in LINES for name in fields_of(line) if isinstance(getattr(line, name), str)]


def test_every_kind_of_line_is_tried_here() -> None:
    """The list above is complete: kinds are never removed."""
    union = get_args(get_args(AnyLine)[0])
    assert {type(line) for line in LINES} == set(union)
    assert [line.type for line in LINES] == [
        "opened",
        "policy",
        "layers",
        "started",
        "charged",
        "released",
        "withheld",
        "refused",
        "flooded",
        "ebbed",
        "rotated",
        "revoked",
        "noted",
    ]


@each_line
def test_a_line_comes_back_from_its_text(line: AnyLine) -> None:
    """One line of ASCII with sorted keys, and nothing lost."""
    text = to_text(line)
    assert from_text(text) == line
    assert text.isascii()
    assert text.isprintable()
    assert list(json.loads(text)) == sorted(json.loads(text))


@each_line
def test_a_line_has_exactly_its_fields(line: AnyLine) -> None:
    """One missing, one more, one of another type: not a line."""
    whole = json.loads(to_text(line))
    changes = [{key: whole[key] for key in whole if key != name} for name in whole if name != "v"]
    changes += [{**whole, "more": 1}]
    changes += [
        {**whole, name: wrong}
        for name in whole
        for wrong in (None, [], {}, 1.5, -1, True)
        if wrong != whole[name] and not (name == "clip" and wrong in (None, 1.5))
    ]
    for changed in changes:
        if changed.get("private") is True is not whole.get("private"):
            continue
        with pytest.raises(ValueError, match="not a line|canonical"):
            from_text(json.dumps(changed, sort_keys=True, separators=(",", ":")))


@pytest.mark.parametrize("hostile", HOSTILE, ids=ascii)
@pytest.mark.parametrize(("line", "field"), text_fields(), ids=lambda value: getattr(value, "type", value))
def test_no_text_field_takes_what_could_forge_a_line(line: AnyLine, field: str, hostile: str) -> None:
    """Line breaks, control, invisible and direction characters: neither written nor read."""
    whole = {**line.model_dump(), field: hostile}
    with pytest.raises(ValueError, match=field):
        type(line).model_validate(whole)
    with pytest.raises(ValueError, match="not a line") as refusal:
        from_text(json.dumps(whole, sort_keys=True, separators=(",", ":")))
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "null",
        '"opened"',
        "[" * 100_000,
        "\ud800",
        '{"type":"forged"}',
        '{"type":["opened"]}',
        '{"type":"\x1b[31mopened"}',
        '{"type":"released","seq":1e999}',
    ],
    ids=lambda text: ascii(text[:20]),
)
def test_what_is_no_line_is_a_value_error_in_visible_characters(text: str) -> None:
    """Whatever it is; the message can go to a terminal."""
    with pytest.raises(ValueError, match="not a line") as refusal:
        from_text(text)
    assert str(refusal.value).isprintable()


@given(st.text() | st.from_regex(r'\{"[a-z]+":.*\}'))
@settings(max_examples=300, deadline=None)
def test_no_text_breaks_the_reader(text: str) -> None:
    """It is a `ValueError` or a line that says exactly this text."""
    try:
        line = from_text(text)
    except ValueError:
        return
    assert to_text(line) == text


@pytest.mark.parametrize("spoiled", ['{"charge": 6,', '{"charge":6,"charge":6,', ' {"charge":6,', '{"charge":6.0,'])
def test_a_line_has_one_text(spoiled: str) -> None:
    """Spaces, repeated keys, other spellings of a number: the same line has one hash, so it has one text."""
    text = to_text(Released(**PLACE, charge=6, payload=HASH))
    assert text.startswith('{"charge":6,')
    with pytest.raises(ValueError, match="canonical|not a line"):
        from_text(spoiled + text.removeprefix('{"charge":6,'))


@pytest.mark.parametrize("clip", [0.0, -1.0, math.nan, math.inf, 1, "1.0"], ids=ascii)
def test_a_clip_is_a_finite_norm_above_zero(clip: object) -> None:
    """Or there is none; a whole number has the spelling of the others."""
    whole = {**LINES[3].model_dump(), "clip": clip}
    with pytest.raises(ValueError, match="clip|canonical|not a line"):
        from_text(json.dumps(whole, sort_keys=True, separators=(",", ":")))
    for good in (None, 1.0, 1e-6):
        line = LINES[3].model_copy(update={"clip": good})
        assert from_text(to_text(line)) == line


@pytest.mark.parametrize("names", [[], ["b", "a"], ["a", "a"], ["a\n"], "ab", ["a"] * 20_000], ids=lambda n: str(n)[:9])
def test_names_of_parameters_are_sorted_each_once(names: object) -> None:
    """So that one set has one digest, which depends on each letter and on where a name ends."""
    whole = {**LINES[2].model_dump(), "names": names}
    with pytest.raises(ValueError, match="names"):
        from_text(json.dumps(whole, sort_keys=True, separators=(",", ":")))
    assert names_digest(["a", "b"]) == names_digest(["b", "a"])
    assert len({names_digest(each) for each in (["a", "b"], ["ab"], ["a"], ["a", "b", "c"], [])}) == 5


@pytest.mark.parametrize(
    "time",
    [
        "2026-02-30T00:00:00.000+00:00",
        "2026-01-01T25:00:00.000+00:00",
        "٢٠٢٦-01-01T00:00:00.000+00:00",
        "2026-01-01T00:00:00+00:00",
        "2026-01-01T00:00:00.000+01:00",
        "2026-01-01T00:00:00.000+00:00\n",
    ],
)
def test_a_time_exists_and_is_utc(time: str) -> None:
    """What reports would stumble over is not a time."""
    with pytest.raises(ValueError, match="time"):
        Released.model_validate({"seq": 1, "time": time, "charge": 1, "payload": HASH})


@given(st.text(max_size=5000))
@settings(max_examples=200, deadline=None)
def test_any_text_becomes_one_line(text: str) -> None:
    """Visible characters, at most 2000 of them, the same text if it was one already."""
    shown = one_line(text)
    assert shown.isprintable()
    assert len(shown) == min(len(text), 2000)
    if text.isprintable() and len(text) <= 2000:
        assert shown == text
