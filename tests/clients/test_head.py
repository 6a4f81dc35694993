"""The private head: chosen on validation, safe with few users, never below the best local method."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from isthmus.clients.blend import Blend, Signal, Signals
from isthmus.clients.data import Catalogue, DataReport, DomainData, Histories
from isthmus.clients.head import (
    MAX_USERS,
    MIN_USERS,
    Contest,
    Head,
    Method,
    Verdict,
    choose,
    fit_head,
    load_head,
    save_head,
    search_weights,
    shrink,
)
from isthmus.clients.scorers import rank_users
from isthmus.config import DomainConfig
from isthmus.errors import RunError
from isthmus.metrics import ndcg_at_k

LOCAL = (Method.TEXT_KNN, Method.ITEM_CF, Method.POPULARITY, Method.LOCAL_ONLY)
PRIVACY = {
    "epsilon": 8.0,
    "delta": 1e-6,
    "clip": 1.0,
    "sample_rate": 0.1,
    "expected_batch": 10.0,
    "steps_per_round": 1,
    "rounds": 1,
    "evaluations": 0,
    "metric_noise_multiplier": 1.0,
}


class Fixed:
    """A frozen backbone with given scores."""

    def __init__(self, scores: NDArray[np.float32]) -> None:
        self.scores = scores

    def score(self, histories: Histories, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """The rows of these users."""
        return self.scores[users]


def rows_to_histories(rows: list[NDArray[np.int32]]) -> Histories:
    """Rows to Histories."""
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    return Histories(offsets=offsets, items=np.concatenate(rows).astype(np.int32))


def toy_domain(users: int, items: int, *, seed: int) -> tuple[DomainData, NDArray[np.float32]]:
    """A domain whose items form eight text groups and whose users stay in one: text helps, and so does item-CF."""
    rng = np.random.default_rng(seed)
    group = np.arange(items) % 8
    centres = rng.normal(size=(8, 16))
    features = centres[group] + 1.2 * rng.normal(size=(items, 16))
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    whole = [
        rng.choice(np.flatnonzero(group == rng.integers(8)), size=6, replace=False).astype(np.int32)
        for _ in range(users)
    ]
    return domain_of(whole, items=items), features


def domain_of(whole: list[NDArray[np.int32]], *, items: int) -> DomainData:
    """A domain of these histories."""
    names = tuple(f"i{item:04d}" for item in range(items))
    return DomainData(
        config=DomainConfig.model_validate(
            {
                "name": "toy",
                "interactions": {"path": "seq.tsv", "format": "sequence"},
                "items": {"path": "items.tsv", "public": True},
                "privacy": PRIVACY,
            }
        ),
        catalogue=Catalogue(ids=names, titles=names, texts=names),
        users=tuple(f"u{user:05d}" for user in range(len(whole))),
        train=rows_to_histories([row[:-2] for row in whole]),
        before_test=rows_to_histories([row[:-1] for row in whole]),
        validation=np.array([row[-2] for row in whole], dtype=np.int32),
        test=np.array([row[-1] for row in whole], dtype=np.int32),
        fingerprint=bytes(32),
        report=DataReport(**{f.name: 0 for f in dataclasses.fields(DataReport) if f.name != "notes"}, notes=()),
    )


def reorder(data: DomainData, order: NDArray[np.int64]) -> DomainData:
    """The same domain with its users in another order."""
    return dataclasses.replace(
        data,
        users=tuple(data.users[user] for user in order),
        train=rows_to_histories([data.train.row(int(user)) for user in order]),
        before_test=rows_to_histories([data.before_test.row(int(user)) for user in order]),
        validation=data.validation[order],
        test=data.test[order],
    )


def oracle(data: DomainData, items: int, *, share: float, seed: int) -> Fixed:
    """A backbone that knows the validation item of a share of the users and guesses for the rest."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(len(data.users), items)).astype(np.float32)
    known = np.flatnonzero(rng.random(len(data.users)) < share)
    scores[known, data.validation[known]] = 8.0
    return Fixed(scores)


def noise(data: DomainData, items: int, *, seed: int) -> Fixed:
    """A backbone that knows nothing."""
    return oracle(data, items, share=0.0, seed=seed)


def test_a_planted_backbone_is_found_and_called_transfer() -> None:
    """It knows half of the answers; nothing local does."""
    data, features = toy_domain(300, 150, seed=0)
    backbone = oracle(data, 150, share=0.5, seed=1)
    head = fit_head(data, features=features, backbone=backbone, local_backbone=None, seed=0)
    assert (head.method, head.verdict) == (Method.FEDERATED, Verdict.TRANSFER)
    assert head.weights[Signal.BACKBONE] > 0.2
    assert head.validation[Method.FEDERATED] > head.validation[head.best_local] + 0.2


