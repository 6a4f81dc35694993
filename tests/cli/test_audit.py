"""`isthmus audit`: exit codes, outputs, and clear words for wrong use."""

import json
from pathlib import Path

import pytest
from tests.cli.called import Caller
from tests.privacy.audited import Federation

from isthmus.report.audit import read_text


def test_books_in_order_are_said_to_be_so(isthmus: Caller, books: Federation) -> None:
    """Exit 0; each data set with what it spent, its limit and what is left; one person in both."""
    done = isthmus("audit", books.folder)
    assert done.code == 0
    assert "Nothing was found wrong in 2 data sets" in done.out
    for words in ("books", "1.22", "8.00", "6.78", "music", "1.04", "one person in several of them: epsilon 1.57"):
        assert words in done.out
    assert "1 entry was charged and never sent" in done.out


def test_a_finding_is_exit_1_and_is_explained(isthmus: Caller, cut: Path) -> None:
    """The rule, what was seen, and what it means."""
    done = isthmus("audit", cut)
    assert done.code == 1
    assert "truncated" in done.out
    assert "Lines that others have seen are missing at the end" in done.out


def test_without_the_log_a_cut_cannot_be_seen_and_with_it_is(isthmus: Caller, cut: Path) -> None:
    """The other side's copy is what tells."""
    ledger = cut / "ledgers" / "books.db"
    assert isthmus("audit", ledger).code == 0
    assert isthmus("audit", ledger, "--heads", cut / "heads.db").code == 1


def test_it_writes_a_signed_audit_a_page_and_a_document(isthmus: Caller, books: Federation, tmp_path: Path) -> None:
    """All three, each said; the JSON on stdout is the same audit, and nothing else is printed with it."""
    out, html, pdf = tmp_path / "a.json", tmp_path / "a.html", tmp_path / "a.pdf"
    done = isthmus("audit", books.folder, "--out", out, "--html", html, "--pdf", pdf)
    assert done.code == 0
    assert [
        f"{kind}: {path}" in done.out for kind, path in (("signed audit", out), ("page", html), ("document", pdf))
    ] == [True] * 3
    assert html.read_text().startswith("<!DOCTYPE html>")
    assert pdf.read_bytes().startswith(b"%PDF-")
    printed = read_text(isthmus("audit", books.folder, "--json").out)
    written = read_text(out.read_text())
    assert printed.key == written.key
    assert printed.audit.data_sets == written.audit.data_sets


def test_the_key_that_signs_can_be_chosen(isthmus: Caller, books: Federation, tmp_path: Path) -> None:
    """Made where it is absent, and used again."""
    key = tmp_path / "auditor.key"
    first = read_text(isthmus("audit", books.folder, "--json", "--auditor-key", key).out)
    again = read_text(isthmus("audit", books.folder, "--json", "--auditor-key", key).out)
    assert first.key == again.key == json.loads(key.read_text())["public"]


def test_a_trusted_key_is_taken_from_hex_or_a_file(isthmus: Caller, books: Federation, tmp_path: Path) -> None:
    """Hex, a file of hex, a sealed key file; another key is a finding."""
    path = books.path("books")
    sealed = path.with_suffix(".key")
    public = json.loads(sealed.read_text())["public"]
    named = tmp_path / "public.txt"
    named.write_text(f"{public}\n")
    for key in (public, named, sealed):
        assert isthmus("audit", path, "--key", key).code == 0
    other = isthmus("audit", path, "--key", "ab" * 32)
    assert other.code == 1
    assert "trusted is abababababababab" in other.out


@pytest.mark.parametrize("verb", ["audit", "verify"])
def test_a_coordinators_key_is_held_against_its_log_and_receipts(
    isthmus: Caller, books: Federation, tmp_path: Path, verb: str
) -> None:
    """Its own key passes; a domain's own, or a stranger's, is a finding; `--key` is about ledgers alone."""
    public = json.loads(books.path("books").with_suffix(".key").read_text())["public"]
    coordinator = tmp_path / "coordinator.txt"
    coordinator.write_text(books.log.keys.public.hex())
    ledger, heads = books.path("books"), ["--heads", books.log_path]
    assert isthmus(verb, ledger, *heads, "--key", public, "--coordinator-key", coordinator).code == 0
    other = isthmus(verb, ledger, *heads, "--coordinator-key", public)
    assert other.code == 1
    assert "trusted coordinator is" in other.out
    assert "coordinator's log" in other.out
    assert isthmus(verb, ledger, "--coordinator-key", "ab" * 32).code == 1, "receipts, without a log"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "no such file or folder"),
        (["."], "no ledger here"),
        (["{heads}"], "only coordinators' logs were named"),
        (["{text}"], "not a ledger"),
        (["{books}", "--key", "12"], "a public key is 64 hex digits"),
        (["{books}", "--key", "{text}"], "--key: a public key is 64 hex digits"),
        (["{books}", "--coordinator-key", "12"], "--coordinator-key: a public key is 64 hex digits"),
        (["{books}", "--delta", "2"], "must be in (0, 1)"),
        (["{books}", "--heads", "{books}"], "log of heads is asked for"),
        (["{books}", "--html", "{text}/page.html"], "cannot be written"),
        ([], "Missing argument"),
    ],
)
def test_wrong_use_is_exit_2_with_one_clear_sentence(  # noqa: PLR0917 - fixtures
    isthmus: Caller,
    books: Federation,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: str,
) -> None:
    """Nothing on stdout, no traceback."""
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "words.txt"
    text.write_text("only words")
    places = {"books": books.path("books"), "heads": books.log_path, "text": text}
    done = isthmus("audit", *(argument.format(**places) for argument in arguments))
    assert done.code == 2
    assert words in done.err
    assert done.out == ""


def test_a_hostile_name_prints_as_text(isthmus: Caller, tmp_path: Path) -> None:
    """Markup in a run's name is shown, not obeyed."""
    federation = Federation(tmp_path)
    federation.run("[bold]run[/bold] <script>")
    federation.close()
    done = isthmus("audit", tmp_path, "--html", tmp_path / "a.html")
    assert done.code == 0
    assert "<script>" not in (tmp_path / "a.html").read_text()
