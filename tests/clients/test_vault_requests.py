"""What a vault makes of parameters and whitenings that are sent, sent in part, or not what they are said to be."""

import dataclasses

import numpy as np
import pytest
from tests.clients.vaults import Opener, assert_nothing_happened, same

from isthmus.clients import vault as module
from isthmus.encoding import Encoded
from isthmus.errors import Refused
from isthmus.packing import arrays_digest
from isthmus.records import Kind, RoundRequest


def stepped(request: RoundRequest, round_: int) -> tuple[RoundRequest, RoundRequest]:
    """The next round's question after a step of 0.25 everywhere: as a change, and with everything sent along."""
    shared = request.arrays
    moved = {name: array + np.float32(0.25) for name, array in shared.items()}
    change = Encoded(
        arrays={name: np.ones(array.shape, np.int8) for name, array in shared.items()},
        scales=dict.fromkeys(shared, 0.25),
    )
    whole = dataclasses.replace(request, round=round_, arrays=moved)
    base, after = arrays_digest(shared).hex(), arrays_digest(moved).hex()
    return dataclasses.replace(
        whole, arrays=change.arrays, scales=change.scales, base=base, parameters=after, whitening={}
    ), whole


def test_a_change_of_parameters_is_the_same_question_as_all_of_them(
    open_vault: Opener, request_one: RoundRequest
) -> None:
    """Sent as a change, then not at all, then whole, to a vault that was started again in between: one answer each."""
    change, whole = stepped(request_one, 2)
    vault = open_vault(seed=None)
    vault.release(Kind.UPDATE, request_one)
    vault.close()
    vault = open_vault(seed=None)
    release = vault.release(Kind.METRIC, change)
    known = dataclasses.replace(change, base=change.parameters, arrays={}, scales={})
    assert same(vault.release(Kind.METRIC, known), release)
    assert same(vault.release(Kind.METRIC, whole), release)
    update = vault.release(Kind.UPDATE, known)
    assert same(vault.release(Kind.UPDATE, whole), update)
    assert len(list(vault.ledger.entries())) == 3


