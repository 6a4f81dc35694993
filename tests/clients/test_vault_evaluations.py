"""What a vault says that is no update: of its catalogue, and what a backbone is worth, as noisy sums."""

import dataclasses

import numpy as np
import pytest
import torch
from tests.clients.vaults import (
    FEATURES,
    ITEMS,
    ONE_ROUND,
    SHAPE,
    USERS,
    Opener,
    assert_nothing_happened,
    look,
)

from isthmus.backbone import Backbone
from isthmus.clients.backbone_scorer import BackboneScorer
from isthmus.clients.evaluation import validation_ndcg
from isthmus.config import (
    PublicDomain,
    StartedFrom,
)
from isthmus.errors import BudgetExhausted, ConfigError, Refused
from isthmus.features import Whitening, own_axes, text_moments
from isthmus.privacy.accounting import encode_event
from isthmus.records import Arrays, Kind, RoundRequest


def test_a_catalogue_that_is_not_public_is_not_spoken_of(open_vault: Opener, request_one: RoundRequest) -> None:
    """Its moments are refused unread, and no round is charged for it either."""
    vault = open_vault(public=False)
    with pytest.raises(Refused, match=r"items\.public"):
        vault.release(Kind.CATALOGUE, request_one)
    assert_nothing_happened(vault)
    with pytest.raises(ConfigError, match=r"items\.public"):
        vault.release(Kind.UPDATE, request_one)
    assert_nothing_happened(vault)


def test_the_catalogues_moments_cost_nothing_and_are_written_down(
    open_vault: Opener, request_one: RoundRequest
) -> None:
    """They are a function of public text: epsilon stays 0, the ledger has the line."""
    vault = open_vault()
    payload = vault.release(Kind.CATALOGUE, dataclasses.replace(request_one, round=0)).payload
    moments = text_moments(vault.encoded(FEATURES.encoder))
    assert payload.values == {"count": ITEMS}
    np.testing.assert_allclose(payload.arrays["mean"], moments.mean, rtol=1e-6)
    np.testing.assert_allclose(payload.arrays["second"], moments.second, rtol=1e-6)
    assert look(vault) == [("r", 0, "catalogue", True)]
    assert vault.epsilon() == 0


def test_an_evaluation_leaves_as_two_noisy_sums(open_vault: Opener, request_one: RoundRequest) -> None:
    """Charged as one Gaussian event of the policy's multiplier; an untrained backbone gains nothing but noise."""
    vault = open_vault()
    release = vault.release(Kind.METRIC, request_one)
    assert encode_event(release.entry.event) == encode_event(vault.plan.metric_event)
    assert release.payload.values.keys() == {"gain", "users", "noise_stddev"}
    stddev = release.payload.values["noise_stddev"]
    assert stddev == pytest.approx(10.0 * 2**0.5)
    assert 0 < abs(release.payload.values["gain"]) < 6 * stddev
    assert 0 < abs(release.payload.values["users"] - USERS) < 6 * stddev


def begun(request: RoundRequest) -> RoundRequest:
    """The same request of a run that says that it began with something trained in the open."""
    start = StartedFrom(digest="ab" * 32, domains=(PublicDomain(name="there", users=9, fingerprint="cd" * 32),))
    return dataclasses.replace(request, recipe=request.recipe.model_copy(update={"start": start}))


def test_a_gain_over_the_prior_is_one_over_what_the_domain_has_by_itself(
    open_vault: Opener, request_one: RoundRequest
) -> None:
    """In axes of others' texts the prior is worse than in its own; a run that has such axes gains nothing by that."""
    head = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    request = dataclasses.replace(request_one, arrays={**request_one.arrays, "head.weight": head})
    plain, started = open_vault("one"), open_vault("two")
    exact = {}
    whitening = Whitening(mean=request.whitening["mean"], matrix=request.whitening["matrix"])
    encoded = plain.encoded(FEATURES.encoder)
    for name, axes in (("pooled", whitening), ("own", own_axes(whitening, encoded))):
        scorer = BackboneScorer(Backbone(8, SHAPE), torch.from_numpy(axes.apply(encoded)))
        exact[name] = float(validation_ndcg(scorer, plain.data).sum())
    assert exact["pooled"] != exact["own"]
    # The noise is the same: it follows from seed, name, run, round and kind.
    gains = [
        vault.release(Kind.METRIC, asked).payload.values["gain"]
        for vault, asked in ((plain, request), (started, begun(request)))
    ]
    assert gains[0] - gains[1] == pytest.approx(exact["own"] - exact["pooled"], abs=1e-6)


