"""What scenarios hide stays hidden, and what they measure on is the same whatever is compared."""

from pathlib import Path

import numpy as np
import pytest
from tests.conftest import TinyDomain, TinyFederation

from isthmus.clients.data import DomainData, load_domain_data
from isthmus.config import load_domain, load_federation
from isthmus.errors import ConfigError
from isthmus.simulation.derived import Withheld, derive
from isthmus.simulation.scenarios import (
    hidden_items,
    ids,
    new_domain,
    new_item_task,
    new_user_task,
    withheld_users,
)


@pytest.fixture
def books(tiny_domain: TinyDomain) -> DomainData:
    """Sixty users over 24 items."""
    return load_domain_data(load_domain(tiny_domain(users=60)))


def items_in(data: DomainData) -> set[int]:
    """Every item that training, validation or test of a domain touches."""
    targets = np.concatenate([data.validation, data.test])
    return {*data.train.items.tolist(), *data.before_test.items.tolist(), *targets[targets >= 0].tolist()}


def derived_data(file: Path, name: str = "books") -> DomainData:
    """A domain as a derived federation reads it."""
    folders = {folder.name: folder for folder in load_federation(file).domain_folders()}
    return load_domain_data(load_domain(folders[name]))


def test_support_and_measured_users_of_a_new_domain_are_disjoint(books: DomainData) -> None:
    """For several seeds; the measured are the same, and a larger support holds the smaller one."""
    split = new_domain(books, most=20)
    measured = set(ids(books, split.tested))
    assert len(measured) == 20
    for seed in range(5):
        few, many = split.support(10, seed=seed), split.support(30, seed=seed)
        assert set(few.users) < set(many.users)
        assert not measured & set(many.users)
        assert np.array_equal(split.task(many).users, new_domain(books, most=20).tested)
        for at, user in enumerate(few.users):  # each keeps his own history and targets
            whole = list(books.users).index(user)
            assert few.before_test.row(at).tolist() == books.before_test.row(whole).tolist()
            assert few.test[at] == books.test[whole]
    assert set(split.support(10, seed=0).users) != set(split.support(10, seed=1).users)
    assert len(split.support(0, seed=0).users) == 0
    with pytest.raises(ConfigError, match="Ask for at most 40"):
        split.support(41, seed=0)


def test_new_users_are_nowhere_in_what_trains(tiny_federation: TinyFederation, tmp_path: Path) -> None:
    """Nobody of them is in the derived tables; the rest is as it was; each condition sees the same users."""
    file = tiny_federation(domains={"books": 60, "games": 20})
    federation = load_federation(file)
    domains = [load_domain(folder) for folder in federation.domain_folders()]
    full = load_domain_data(domains[0])
    new = withheld_users(full, at_least=3, most=100)
    assert len(new) > 5
    derived = derive(federation, domains, to=tmp_path / "d", withheld={"books": Withheld(users=ids(full, new))})
    known = derived_data(derived)
    assert set(known.users) == set(full.users) - set(ids(full, new))
    assert len(derived_data(derived, "games").users) == 20
    for at, user in enumerate(known.users):
        assert known.before_test.row(at).tolist() == full.before_test.row(list(full.users).index(user)).tolist()
    one, three = (new_user_task(known, full, new, events=events) for events in (1, 3))
    assert set(one.histories.lengths()) == {1}
    assert set(three.histories.lengths()) == {3}
    assert one.targets.tolist() == three.targets.tolist() == full.test[new].tolist()
    assert three.histories.row(0)[-1] == one.histories.row(0)[0] == full.before_test.row(int(new[0]))[-1]


def test_new_items_are_nowhere_in_what_trains(tiny_federation: TinyFederation, tmp_path: Path) -> None:
    """No event of a hidden item is left, the catalogue keeps it, and every measured target is one."""
    file = tiny_federation(domains={"books": 60, "games": 20})
    federation = load_federation(file)
    domains = [load_domain(folder) for folder in federation.domain_folders()]
    full = load_domain_data(domains[0])
    hidden = hidden_items(full)
    assert len(hidden) == 2
    assert set(hidden.tolist()) <= items_in(full)  # the check below can fail
    names = [full.catalogue.ids[at] for at in hidden]
    known = derived_data(derive(federation, domains, to=tmp_path / "d", withheld={"books": Withheld(items=names)}))
    assert known.catalogue == full.catalogue
    assert not set(hidden.tolist()) & items_in(known)
    task = new_item_task(known, full, hidden, most=100)
    assert set(task.targets.tolist()) <= set(hidden.tolist())
    assert not set(hidden.tolist()) & set(task.histories.items.tolist())
    assert task.counts[hidden].tolist() == [0, 0]


def test_a_derived_federation_differs_in_what_was_asked_and_keeps_every_policy(
    tiny_federation: TinyFederation, tmp_path: Path
) -> None:
    """Epsilon alone changes; policy.toml is the same to the byte; no table is copied; nothing is written elsewhere."""
    file = tiny_federation(weights={"books": 2.0, "games": 1.0})
    policy = file.parent / "games" / "policy.toml"
    policy.write_text('approved_by = "us"\napproved_on = 2026-11-24\n# kept\n[budget]\nepsilon = 8.0\ndelta = 1e-6\n')
    before = sorted(file.parent.rglob("*"))
    federation = load_federation(file)
    domains = [load_domain(folder) for folder in federation.domain_folders()]
    copy = load_federation(derive(federation, domains, to=tmp_path / "d", epsilon=2.0))
    assert sorted(file.parent.rglob("*")) == before
    changed = {"domains", "seed", "folder"}
    assert copy.model_dump(exclude=changed) == federation.model_dump(exclude=changed)
    for original, folder in zip(domains, copy.domain_folders(), strict=True):
        domain = load_domain(folder)
        assert domain.privacy == original.privacy.model_copy(update={"epsilon": 2.0})
        assert domain.interactions_path == original.interactions_path
        assert domain.split == original.split
    assert (tmp_path / "d" / "domains" / "games" / "policy.toml").read_bytes() == policy.read_bytes()
    alone = load_federation(derive(federation, domains, to=tmp_path / "e", without="games"))
    assert alone.strategy.weights == {"books": 2.0}
    with pytest.raises(ConfigError, match="at most 100, got 101"):
        derive(federation, domains, to=tmp_path / "f", epsilon=101)
