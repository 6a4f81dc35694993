"""A run that aligns domains: the classifier travels in rounds, and nowhere else; who is not in its list is told so."""

from pathlib import Path

import pytest
from safetensors.numpy import load_file
from tests.simulation.conftest import Factory
from tests.simulation.test_run import simulate

from isthmus.clients.delivery import delivered_path, load_delivered
from isthmus.config import load_domain
from isthmus.errors import ConfigError
from isthmus.privacy.policy import load_policy
from isthmus.simulation import prepare
from isthmus.simulation.recommend import recommend_items

CLASSIFIER = {"domain_classifier.weight", "domain_classifier.bias"}


def aligned(file: Path, names: list[str]) -> Path:
    """The federation, with alignment of these domains."""
    text = file.read_text()
    align = f'[training]\nalign = "dann"\nalign_weight = 1.0\nalign_domains = {names}\n'
    file.write_text(text.replace("[training]\n", align))
    return file


@pytest.mark.parametrize("strategy", ["fedavg", "feddf"])
def test_the_classifier_is_shared_and_is_not_shipped(federation: Factory, tmp_path: Path, strategy: str) -> None:
    """It is in the checkpoint, moved by both domains, for the domains that may come; in no file that serves."""
    out = tmp_path / "out"
    result = simulate(aligned(federation(strategy=strategy), ["games", "films", "books"]), out)
    assert all(domain.rounds_charged == 4 for domain in result.domains.values())
    state = load_file(out / "checkpoint.safetensors")
    for name in CLASSIFIER:
        assert state[f"arrays:{name}"].shape[0] == 3
        assert state[f"arrays:{name}"].any(axis=-1).all()
    serving = [out / "backbone.safetensors", *out.glob("heads/*/*.safetensors")]
    serving += out.rglob("delivered/*/backbone.safetensors")
    assert len(serving) == 5
    assert not any(CLASSIFIER & load_file(file).keys() for file in serving)
    delivered = load_delivered(
        delivered_path(out / "ledgers" / "books.db", "books"),
        load_policy(load_domain(tmp_path / "federation" / "books")),
    )
    assert delivered.recipe.training.align_domains == ("books", "films", "games")
    assert recommend_items(out, domain="books", user="u001", count=3)


def test_a_domain_that_the_list_lacks_is_refused_before_anything_is_opened(federation: Factory, tmp_path: Path) -> None:
    """Named, with its way out; no folder is made."""
    file = aligned(federation(), ["books", "films"])
    with pytest.raises(ConfigError, match=r"`training\.align_domains` lacks games"):
        prepare(file, out=tmp_path / "out", backend="in-process")
    assert not (tmp_path / "out").exists()


def test_alignment_costs_what_training_costs_without_it(federation: Factory, tmp_path: Path) -> None:
    """The same entries in the ledgers and the same epsilon."""
    plain = simulate(federation(), tmp_path / "plain")
    other = simulate(aligned(tmp_path / "federation" / "federation.toml", ["books", "games"]), tmp_path / "aligned")
    for name, domain in plain.domains.items():
        assert other.domains[name].epsilon == domain.epsilon
        assert [one.kind for one in other.domains[name].releases] == [one.kind for one in domain.releases]
