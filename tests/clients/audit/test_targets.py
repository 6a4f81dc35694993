"""What is attacked follows from what lies in the folders that were named."""

from pathlib import Path

import pytest
from tests.conftest import TinyDomain, TinyFederation

from isthmus.clients.audit import AUDIT_POLICY, attacks, target_of
from isthmus.errors import ConfigError
from isthmus.privacy.ledger import Ledger
from isthmus.simulation import prepare, run


class Silent:
    """Watches a simulation and says nothing."""

    def stage(self, what: str) -> None:
        """Nothing."""

    def texts(self, done: int, total: int) -> None:
        """Nothing."""

    def round(self, state: object, rounds: int, spent: object) -> None:
        """Nothing."""


def test_of_a_federation_the_domain_with_the_least_noise_is_attacked(tiny_federation: TinyFederation) -> None:
    """Whichever it is, under its own policy and on the federation's backbone."""
    privacy = {"books": {"epsilon": 4.0}, "games": {"epsilon": 9.0}, "films": {"epsilon": 2.0}}
    file = tiny_federation(domains={"books": 9, "games": 9, "films": 9}, privacy=privacy)
    with target_of([file.parent]) as target:
        assert (target.domain.name, target.policy) == ("games", target.domain.privacy)
        assert target.federation.backbone.width == 8
        assert target.what == "policy and catalogue of games, backbone of federation tiny"
        assert [attack.name for attack in attacks(target)] == ["canaries", "planted", "membership"]


def test_a_domains_folder_and_a_ledger_in_it_stand_for_the_domain(tiny_federation: TinyFederation) -> None:
    """With the federation beside it, if that names it; a ledger stands for its folder."""
    file = tiny_federation()
    folder = file.parent / "books"
    Ledger(folder / "ledger.db", name="books").close()
    for named in (folder, folder / "ledger.db"):
        with target_of([named]) as target:
            assert (target.domain.name, target.federation.name) == ("books", "tiny")
    with target_of([folder, file.parent / "games"]) as target:
        assert target.domain.name == "books", "of two that are alike the first"


def test_a_domain_of_no_federation_is_attacked_with_the_usual_recipe(tiny_domain: TinyDomain) -> None:
    """Its own policy, a backbone of the default shape."""
    folder = tiny_domain(name="loner")
    with target_of([folder]) as target:
        assert (target.domain.name, target.federation.name, target.federation.backbone.width) == ("loner", "loner", 64)


def test_a_runs_folder_stands_for_its_federation(tiny_federation: TinyFederation, tmp_path: Path) -> None:
    """As long as the federation file is where it was; else nothing is known and the built-in policy is attacked."""
    file = tiny_federation(rounds=1, evaluate_every=0)
    out = tmp_path / "out"
    run(prepare(file, out=out, backend="in-process"), Silent())
    with target_of([out]) as target:
        assert (target.domain.name, target.federation.name) == ("books", "tiny")
    file.rename(file.with_name("moved.toml"))
    with target_of([out]) as target:
        assert target.policy == AUDIT_POLICY


def test_without_domain_or_federation_the_built_in_policy_is_attacked(tmp_path: Path) -> None:
    """On made-up texts in a folder that is gone afterwards; the report says so."""
    with target_of([tmp_path, tmp_path / "ledger.db"]) as target:
        assert target.policy == AUDIT_POLICY
        assert "built-in audit policy" in target.what
        assert target.domain.items_path.exists()
    assert not target.domain.items_path.exists()


def test_a_file_that_is_wrong_is_said_and_not_passed_over(tiny_federation: TinyFederation) -> None:
    """An auditor must not believe that the domain was attacked when the built-in policy was."""
    file = tiny_federation()
    (file.parent / "games" / "domain.toml").write_text('name = "games"\nsurprise = 1\n')
    with pytest.raises(ConfigError, match="surprise"), target_of([file.parent]):
        pass