def test_a_planted_local_signal_is_found_without_a_backbone() -> None:
    """Users pair items that have nothing in common in their texts: item-CF must get the weight."""
    rng = np.random.default_rng(2)
    data, _ = toy_domain(300, 150, seed=2)
    features = rng.normal(size=(150, 16))
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    head = fit_head(data, features=features, backbone=None, local_backbone=None, seed=0)
    blend = head.blends[Method.LOCAL_ONLY]
    assert blend[Signal.TRANSITIONS] > blend[Signal.TEXT]
    assert head.validation[head.method] > 2 * head.validation[Method.TEXT_KNN]
    assert Method.FEDERATED not in head.blends


def test_pairs_are_counted_in_order_where_histories_have_one() -> None:
    """Who goes up a ladder step by step, and who fills three baskets in any order: validation tells them apart."""
    rng = np.random.default_rng(3)
    ladder = [(rng.integers(200) + np.arange(8)) % 200 for _ in range(300)]
    baskets = [
        rng.permutation((4 * rng.choice(50, 3, replace=False)[:, None] + np.arange(4)).ravel()) for _ in range(120)
    ]
    for whole, used, other in (
        (ladder, Signal.TRANSITIONS, Signal.ITEM_CF),
        (baskets, Signal.ITEM_CF, Signal.TRANSITIONS),
    ):
        data = domain_of([row.astype(np.int32) for row in whole], items=200)
        features = np.eye(200, dtype=np.float32)
        head = fit_head(data, features=features, backbone=None, local_backbone=None, seed=0)
        blend = head.blends[Method.LOCAL_ONLY]
        assert blend[used] > 0
        assert other not in blend


def test_a_backbone_that_knows_nothing_is_seldom_called_transfer() -> None:
    """Ten domains with a random backbone: noise explains whatever lead a search finds."""
    transfers = 0
    for seed in range(10):
        data, features = toy_domain(120, 100, seed=seed)
        backbone = noise(data, 100, seed=seed)
        head = fit_head(data, features=features, backbone=backbone, local_backbone=None, seed=seed)
        transfers += head.verdict is Verdict.TRANSFER
    assert transfers <= 1


@pytest.mark.parametrize("seed", range(12))
def test_the_served_method_is_never_below_a_local_one_on_validation(seed: int) -> None:
    """Whatever the backbones are worth and however few users there are."""
    rng = np.random.default_rng(seed)
    data, features = toy_domain(int(rng.integers(MIN_USERS, 150)), 90, seed=seed)
    backbone = oracle(data, 90, share=float(rng.choice([0.0, 0.1, 0.4])), seed=seed)
    local = oracle(data, 90, share=float(rng.choice([0.0, 0.1, 0.4])), seed=seed + 100)
    vetted = bool(seed % 2)
    head = fit_head(data, features=features, backbone=backbone, local_backbone=local, seed=seed, vetted=vetted)
    best = max(head.validation[method] for method in LOCAL)
    assert head.validation[head.method] >= best
    assert head.validation[head.best_local] == best
    assert (head.verdict is Verdict.TRANSFER) == (head.method is Method.FEDERATED)


def test_with_five_users_the_text_prior_serves() -> None:
    """Even a backbone that knows all five answers has shown nothing."""
    data, features = toy_domain(5, 60, seed=3)
    head = fit_head(data, features=features, backbone=oracle(data, 60, share=1.0, seed=0), local_backbone=None, seed=0)
    assert (head.method, head.verdict) == (Method.TEXT_KNN, Verdict.NO_TRANSFER)
    assert all(head.blends[method] == {Signal.TEXT: 1.0} for method in (Method.FEDERATED, Method.LOCAL_ONLY))
    assert (head.validation, head.validation_users) == ({}, 5)


def test_with_five_users_a_vetted_backbone_serves() -> None:
    """Their data decide nothing; what other domains have released does."""
    data, features = toy_domain(5, 60, seed=3)
    backbone = oracle(data, 60, share=0.0, seed=0)
    head = fit_head(data, features=features, backbone=backbone, local_backbone=None, seed=0, vetted=True)
    assert (head.method, head.verdict) == (Method.FEDERATED, Verdict.TRANSFER)
    assert head.weights == {Signal.BACKBONE: 1.0}
    assert (head.validation, head.validation_users) == ({}, 5)
    alone = fit_head(data, features=features, backbone=None, local_backbone=None, seed=0, vetted=True)
    assert alone.method is Method.TEXT_KNN