def test_a_ledger_says_what_a_run_began_with_before_it_is_charged(
    open_vault: Opener, request_one: RoundRequest
) -> None:
    """Once; not for what takes nothing from a user, and not where the budget is gone. It is part of the request."""
    vault = open_vault(privacy=ONE_ROUND)
    assert begun(request_one).digest(Kind.UPDATE) != request_one.digest(Kind.UPDATE)
    asked = dataclasses.replace(begun(request_one), round=0, arrays={}, whitening={})
    vault.release(Kind.CATALOGUE, asked)
    vault.release(Kind.UPDATE, begun(request_one))
    for run in ("s", "t"):
        with pytest.raises(BudgetExhausted):
            vault.release(Kind.UPDATE, dataclasses.replace(begun(request_one), run=run))
    lines = [vault.ledger.chain.read(link) for link in vault.ledger.chain.links()]
    said = [(line.type, getattr(line, "run", "")) for line in lines if line.type in {"started", "charged"}]
    assert said == [("charged", "r"), ("started", "r"), ("charged", "r")]


def moved(request: RoundRequest, seed: int) -> Arrays:
    """A head of other numbers, so that the backbone ranks otherwise."""
    shape = request.arrays["head.weight"].shape
    return {"head.weight": np.random.default_rng(seed).normal(0, 0.5, shape).astype(np.float32)}


def test_an_evaluation_may_be_against_parameters_that_come_along(open_vault: Opener, request_one: RoundRequest) -> None:
    """The difference of the two against the text prior, under the same noise; one charge of the same event."""
    ours = dataclasses.replace(request_one, arrays=request_one.arrays | moved(request_one, 1))
    theirs = dataclasses.replace(request_one, arrays=request_one.arrays | moved(request_one, 2))
    compared = dataclasses.replace(ours, reference=moved(request_one, 2))
    found = {}
    for name, request in (("ours", ours), ("theirs", theirs), ("compared", compared), ("prior", request_one)):
        vault = open_vault(name)
        release = vault.release(Kind.METRIC, request)
        found[name] = release.payload.values
        assert encode_event(release.entry.event) == encode_event(vault.plan.metric_event)
        assert look(vault) == [("r", 1, "metric", True)]
    noise = found["prior"]["gain"]
    gains = {name: values["gain"] - noise for name, values in found.items()}
    assert gains["ours"] != gains["theirs"]
    assert gains["compared"] == pytest.approx(gains["ours"] - gains["theirs"], abs=1e-9)
    assert len({values["noise_stddev"] for values in found.values()}) == 1


def test_one_round_answers_one_of_an_evaluation_and_a_comparison(open_vault: Opener, request_one: RoundRequest) -> None:
    """They are one kind of release, so a second one of a round is another request, and refused."""
    vault = open_vault()
    vault.release(Kind.METRIC, request_one)
    with pytest.raises(Refused, match="round 1"):
        vault.release(Kind.METRIC, dataclasses.replace(request_one, reference=moved(request_one, 2)))
    assert len(look(vault)) == 1


@pytest.mark.parametrize(
    ("kind", "reference", "privacy", "words"),
    [
        (Kind.UPDATE, {"head.weight": np.zeros((8, 8), np.float32)}, {}, "a reference belongs to an evaluation"),
        (Kind.METRIC, {"head.weight": np.zeros((8, 9), np.float32)}, {}, "of shape"),
        (Kind.METRIC, {"head.weight": np.full((8, 8), np.nan, np.float32)}, {}, "must be finite"),
        (Kind.METRIC, {"tail.weight": np.zeros((8, 8), np.float32)}, {}, "not those of its recipe"),
        (Kind.METRIC, {"head.weight": np.zeros((8, 8), np.float32)}, ONE_ROUND, "releases no evaluations"),
    ],
)
def test_a_reference_that_is_none_is_refused_unpaid(  # noqa: PLR0917 - cases
    open_vault: Opener,
    request_one: RoundRequest,
    kind: Kind,
    reference: Arrays,
    privacy: dict[str, float],
    words: str,
) -> None:
    """Before any table is opened; a domain that plans no evaluations answers no comparison either."""
    vault = open_vault(privacy=privacy)
    with pytest.raises(Refused, match=words):
        vault.release(kind, dataclasses.replace(request_one, reference=reference))
    assert_nothing_happened(vault)


def test_a_policy_without_evaluations_releases_none(open_vault: Opener, request_one: RoundRequest) -> None:
    """Zero is a limit like any other."""
    vault = open_vault(privacy=ONE_ROUND)
    with pytest.raises(Refused, match="evaluations"):
        vault.release(Kind.METRIC, request_one)
    assert_nothing_happened(vault)
