"""The example backbone takes part in a federation from end to end, through the commands that people use."""

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.cli.called import Caller
from tests.conftest import TinyFederation
from tests.custom_backbones import MUTANTS, example_entry_points, forget_telltale, installed, telltale

from isthmus.backbone import shared_parameters
from isthmus.backbone_file import load_backbone, save_backbone
from isthmus.clients.audit.targets import attacks, target_of
from isthmus.clients.backbone_check import require_protocol
from isthmus.demo import write_demo
from isthmus.errors import PolicyRefused
from isthmus.privacy.program import backbone_hash
from isthmus.privacy.reading import read_ledger
from isthmus.report.result import read_result

RULES = (
    'approved_by = "Ada"\napproved_on = 2026-01-31\n\n[budget]\nepsilon = 8.0\ndelta = 1e-6\n\n'
    '[allow]\nbackbones = ["gru4rec", "gated", "foreseeing"]\n'
)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The example, another good one, and a mutant, installed."""
    mutant, _ = MUTANTS["foreseeing"]
    good = {**example_entry_points(), "gated": "tests.custom_backbones:Gated"}
    names = {**good, "foreseeing": f"tests.custom_backbones:{mutant.__name__}"}
    place = installed(tmp_path / "site", names)
    monkeypatch.syspath_prepend(str(place))
    yield place
    require_protocol.cache_clear()


@pytest.fixture
def isthmus(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Caller:
    """The command."""
    return Caller(monkeypatch, capsys)


def custom(file: Path, module: str = "gru4rec", *, allowed: bool = True) -> Path:
    """A federation whose file names a custom backbone, and whose domains allow it."""
    file.write_text(file.read_text().replace("[backbone]\n", f'[backbone]\nmodule = "{module}"\n'))
    for domain in file.parent.glob("*/domain.toml") if allowed else ():
        (domain.parent / "policy.toml").write_text(RULES)
    return file


def test_a_federation_is_trained_with_the_example(
    site: Path, tiny_federation: TinyFederation, isthmus: Caller, tmp_path: Path
) -> None:
    """Every round comes in, the same seed gives the same bytes, the books hold, and somebody is served."""
    file = custom(tiny_federation())
    for out in ("a", "b"):
        assert isthmus("simulate", file, "--out", tmp_path / out).code == 0
    result = read_result(tmp_path / "a" / "result.json")
    assert [domain.rounds_charged for domain in result.domains.values()] == [4, 4]
    tensors = load_file(tmp_path / "a" / "backbone.safetensors")
    assert {name.partition(".")[0] for name in tensors} == {"gru4rec", "whitening"}
    first, second = ((tmp_path / out / "backbone.safetensors").read_bytes() for out in "ab")
    assert first == second
    books = read_ledger(tmp_path / "a" / "ledgers" / "books.db")
    assert (books.findings, books.refusals) == ((), ())
    assert '"backbones":["gru4rec","gated","foreseeing"]' in books.policies[0].text
    checkpoint = load_file(tmp_path / "a" / "checkpoint.safetensors")
    moved = [name for name in checkpoint if name.endswith("gru4rec.head.weight")]
    assert any(np.abs(checkpoint[name]).max() > 0 for name in moved)
    served = isthmus("recommend", "--run", tmp_path / "a", "--domain", "books", "--user", "books-user-003")
    assert served.code == 0
    assert "books-" in served.out
    assert isthmus("audit", tmp_path / "a").code in (0, 1)  # 1: seeded noise is a finding


def test_what_is_trained_with_layers_of_opacus_is_served(
    site: Path, tiny_federation: TinyFederation, isthmus: Caller, tmp_path: Path
) -> None:
    """Its state has other names than its parameters (`DPGRU`); it is read back as shipped, and serves somebody."""
    run, file, serving = tmp_path / "run", custom(tiny_federation(), "gated"), tmp_path / "serving"
    assert isthmus("simulate", file, "--out", run, "--rounds", 1).code == 0
    fit = ("fit", file.parent / "books", "--ledger", run / "ledgers" / "books.db", "--out", serving)
    recommend = ("recommend", "--domain", "books", "--user", "books-user-003", "--run")
    said = [isthmus(*words) for words in (fit, (*recommend, run), (*recommend, serving))]
    assert [one.code for one in said] == [0, 0, 0], said
    assert all("books-" in one.out for one in said[1:])
    shipped, again = load_backbone(run / "backbone.safetensors"), tmp_path / "again.safetensors"
    assert "gated.unit.weight_ih_l0" in shared_parameters(shipped.backbone)
    save_backbone(again, shipped)
    assert again.read_bytes() == (run / "backbone.safetensors").read_bytes()


def test_where_it_is_not_installed_serving_says_so(
    site: Path, tiny_federation: TinyFederation, isthmus: Caller, tmp_path: Path
) -> None:
    """`recommend`, `fit` and a new run: exit 2, the module and the way out."""
    run = tmp_path / "run"
    file = custom(tiny_federation())
    assert isthmus("simulate", file, "--out", run, "--rounds", 1).code == 0
    (site / "site-1.0.dist-info" / "entry_points.txt").write_text("")
    ledger, domain = run / "ledgers" / "books.db", file.parent / "books"
    for words in (
        ("recommend", "--run", run, "--domain", "books", "--user", "books-user-003"),
        ("fit", domain, "--ledger", ledger, "--out", tmp_path / "serving"),
        ("simulate", file, "--out", tmp_path / "again"),
    ):
        said = isthmus(*words)
        assert said.code == 2, words
        assert "custom backbone 'gru4rec' is not installed here" in said.err
        assert "docs/backbone.md" in said.err


def test_serving_asks_the_policy_again_before_any_code_of_it_runs(
    site: Path, tiny_federation: TinyFederation, isthmus: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A business unit that has struck a backbone out after a run is not served by it: exit 1, and by which rule."""
    run, serving = tmp_path / "run", tmp_path / "serving"
    file = custom(tiny_federation())
    assert isthmus("simulate", file, "--out", run, "--rounds", 1).code == 0
    fit = ("fit", file.parent / "books", "--ledger", run / "ledgers" / "books.db", "--out", serving)
    recommend = ("recommend", "--domain", "books", "--user", "books-user-003", "--run")
    assert isthmus(*fit).code == 0
    commands = (fit, (*recommend, run), (*recommend, serving))
    (file.parent / "books" / "policy.toml").write_text(RULES.replace('"gru4rec", ', ""))
    for words in commands:
        monkeypatch.delitem(sys.modules, "isthmus_gru4rec", raising=False)
        said = isthmus(*words)
        assert said.code == 1, words
        assert "refuses custom backbone gru4rec: rule `backbones` says only gated, foreseeing" in said.err
        assert "isthmus_gru4rec" not in sys.modules
    (file.parent / "books" / "policy.toml").write_text(RULES)
    assert [isthmus(*words).code for words in commands] == [0, 0, 0]


