"""Products in 8 bits: close to float32, a text's vector its own, and never mistaken for float32."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, BertTokenizerFast, ElectraConfig, ElectraModel

from isthmus.errors import ConfigError
from isthmus.features import encode_texts, encoder_identity
from isthmus.features.int8 import Int8Linear

TITLES = [
    "HP 74 Black & 75 Tri-color Original Ink Cartridges, 2 Cartridges (CB335WN, CB337WN)",
    "Sal's Pizza. Food Delivery Services, Italian, Sandwiches, Food, Pizza, Restaurants, Chicken Wings",
    "Toy Story (1995). Animation Children's Comedy",
    "bellesha hands free foot scrubber beauty",
    "東京 ramen 🎧",
    "a " * 300,
]


def by_hand(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """The definition, in whole numbers and double precision: tokens in 0..181, weights in -90..90."""
    low = x.amin(dim=1, keepdim=True)
    step = (x.amax(dim=1, keepdim=True) - low) / 181
    tokens = (x * (1 / step) + (0.5 - low * (1 / step))).floor().to(torch.int64)
    scale = layer.weight.abs().amax(dim=1) / 90
    weights = (layer.weight / scale[:, None]).round().to(torch.int64)
    sums = (tokens @ weights.T).double()  # exact
    return (step * scale * sums + low * scale * weights.sum(dim=1) + layer.bias).float()


def test_a_layer_is_what_its_definition_says_even_where_16_bits_would_overflow() -> None:
    """Tokens and weights at their largest: two products of 8 bits each would not fit into 16 bits, these do."""
    torch.manual_seed(0)
    layer = nn.Linear(64, 8)
    with torch.inference_mode():
        layer.weight[0] = 1.0
        layer.weight[1] = -1.0
        x = torch.cat([torch.randn(5, 64), torch.ones(1, 64) * 3.0])
        x[5, 0] = -1.0
        torch.testing.assert_close(Int8Linear(layer)(x), by_hand(layer, x), rtol=1e-5, atol=1e-4)


def test_a_constant_token_divides_by_nothing() -> None:
    """A token without a range is its offset alone."""
    layer = nn.Linear(16, 4)
    with torch.inference_mode():
        found = Int8Linear(layer)(torch.full((2, 16), 0.5))
        torch.testing.assert_close(found, layer(torch.full((2, 16), 0.5)), rtol=1e-2, atol=1e-2)


def test_minilm_in_8_bits_is_within_a_hundredth_of_float32() -> None:
    """Cosine of at least 0.99 for every kind of text; torch's one scale for a batch reaches 0.95."""
    exact = encode_texts(TITLES, "minilm", cache_dir=None, threads=1)
    fast = encode_texts(TITLES, "minilm:int8", cache_dir=None, threads=1)
    np.testing.assert_allclose(np.linalg.norm(fast, axis=1), 1, atol=1e-5)
    assert (exact * fast).sum(axis=1).min() >= 0.99


def test_a_text_in_8_bits_has_the_same_bits_whatever_is_beside_it() -> None:
    """No scale is shared between texts."""
    together = encode_texts(TITLES, "minilm:int8", cache_dir=None, threads=1)
    parts = [encode_texts(TITLES[a:b], "minilm:int8", cache_dir=None, threads=1) for a, b in ((0, 3), (3, 6))]
    assert np.concatenate(parts).tobytes() == together.tobytes()


def test_vectors_in_8_bits_have_an_identity_of_their_own(tmp_path: Path) -> None:
    """A cache never gives one for the other."""
    assert encoder_identity("minilm:int8") != encoder_identity("minilm")
    exact = encode_texts(TITLES[:2], "minilm", cache_dir=tmp_path, threads=1)
    fast = encode_texts(TITLES[:2], "minilm:int8", cache_dir=tmp_path, threads=1)
    assert (exact != fast).any()
    assert encode_texts(TITLES[:2], "minilm:int8", cache_dir=tmp_path, threads=1).tobytes() == fast.tobytes()


def folder_of(model: object, folder: Path) -> Path:
    """A transformers folder of a tiny model with random weights."""
    folder.mkdir()
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nshoes\n")
    model.save_pretrained(folder)
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def test_a_model_that_is_not_followed_in_8_bits_is_refused(tmp_path: Path) -> None:
    """Another architecture, or another activation, says so and names the way out."""
    shape = {"vocab_size": 6, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    other = ElectraModel(ElectraConfig(embedding_size=16, intermediate_size=32, **shape))
    relu = BertModel(BertConfig(intermediate_size=32, hidden_act="relu", **shape))
    for model, said in ((other, "electra with gelu"), (relu, "bert with relu")):
        folder = folder_of(model, tmp_path / said.replace(" ", "-"))
        with pytest.raises(ConfigError, match=rf"int8 is for BERT encoders with GELU, this is a {said}.*Leave out"):
            encode_texts(["shoes"], f"{folder}:int8", cache_dir=None)
