"""From the parameters that a request names to a backbone, or to the reason why they make none.

backbone = requested_backbone(recipe, arrays, whitening, domains=0)
"""

import logging

import numpy as np

from isthmus.backbone import load_shared, shared_parameters
from isthmus.custom_backbone import AnyBackbone, make_backbone
from isthmus.encoding import Arrays
from isthmus.errors import ConfigError, Refused
from isthmus.features import Whitening
from isthmus.features.tuned import text_shape
from isthmus.records import Recipe

_LOG = logging.getLogger(__name__)


def requested_backbone(recipe: Recipe, arrays: Arrays, whitening: Whitening, *, domains: int) -> AnyBackbone:
    """A backbone with a request's parameters, with a classifier of so many domains.

    Raises:
        Refused: If they are not exactly the parameters of the recipe's shape, finite, or the text encoder that it
            trains is not here. What is here instead is said in the domain's own log: whoever asks chose the name, and
            shall not look around by it.
    """
    try:
        text = text_shape(recipe.features, recipe.training)
    except ConfigError as error:
        _LOG.warning("the text encoder that a request wants trained: %s", error)
        raise Refused(
            f"the text encoder {recipe.features.encoder!r:.200} cannot be trained in this domain; its own log says why",
            rule="backbone",
        ) from None
    backbone = make_backbone(whitening.matrix.shape[1], recipe.backbone, domains=domains, text=text)
    shared = shared_parameters(backbone)
    if arrays.keys() != shared.keys():
        odd = sorted(arrays.keys() ^ shared.keys())
        other = "; the text encoder of this domain is another model" if all(_of_text(name) for name in odd) else ""
        raise Refused(f"the request's parameters are not those of its recipe: {odd[:5]}{other}")
    for name, parameter in shared.items():
        array = arrays[name]
        if array.shape != tuple(parameter.shape) or not np.isfinite(array).all():
            raise Refused(f"parameter {name!r} must be finite and of shape {tuple(parameter.shape)}, got {array.shape}")
    load_shared(backbone, arrays)
    return backbone


def _of_text(name: str) -> bool:
    """Whether a parameter is a change of the text encoder."""
    return name.partition(".")[0] == "text"