@pytest.mark.parametrize("vetted", [True, False])
def test_a_small_lead_is_believed_of_a_vetted_backbone_only(vetted: bool) -> None:
    """Ahead by chance or not: nobody can tell from forty users. A backbone that is behind is served to nobody."""
    ndcg = np.random.default_rng(0).uniform(size=40)
    ahead, behind = ndcg.copy(), ndcg.copy()
    ahead[:3] += 0.1
    ahead[3:6] -= 0.08
    behind[:3] -= 0.1
    for federated, served in ((ahead, Method.FEDERATED if vetted else Method.ITEM_CF), (behind, Method.ITEM_CF)):
        found, best = choose({Method.ITEM_CF: ndcg, Method.FEDERATED: federated}, seed=0, vetted=vetted)
        assert (found, best) == (served, Method.ITEM_CF)


def test_users_without_a_validation_item_do_not_count() -> None:
    """Of 200 users 10 validate: too few to compare anything."""
    data, features = toy_domain(200, 60, seed=4)
    validation = np.where(np.arange(200) < 10, data.validation, -1).astype(np.int32)
    data = dataclasses.replace(data, validation=validation)
    head = fit_head(data, features=features, backbone=None, local_backbone=None, seed=0)
    assert (head.method, head.validation_users) == (Method.TEXT_KNN, 10)


def test_the_test_items_have_no_say() -> None:
    """Other test items, other `before_test`: the same head."""
    data, features = toy_domain(80, 60, seed=5)
    other, _ = toy_domain(80, 60, seed=6)
    blind = dataclasses.replace(data, test=other.test, before_test=other.before_test)
    heads = [fit_head(d, features=features, backbone=None, local_backbone=None, seed=0) for d in (data, blind)]
    assert heads[0] == heads[1]


@pytest.mark.parametrize("items", [90, 420])
def test_validation_figures_are_those_of_a_full_ranking(items: int) -> None:
    """The search looks at each signal's first hundred items only; the whole catalogue gives the same figures."""
    data, features = toy_domain(120, items, seed=7)
    backbone, local = oracle(data, items, share=0.2, seed=8), oracle(data, items, share=0.1, seed=9)
    head = fit_head(data, features=features, backbone=backbone, local_backbone=local, seed=0)
    signals = Signals.fit(data.train, features=features, backbone=backbone, local_backbone=local)
    for method in head.blends:
        ranks = rank_users(head.scorer(signals, method), data.train, np.arange(120), data.validation)
        assert head.validation[method] == pytest.approx(ndcg_at_k(ranks, 10).mean(), abs=1e-9), method


def test_repeats_are_ranked_unmasked() -> None:
    """A user who returns to an item is scored as the metrics say, not as if the item were gone."""
    data, features = toy_domain(60, 50, seed=10)
    again = np.array([data.train.row(user)[-1] for user in range(60)], dtype=np.int32)
    data = dataclasses.replace(data, validation=again)
    head = fit_head(data, features=features, backbone=None, local_backbone=None, seed=0)
    text = Blend(signals=Signals.fit(data.train, features=features), weights={Signal.TEXT: 1.0})
    expected = ndcg_at_k(rank_users(text, data.train, np.arange(60), again), 10).mean()
    assert head.validation[Method.TEXT_KNN] == pytest.approx(expected)
    assert expected > 0.5


def test_the_order_of_users_does_not_matter() -> None:
    """The same people in another order: the same weights, method and figures."""
    data, features = toy_domain(150, 100, seed=11)
    backbone = oracle(data, 100, share=0.3, seed=12)
    order = np.random.default_rng(13).permutation(150)
    head = fit_head(data, features=features, backbone=backbone, local_backbone=None, seed=0)
    shuffled = fit_head(
        reorder(data, order),
        features=features,
        backbone=Fixed(backbone.scores[order]),
        local_backbone=None,
        seed=0,
    )
    assert shuffled == head


def test_the_same_seed_gives_the_same_head_on_a_sample_of_many_users() -> None:
    """More users than are looked at: the seed draws them, and nothing else decides."""
    data, features = toy_domain(MAX_USERS + 300, 60, seed=14)
    first, second, other = (
        fit_head(data, features=features, backbone=None, local_backbone=None, seed=seed) for seed in (1, 1, 2)
    )
    assert first == second
    assert first.validation_users == MAX_USERS
    assert first.validation != other.validation


def test_a_head_carries_over_to_signals_fitted_on_more_events(tmp_path: Path) -> None:
    """Chosen on `train`, saved, loaded, served on `before_test`: better than a guess on test items."""
    data, features = toy_domain(250, 120, seed=15)
    head = fit_head(data, features=features, backbone=None, local_backbone=None, seed=0)
    save_head(head, tmp_path)
    signals = Signals.fit(data.before_test, features=features)
    ranks = rank_users(load_head(tmp_path).scorer(signals), data.before_test, np.arange(250), data.test)
    assert ranks.mean() < 30  # a guess has 60


