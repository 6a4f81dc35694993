"""`isthmus audit --empirical`: attacks on the program that is installed, from the command line to the report."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.called import Caller
from tests.clients.audit.mutants import HalvedNoise, Unclipped, served
from tests.conftest import TinyFederation
from tests.privacy.audited import policy

import isthmus as package
from isthmus.privacy.ledger import Ledger
from isthmus.report import numbers
from isthmus.report.audit import Empirical, read_text

PACKAGE = Path(package.__file__).parent
PROGRAM = """
import sys
class Absent:
    def find_spec(name, *rest):
        if name.partition(".")[0] == {absent!r}:
            raise ModuleNotFoundError(name=name)
sys.meta_path.insert(0, Absent)
from isthmus.cli import main
main()
"""


@pytest.fixture
def domain(tiny_federation: TinyFederation) -> Path:
    """A domain of a tiny federation, with a ledger that is in order."""
    folder = tiny_federation().parent / "books"
    ledger = Ledger(folder / "ledger.db", name="books")
    ledger.follow(policy().text())
    ledger.close()
    return folder


def in_a_process(package_in: Path, *arguments: object, block: str = "") -> subprocess.CompletedProcess[str]:
    """Call the command in a fresh process, with the package that lies in a folder, and with a module that is absent."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(absent=block), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(package_in), "NO_COLOR": "1"},
        cwd=package_in,
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_honest_program_passes_and_everything_is_said(isthmus: Caller, domain: Path, tmp_path: Path) -> None:
    """Exit 0; bound, confidence and claim of each attack, who is found, what it sees and not; no ledger is charged."""
    out, html, pdf = tmp_path / "a.json", tmp_path / "a.html", tmp_path / "a.pdf"
    before = (domain / "ledger.db").read_bytes()
    done = isthmus("audit", domain, "--empirical", "--out", out, "--html", html, "--pdf", pdf)
    assert done.code == 0, done.out
    attacks = {attack.name: attack for attack in read_text(out.read_text()).audit.empirical}
    assert list(attacks) == ["canaries", "planted", "membership"]
    for number, (name, attack) in enumerate(attacks.items(), start=1):
        assert f"attack {number} of 3, {name}" in done.err
        assert f"{name}: epsilon is at least" in done.out
        assert f"({attack.confidence:.0%} confidence), {numbers.epsilon(attack.claimed_epsilon)} is claimed" in done.out
        assert attack.sees in done.out
        assert attack.blind_to in done.out
        assert attack.attacked == "policy and catalogue of books, backbone of federation tiny"
        assert 0 <= attack.lower_bound <= attack.claimed_epsilon <= 8.0
    assert "at most 0.1% of outsiders" in done.out
    assert len(attacks["membership"].roc) > 5
    assert "ROC of the attack membership" in html.read_text()
    assert pdf.read_bytes().startswith(b"%PDF-")
    assert (domain / "ledger.db").read_bytes() == before
    assert isthmus("verify", out).code == 0, "the signed audit holds together with its attacks"


@pytest.mark.parametrize(("mutant", "check"), [(HalvedNoise, "noise in every tensor"), (Unclipped, "contribution")])
def test_a_broken_program_is_exit_1_and_the_check_is_named(
    isthmus: Caller, domain: Path, mutant: type[HalvedNoise], check: str
) -> None:
    """Half of the noise, or no clipping: the books are in order, the program is not."""
    with served(mutant):
        done = isthmus("audit", domain, "--empirical")
    assert done.code == 1
    assert f"empirical: canaries: {check}:" in done.out
    assert "does not do what it is charged for" in done.out
    assert isthmus("audit", domain).code == 0


@pytest.mark.slow
def test_a_changed_source_file_is_exit_1_in_a_process_of_its_own(domain: Path, tmp_path: Path) -> None:
    """A copy of the package with half of the noise on one line."""
    shutil.copytree(PACKAGE, tmp_path / "isthmus", ignore=shutil.ignore_patterns("__pycache__"))
    optimizer = tmp_path / "isthmus" / "clients" / "private_optimizer.py"
    line = "noise_multiplier=plan.noise_multiplier,"
    assert optimizer.read_text().count(line) == 1
    optimizer.write_text(optimizer.read_text().replace(line, "noise_multiplier=plan.noise_multiplier / 2,"))
    halved = in_a_process(tmp_path, "audit", domain, "--empirical")
    assert halved.returncode == 1, halved.stdout + halved.stderr
    assert "empirical: canaries: noise:" in halved.stdout
    assert "empirical: planted: noise:" in halved.stdout


@pytest.mark.slow
def test_ledgers_alone_get_the_built_in_policy(isthmus: Caller, tmp_path: Path) -> None:
    """No domain and no federation beside them: said in the report, and it takes a minute at most."""
    ledger = Ledger(tmp_path / "ledger.db", name="books")
    ledger.follow(policy().text())
    ledger.close()
    done = isthmus("audit", ledger.path, "--empirical", "--json")
    assert done.code == 0
    attacks: tuple[Empirical, ...] = read_text(done.out).audit.empirical
    assert all("built-in audit policy" in attack.attacked for attack in attacks)
    assert attacks[0].claimed_epsilon == pytest.approx(5.0, abs=0.01)
    assert sum(attack.seconds for attack in attacks) < 120


def test_without_torch_the_option_is_refused_in_words_and_the_rest_works(domain: Path) -> None:
    """Exit 2 and the way out; without the option torch is not missed."""
    source = PACKAGE.parent
    refused = in_a_process(source, "audit", domain, "--empirical", block="torch")
    assert refused.returncode == 2
    assert "'torch' is not installed" in " ".join(refused.stderr.split())
    assert "Traceback" not in refused.stderr
    assert in_a_process(source, "audit", domain, block="torch").returncode == 0


def test_a_wrong_domain_file_is_exit_2_before_anything_is_attacked(isthmus: Caller, domain: Path) -> None:
    """One clear sentence; no attack has begun."""
    (domain / "domain.toml").write_text("name = 1\n")
    done = isthmus("audit", domain, "--empirical")
    assert done.code == 2
    assert "domain.toml" in done.err
    assert "attack 1" not in done.err
    assert done.out == ""