def test_a_package_that_has_changed_since_it_was_approved_is_not_run_anywhere(
    site: Path, tiny_federation: TinyFederation, isthmus: Caller, tmp_path: Path
) -> None:
    """The doctor says the hash, policies pin it; a byte later no command runs the code: exit 1, with both hashes."""
    encoder = telltale(site)
    (site / "site-1.0.dist-info" / "entry_points.txt").write_text(
        "[isthmus.backbones]\ntelltale = telltale.encoder:Encoder\n"
    )
    told = isthmus("doctor", "--backbone", "telltale")
    assert told.code in (0, 1)  # of the machine
    (pin,) = re.findall(r"ok    telltale for `allow.backbones`: (telltale@[0-9a-f]{64})\n", told.out)
    run, serving, file = tmp_path / "run", tmp_path / "serving", custom(tiny_federation(), "telltale")
    for domain in ("books", "games"):
        (file.parent / domain / "policy.toml").write_text(RULES.replace('"gru4rec"', f'"{pin}"'))
    assert isthmus("simulate", file, "--out", run, "--rounds", 1).code == 0
    fit = ("fit", file.parent / "books", "--ledger", run / "ledgers" / "books.db", "--out", serving)
    recommend = ("recommend", "--domain", "books", "--user", "books-user-003", "--run")
    commands = (fit, (*recommend, run), (*recommend, serving), ("simulate", file, "--out", tmp_path / "again"))
    assert [isthmus(*words).code for words in commands[:3]] == [0, 0, 0]
    encoder.write_text(encoder.read_text().replace("VERSION = 1", "VERSION = 2"))
    for words in commands:
        forget_telltale(site)
        said = isthmus(*words)
        assert said.code == 1, words
        assert f"refuses custom backbone {changed_pin()}: rule `backbones` says only {pin}" in said.err
        assert "Install the package as it was approved, or let the business unit change its policy.toml" in said.err
        assert not (site / "ran").exists()
    with target_of([file.parent]) as target, pytest.raises(PolicyRefused, match="custom backbone telltale@"):
        attacks(target)
    assert not (site / "ran").exists()


