"""Every way to tamper with a ledger that there is, done to a real file: found by its rule, and refused by `Ledger`."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.privacy.conftest import (
    SECRET,
    WIDE,
    change,
    charge_of,
    copy_of,
    fields_of,
    insert,
    link_of,
    rules,
    signed,
)

from isthmus.errors import Refused, RunError
from isthmus.privacy.chain import now
from isthmus.privacy.custody import key_path, open_chain, revoke_key, rotate_key
from isthmus.privacy.examination import _KeyTerms, compare_heads, examine, fitting_heads, read_receipts
from isthmus.privacy.heads import Head, make_head, make_receipt
from isthmus.privacy.keys import Keys, fresh_keys, open_keys
from isthmus.privacy.ledger import Ledger
from isthmus.privacy.lines import (
    Charged,
    Layers,
    Noted,
    Opened,
    PolicyInForce,
    Released,
    Rotated,
    Withheld,
    from_text,
    names_digest,
)
from isthmus.privacy.links import Link, link_digest, link_message, read_links
from isthmus.privacy.reading import read_ledger

COLUMNS = ("seq", "body", "previous", "digest", "key", "signature")
LINES = 11
REFUSED = r"changed by somebody else|cannot be used as a ledger|[Rr]estore"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger with every kind of line that a domain writes, closed."""
    path = tmp_path_factory.mktemp("original") / "ledger.db"
    ledger = Ledger(path, name="books", secret=SECRET)
    ledger.follow('{"rule":1}')
    entries = [ledger.charge(charge_of(number), WIDE) for number in range(3)]
    ledger.keep_release(entries[0], b"payload")
    ledger.withhold(entries[1], "not finite")
    ledger.refuse(Refused("no", rule="clip"), run="run", round_=9, kind="update")
    rotate_key(ledger.chain, SECRET, reason="yearly")
    ledger.keep_release(entries[2], b"payload")
    ledger.charge(charge_of(3), WIDE)
    ledger.close()
    assert len(read_links(path)) == LINES
    return path


@pytest.fixture
def path(original: Path, tmp_path: Path) -> Path:
    """A copy of it, keys and all, to tamper with."""
    return copy_of(original, tmp_path / "books")


def assert_refused(path: Path) -> None:
    """`Ledger` says in one sentence or two, with the path, that it does not go on with this file."""
    with pytest.raises(RunError, match=REFUSED) as refusal:
        Ledger(path, secret=SECRET)
    assert str(refusal.value).startswith(str(path.with_suffix("")))
    assert str(refusal.value).isprintable()


def test_the_original_is_sound(path: Path) -> None:
    """Nothing is found in it, and it opens: so what is found below is what was done."""
    assert rules(path) == set()
    Ledger(path, secret=SECRET).close()
    assert rules(path) == set()


# One byte.

EXPECTED = {
    "seq": "order",
    "body": "digest",
    "previous": "link",
    "digest": "digest",
    "key": "key",
    "signature": "signature",
}


@pytest.mark.parametrize("line", range(1, LINES + 1))
@pytest.mark.parametrize("column", COLUMNS[1:])
def test_an_edited_byte_is_found(path: Path, line: int, column: str) -> None:
    """In every column of every line, written into the file where no database notices; under the column's rule."""
    flip_a_bit(path, line, column)
    assert EXPECTED[column] in {finding.rule for finding in read_ledger(path).findings if finding.line == line}
    assert_refused(path)


def flip_a_bit(path: Path, line: int, column: str) -> None:
    """In the middle of a value, on disk: of all places that hold these bytes, the one that the database reads."""
    value, whole = value_of(path, line, column), path.read_bytes()
    at, start = len(value) // 2, whole.index(value_of(path, line, "body")) - 1  # a row begins with its text
    while value_of(path, line, column) == value:
        start = whole.index(value, start + 1)
        changed = bytearray(whole)
        changed[start + at] ^= 1
        path.write_bytes(changed)