def test_the_search_is_never_below_the_best_single_signal() -> None:
    """Item-CF is right for all, but the text is so loud that no single step from the text alone helps."""
    leads = np.stack([np.full((40, 20), 1e4), np.full((40, 20), -1.0)]).astype(np.float32)
    contest = Contest(signals=(Signal.TEXT, Signal.ITEM_CF), leads=leads)
    chosen = search_weights(contest, (Signal.TEXT, Signal.ITEM_CF))
    assert contest.ndcg(chosen).tolist() == [1.0] * 40
    assert chosen == {Signal.TEXT: 0.0, Signal.ITEM_CF: 1.0}


def test_shrinking_follows_the_number_of_users() -> None:
    """With as many users as the prior weighs the chosen weights count half; with very many they count alone."""
    chosen = {Signal.TEXT: 0.2, Signal.ITEM_CF: 0.8}
    assert shrink(chosen, 100, towards=Signal.TEXT) == pytest.approx({Signal.TEXT: 0.6, Signal.ITEM_CF: 0.4})
    assert shrink(chosen, 10**9, towards=Signal.TEXT) == pytest.approx(chosen)
    assert shrink({Signal.TEXT: 1.0}, 100, towards=Signal.TEXT) == {Signal.TEXT: 1.0}


def test_a_lead_must_be_more_than_noise_explains() -> None:
    """The same mean lead on 40 users: carried by one user it is noise, shared by all it is not."""
    base = np.full(40, 0.2)
    lucky, steady = base.copy(), base + 0.02
    lucky[0] += 0.8
    for federated, served in ((lucky, Method.TEXT_KNN), (steady, Method.FEDERATED), (base, Method.TEXT_KNN)):
        ndcg = {Method.TEXT_KNN: base, Method.ITEM_CF: base - 0.1, Method.FEDERATED: federated}
        assert choose(ndcg, seed=0) == (served, Method.TEXT_KNN)


def test_of_equal_local_methods_the_more_trusted_one_serves() -> None:
    """Whatever the order in which they are measured."""
    same = np.array([0.0, 1.0, 0.5])
    assert choose({Method.LOCAL_ONLY: same, Method.TEXT_KNN: same[::-1]}, seed=0)[0] is Method.TEXT_KNN


def test_a_saved_head_loads_as_it_was(tmp_path: Path) -> None:
    """Bit for bit, with the verdict and every method's weights, from plain JSON."""
    data, features = toy_domain(200, 150, seed=16)
    backbone = oracle(data, 150, share=0.8, seed=0)
    head = fit_head(data, features=features, backbone=backbone, local_backbone=None, seed=0)
    file = save_head(head, tmp_path / "heads" / "toy")
    assert load_head(tmp_path / "heads" / "toy") == head
    assert json.loads(file.read_text(encoding="utf-8"))["verdict"] == "transfer"
    content = file.read_bytes()
    assert save_head(head, tmp_path / "heads" / "toy").read_bytes() == content


def test_a_missing_head_is_a_clear_error(tmp_path: Path) -> None:
    """Names the file and says why it is not there."""
    with pytest.raises(RunError, match=r"head\.json: no such file"):
        load_head(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", 2),
        ("method", "magic"),
        ("verdict", "perhaps"),
        ("blends", {"text_knn": {"text": -1.0}}),
        ("blends", {"text_knn": {"text": float("nan")}}),
        ("blends", {"item_cf": {"item_cf": 1.0}}),
        ("blends", [1]),
        ("validation", None),
    ],
)
def test_a_damaged_head_is_refused(tmp_path: Path, key: str, value: object) -> None:
    """An unknown name, a weight that cannot rank, or no weights for the served method."""
    weights = {Method.TEXT_KNN: {Signal.TEXT: 1.0}}
    head = Head(
        method=Method.TEXT_KNN,
        verdict=Verdict.NO_TRANSFER,
        best_local=Method.TEXT_KNN,
        blends=weights,
        validation={},
        validation_users=0,
    )
    file = save_head(head, tmp_path)
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**content, key: value}), encoding="utf-8")
    with pytest.raises(RunError, match="fit it again"):
        load_head(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", "{"])
def test_a_file_that_holds_no_head_is_refused(tmp_path: Path, text: str) -> None:
    """Cut off, empty or something else."""
    (tmp_path / "head.json").write_text(text, encoding="utf-8")
    with pytest.raises(RunError, match="fit it again"):
        load_head(tmp_path)
