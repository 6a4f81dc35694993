"""What is said about many cores before a run, and how domains are divided among them."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from tests.simulation.conftest import Factory

from isthmus.config import DomainConfig, FederationConfig, load_domain, load_federation
from isthmus.simulation import prepare
from isthmus.simulation.parallel import ray_note, shares, work_of


def best_division(work: list[float], workers: int) -> float:
    """Heaviest share of the best division, by trying all of them."""
    return min(
        max(sum(w for w, place in zip(work, places, strict=True) if place == worker) for worker in range(workers))
        for places in itertools.product(range(workers), repeat=len(work))
    )


def test_every_domain_has_one_worker_and_no_share_is_far_above_the_best_division() -> None:
    """Graham's bound, 4/3 of the optimum, against all divisions of random work."""
    generator = np.random.default_rng(0)
    for workers in (1, 2, 3):
        work = list(generator.exponential(size=7))
        divided = shares(work, workers)
        assert sorted(domain for share in divided for domain in share) == list(range(7))
        assert max(sum(work[d] for d in share) for share in divided) <= 4 / 3 * best_division(work, workers) + 1e-9


def loaded(file: Path, *, batch: float, positions: int) -> tuple[FederationConfig, list[DomainConfig]]:
    """The federation's configuration, with so much work in its domains."""
    federation = load_federation(file)
    shape = federation.backbone.model_copy(update={"positions": positions})
    domains = [load_domain(folder) for folder in federation.domain_folders()]
    policy = domains[0].privacy.model_copy(update={"expected_batch": batch})
    return (
        federation.model_copy(update={"backbone": shape}),
        [domain.model_copy(update={"privacy": policy}) for domain in domains],
    )


def test_work_grows_with_users_and_positions(federation: Factory) -> None:
    """Twice the users, twice the work; twice the positions, twice the work and the few parameters that they add."""
    file = federation()
    base, users, longer = (
        sum(work_of(*loaded(file, batch=batch, positions=positions)))
        for batch, positions in ((100, 8), (200, 8), (100, 16))
    )
    assert users == pytest.approx(2 * base)
    assert 2 * base < longer < 2.5 * base


def test_a_text_encoder_that_is_trained_is_most_of_the_work(federation: Factory) -> None:
    """MiniLM: five texts of usual length and a user take the tenth of a second that was measured."""
    file = federation()
    file.write_text(
        file.read_text()
        .replace('"hash:64"', '"minilm"')
        .replace('train = "all"\nlearning_rate = 0.5', 'train = "text"\nrank = 4')
    )
    run = loaded(file, batch=10.0, positions=5)
    steps = sum(domain.privacy.steps_per_round for domain in run[1])
    assert sum(work_of(*run)) / (10 * steps) == pytest.approx(0.10, rel=0.1)


def test_a_run_says_whether_ray_pays(federation: Factory) -> None:
    """Little work: in-process is faster; much work: it pays, and an in-process run is told what it would save."""
    file = federation()
    little, much = (loaded(file, batch=batch, positions=8) for batch in (100.0, 1e8))
    said = {
        (size, backend): ray_note(*run, rounds=4, backend=backend, cores=2)
        for size, run in (("little", little), ("much", much))
        for backend in ("in-process", "ray")
    }
    assert said["little", "in-process"] == ""
    assert said["little", "ray"].endswith("in-process is likely faster here")
    assert said["much", "ray"].endswith("to start: it pays")
    assert "`--backend ray` would save up to" in said["much", "in-process"]
    assert ray_note(*much, rounds=4, backend="in-process", cores=1) == ""  # one core has nothing to share


def test_the_note_is_among_those_of_a_prepared_run(federation: Factory, tmp_path: Path) -> None:
    """It is printed before the run starts, and without Ray being installed."""
    file = federation()
    asked, not_asked = (prepare(file, out=tmp_path / backend, backend=backend) for backend in ("ray", "in-process"))
    assert [note for note in asked.notes if note.startswith("ray: a round is up to")]
    assert not_asked.notes == ()
