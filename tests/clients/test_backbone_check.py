"""Each line of the protocol of custom backbones has a mutant that breaks it; what is good passes, in either engine."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.custom_backbones import (
    MUTANTS,
    Centred,
    Gated,
    LongShort,
    Pointwise,
    Turned,
    dictionary,
    example_entry_points,
    installed,
)

from isthmus.backbone import Backbone
from isthmus.clients.backbone_check import LINES, broken_lines, require_protocol
from isthmus.clients.bookkeeping import BookKeeping
from isthmus.clients.engines import engine_for
from isthmus.clients.gradients import OpacusHooks
from isthmus.config import BackboneConfig, DomainCompute, EngineName, Precision
from isthmus.custom_backbone import custom_backbone, load_maker
from isthmus.doctor import examine_backbone
from isthmus.errors import ConfigError, EngineError
from isthmus.privacy.program import backbone_hash

SHAPE = BackboneConfig(width=8, heads=2, layers=2, feedforward=8, positions=6, module="mine")
OPACUS = DomainCompute(engine=EngineName.OPACUS)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The example and every mutant, installed."""
    bad = {name: f"tests.custom_backbones:{mutant.__name__}" for name, (mutant, _) in MUTANTS.items()}
    place = installed(tmp_path / "site", {**example_entry_points(), **bad})
    monkeypatch.syspath_prepend(str(place))
    yield place
    require_protocol.cache_clear()


@pytest.mark.parametrize("compute", [DomainCompute(), OPACUS], ids=["books", "opacus"])
@pytest.mark.parametrize("make", [Backbone, Pointwise, Turned, Gated, LongShort])
def test_what_is_good_breaks_no_line(make: type[torch.nn.Module], compute: DomainCompute) -> None:
    """The built-in backbone keeps to the protocol of custom ones, and so do those of Opacus' own layers."""
    assert broken_lines(make, features=12, config=SHAPE, compute=compute) == {}


@pytest.mark.parametrize("name", ["gru4rec"])
def test_the_example_breaks_no_line(site: Path, name: str) -> None:
    """In two shapes; and the book-keeping engine has a rule for all of its layers."""
    make = load_maker(name)
    assert broken_lines(make, features=12, config=SHAPE) == broken_lines(make, features=64) == {}
    assert engine_for(custom_backbone(make, 12, SHAPE), DomainCompute()) is BookKeeping


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_breaks_its_line(name: str) -> None:
    """Nothing that is checked before it, and it is named."""
    mutant, line = MUTANTS[name]
    broken = broken_lines(mutant, features=12, config=SHAPE)
    assert next(iter(broken), None) == line, broken


def test_every_line_has_a_mutant() -> None:
    """No line is only said."""
    assert {line for _, line in MUTANTS.values()} == set(LINES)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("whitening", "parameter 'whitening.mean' has the name that a part of the whitening has"),
        ("domain_classifier", "its parameters are not those of its backbone: ['domain_classifier.expand.bias'"),
    ],
)
def test_a_name_that_a_file_has_for_something_else_breaks_the_line(module: str, said: str) -> None:
    """An entry point that gives a parameter the name of a part of the whitening, or of what is never shipped."""
    assert broken_lines(Centred, features=12, config=SHAPE) == {}
    broken = broken_lines(Centred, features=12, config=SHAPE.model_copy(update={"module": module}))
    assert list(broken) == ["file"]
    assert said in broken["file"]


def test_what_cannot_be_made_says_so() -> None:
    """No module comes of it."""
    with pytest.raises(ConfigError, match=r"'mine' cannot be made: TypeError: .* is a torch\.nn\.Module, got dict"):
        broken_lines(dictionary, features=12, config=SHAPE)


def test_trying_leaves_the_generator_alone() -> None:
    """A seeded run does not depend on whether a backbone was tried before it."""
    before = torch.get_rng_state()
    broken_lines(Pointwise, features=12, config=SHAPE)
    assert torch.equal(before, torch.get_rng_state())


def test_the_engine_is_exact_for_the_layers_that_are_there() -> None:
    """Books where they have every rule, Opacus' hooks where not, the built-in backbone as it was asked for."""
    mine, gated = (custom_backbone(make, 12, SHAPE) for make in (Pointwise, Gated))
    assert engine_for(mine, DomainCompute()) is BookKeeping
    assert engine_for(mine, OPACUS) is engine_for(gated, DomainCompute()) is engine_for(gated, OPACUS) is OpacusHooks
    assert engine_for(Gated(12, SHAPE), DomainCompute()) is BookKeeping  # which says itself what it cannot do
    with pytest.raises(EngineError, match=r"DPGRU.*known for these layers only"):
        engine_for(gated, DomainCompute(precision=Precision.BFLOAT16))


def test_a_broken_line_is_one_clear_error(site: Path) -> None:
    """Name, line, rule, what was seen and the way out; a good one passes, and so does the built-in one."""
    bad = SHAPE.model_copy(update={"module": "foreseeing"})
    said = r"'foreseeing' breaks its protocol, line `causal` \(row t .*isthmus doctor --backbone foreseeing"
    with pytest.raises(ConfigError, match=said):
        require_protocol(bad, 12, DomainCompute())
    require_protocol(SHAPE.model_copy(update={"module": "gru4rec"}), 12, DomainCompute())
    require_protocol(SHAPE.model_copy(update={"module": None}), 12, DomainCompute())


def test_the_doctor_looks_at_every_line(site: Path) -> None:
    """All well for the example, with its hash; one MEND for a mutant; one for what is not there."""
    good, bad, absent = (examine_backbone(name) for name in ("gru4rec", "dropping", "gru5rec"))
    assert [check.name for check in good] == [
        "backbone gru4rec",
        "gru4rec for `allow.backbones`",
        *(f"gru4rec: {line}" for line in LINES),
    ]
    assert good[1].seen == f"gru4rec@{backbone_hash('gru4rec')}"
    assert all(check.well for check in good)
    assert "BookKeeping" in good[0].seen
    (ill,) = (check for check in bad if not check.well)
    assert (ill.name, LINES["deterministic"] in ill.mend) == ("dropping: deterministic", True)
    (missing,) = absent
    assert not missing.well
    assert "'gru5rec' is not installed here" in missing.seen
