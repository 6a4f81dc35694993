"""The demo is labelled as made up, loads without a single repair, and holds the structure that it promises."""

import csv
import itertools
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from isthmus.clients.data import DomainData, load_domain_data
from isthmus.config import load_domain, load_federation
from isthmus.demo import DOMAINS, INTERESTS, drift, write_demo
from isthmus.errors import ConfigError

NAMES = ("shopping", "music", "ads", "social", "dining")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The federation file of a demo."""
    return write_demo(tmp_path_factory.mktemp("demo") / "isthmus-demo")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def interests_of(data: DomainData) -> np.ndarray:
    """(items,) which interest each item's text is about, told from the text alone."""
    found = [[number for number, name in enumerate(INTERESTS) if name in text] for text in data.catalogue.texts]
    assert all(len(numbers) == 1 for numbers in found)
    return np.array([numbers[0] for numbers in found])


def test_every_configuration_says_that_all_of_it_is_made_up(demo: Path) -> None:
    """In its first line; and the federation file says that its seed protects nobody."""
    files = [demo, *(demo.parent / name / "domain.toml" for name in NAMES)]
    for file in files:
        first = file.read_text().splitlines()[0]
        assert first.startswith("# Synthetic: every user, item and event in this federation is made up")
    assert "NOT private" in demo.read_text()


def test_the_demo_is_five_domains_of_the_promised_sizes(demo: Path) -> None:
    """Shopping to dining, the last one small and brand-new; every weight names a domain."""
    federation = load_federation(demo)
    assert federation.domains == NAMES == tuple(domain.name for domain in DOMAINS)
    assert set(federation.strategy.weights) == set(NAMES)
    users = {}
    for domain in DOMAINS:
        data = load_domain_data(load_domain(demo.parent / domain.name))
        users[domain.name] = len(data.users)
        assert (len(data.users), len(data.catalogue.ids)) == (domain.users, domain.items)
    assert sum(users.values()) < 5000
    assert users["dining"] < 100 < users["social"] < 300 < users["ads"] < users["music"] < users["shopping"]


@pytest.mark.parametrize("name", NAMES)
def test_a_demo_domain_loads_without_repairs(demo: Path, name: str) -> None:
    """Nothing dropped, nothing repaired, nothing to note: every event written is used, every text is there."""
    data = load_domain_data(load_domain(demo.parent / name))
    with (demo.parent / name / "interactions.csv").open(newline="") as file:
        rows = sum(1 for _ in csv.reader(file)) - 1
    (clock,) = data.report.notes  # the only thing to say
    assert clock.startswith("The clock runs from 2023-")
    assert data.report.rows == data.report.events == rows
    assert all(data.catalogue.texts)
    assert (data.validation >= 0).sum() == (data.test >= 0).sum() == len(data.users)


@pytest.mark.parametrize("name", NAMES)
def test_demo_texts_can_be_read(demo: Path, name: str) -> None:
    """Several words, letters and digits, an interest in each, all interests present, few titles alike."""
    data = load_domain_data(load_domain(demo.parent / name))
    assert all(re.fullmatch(r"[A-Za-z0-9%:, ]+", text) for text in data.catalogue.texts)
    assert all(len(text.split()) >= 3 for text in data.catalogue.texts)
    assert set(interests_of(data)) == set(range(len(INTERESTS)))
    assert len(set(data.catalogue.texts)) > 0.5 * len(data.catalogue.texts)


def test_the_drift_is_one_cycle_through_all_interests() -> None:
    """Following it from anywhere visits every interest once before it is back."""
    following, at, seen = drift(), 0, []
    for _ in INTERESTS:
        seen.append(at)
        at = following[at]
    assert at == 0
    assert sorted(seen) == list(range(len(INTERESTS)))


@pytest.mark.parametrize("name", NAMES)
def test_the_planted_drift_can_be_measured_in_every_domain(demo: Path, name: str) -> None:
    """By texts alone: three events in four are about the next interest, one in ten about the same one."""
    data = load_domain_data(load_domain(demo.parent / name))
    about, following = interests_of(data), np.array(drift())
    steps: Counter[str] = Counter()
    for user in range(len(data.users)):
        row = about[[*data.before_test.row(user), data.test[user]]]
        for now, then in itertools.pairwise(row):
            steps["all"] += 1
            steps["drift"] += int(following[now] == then)
            steps["stay"] += int(now == then)
    # The planted chances are 0.75 and 0.1, plus a sixteenth of the rest; an item once met is not met again, so
    # that an interest of few items is passed over at times.
    chances = {"drift": 0.75 + 0.15 / 16, "stay": 0.1 + 0.15 / 16}
    for what, chance in chances.items():
        noise = 4 * np.sqrt(chance * (1 - chance) / steps["all"])
        assert abs(steps[what] / steps["all"] - chance) < noise + 0.01, what


def test_the_drift_cannot_be_told_from_likeness_of_texts(demo: Path) -> None:
    """Titles about an interest and about the one it drifts to share no word of their interest."""
    words = [{name, *" ".join(extra).split()} for name, extra in INTERESTS.items()]
    assert all(words[now].isdisjoint(words[then]) for now, then in enumerate(drift()))
    assert demo.exists()


def test_two_demos_are_the_same_bytes(demo: Path, tmp_path: Path) -> None:
    """No clock, no chance, no place in it."""
    again = write_demo(tmp_path / "other" / "place")
    assert again == tmp_path / "other" / "place" / "federation.toml"
    assert contents(again.parent) == contents(demo.parent)


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    """Refused with the way out, nothing written; an empty folder is fine, a file is not a folder."""
    full, file, empty = tmp_path / "full", tmp_path / "file", tmp_path / "empty"
    full.mkdir()
    (full / "thesis.txt").write_text("ten years of work")
    file.write_text("a file")
    empty.mkdir()
    for place in (full, file):
        with pytest.raises(ConfigError, match=r"exists already. Name another folder; nothing was written"):
            write_demo(place)
    assert contents(full) == {"thesis.txt": b"ten years of work"}
    assert file.read_text() == "a file"
    assert write_demo(empty).exists()
