"""A custom backbone is found by its entry point or is one clear error; files that do not name one stay as they were."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.custom_backbones import example_entry_points, installed

from isthmus.backbone import Backbone, shared_arrays, shared_parameters
from isthmus.backbone_file import ShippedBackbone, load_backbone, save_backbone
from isthmus.config import BackboneConfig, FeatureConfig, FederationConfig, TrainingConfig, load_federation
from isthmus.custom_backbone import CustomBackbone, load_maker, make_backbone, require_installed
from isthmus.errors import ConfigError, Refused, RunError
from isthmus.features import Whitening
from isthmus.records import read_recipe
from isthmus.simulation.pretraining import pretrain
from isthmus.simulation.run import Watcher

SHAPE = BackboneConfig(width=8, heads=2, layers=1, feedforward=8, positions=5, module="gru4rec")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example, other good ones, and what is wrong in other ways, installed."""
    wrong = {
        "absent": "no_such_module:Thing",
        "nameless": "isthmus_gru4rec:GRU5Rec",
        "number": "tests.custom_backbones:NUMBER",
        "wordless": "tests.custom_backbones:Wordless",
        "train": "isthmus_gru4rec:GRU4Rec",
        "twice": "isthmus_gru4rec:GRU4Rec",
    }
    good = {"gated": "Gated", "longshort": "LongShort", "turned": "Turned", "varying": "Pointwise"}
    names = example_entry_points() | wrong | {name: f"tests.custom_backbones:{one}" for name, one in good.items()}
    place = installed(tmp_path / "site", names)
    other = installed(tmp_path / "other", {"twice": "tests.custom_backbones:Gated"})
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.syspath_prepend(str(other))
    return place


class Nobody(Watcher):
    """A watcher that is told nothing."""


def shipped(backbone: CustomBackbone | Backbone) -> ShippedBackbone:
    """With parameters that were trained."""
    generator = np.random.default_rng(0)
    mean, matrix = (generator.normal(size=shape).astype(np.float32) for shape in ((10,), (10, 6)))
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    whitening, features = Whitening(mean=mean, matrix=matrix), FeatureConfig(encoder="hash:10", dim=6)
    return ShippedBackbone(backbone=backbone.eval(), whitening=whitening, features=features, round=3)


def test_the_one_seam_makes_either(site: Path) -> None:
    """By the configuration; a custom one's parameters are named after its entry point, all of them shared."""
    mine = make_backbone(6, SHAPE)
    assert isinstance(mine, CustomBackbone)
    assert type(mine.get_submodule("gru4rec")).__name__ == "GRU4Rec"
    assert {name.partition(".")[0] for name in shared_parameters(mine)} == {"gru4rec"}
    assert mine.config == SHAPE
    assert isinstance(make_backbone(6, SHAPE.model_copy(update={"module": None})), Backbone)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gru5rec", r"'gru5rec' is not installed here.*there are: absent, gated, gru4rec, .*docs/backbone.md"),
        ("twice", r"more than one package \(isthmus_gru4rec:GRU4Rec, tests.custom_backbones:Gated\)"),
        ("absent", r"'absent' \(no_such_module:Thing\) cannot be imported: ModuleNotFoundError"),
        ("nameless", r"'nameless' \(isthmus_gru4rec:GRU5Rec\) cannot be imported: AttributeError"),
        ("number", r"'number' \(tests.custom_backbones:NUMBER\) must be a class or a function, got 7"),
        ("wordless", r"'wordless' cannot be made: LookupError: .*no tokenizer for 6 features"),
        ("train", r"'train' cannot be made: KeyError"),
    ],
)
def test_what_cannot_be_made_is_one_error(site: Path, name: str, said: str) -> None:
    """Not installed, installed twice, not importable, no maker, a maker that raises, a name that torch has taken."""
    with pytest.raises(ConfigError, match=said):
        make_backbone(6, SHAPE.model_copy(update={"module": name}))


def test_to_look_whether_it_is_installed_runs_nothing(site: Path) -> None:
    """What cannot even be imported is installed; what is not, is not."""
    require_installed(SHAPE.model_copy(update={"module": "absent"}))
    require_installed(SHAPE.model_copy(update={"module": None}))
    with pytest.raises(ConfigError, match="not installed here"):
        require_installed(SHAPE.model_copy(update={"module": "gru5rec"}))
    assert callable(load_maker("gru4rec"))


def test_the_file_of_a_custom_backbone_comes_back_where_it_is_installed(site: Path, tmp_path: Path) -> None:
    """Module, parameters and queries; elsewhere, one error that names file, module and the way out."""
    made = shipped(make_backbone(6, SHAPE))
    save_backbone(tmp_path / "b.safetensors", made)
    back = load_backbone(tmp_path / "b.safetensors").backbone
    assert (type(back), back.config, back.training) == (CustomBackbone, SHAPE, False)
    history = torch.randn(2, 5, 6)
    assert torch.equal(back(history), made.backbone(history))
    (site / "site-1.0.dist-info" / "entry_points.txt").write_text("")
    with pytest.raises(RunError, match=r"b\.safetensors: custom backbone 'gru4rec' is not installed here.*Install the"):
        load_backbone(tmp_path / "b.safetensors")