def changed_pin() -> str:
    """As it is installed now."""
    return f"telltale@{backbone_hash('telltale')}"


def test_a_run_that_no_policy_allows_does_not_start(
    site: Path, tiny_federation: TinyFederation, isthmus: Caller, tmp_path: Path
) -> None:
    """Each domain refuses, in its own books; exit 1."""
    said = isthmus("simulate", custom(tiny_federation(), allowed=False), "--out", tmp_path / "run")
    assert said.code == 1
    assert said.err.count("refuses custom backbone gru4rec: rule `backbones` says only the built-in one") == 2
    for name in ("books", "games"):
        (line,) = read_ledger(tmp_path / "run" / "ledgers" / f"{name}.db").refusals
        assert (line.rule, line.kind) == ("backbones", "run")


def test_a_run_with_a_broken_backbone_does_not_start(
    site: Path, tiny_federation: TinyFederation, isthmus: Caller, tmp_path: Path
) -> None:
    """It looks at what it is to predict: exit 2, with the line of the protocol."""
    said = isthmus("simulate", custom(tiny_federation(), "foreseeing"), "--out", tmp_path / "run")
    assert said.code == 2
    assert "custom backbone 'foreseeing' breaks its protocol, line `causal`" in said.err


def test_the_doctor_says_which_line_is_broken(site: Path, isthmus: Caller) -> None:
    """Exit 1, and MEND at that line."""
    said = isthmus("doctor", "--backbone", "foreseeing")
    assert said.code == 1
    assert "MEND  foreseeing: causal" in said.out
    assert "ok    foreseeing: gradients" in said.out


def test_an_audit_attacks_the_custom_backbone(site: Path, tiny_federation: TinyFederation) -> None:
    """Through a vault of made-up users, if the domain's policy allows its code; else it is refused."""
    file = custom(tiny_federation(domains={"books": 40}))
    with target_of([file.parent]) as target:
        (planted,) = (attack for attack in attacks(target, seed=1) if attack.name == "planted")
        (canaries,) = (attack for attack in attacks(target, seed=1) if attack.name == "canaries")
        assert all(check.passed for check in canaries.run().checks)
        evidence = planted.run()
        assert any(tensor.name.startswith("gru4rec.") for tensor in evidence.noise)
        assert all(check.passed for check in evidence.checks)
        (file.parent / "books" / "policy.toml").unlink()
        with pytest.raises(PolicyRefused, match="custom backbone gru4rec"):
            attacks(target)


@pytest.mark.slow
def test_the_example_helps_in_the_demo(site: Path, isthmus: Caller, tmp_path: Path) -> None:
    """Four seeded rounds and an evaluation, which says that it is better than the prior."""
    file = custom(write_demo(tmp_path / "demo"))
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    assert isthmus("simulate", file, "--out", tmp_path / "run", "--rounds", 4).code == 0
    result = read_result(tmp_path / "run" / "result.json")
    assert result.federation.rounds == 4
    shipped = load_backbone(tmp_path / "run" / "backbone.safetensors")
    assert shipped.round == 4
