"""A BERT whose matrix products are in 8 bits: what `minilm:int8` runs, 1.3 to 1.6 times as fast as float32.

    hidden = Int8Bert(bert)(ids)          # (texts, length, dim), of a transformers BertModel

Torch's own dynamic quantisation has one scale for a whole batch. A text's vector would then depend on the texts
beside it, and it is too coarse: [CLS] is ten times as large as other tokens, and the cosine with float32 falls to 0.95.
Here each token has its own scale and offset, and each output of a layer its own scale of weights. The sums are whole
numbers, so they are exact; and every x86 processor finds the same ones, because tokens are at most 181 and weights at
most 90: processors without VNNI add two products in 16 bits, where twice 181 x 90 just fits. (Other splits of these 16
bits were further from float32.)

Norms, softmax and GELU stay in float32. docs/adr/0018-int8-encoder.md has the figures.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from isthmus.errors import ConfigError

_TOKEN_STEPS, _WEIGHT_STEPS = 181, 90  # tokens are 0 to 181, weights -90 to 90
_TINY = 1e-12  # a token that is constant has no range to divide by


class Int8Linear:
    """One linear layer, or several that read the same input, side by side.

    Args:
        layers: With biases.
    """

    def __init__(self, *layers: nn.Linear) -> None:
        weight = torch.cat([layer.weight.detach() for layer in layers])  # (out, in)
        self._bias = torch.cat([layer.bias.detach() for layer in layers])
        self._scales = weight.abs().amax(dim=1).clamp(min=_TINY) / _WEIGHT_STEPS  # (out,)
        whole = (weight / self._scales[:, None]).round().to(torch.int8)
        self._sums = whole.sum(dim=1) * self._scales  # (out,), what an offset of 1 in every input adds
        self._zeros = torch.zeros(len(weight), dtype=torch.int32)
        self._packed = torch.ops.onednn.qlinear_prepack(whole, None)

    def __call__(self, x: Tensor) -> Tensor:
        """(tokens, in) to (tokens, out)."""
        low = x.amin(dim=1, keepdim=True)
        step = (x.amax(dim=1, keepdim=True) - low).clamp_(min=_TINY).div_(_TOKEN_STEPS)
        per_step = step.reciprocal()
        whole = (x * per_step).add_(0.5 - low * per_step).to(torch.uint8)  # (tokens, in), rounded
        product: Tensor = torch.ops.onednn.qlinear_pointwise(
            whole, 1.0, 0, self._packed, self._scales, self._zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return product.mul_(step).addcmul_(low, self._sums).add_(self._bias)


class _Layer:
    """One transformer block (post-norm, as in BERT)."""

    def __init__(self, layer: Any, heads: int) -> None:
        attention = layer.attention.self
        self._heads = heads
        self._qkv = Int8Linear(attention.query, attention.key, attention.value)
        self._out = Int8Linear(layer.attention.output.dense)
        self._norm_attention = layer.attention.output.LayerNorm
        self._expand = Int8Linear(layer.intermediate.dense)
        self._contract = Int8Linear(layer.output.dense)
        self._norm_feedforward = layer.output.LayerNorm

    def __call__(self, x: Tensor, texts: int) -> Tensor:
        """(tokens, dim) to the same shape; all texts have the same number of tokens, one after the other."""
        tokens, dim = x.shape
        parts = self._qkv(x).view(texts, tokens // texts, 3, self._heads, dim // self._heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # each (texts, heads, length, dim / heads)
        mixed = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(tokens, dim)
        x = self._norm_attention(self._out(mixed).add_(x))
        x = self._norm_feedforward(self._contract(torch.ops.aten.gelu_(self._expand(x))).add_(x))
        return x


class Int8Bert:
    """A frozen BERT in evaluation mode, its matrix products in 8 bits.

    Args:
        bert: A transformers `BertModel`.
        name: Of the encoder, for errors.

    Raises:
        ConfigError: If it is another kind of model, or this build of torch has no such products.
    """

    def __init__(self, bert: Any, name: str) -> None:
        config = bert.config
        if (config.model_type, config.hidden_act) != ("bert", "gelu") or config.is_decoder:
            raise ConfigError(
                f"encoder {name!r}: int8 is for BERT encoders with GELU, this is a {config.model_type} with "
                f"{getattr(config, 'hidden_act', 'another activation')}. Leave out `:int8`."
            )
        if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            raise ConfigError(f"encoder {name!r}: int8 needs a torch that is built with oneDNN. Leave out `:int8`.")
        self._embeddings = bert.embeddings
        self._layers = [_Layer(layer, config.num_attention_heads) for layer in bert.encoder.layer]

    def __call__(self, ids: Tensor) -> Tensor:
        """Last hidden states (texts, length, dim) of token ids (texts, length); none of them is padding."""
        x: Tensor = self._embeddings(input_ids=ids)  # (texts, length, dim)
        flat = x.view(-1, x.shape[2])
        for layer in self._layers:
            flat = layer(flat, len(ids))
        return flat.view(x.shape)
