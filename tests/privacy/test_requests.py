"""Who asks is who signed: a request's signature is the named coordinator's, of this very request."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus.config import BackboneConfig, FeatureConfig, TrainingConfig
from isthmus.errors import Refused
from isthmus.privacy.keys import fresh_keys
from isthmus.privacy.requests import require_asker, sign_request
from isthmus.records import Kind, Recipe, RoundRequest

KEYS, OTHER = fresh_keys(), fresh_keys()
PUBLIC = KEYS.public.hex()
DIGEST = b"\x07" * 32


def test_a_signed_request_names_its_asker() -> None:
    """By public key, in lower-case hex however it was written."""
    signature = sign_request(DIGEST, KEYS)
    assert len(signature) == 128
    for written in (PUBLIC, PUBLIC.upper()):
        assert require_asker(DIGEST, coordinator=written, signature=signature) == PUBLIC


@pytest.mark.parametrize("signature", ["", "00" * 64, sign_request(DIGEST, KEYS)], ids=["none", "zeros", "good"])
def test_a_request_that_names_nobody_is_nobodys(signature: str) -> None:
    """A signature without a name is not looked at; whether nobody may ask is the policy's business."""
    assert require_asker(DIGEST, coordinator="", signature=signature) == ""


@pytest.mark.parametrize(
    ("coordinator", "signature"),
    [
        (PUBLIC, ""),
        (PUBLIC, "00" * 64),
        (PUBLIC, "zz"),
        (PUBLIC, sign_request(DIGEST, OTHER)),
        (OTHER.public.hex(), sign_request(DIGEST, KEYS)),
        (PUBLIC, sign_request(DIGEST + b"\x00", KEYS)),
        (PUBLIC, sign_request(DIGEST, KEYS)[:-2]),
        (PUBLIC, KEYS.sign(DIGEST).hex()),  # a signature of the same bytes for another purpose
        ("not hex", sign_request(DIGEST, KEYS)),
        ("00", sign_request(DIGEST, KEYS)),
        ("é" * 64, sign_request(DIGEST, KEYS)),
    ],
    ids=[
        "none",
        "zeros",
        "not hex",
        "another's",
        "another's name",
        "another request",
        "cut",
        "another purpose",
        "name not hex",
        "short name",
        "name not ascii",
    ],
)
def test_a_request_in_anothers_name_is_refused(coordinator: str, signature: str) -> None:
    """By rule, whatever is wrong with it."""
    with pytest.raises(Refused, match="not signed by the coordinator that it names") as refusal:
        require_asker(DIGEST, coordinator=coordinator, signature=signature)
    assert refusal.value.rule == "signature"


@given(st.text(max_size=200), st.text(max_size=200))
def test_no_text_passes_for_a_signature(coordinator: str, signature: str) -> None:
    """Nor ends in another error."""
    if not coordinator:
        return
    with pytest.raises(Refused):
        require_asker(DIGEST, coordinator=coordinator, signature=signature)


def request_of(**changes: object) -> RoundRequest:
    """A request, and what is changed in it."""
    recipe = Recipe(
        features=FeatureConfig(encoder="hash:64"),
        backbone=BackboneConfig(width=8, heads=2, layers=1, feedforward=8, positions=6),
        training=TrainingConfig(),
        whitening="0" * 64,
    )
    return dataclasses.replace(RoundRequest(run="r", round=1, recipe=recipe), **changes)  # type: ignore[arg-type]


def test_a_signature_is_of_one_request() -> None:
    """Another run, round, kind or pull is another request; who signs it and what receipt comes along is not."""
    asked = request_of()
    signature = sign_request(asked.digest(Kind.UPDATE), KEYS)
    signed = request_of(coordinator=PUBLIC, signature=signature, receipt="a receipt")
    assert require_asker(signed.digest(Kind.UPDATE), coordinator=PUBLIC, signature=signature) == PUBLIC
    others = [request_of(run="s"), request_of(round=2), request_of(proximal_mu=0.5)]
    for digest in [other.digest(Kind.UPDATE) for other in others] + [asked.digest(Kind.METRIC)]:
        with pytest.raises(Refused):
            require_asker(digest, coordinator=PUBLIC, signature=signature)
