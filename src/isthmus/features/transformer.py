"""Run a frozen transformer over texts, fast on few cores. Imported only when a text must be encoded.

Texts are grouped by their exact number of tokens, so no position is ever padding, and a batch holds
a budget of tokens, not a number of texts. Without padding the vector of a text also does not depend
on which texts share its batch: encoding a catalogue in two parts gives the same bits as in one.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # read at first use; a later fork must not warn

from safetensors import SafetensorError
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging as hf_logging

from isthmus.errors import ConfigError
from isthmus.features.int8 import Int8Bert
from isthmus.features.model_folder import CHOICES, ModelFolder
from isthmus.features.tuned import changed
from isthmus.text_changes import TextChanges

_TOKEN_BUDGET = 2048  # tokens of one batch; on one core the speed is flat from 512 to 4096

Model = Callable[[torch.Tensor], torch.Tensor]
"""From token ids (batch, length), none of them padding, to the last hidden states (batch, length, dim)."""


def encode_batches(
    folder: ModelFolder, texts: Sequence[str], threads: int | None, *, changes: TextChanges | None = None
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Yield (positions, features) of a batch, longest texts first.

    Args:
        folder: Of the model.
        texts: None of them blank.
        threads: Of torch while a batch is computed; its own setting when None, and again afterwards.
        changes: Beside the model's weights.

    Yields:
        Positions (batch,) into `texts` and L2-normalised features (batch, dim).

    Raises:
        ConfigError: If the folder cannot be loaded as a model.
    """
    tokenizer, weights = load_model(folder)
    model = Int8Bert(weights, folder.name) if folder.int8 else _Float32(weights, changes)
    tokens = tokenised(folder, tokenizer, texts)
    lengths = np.array([len(ids) for ids in tokens])
    for length in np.unique(lengths)[::-1]:  # longest first: what does not fit in memory fails at once
        positions = np.flatnonzero(lengths == length)
        batch = max(1, _TOKEN_BUDGET // int(length))
        for start in range(0, len(positions), batch):
            chosen = positions[start : start + batch]
            yield chosen, _forward(model, folder.pooling, [tokens[k] for k in chosen], threads)


def _forward(model: Model, pooling: str, tokens: list[list[int]], threads: int | None) -> NDArray[np.float32]:
    """Vectors of texts that all have the same number of tokens, (batch, dim)."""
    ids = torch.tensor(tokens)  # (batch, length), no padding
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        with torch.inference_mode():
            hidden = model(ids)  # (batch, length, dim)
            pooled = hidden[:, 0] if pooling == "cls" else hidden.mean(dim=1)
            features: NDArray[np.float32] = torch.nn.functional.normalize(pooled, dim=1).numpy()
    finally:
        torch.set_num_threads(before)
    return features


def tokenised(folder: ModelFolder, tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts, each as long as it is, or cut."""
    asked = [text.lower() for text in texts] if folder.lowercase else list(texts)
    tokens: list[list[int]] = tokenizer(asked, truncation=True, max_length=folder.max_tokens)["input_ids"]
    return tokens


def load_model(folder: ModelFolder) -> tuple[Any, Any]:
    """Tokenizer and transformers model, in evaluation mode, on the CPU; nothing is printed and nothing is fetched.

    Raises:
        ConfigError: If the folder cannot be loaded as a model.
    """
    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity(logging.ERROR)
    hf_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder.path, local_files_only=True)
        model = AutoModel.from_pretrained(
            folder.path, local_files_only=True, use_safetensors=True, dtype=torch.float32, trust_remote_code=False
        )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        raise ConfigError(f"encoder {folder.name!r}: {folder.path} cannot be loaded: {error} {CHOICES}") from error
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    model.eval()
    return tokenizer, model


class _Float32:
    """A transformers model as it is, or with changes."""

    def __init__(self, model: Any, changes: TextChanges | None = None) -> None:
        self._model = model
        self._changes = changes

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        with nullcontext() if self._changes is None else changed(self._model, self._changes, None):
            hidden: torch.Tensor = self._model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        return hidden