def test_parameters_that_a_vault_does_not_have_are_refused_unpaid(
    open_vault: Opener, request_one: RoundRequest
) -> None:
    """It asks for them; whole, they are taken. So are those that were damaged on its disk."""
    change, whole = stepped(request_one, 1)
    vault = open_vault()
    with pytest.raises(Refused, match="not known here; send them along"):
        vault.release(Kind.UPDATE, change)
    assert_nothing_happened(vault)
    vault.release(Kind.UPDATE, dataclasses.replace(whole))
    (file,) = vault.ledger.path.parent.glob("parameters/*/*.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(Refused, match="not known here; send them along"):
        vault.release(Kind.UPDATE, dataclasses.replace(whole, round=2, base=file.stem, parameters=file.stem, arrays={}))


@pytest.mark.parametrize(
    "what", ["another step", "a surplus tensor", "a tensor less", "a bad scale", "whole but encoded"]
)
def test_a_change_that_does_not_make_the_named_parameters_is_refused_unpaid(
    open_vault: Opener, request_one: RoundRequest, what: str
) -> None:
    """Only the digest is signed, so what came must hash to it."""
    vault = open_vault()
    vault.release(Kind.UPDATE, request_one)
    change, _ = stepped(request_one, 2)
    name = next(iter(change.arrays))
    bent, words = {
        "another step": (dataclasses.replace(change, scales={**change.scales, name: 0.5}), "does not make"),
        "a surplus tensor": (
            dataclasses.replace(change, arrays={**change.arrays, "x": np.ones(2, np.float32)}),
            "does not make",
        ),
        "a tensor less": (
            dataclasses.replace(
                change,
                arrays={key: array for key, array in change.arrays.items() if key != name},
                scales={key: scale for key, scale in change.scales.items() if key != name},
            ),
            "does not make",
        ),
        "a bad scale": (dataclasses.replace(change, scales={**change.scales, name: np.inf}), "must be in"),
        "whole but encoded": (dataclasses.replace(change, base="", parameters=""), "is a difference"),
    }[what]
    with pytest.raises(Refused, match=words):
        vault.release(Kind.UPDATE, bent)
    assert len(list(vault.ledger.entries())) == 1


def test_parameters_that_are_sent_along_do_not_fill_the_disk(open_vault: Opener, request_one: RoundRequest) -> None:
    """The latest ones are kept."""
    vault = open_vault()
    for number in range(module.MOST_PARAMETERS + 3):
        moved = {name: array + np.float32(number) for name, array in request_one.arrays.items()}
        vault.release(Kind.METRIC, dataclasses.replace(request_one, arrays=moved, run=f"r{number}"))
    kept = {file.stem for file in vault.ledger.path.parent.glob("parameters/*/*")}
    assert len(kept) == module.MOST_PARAMETERS
    assert arrays_digest(moved).hex() in kept


@pytest.mark.parametrize("digest", ["0" * 64, "", "../../../etc/passwd", "A" * 64, "é" * 64])
def test_an_unknown_whitening_is_refused_unpaid(open_vault: Opener, request_one: RoundRequest, digest: str) -> None:
    """Not sent and not kept, or a name that is no digest (and so no file name)."""
    vault = open_vault()
    recipe = request_one.recipe.model_copy(update={"whitening": digest})
    with pytest.raises(Refused, match="whitening"):
        vault.release(Kind.UPDATE, dataclasses.replace(request_one, recipe=recipe, whitening={}))
    assert_nothing_happened(vault)


def test_whitenings_that_are_sent_along_do_not_fill_the_disk(open_vault: Opener, request_one: RoundRequest) -> None:
    """Whoever may ask can send any number; the latest are kept, and the one in use is among them."""
    vault = open_vault()
    for number in range(module.MOST_WHITENINGS + 5):
        arrays = {name: array + np.float32(number) for name, array in request_one.whitening.items()}
        recipe = request_one.recipe.model_copy(update={"whitening": arrays_digest(arrays).hex()})
        bad = {"not": np.zeros(1, np.float32)}
        with pytest.raises(Refused, match="parameters"):  # before anything is charged or computed
            vault.release(Kind.UPDATE, dataclasses.replace(request_one, whitening=arrays, recipe=recipe, arrays=bad))
    kept = list((vault._cache / "whitening").glob("*.safetensors"))
    assert len(kept) == module.MOST_WHITENINGS
    assert recipe.whitening in {file.stem for file in kept}
    assert_nothing_happened(vault)


@pytest.mark.parametrize("wrong", ["other", "not finite", "missing", "flat", "lengths", "nothing kept"])
def test_a_whitening_that_is_not_one_is_refused_unpaid(
    open_vault: Opener, request_one: RoundRequest, wrong: str
) -> None:
    """Other values than the recipe names, NaN, a missing part, or shapes that do not fit, under a correct digest."""
    mean, matrix = request_one.whitening["mean"], request_one.whitening["matrix"]
    arrays = {
        "other": {"mean": mean + 1, "matrix": matrix},
        "not finite": {"mean": np.full_like(mean, np.nan), "matrix": matrix},
        "missing": {"matrix": matrix},
        "flat": {"mean": mean, "matrix": matrix[:, 0]},
        "lengths": {"mean": mean[1:], "matrix": matrix},
        "nothing kept": {"mean": mean, "matrix": matrix[:, :0]},
    }[wrong]
    request = dataclasses.replace(request_one, whitening=arrays)
    if wrong != "other":
        recipe = request_one.recipe.model_copy(update={"whitening": arrays_digest(arrays).hex()})
        request = dataclasses.replace(request, recipe=recipe)
    vault = open_vault()
    with pytest.raises(Refused, match="whitening"):
        vault.release(Kind.UPDATE, request)
    assert_nothing_happened(vault)
