"""Over real vaults: a domain whose histories teach the opposite counts less, and the others gain; nobody else does."""

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from tests.conftest import TinyFederation
from tests.server.test_loop import Stopped, Vaults, Watch, assert_equal

from isthmus.clients.backbone_scorer import BackboneScorer
from isthmus.clients.data import load_domain_data
from isthmus.clients.evaluation import validation_ndcg
from isthmus.config import load_domain, load_federation
from isthmus.features import encode_texts
from isthmus.server.checkpoint import RunState
from isthmus.server.shipping import shipped_backbone
from isthmus.strategies.guarded import OK, REFUSED
from isthmus.strategies.leave_one_out import factors_in

TOPICS, EACH, USERS, LENGTH = 8, 8, 250, 12
ROUNDS = 9
PRIVACY = {
    "epsilon": 100.0,
    "delta": 1e-3,
    "clip": 1.0,
    "sample_rate": 0.5,
    "expected_batch": USERS / 2,
    "steps_per_round": 2,
    "rounds": ROUNDS,
    "evaluations": ROUNDS,
    "metric_noise_multiplier": 1.0,
}
"""Very little noise: this is about what is done with figures, not about how well they are hidden."""


def write_domain(folder: Path, *, contrary: bool, seed: int) -> None:
    """A domain whose next item has the fourth last one's topic; or, contrary, mostly the last one's and never that."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    items = [(f"{topic}-{number}", f"topic{topic} number{number}") for topic in range(TOPICS) for number in range(EACH)]
    pl.DataFrame(items, schema=["item_id", "title"], orient="row").write_csv(folder / "items.csv")
    rows = []
    for user in range(USERS):
        topics = list(generator.permutation(TOPICS)[:4])
        while len(topics) < LENGTH:
            stays = generator.random() < 0.9
            topics.append(topics[-4] if not contrary else topics[-1] if stays else int(generator.integers(TOPICS)))
        rows += [(f"user-{user:04d}", f"{topic}-{generator.integers(EACH)}") for topic in topics]
    pl.DataFrame(rows, schema=["user", "item"], orient="row").write_csv(folder / "interactions.csv")
    policy = "\n".join(f"{key} = {value}" for key, value in PRIVACY.items())
    (folder / "domain.toml").write_text(
        f'name = "{folder.name}"\n[interactions]\npath = "interactions.csv"\n[items]\npath = "items.csv"\n'
        f"public = true\n[privacy]\n{policy}\n"
    )


def write(root: Path, strategy: str, *, contrary: str = "") -> Path:
    """A federation of three domains, one of them contrary where named."""
    for seed, name in enumerate(("books", "games", "music")):
        write_domain(root / name, contrary=name == contrary, seed=seed)
    file = root / "federation.toml"
    file.write_text(
        'name = "three"\ndomains = ["books", "games", "music"]\nseed = 3\n[features]\nencoder = "hash:64"\n'
        "[backbone]\nwidth = 8\nlayers = 1\nheads = 2\nfeedforward = 8\npositions = 12\n"
        f"[training]\nrivals = 50\n[strategy]\nrounds = {ROUNDS}\nevaluate_every = 0\n{strategy}\n"
    )
    return file


ONE_OUT = 'name = "leave_one_out"\ncompare_every = 1'


def exact_gain(file: Path, state: RunState, *names: str) -> float:
    """Mean exact validation NDCG@10 of the last round's backbone in some domains, which no server knows."""
    federation = load_federation(file)
    shipped = shipped_backbone(dataclasses.replace(state, best=state.arrays), federation)
    found = []
    for name in names:
        data = load_domain_data(load_domain(file.parent / name))
        texts = encode_texts(data.catalogue.texts, "hash:64", cache_dir=file.parent / "cache", threads=1)
        features = torch.from_numpy(shipped.whitening.apply(texts))
        found.append(validation_ndcg(BackboneScorer(shipped.backbone, features), data).mean())
    return float(np.mean(found))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the test's own."""
    monkeypatch.setenv("ISTHMUS_CACHE", str(tmp_path / "cache"))