def value_of(path: Path, line: int, column: str) -> bytes:
    """As it lies in the file."""
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True)) as db:
        query = f"SELECT CAST({column} AS BLOB) FROM chain WHERE seq = ?"  # noqa: S608 - one of ours
        return bytes(db.execute(query, (line,)).fetchone()[0])


@given(st.integers(1, LINES), st.sampled_from(COLUMNS[1:]), st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_edited_value_is_found_without_the_file(original: Path, line: int, column: str, data: st.DataObject) -> None:
    """Any other value of any length, in any column: under that column's rule, at that line."""
    links = read_links(original)
    before = getattr(links[line - 1], column)
    value = data.draw(st.text(max_size=300) if column == "body" else st.binary(max_size=80))
    links[line - 1] = replace(links[line - 1], **{column: value})
    found = {finding.rule for finding in examine(links) if finding.line == line}
    assert (EXPECTED[column] in found) == (value != before)


@given(st.integers(0, 2**20), st.integers(1, 255))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_never_ends_in_a_traceback(original: Path, tmp_path: Path, at: int, mask: int) -> None:
    """One byte anywhere in the file, headers and indexes included: read or refused, in words."""
    path = tmp_path / "ledger.db"
    content = bytearray(original.read_bytes())
    content[at % len(content)] ^= mask
    path.write_bytes(content)
    key_path(path).write_bytes(key_path(original).read_bytes())
    for use in (lambda: read_ledger(path), lambda: Ledger(path, secret=SECRET).close()):
        assert refusal_of(use).isprintable()


def refusal_of(use: Callable[[], object]) -> str:
    """What a user is told; empty if it worked."""
    try:
        use()
    except RunError as error:
        return str(error)
    return ""


# Lines that go, come or change places.


@pytest.mark.parametrize("line", [1, 2, 6, LINES - 1])
def test_a_deleted_row_is_found(path: Path, line: int) -> None:
    """The first, and any in the middle."""
    change(path, "DELETE FROM chain WHERE seq = ?", parameters=(line,))
    assert {"order", "link"} <= rules(path)
    assert_refused(path)


def test_a_deleted_row_that_was_renumbered_away_is_found(path: Path) -> None:
    """The rows after it moved up: their texts say where they were."""
    change(
        path,
        "DELETE FROM chain WHERE seq = 6",
        "UPDATE chain SET seq = -seq WHERE seq > 6",
        "UPDATE chain SET seq = -seq - 1 WHERE seq < 0",
    )
    assert {"order", "link"} <= rules(path)
    assert_refused(path)


def test_a_reordered_pair_is_found(path: Path) -> None:
    """Two neighbours, whole rows."""
    change(
        path,
        "UPDATE chain SET seq = 99 WHERE seq = 4",
        "UPDATE chain SET seq = 4 WHERE seq = 5",
        "UPDATE chain SET seq = 5 WHERE seq = 99",
    )
    assert {"order", "link"} <= rules(path)
    assert_refused(path)


def a_charge(seq: int, *, run: str = "forged") -> Charged:
    """A line that says that nothing much was charged."""
    return Charged.model_validate({**fields_of(charge_of(seq, run=run)), "seq": seq, "time": now()})


@pytest.mark.parametrize("signer", ["nobody", "somebody", "the one before"])
def test_an_appended_row_is_found(path: Path, signer: str) -> None:
    """Rightly numbered, hashed and linked; not signed, signed by a stranger, or by a key that was rotated away."""
    links = read_links(path)
    keys = open_keys(key_path(path), SECRET) if signer == "the one before" else fresh_keys()
    if signer == "the one before":
        ledger = Ledger(path, secret=SECRET)
        rotate_key(ledger.chain, SECRET, reason="once more")
        ledger.close()
        links = read_links(path)
    link = link_of(a_charge(len(links) + 1), previous=links[-1].digest, keys=keys)
    insert(path, replace(link, signature=bytes(64)) if signer == "nobody" else link)
    found = {finding.rule for finding in read_ledger(path).findings if finding.line == link.seq}
    assert found == ({"key", "signature"} if signer == "nobody" else {"key"})
    assert_refused(path)


def test_a_row_in_the_name_of_the_key_in_force_is_found(path: Path) -> None:
    """Everything right but the signature, which only the key can make."""
    links = read_links(path)
    forged = link_of(a_charge(LINES + 1), previous=links[-1].digest, keys=fresh_keys())
    insert(path, replace(forged, key=links[-1].key))
    assert rules(path) == {"signature"}
    assert_refused(path)


def relinked(links: list[Link], keys: Keys, after: int) -> list[Link]:
    """The links after a position hashed and linked anew, and signed by these keys."""
    again = links[:after]
    for link in links[after:]:
        previous = again[-1].digest if again else bytes(32)
        body = json.loads(link.body)
        body["seq"] = len(again) + 1
        if body["type"] == "opened":
            body["key"] = keys.public.hex()
        text = json.dumps(body, sort_keys=True, separators=(",", ":"))
        digest = link_digest(previous, text)
        signature = keys.sign(link_message(digest))
        again.append(
            Link(seq=len(again) + 1, body=text, previous=previous, digest=digest, key=keys.public, signature=signature)
        )
    return again


def rewrite(path: Path, links: list[Link]) -> None:
    """Put other links in the place of all."""
    change(path, "DELETE FROM chain")
    for link in links:
        insert(path, link)


def test_an_inserted_row_with_everything_after_it_linked_anew_is_found(path: Path) -> None:
    """The forger hashes and signs the rest again, with a key of its own: no link is broken, the signer is wrong."""
    links = read_links(path)
    forged = link_of(a_charge(5), previous=links[3].digest, keys=fresh_keys())
    rewrite(
        path,
        relinked([*links[:4], forged, *(link for link in links[4:] if "rotated" not in link.body)], fresh_keys(), 4),
    )
    found = read_ledger(path).findings
    assert {finding.rule for finding in found} >= {"key"}
    assert {finding.line for finding in found if finding.rule == "key"} == set(range(5, LINES + 1))
    assert not {"link", "digest", "order"} & {finding.rule for finding in found}
    assert_refused(path)


def test_a_chain_that_was_signed_anew_from_the_start_is_found_by_who_knows_the_key(path: Path) -> None:
    """Without knowing it, nothing is wrong: that is why a key is handed over when a domain joins."""
    first = from_text(read_links(path)[0].body)
    assert isinstance(first, Opened)
    trusted = bytes.fromhex(first.key)
    assert rules(path, trusted=trusted) == set()
    rewrite(path, relinked([link for link in read_links(path) if "rotated" not in link.body], fresh_keys(), 0))
    assert rules(path) == set()
    assert rules(path, trusted=trusted) == {"key"}
    with pytest.raises(RunError, match=r"ledger\.key: holds key .* Restore the key file that belongs to ledger\.db"):
        Ledger(path, secret=SECRET)


def test_a_careful_forgery_is_found_by_the_trusted_key_alone(tmp_path: Path) -> None:
    """A whole second chain, consistent in itself, under the first one's id."""
    owner, forger = fresh_keys(), fresh_keys()
    lines = [Opened(seq=1, time=now(), owner="domain", ledger="ab" * 16, name="books", key=forger.public.hex())]
    links = signed(*lines, a_charge(2), keys=forger)
    assert examine(links) == []
    assert examine(links, trusted=forger.public) == []
    assert [(finding.line, finding.rule) for finding in examine(links, trusted=owner.public)] == [(1, "key")]


# What only others can know.


def test_a_cut_tail_is_found_by_a_head_that_was_shown(path: Path) -> None:
    """However much was cut; without the head nobody could know."""
    ledger = Ledger(path, secret=SECRET)
    heads = [ledger.head()]
    ledger.close()
    for keep in (LINES - 1, 9):
        change(path, "DELETE FROM chain WHERE seq > ?", parameters=(keep,))
        assert "truncated" not in rules(path)
        (finding,) = compare_heads(read_links(path), heads)
        assert (finding.rule, finding.text) == (
            "truncated",
            f"line {LINES} was shown to others, this copy ends at {keep}",
        )
        assert "truncated" in rules(path, heads=heads)


def test_a_tail_that_was_cut_with_the_rotation_in_it_looks_like_a_foreign_head(path: Path) -> None:
    """What is left never had the key: it is found, as what it may be, and not as a proof."""
    ledger = Ledger(path, secret=SECRET)
    head = ledger.head()
    ledger.close()
    change(path, "DELETE FROM chain WHERE seq > 2")
    (finding,) = compare_heads(read_links(path), [head])
    assert (finding.line, finding.rule) == (0, "foreign-head")
    assert "an end was lost in which the key was replaced (this copy ends at line 2)" in finding.text


def framing(links: list[Link], keys: Keys) -> list[Head]:
    """What a coordinator would make up under a key of its own to have a ledger look cut and rewritten."""
    ledger = json.loads(links[0].body)["ledger"]
    return [make_head(ledger, seq, bytes(32), keys) for seq in (3, 7, LINES, LINES + 1, 10**6)]


def test_nobody_can_make_a_ledger_look_cut_with_a_key_of_their_own(path: Path) -> None:
    """One finding for each such key, which accuses nobody; the ledger opens, and no receipt of it is kept."""
    links, stranger, other = read_links(path), fresh_keys(), fresh_keys()
    heads = [*framing(links, stranger), *framing(links, other)[:1]]
    found = compare_heads(links, heads)
    assert [(finding.line, finding.rule) for finding in found] == [(0, "foreign-head"), (0, "foreign-head")]
    assert found[0].text.startswith(
        f"a statement about 5 lines from 3 to {10**6} names this ledger and is signed by key "
        f"{stranger.public.hex()[:16]}, which this ledger never had: by itself no evidence against it."
    )
    assert "about line 3 names" in found[1].text
    assert rules(path, heads=heads) == {"foreign-head"}
    assert fitting_heads(links, heads) == []
    as_it_is = make_head(heads[0].ledger, LINES, links[-1].digest, stranger)
    assert {finding.rule for finding in compare_heads(links, [as_it_is])} == {"foreign-head"}
    assert fitting_heads(links, [as_it_is]) == []
    ledger = Ledger(path, secret=SECRET)
    for head in (*heads, as_it_is):
        with pytest.raises(Refused, match="receipt shows line") as refusal:
            ledger.keep_receipt(make_receipt(head, run="run", round=1, time=now(), keys=stranger))
        assert refusal.value.rule == "receipt"
    ledger.close()
    kept = make_receipt(as_it_is, run="run", round=1, time=now(), keys=stranger).text()
    change(path, "INSERT INTO receipts (seq, text) VALUES (?, ?)", parameters=(LINES, kept))
    assert rules(path) == {"foreign-head"}
    Ledger(path, secret=SECRET).close()


def test_the_check_of_a_heads_key_has_teeth(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: any key speaks for a ledger, as if the name of it were enough. Then a stranger can condemn its owner."""
    links, stranger = read_links(path), fresh_keys()
    heads = framing(links, stranger)
    real = _KeyTerms.of(links)
    believed = replace(real, since={**real.since, stranger.public.hex(): 1})
    monkeypatch.setattr(_KeyTerms, "of", lambda _: believed)
    monkeypatch.setattr(_KeyTerms, "speaks", lambda *_: True)
    assert {finding.rule for finding in compare_heads(links, heads)} == {"truncated", "rewritten"}


def test_a_head_under_a_replaced_key_is_neither_proof_nor_nothing(tmp_path: Path) -> None:
    """An older copy that went on under a new key cannot shake off what the old key had said; nor is it proven."""
    path = tmp_path / "ledger.db"
    ledger = Ledger(path, name="books", secret=SECRET)
    entry = ledger.charge(charge_of(0), WIDE)
    ledger.keep_release(entry, b"payload")
    ledger.charge(charge_of(1), WIDE)
    head = ledger.head()
    ledger.close()
    old = copy_of(path, tmp_path / "old")
    change(old, "PRAGMA foreign_keys = OFF", "DELETE FROM releases", "DELETE FROM chain WHERE seq > 2")
    restored = Ledger(old, secret=SECRET)
    rotate_key(restored.chain, SECRET, reason="yearly")
    restored.charge(charge_of(1, run="another"), WIDE)
    restored.close()
    ((line, rule, text),) = [(f.line, f.rule, f.text) for f in compare_heads(read_links(old), [head])]
    assert (line, rule) == (4, "retired-head")
    assert text.endswith("which line 3 replaced")
    revoked = Ledger(old, secret=SECRET)
    revoke_key(revoked.chain, SECRET, since=5, reason="stolen")
    thief = make_head(head.ledger, 10**6, bytes(32), fresh_keys())
    revoked.close()
    assert [f.rule for f in compare_heads(read_links(old), [thief])] == ["foreign-head"]


def test_what_a_stolen_key_says_of_lines_from_its_revocation_on_is_no_proof(tmp_path: Path) -> None:
    """Before that line it still is; and what agrees with the chain is no finding, whoever signed it."""
    ledger = Ledger(tmp_path / "ledger.db", secret=SECRET)
    for number in range(3):
        ledger.charge(charge_of(number), WIDE)
    stolen, id_ = ledger.chain.keys, ledger.chain.ledger
    true = ledger.head()
    revoke_key(ledger.chain, SECRET, since=4, reason="stolen")
    ledger.close()
    links = read_links(ledger.path)
    for seq, rule in ((3, "rewritten"), (4, "retired-head"), (10**6, "retired-head"), (0, "retired-head")):
        found = compare_heads(links, [make_head(id_, seq, bytes(32), stolen), true])
        assert [finding.rule for finding in found] == [rule]
    assert fitting_heads(links, [true]) == []
    before = make_head(id_, 3, links[2].digest, stolen)
    assert fitting_heads(links, [before]) == [before]


def test_a_process_whose_key_was_replaced_says_nothing_more_of_the_ledger(tmp_path: Path) -> None:
    """A head under the old key, of a line after it, would count for nothing; before it would be wrong to make one."""
    path = tmp_path / "ledger.db"
    stale, other = Ledger(path, secret=SECRET), Ledger(path, secret=SECRET)
    rotate_key(other.chain, SECRET, reason="yearly")
    with pytest.raises(RunError, match="it was rotated meanwhile. Start again"):
        stale.head()
    assert compare_heads(read_links(path), [other.head()]) == []
    stale.close()
    other.close()


def test_a_rewritten_past_is_found_by_a_head_that_was_shown(tmp_path: Path) -> None:
    """Its own owner, with its own key, wrote another line in its place: the chain is whole and not what it was."""
    keys = fresh_keys()
    opened = Opened(seq=1, time=now(), owner="domain", ledger="ab" * 16, name="books", key=keys.public.hex())
    links = signed(opened, a_charge(2), a_charge(3), keys=keys)
    heads = [make_head("ab" * 16, link.seq, link.digest, keys) for link in links]
    assert compare_heads(links, heads) == []
    again = signed(opened, a_charge(2, run="cheaper"), a_charge(3), a_charge(4), keys=keys)
    assert examine(again) == []
    assert [(finding.line, finding.rule) for finding in compare_heads(again, heads)] == [
        (2, "rewritten"),
        (3, "rewritten"),
    ]


def test_a_second_ledger_is_found_by_a_head_of_the_first(path: Path, tmp_path: Path) -> None:
    """The first one and its key are gone, a new one begins with nothing spent: consistent, and another one."""
    first = Ledger(path, secret=SECRET)
    heads = [first.head()]
    first.close()
    path.unlink()
    with pytest.raises(RunError, match="this ledger is missing, and its key ledger.key is there"):
        Ledger(path, secret=SECRET)
    assert not path.exists()
    key_path(path).unlink()
    Ledger(path, secret=SECRET).close()
    assert rules(path) == set()
    assert rules(path, heads=heads) == {"second-ledger"}


def test_heads_are_compared_with_anything(path: Path) -> None:
    """No line at all, or a first line that cannot be read: the heads are of another ledger, in words."""
    ledger = Ledger(path, secret=SECRET)
    heads = [ledger.head()]
    ledger.close()
    assert [finding.rule for finding in compare_heads([], heads)] == ["second-ledger"]
    links = read_links(path)
    links[0] = replace(links[0], body="?")
    assert [finding.rule for finding in compare_heads(links, heads)] == ["second-ledger"]


# Lies that are rightly signed.


def opening(keys: Keys) -> Opened:
    """The first line of a chain of these keys."""
    return Opened(seq=1, time=now(), owner="domain", ledger="ab" * 16, name="books", key=keys.public.hex())


def outcome(seq: int, charge: int) -> Released:
    """A line that says that a charge was released."""
    return Released(seq=seq, time=now(), charge=charge, payload="00" * 32)


def named(seq: int, *, digest: str | None = None) -> Layers:
    """A line that names two parameters."""
    names = ("adaptor.weight", "norm.bias")
    return Layers(seq=seq, time=now(), digest=digest or names_digest(names), names=names)


LIES = {
    "released twice": ([a_charge(2), outcome(3, 2), outcome(4, 2)], [(4, "outcome")]),
    "withheld and released": (
        [a_charge(2), Withheld(seq=3, time=now(), charge=2, reason="no"), outcome(4, 2)],
        [(4, "outcome")],
    ),
    "released without a charge": ([outcome(2, 1), outcome(3, 77)], [(2, "outcome"), (3, "outcome")]),
    "released before it was charged": ([outcome(2, 3), a_charge(3)], [(2, "outcome")]),
    "the same question charged twice": (
        [a_charge(2), a_charge(3).model_copy(update={"round": 2})],
        [(3, "twice")],
    ),
    "an event of no known kind": ([a_charge(2).model_copy(update={"event": "{}"})], [(2, "event")]),
    "an event of a hostile size": (
        [a_charge(2).model_copy(update={"event": '{"count":1,"kind":"gaussian","noise":1' + "0" * 400 + ',"v":1}'})],
        [(2, "event")],
    ),
    "an event of a hostile depth": ([a_charge(2).model_copy(update={"event": "[" * 2000})], [(2, "event")]),
    "opened again": ([opening(fresh_keys()).model_copy(update={"seq": 2})], [(2, "opening")]),
    "a policy under another digest": (
        [PolicyInForce(seq=2, time=now(), digest="00" * 32, text="{}")],
        [(2, "policy")],
    ),
    "names under another digest": ([named(2, digest="00" * 32)], [(2, "names")]),
    "names that come after their charge": (
        [a_charge(2).model_copy(update={"layers": named(3).digest}), named(3)],
        [(2, "names")],
    ),
    "a key that nobody showed to have": (
        [Rotated(seq=2, time=now(), key="00" * 32, proof="00" * 64, reason="")],
        [(2, "rotation")],
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_signed_lie_is_found(lie: str) -> None:
    """A ledger's own software gone wrong, or its owner with the key in hand: signed, linked, and not believed."""
    keys = fresh_keys()
    lines, expected = LIES[lie]
    assert [(finding.line, finding.rule) for finding in examine(signed(opening(keys), *lines, keys=keys))] == expected


@pytest.mark.parametrize("first", [a_charge(1), Noted(seq=1, time=now(), domain="a", run="b", round=1, head="")])
def test_a_chain_begins_with_its_opening(first: Charged | Noted) -> None:
    """Otherwise nobody knows whose it is, or which key is in force."""
    found = {finding.rule for finding in examine(signed(first, keys=fresh_keys()))}
    assert found >= {"opening", "key"}


def test_a_number_in_a_text_that_is_not_its_place_is_found() -> None:
    """The row's number and the line's are compared."""
    keys = fresh_keys()
    links = signed(opening(keys), a_charge(7), keys=keys)
    links[1] = replace(links[1], seq=2)
    assert [(finding.line, finding.rule) for finding in examine(links)] == [(2, "order")]


@pytest.mark.parametrize("hostile", ["\\n2026 all is well", "\\u001b[2J", "\\u202eb", "\\u2028", "\\ud800"])
def test_a_text_that_forges_a_line_is_found_however_it_came_in(path: Path, hostile: str) -> None:
    """Written by another program with the right key, canonical but for its content: found, and shown harmlessly."""
    keys = open_keys(key_path(path), SECRET)
    last = read_links(path)[-1]
    body = link_of(a_charge(LINES + 1), previous=last.digest, keys=keys).body.replace("forged", f"a{hostile}")
    digest = link_digest(last.digest, body)
    insert(
        path,
        Link(
            seq=LINES + 1,
            body=body,
            previous=last.digest,
            digest=digest,
            key=keys.public,
            signature=keys.sign(link_message(digest)),
        ),
    )
    (finding,) = read_ledger(path).findings
    assert (finding.line, finding.rule) == (LINES + 1, "form")
    assert finding.text.isprintable()
    with pytest.raises(RunError, match="line 12 cannot be read"):
        Ledger(path, secret=SECRET)


def test_what_a_revoked_key_signed_is_doubted_from_the_line_on(tmp_path: Path) -> None:
    """The lines before are believed, those from `since` on are findings, and the ledger still opens and charges."""
    path = tmp_path / "ledger.db"
    ledger = Ledger(path, secret=SECRET)
    for number in range(5):
        ledger.charge(charge_of(number), WIDE)
    revoke_key(ledger.chain, SECRET, since=5, reason="laptop stolen")
    ledger.charge(charge_of(5), WIDE)
    ledger.close()
    (finding,) = read_ledger(path).findings
    assert finding.rule == "revoked"
    assert finding.text.startswith("2 lines from 5 on are signed by a key that was revoked (laptop stolen)")
    again = Ledger(path, secret=SECRET)
    again.charge(charge_of(6), WIDE)
    assert len(list(again.entries())) == 7
    again.close()


def test_a_revocation_can_doubt_nothing_that_is_there(tmp_path: Path) -> None:
    """A key that was lost just now: only what turns up later is not believed."""
    path = tmp_path / "ledger.db"
    ledger = Ledger(path, secret=SECRET)
    lost = ledger.chain.keys
    ledger.charge(charge_of(), WIDE)
    revoke_key(ledger.chain, SECRET, since=3, reason="lost")
    last = ledger.chain.last()
    ledger.close()
    assert rules(path) == set()
    insert(path, link_of(a_charge(5), previous=last.digest, keys=lost))
    assert rules(path) == {"key"}


# Anything at all.

values = st.none() | st.integers(-5, 20) | st.binary(max_size=70) | st.text(max_size=50)
any_link = st.builds(
    Link,
    seq=st.integers(-(2**63), 2**63 - 1),
    body=st.text(max_size=50),
    previous=st.binary(max_size=40),
    digest=st.binary(max_size=40),
    key=st.binary(max_size=40),
    signature=st.binary(max_size=70),
)


@given(st.lists(any_link, max_size=4))
@settings(max_examples=200, deadline=None)
def test_whatever_the_links_are_there_are_findings_and_no_error(links: list[Link]) -> None:
    """No link that chance makes is sound."""
    found = examine(links)
    assert found
    assert all(finding.text.isprintable() for finding in found)


@given(st.lists(st.text(max_size=100) | st.just('{"head":1}'), max_size=3))
@settings(max_examples=100, deadline=None)
def test_whatever_the_receipts_are_there_are_findings_and_no_error(texts: list[str]) -> None:
    """One for each text that is none."""
    receipts, found = read_receipts(texts)
    assert receipts == []
    assert [finding.rule for finding in found] == ["receipt"] * len(texts)
    assert all(finding.text.isprintable() for finding in found)


def test_a_coordinators_log_is_not_a_ledger(tmp_path: Path) -> None:
    """And the other way round: each says so when it is opened as the other."""
    path = tmp_path / "heads.db"
    open_chain(path, owner="coordinator", name="coordinator", secret=SECRET).close()
    with pytest.raises(RunError, match="cannot be used as a ledger"):
        Ledger(path, secret=SECRET)
    assert rules(path) == set()
