"""A recipe that aligns domains can be attacked: the made-up domain is one of those that it knows."""

import numpy as np
import pytest
from tests.clients.audit.test_membership import POLICY

from isthmus.clients.audit.made_up import make_up_users, public_titles, run_vault
from isthmus.config import Align, DomainConfig, FederationConfig


def test_an_aligned_recipe_runs_through_the_vault(
    domain: DomainConfig, federation: FederationConfig, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The classifier moves, and a backbone for scoring needs none."""
    aligned = {"align": Align.DANN, "align_weight": 1.0, "align_domains": ("books", "games")}
    training = federation.training.model_copy(update=aligned)
    titles = public_titles(domain, most=60)
    rows = make_up_users(30, items=len(titles), length=8, generator=np.random.default_rng(0))
    transcript = run_vault(
        tmp_path_factory.mktemp("made") / "audit",
        titles,
        rows,
        federation=federation.model_copy(update={"training": training}),
        policy=POLICY,
        rounds=2,
        seed=0,
    )
    assert transcript.refusal == ""
    assert all(one.update["domain_classifier.weight"].any() for one in transcript.rounds)
    assert transcript.backbone(transcript.final).domain_classifier is None