def test_a_domain_that_teaches_the_opposite_counts_less_and_the_others_gain(tmp_path: Path) -> None:
    """Against fedavg with the same seed; who is compared is not asked and pays for no evaluation in that round."""
    exact, states = {}, {}
    for name, strategy in (("fedavg", ""), ("one-out", ONE_OUT)):
        file = write(tmp_path / name, strategy, contrary="music")
        vaults = Vaults(file, tmp_path / name / "runs")
        states[name] = vaults.start("a", Watch(), rounds=ROUNDS)
        exact[name] = exact_gain(file, states[name], "books", "games")
    assert exact["one-out"] > exact["fedavg"] + 0.01
    found = factors_in(states["one-out"].strategy)
    assert found["music"] <= 1 / 4
    assert found["books"] == found["games"] == 1.0
    turns = ["books", "games", "music"] * (ROUNDS // 3)
    for record, turn in zip(states["one-out"].history, turns, strict=True):
        assert sorted(record.evaluations) == sorted({"books", "games", "music"} - {turn})
        assert {outcome.status for outcome in record.evaluations.values()} == {OK}
        assert record.gain is None
    for name in ("books", "games", "music"):
        rounds = [round_ for round_, kind in vaults.charged("a", name) if kind == "metric"]
        assert rounds == [round_ for round_, turn in enumerate(turns, start=1) if turn != name]


def test_where_all_teach_alike_all_count_as_declared(tmp_path: Path) -> None:
    """No factor moved, so the parameters are those of fedavg, to the bit."""
    file = write(tmp_path / "one-out", ONE_OUT)
    watch = Watch()
    state = Vaults(file, tmp_path / "runs").start("a", watch, rounds=ROUNDS)
    assert all(set(factors_in(each.strategy).values()) <= {1.0} for each in watch.heard)
    assert len(factors_in(state.strategy)) == 3
    file.write_text(file.read_text().replace(ONE_OUT, ""))
    plain = Vaults(file, tmp_path / "runs").start("b", Watch(), rounds=ROUNDS)
    assert all(plain.arrays[name].tobytes() == array.tobytes() for name, array in state.arrays.items())


def test_a_stopped_run_ends_as_one_that_never_was(tiny_federation: TinyFederation, tmp_path: Path) -> None:
    """Stopped after each round: standings, turns, weights and charges, beside ordinary evaluations in other rounds."""
    file = tiny_federation(strategy="leave_one_out", evaluate_every=2, domains={"books": 40, "games": 20, "music": 20})
    file.write_text(file.read_text() + "compare_every = 1\n")
    vaults = Vaults(file, tmp_path)
    whole = vaults.start("whole", Watch())
    assert [sorted(record.evaluations) for record in whole.history] == [
        ["games", "music"],
        ["books", "games", "music"],
        ["books", "music"],
        ["books", "games", "music"],
    ]
    for stop in range(4):
        with pytest.raises(Stopped):
            vaults.start("stopped", Watch(stop))
    assert_equal(vaults.start("stopped", Watch()), whole)
    for name in ("books", "games", "music"):
        assert vaults.charged("stopped", name) == vaults.charged("whole", name)


def test_a_domain_that_plans_no_evaluations_says_so_and_has_no_say(
    tiny_federation: TinyFederation, tmp_path: Path
) -> None:
    """It trains, and can be compared; what the others gain is told by those that plan some."""
    members, without = {"books": 40, "games": 20, "music": 20}, {"games": {"evaluations": 0}}
    file = tiny_federation(strategy="leave_one_out", evaluate_every=0, domains=members, privacy=without)
    file.write_text(file.read_text() + "compare_every = 1\n")
    vaults = Vaults(file, tmp_path)
    state = vaults.start("a", Watch(), rounds=3)
    first, second, _ = state.history
    assert {name: outcome.status for name, outcome in first.evaluations.items()} == {"games": REFUSED, "music": OK}
    assert "releases no evaluations" in first.evaluations["games"].reason
    assert {name: outcome.status for name, outcome in second.evaluations.items()} == {"books": OK, "music": OK}
    assert [kind for _, kind in vaults.charged("a", "games")] == ["catalogue", *["update"] * 3]
    said = sorted(name for name in state.strategy if name.startswith("said"))
    assert said == ["said/books/music", "said/games/books", "said/games/music", "said/music/books"]
