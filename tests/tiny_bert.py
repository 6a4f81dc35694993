"""A real BERT of two layers and width 16 with random weights, as a transformers folder."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def write_tiny_bert(
    folder: Path, words: Sequence[str], *, seed: int = 0, tokens: int = 12, spread: float = 0.02
) -> Path:
    """Write it.

    Args:
        folder: Made.
        words: That it knows.
        seed: Of its weights.
        tokens: Longest text.
        spread: Standard deviation of its weights.
    """
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join([*SPECIALS, *words]) + "\n")
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    shape |= {"initializer_range": spread}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = BertConfig(vocab_size=len(SPECIALS) + len(words), max_position_embeddings=tokens, **shape)
        BertModel(config).save_pretrained(folder)
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return folder