@pytest.mark.parametrize("name", ["gated", "longshort", "turned"])
def test_the_file_has_the_names_of_parameters_and_not_of_a_state(site: Path, tmp_path: Path, name: str) -> None:
    """Opacus' recurrent layers have others as well; and however it lies in memory, each comes back to the bit."""
    made = shipped(make_backbone(6, SHAPE.model_copy(update={"module": name})))
    save_backbone(tmp_path / "b.safetensors", made)
    back = load_backbone(tmp_path / "b.safetensors").backbone
    first, second = shared_arrays(made.backbone), shared_arrays(back)
    assert first.keys() == second.keys() <= made.backbone.state_dict().keys()
    assert all(np.array_equal(first[key], second[key]) for key in first)
    history = torch.randn(2, 5, 6)
    assert torch.equal(back(history), made.backbone(history))


def test_a_module_that_has_got_a_buffer_since_is_no_backbone_of_its_file(site: Path, tmp_path: Path) -> None:
    """No file holds one, so what it would predict with is not what was trained; nor one with other parameters."""
    save_backbone(tmp_path / "b.safetensors", shipped(make_backbone(6, SHAPE.model_copy(update={"module": "varying"}))))
    entry_points = site / "site-1.0.dist-info" / "entry_points.txt"
    for other, said in (
        ("Buffered", "its custom backbone has a buffer here, 'varying.seen', and a file holds parameters only"),
        ("Centred", r"its parameters are not those of its backbone: \['varying.mean'\]"),
        ("Wide", r"parameter 'varying.expand.weight' must be of shape \(16, 6\), got \(8, 6\)"),
    ):
        entry_points.write_text(f"[isthmus.backbones]\nvarying = tests.custom_backbones:{other}\n")
        with pytest.raises(RunError, match=f"not a backbone of this version: {said}"):
            load_backbone(tmp_path / "b.safetensors")


def test_what_names_no_module_has_the_bytes_that_it_had(tmp_path: Path) -> None:
    """The key is in no dump, so that digests of federations and recipes, and backbone files, do not move."""
    plain = BackboneConfig(width=8, heads=2, layers=1, feedforward=8, positions=5)
    assert "module" not in plain.model_dump_json()
    assert "module" not in FederationConfig(name="f", domains=("a",)).model_dump_json()
    save_backbone(tmp_path / "b.safetensors", shipped(Backbone(6, plain)))
    content = (tmp_path / "b.safetensors").read_bytes()
    assert b"module" not in content
    assert FederationConfig(name="f", domains=("a",)).digest() == (
        "34d33c8fd32fb6d3e00f46c9438332f42cfb905e79e16cb9dc1e6fef2cf0246a"
    )


def test_a_custom_backbone_is_trained_whole(tmp_path: Path) -> None:
    """In a federation file and in a request: what speaks of the built-in one's parts is an error beside it."""
    file = tmp_path / "federation.toml"
    head = 'name = "f"\ndomains = ["a"]\n[backbone]\nmodule = "gru4rec"\n'
    file.write_text(head)
    with pytest.raises(ConfigError, match=r'`backbone.module = "gru4rec"` needs `train = "all"` in \[training\]'):
        load_federation(file)
    file.write_text(f'{head}[training]\ntrain = "all"\n[strategy]\nname = "feddf"\n')
    with pytest.raises(ConfigError, match=r'`strategy.name = "feddf"` predicts with the built-in backbone'):
        load_federation(file)
    aligned = 'align = "dann"\nalign_weight = 0.1\nalign_domains = ["a", "b"]\n'
    file.write_text(f'{head}[training]\ntrain = "all"\n{aligned}')
    with pytest.raises(ConfigError, match=r"`training.align` reads the built-in backbone's encoder; leave it out"):
        load_federation(file)
    file.write_text(f'{head}start = "other.safetensors"\n[training]\ntrain = "all"\n')
    with pytest.raises(ConfigError, match=r"`backbone.start` is a built-in backbone; leave it out"):
        load_federation(file)
    file.write_text(f'{head}[training]\ntrain = "all"\n')
    federation = load_federation(file)
    assert federation.backbone.module == "gru4rec"
    with pytest.raises(ConfigError, match=r"`backbone.module`: what is trained here is the built-in backbone"):
        pretrain(file, out=tmp_path / "b.safetensors", passes=1, watcher=Nobody())
    recipe = {
        "features": federation.features.model_dump(mode="json"),
        "backbone": federation.backbone.model_dump(mode="json"),
        "training": TrainingConfig().model_dump(mode="json"),
        "whitening": "",
    }
    with pytest.raises(Refused, match="names parts of the built-in backbone"):
        read_recipe(json.dumps(recipe))


@pytest.mark.parametrize("name", ["../evil", "a.b", "A", "", "x:y"])
def test_a_name_is_a_plain_name(name: str) -> None:
    """It is a prefix of parameters' names, and no path to code."""
    with pytest.raises(ValueError, match="module"):
        BackboneConfig(module=name)
