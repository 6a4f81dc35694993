"""Cases of a judge (see `sensitivity`) in which the text encoder is trained: a tiny BERT, and what it must compute.

What it must compute is written down another way than the code does it: text by text, without padding, by a model whose
matrices are W + U D.
"""

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tests.clients.sensitivity import ITEMS, SHAPE, TRAINING, Case, randomise, user_gradient
from tests.tiny_bert import write_tiny_bert
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer

from isthmus.backbone import Backbone
from isthmus.clients.text_tower import TextTower
from isthmus.clients.trainer import TrainingSet
from isthmus.config import FeatureConfig, LossName, Trained, TrainingConfig
from isthmus.features import Whitening, encode_texts, fit_whitening, text_moments
from isthmus.features.tuned import text_shape

WORDS = ("red", "blue", "green", "shoes", "violin", "sonata", "the", "of")
TEXT = TrainingConfig.model_validate(
    {**TRAINING.model_dump(), "train": Trained.TEXT, "rank": 2, "loss": LossName.CROSS_ENTROPY}
)


@dataclass(frozen=True, kw_only=True)
class TextCase(Case):
    """Users of a catalogue with texts."""

    texts: tuple[str, ...]
    encoder: str
    whitening: Whitening
    tower: type[TextTower] = TextTower

    def users(self) -> TrainingSet:
        """With what reads their histories."""
        tower = self.tower(self.texts, self.encoder, self.whitening)
        return dataclasses.replace(super().users(), tower=tower.to(next(self.backbone.parameters()).dtype))

    def read(self, backbone: Backbone, seen: list[int]) -> tuple[Tensor, ...]:
        """One text after the other."""
        return (torch.stack([self.one(backbone, item) for item in seen])[None],)

    def one(self, backbone: Backbone, item: int) -> Tensor:
        """(features,) of an item by the merged model, float64."""
        tokenizer, model = loaded(self.encoder)
        if not self.texts[item].strip():
            return torch.zeros(self.features.shape[1], dtype=torch.float64)
        weights = dict(model.named_parameters())
        for number, layer in enumerate(backbone.text.layer):
            for name in ("query", "value"):
                change, full = getattr(layer, name), f"encoder.layer.{number}.attention.self.{name}.weight"
                weights[full] = weights[full] + change.up.weight @ change.down
        given = dict(tokenizer(self.texts[item], truncation=True, max_length=12, return_tensors="pt"))
        hidden = torch.func.functional_call(model, weights, kwargs=given).last_hidden_state[0]
        mean, matrix = (torch.from_numpy(each).double() for each in (self.whitening.mean, self.whitening.matrix))
        return functional.normalize((functional.normalize(hidden.mean(dim=0), dim=0) - mean) @ matrix, dim=0)


@functools.cache
def loaded(encoder: str):
    """Tokenizer and model, in float64."""
    return AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder).eval().double()


def text_case(folder: Path, lengths: list[int], *, seed: int, start: bool = False) -> TextCase:
    """Random histories of a catalogue of random texts, one of them blank; C is the median norm.

    Args:
        folder: Of the encoder; written if absent.
        lengths: Of the histories.
        seed: Of all of it.
        start: Whether parameters are those of a start, in float32, and not random ones in float64.
    """
    rng = np.random.default_rng(seed)
    if not folder.exists():
        write_tiny_bert(folder, WORDS)
    texts = [" ".join(rng.choice(WORDS, rng.integers(1, 9))) for _ in range(ITEMS)]
    texts[3] = " "
    encoded = encode_texts(texts, str(folder), cache_dir=None)
    whitening = fit_whitening([text_moments(encoded)], eps=1e-3, dim=None)
    shape = text_shape(FeatureConfig(encoder=str(folder)), TEXT)
    backbone = Backbone(16, SHAPE, text=shape)
    case = TextCase(
        rows=tuple(tuple(int(item) for item in rng.integers(0, ITEMS, length)) for length in lengths),
        chosen=(True,) * len(lengths),
        features=whitening.apply(encoded),
        backbone=backbone if start else randomise(backbone, seed),
        clip=1.0,
        texts=tuple(texts),
        encoder=str(folder),
        whitening=whitening,
    )
    norms = [norm for row in case.rows if (norm := float(user_gradient(case, row, TEXT).norm())) > 0]
    return dataclasses.replace(case, clip=float(np.median(norms)))
