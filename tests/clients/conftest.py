"""A tiny domain with its vault, and a request for a round."""

from pathlib import Path

import pytest
from tests.clients.vaults import FEATURES, SHAPE, TRAINING, Opener, opened

from isthmus.backbone import Backbone, shared_parameters
from isthmus.features import encode_texts, fit_whitening, text_moments
from isthmus.packing import arrays_digest
from isthmus.records import Arrays, Recipe, RoundRequest


@pytest.fixture
def open_vault(tmp_path: Path) -> Opener:
    """Open a vault: `at` names its folder, so that the same words open the same ledger again."""
    return lambda at="one", seed=7, **changes: opened(tmp_path, at, seed, changes)


@pytest.fixture(scope="module")
def request_one(tmp_path_factory: pytest.TempPathFactory) -> RoundRequest:
    """Round 1 of run `r`, with an untrained backbone and a whitening."""
    encoded = encode_texts(
        [f"item {number}" for number in range(20)], FEATURES.encoder, cache_dir=tmp_path_factory.mktemp("texts")
    )
    whitening = fit_whitening([text_moments(encoded)], eps=1e-3, dim=8)
    arrays: Arrays = {"mean": whitening.mean, "matrix": whitening.matrix}
    recipe = Recipe(features=FEATURES, backbone=SHAPE, training=TRAINING, whitening=arrays_digest(arrays).hex())
    parameters = shared_parameters(Backbone(8, SHAPE))
    return RoundRequest(
        run="r",
        round=1,
        recipe=recipe,
        arrays={name: parameter.detach().numpy().copy() for name, parameter in parameters.items()},
        whitening=arrays,
    )
