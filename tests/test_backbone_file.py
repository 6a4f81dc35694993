"""A shipped backbone is one file that comes back as it was, or is refused with the reason."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from isthmus.backbone import Backbone, shared_parameters
from isthmus.backbone_file import ShippedBackbone, load_backbone, save_backbone
from isthmus.config import BackboneConfig, FeatureConfig
from isthmus.errors import RunError
from isthmus.features import Whitening
from isthmus.text_changes import TextShape

SHAPE = BackboneConfig(width=8, layers=1, heads=2, feedforward=8, positions=5)


def make_shipped(seed: int = 0, *, text: TextShape | None = None) -> ShippedBackbone:
    """A trained-looking backbone with a whitening from 10 to 6 dimensions."""
    torch.manual_seed(seed)
    backbone = Backbone(6, SHAPE, text=text)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.normal_()
    generator = np.random.default_rng(seed)
    whitening = Whitening(
        mean=generator.normal(size=10).astype(np.float32), matrix=generator.normal(size=(10, 6)).astype(np.float32)
    )
    return ShippedBackbone(
        backbone=backbone.eval(), whitening=whitening, features=FeatureConfig(encoder="hash:10", dim=6), round=3
    )


def test_a_backbone_comes_back_as_it_was(tmp_path: Path) -> None:
    """Parameters and whitening to the bit, shape, encoder and round; in evaluation mode; same queries."""
    shipped = make_shipped()
    save_backbone(tmp_path / "b.safetensors", shipped)
    back = load_backbone(tmp_path / "b.safetensors")
    assert (back.backbone.config, back.features, back.round) == (SHAPE, shipped.features, 3)
    assert not back.backbone.training
    pairs = zip(shared_parameters(shipped.backbone).items(), shared_parameters(back.backbone).items(), strict=True)
    assert all(name == other and torch.equal(left, right) for (name, left), (other, right) in pairs)
    assert np.array_equal(back.whitening.mean, shipped.whitening.mean)
    assert np.array_equal(back.whitening.matrix, shipped.whitening.matrix)
    history = torch.randn(2, 5, 6)
    assert torch.equal(back.backbone(history), shipped.backbone(history))


def test_equal_backbones_give_equal_bytes(tmp_path: Path) -> None:
    """So that two runs can be compared by their files; another backbone gives other bytes."""
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        save_backbone(tmp_path / name, make_shipped(seed))
    first, second, third = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == second != third


def test_an_absent_backbone_says_what_to_do(tmp_path: Path) -> None:
    """No file is no traceback."""
    with pytest.raises(RunError, match=r"no backbone here.*isthmus simulate"):
        load_backbone(tmp_path / "backbone.safetensors")


def test_a_damaged_or_foreign_file_is_refused(tmp_path: Path) -> None:
    """Cut short, no safetensors at all, no header of ours, a tensor too few, a shape that does not fit."""
    file = tmp_path / "b.safetensors"
    save_backbone(file, make_shipped())
    whole, tensors = file.read_bytes(), load_file(file)
    with safe_open(file, framework="np") as opened:
        metadata = opened.metadata()
    header = json.loads(metadata["isthmus"])
    wide = {"isthmus": json.dumps({**header, "backbone": {**header["backbone"], "width": 16}})}
    typo = {"isthmus": json.dumps({**header, "backbone": {**header["backbone"], "widht": 16}})}
    variants = {
        "cut": whole[: len(whole) // 2],
        "text": b"this is not a backbone",
        "empty": b"",
    }
    for name, content in variants.items():
        (tmp_path / name).write_bytes(content)
    save_file(tensors, tmp_path / "no-header")
    save_file({k: v for k, v in tensors.items() if k != "norm.weight"}, tmp_path / "missing", metadata=metadata)
    save_file({**tensors, "surplus": np.zeros(1, np.float32)}, tmp_path / "surplus", metadata=metadata)
    save_file(tensors, tmp_path / "wide", metadata=wide)
    save_file(tensors, tmp_path / "typo", metadata=typo)
    (tmp_path / "folder").mkdir()
    for name in (*variants, "no-header", "missing", "surplus", "wide", "typo", "folder"):
        with pytest.raises(RunError, match="not a backbone of this version"):
            load_backbone(tmp_path / name)


def test_changes_of_a_text_encoder_come_back_or_are_refused(tmp_path: Path) -> None:
    """A layer too far, a layer too few, no rank, a vector, another rank, no number: nothing is made of any of them."""
    file = tmp_path / "b.safetensors"
    shipped = make_shipped(text=TextShape(layers=2, width=4, rank=3))
    save_backbone(file, shipped)
    back = load_backbone(file).backbone
    assert back.text.shape == shipped.backbone.text.shape
    assert back.text.digest() == shipped.backbone.text.digest()
    tensors = load_file(file)
    with safe_open(file, framework="np") as opened:
        metadata = opened.metadata()
    first, last = "text.layer.0.query.up.weight", "text.layer.1.value.up.weight"
    far = "text.layer.9999.query.up.weight"
    variants = {
        "far": {**tensors, far: tensors[first]},
        "farther": {**tensors, far.replace("9999", "9" * 5000): tensors[first]},
        "few": {name: tensor for name, tensor in tensors.items() if ".layer.0." not in name},
        "half": {name: tensor for name, tensor in tensors.items() if name != first},
        "rankless": {name: tensor[:, :0] if "text" in name else tensor for name, tensor in tensors.items()},
        "vector": {**tensors, last: tensors[last][0]},
        "other": {**tensors, first: np.zeros((4, 2), np.float32)},
        "nan": {**tensors, last: np.full((4, 3), np.nan, np.float32)},
    }
    for name, changed in variants.items():
        save_file({key: np.ascontiguousarray(tensor) for key, tensor in changed.items()}, tmp_path / name, metadata)
        with pytest.raises(RunError, match="not a backbone of this version"):
            load_backbone(tmp_path / name)
