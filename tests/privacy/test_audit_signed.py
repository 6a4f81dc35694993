"""The signed audit: nobody can change it unseen, its schema is published, and its numbers follow from its entries."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from tests.privacy.audited import everyday

import isthmus.report.audit
from isthmus.errors import RunError
from isthmus.privacy.audit import auditor_keys, check_signed, make_audit, read_sources, sign
from isthmus.privacy.keys import Keys, Secret, fresh_keys
from isthmus.report.audit import Audit, SignedAudit, read_text, schema_text, to_text

SECRET = Secret(content=b"x" * 32, stretch=False, source="a test")
PACKAGED = Path(isthmus.report.audit.__file__).with_name("audit.schema.json")


@pytest.fixture(scope="module")
def keys() -> Keys:
    """An auditor's."""
    return fresh_keys()


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory, keys: Keys) -> SignedAudit:
    """An everyday audit, signed."""
    books = everyday(tmp_path_factory.mktemp("everyday"))
    return sign(make_audit(read_sources([books.folder])), keys)


def changed(signed: SignedAudit, change: Callable[[dict[str, Any]], object], keys: Keys | None = None) -> SignedAudit:
    """The same with something else in the audit, signed again if keys are given."""
    content = json.loads(signed.model_dump_json())
    change(content["audit"])
    audit = Audit.model_validate_json(json.dumps(content["audit"]))
    return sign(audit, keys) if keys else signed.model_copy(update={"audit": audit})


def test_a_signed_audit_comes_back_and_is_sound(signed: SignedAudit, keys: Keys) -> None:
    """Through its text, with and without a trusted key."""
    again = read_text(to_text(signed))
    assert again == signed
    assert check_signed(again) == []
    assert check_signed(again, trusted=frozenset({keys.public})) == []


def test_the_published_schema_is_that_of_the_models_and_the_file_obeys_it(signed: SignedAudit) -> None:
    """The packaged file is up to date; a file with a word too many breaks it."""
    assert PACKAGED.read_text() == schema_text()
    schema, content = json.loads(PACKAGED.read_text()), json.loads(to_text(signed))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(content)
    content["audit"]["data_sets"][0]["epsilon"] = "low"
    assert not validator.is_valid(content)


@pytest.mark.parametrize(
    "change",
    [
        lambda audit: audit["data_sets"][0].update(epsilon=0.1),
        lambda audit: audit["data_sets"][0]["entries"].pop(),
        lambda audit: audit["data_sets"][0]["entries"][3].update(coordinator=""),
        lambda audit: audit.update(made="2020-01-01T00:00:00.000+00:00"),
        lambda audit: audit["method"].update(unit="one event"),
    ],
)
def test_any_change_breaks_the_signature(signed: SignedAudit, change: Callable[[dict[str, Any]], object]) -> None:
    """A number, an entry, a name, a time, a word."""
    assert "signature" in {finding.rule for finding in check_signed(changed(signed, change))}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda audit: audit["data_sets"][0].update(epsilon=0.1), "epsilon of 'books'"),
        (lambda audit: audit["data_sets"][0].update(left=7.9), "what is left of 'books'"),
        (lambda audit: audit["data_sets"][0]["runs"][1].update(epsilon=0.1), "epsilon of run"),
        (lambda audit: audit["data_sets"][0]["runs"][1].update(sent=99), "`runs`"),
        (lambda audit: audit["data_sets"][1]["runs"].pop(), "`runs`"),
        (lambda audit: audit["data_sets"][1].update(private=False), "`private`"),
        (lambda audit: audit["data_sets"][0].update(budget=99.0), "`budget`"),
        (lambda audit: audit["data_sets"][0].update(more_rounds=99_999), "`more_rounds`"),
        (lambda audit: audit["data_sets"][0]["opinion"].update(agrees=False), "`opinion`"),
        (lambda audit: audit["data_sets"][0]["policies"][0].update(approved_by="The Board"), "`policies`"),
        (lambda audit: audit["person"]["bound"].update(epsilon=0.1), "of one person, as declared"),
        (lambda audit: audit["person"]["cautious"].update(epsilon=0.1), "of one person in all domains"),
        (lambda audit: audit["data_sets"][0]["entries"].pop(4), "epsilon of 'books'"),
    ],
)
def test_an_auditor_who_lies_is_contradicted_by_the_entries(
    signed: SignedAudit, keys: Keys, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    """Although the signature is right."""
    findings = check_signed(changed(signed, change, keys))
    assert {finding.rule for finding in findings} == {"recomputed"}
    assert any(words in finding.text for finding in findings)


def test_an_unknown_auditor_is_found(signed: SignedAudit, keys: Keys) -> None:
    """Signed anew by somebody else: sound in itself, and not by whom the reader trusts."""
    other = sign(signed.audit, fresh_keys())
    assert check_signed(other) == []
    assert [finding.rule for finding in check_signed(other, trusted=frozenset({keys.public}))] == ["key"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-10],
        lambda text: text.replace('"isthmus_version"', '"version"'),
        lambda text: text.replace(" ", "  ", 1),
        lambda text: text.replace('{\n "audit"', '{\n "key": "00",\n "audit"'),
        lambda text: text.replace('"schema_version": 1', '"schema_version": 2'),
    ],
)
def test_what_is_not_exactly_such_a_text_is_refused(signed: SignedAudit, damage: Callable[[str], str]) -> None:
    """Cut, renamed, re-spaced, a key twice, another layout."""
    text = to_text(signed)
    assert damage(text) != text
    with pytest.raises(ValueError, match=r"."):
        read_text(damage(text))


def test_an_auditors_key_is_made_once_and_sealed(tmp_path: Path) -> None:
    """The same key the next time; another secret does not open it; the private key is not in the file."""
    path = tmp_path / "auditor.key"
    keys = auditor_keys(path, SECRET)
    assert auditor_keys(path, SECRET).public == keys.public
    assert keys.signing.private_bytes_raw().hex() not in path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    with pytest.raises(RunError, match="does not open it"):
        auditor_keys(path, Secret(content=b"y" * 32, stretch=False, source="another"))
