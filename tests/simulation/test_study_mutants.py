"""Each check of what a study hides, and of whom it asks, fails where the study is broken in that place."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import TinyDomain, TinyFederation
from tests.simulation import test_noise_free, test_scenarios, test_sweep

from isthmus.clients.data import copy_interactions, load_domain_data
from isthmus.config import DomainConfig, Interactions, load_domain
from isthmus.errors import DataError, IsthmusError, Refused
from isthmus.simulation import derived, noise_free, scenarios

FOUND = (AssertionError, pytest.fail.Exception)


def copy_all(source: DomainConfig, folder: Path, **_: object) -> Interactions:
    """Withholds nothing."""
    return copy_interactions(source, folder)


@pytest.mark.parametrize(
    "check",
    [
        test_scenarios.test_new_users_are_nowhere_in_what_trains,
        test_scenarios.test_new_items_are_nowhere_in_what_trains,
    ],
)
def test_events_that_are_not_withheld_are_found(
    check: Callable[[TinyFederation, Path], None],
    tiny_federation: TinyFederation,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A copy of everything instead of what training may know."""
    monkeypatch.setattr(derived, "copy_interactions", copy_all)
    with pytest.raises(FOUND):
        check(tiny_federation, tmp_path)


def test_support_that_is_measured_on_is_found(tiny_domain: TinyDomain, monkeypatch: pytest.MonkeyPatch) -> None:
    """Support is drawn from all users."""
    honest = scenarios.new_domain

    def careless(data: scenarios.DomainData, *, most: int) -> scenarios.NewDomain:
        return replace(honest(data, most=most), pool=np.arange(len(data.users)))

    monkeypatch.setattr(test_scenarios, "new_domain", careless)
    with pytest.raises(FOUND):
        test_scenarios.test_support_and_measured_users_of_a_new_domain_are_disjoint(
            load_domain_data(load_domain(tiny_domain(users=60)))
        )


def test_a_policy_that_is_not_copied_is_found(
    tiny_federation: TinyFederation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Derived domains without their policy.toml are limited by nothing: then a table is opened, which is not there."""
    monkeypatch.setattr(derived, "FILE", "forgotten.toml")
    with pytest.raises(DataError):
        test_sweep.test_what_a_policy_forbids_is_refused_before_anything_is_read(
            tiny_federation, tmp_path, "[allow]\nseeded = false\n", Refused, "private runs only"
        )


def test_a_run_without_noise_that_asks_nobody_is_found(
    tiny_federation: TinyFederation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The policy is not looked at: then a table is opened, which is not there."""
    monkeypatch.setattr(noise_free, "require_allowed", id)
    with pytest.raises(IsthmusError) as found:
        test_noise_free.test_a_policy_can_forbid_it_before_a_table_is_opened(
            tiny_federation, tmp_path, "seeded = false", "private runs only"
        )
    assert not isinstance(found.value, Refused)
