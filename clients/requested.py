"""From the parameters that a request names to a backbone, or to the reason why they make none.

backbone = requested_backbone(recipe, arrays, whitening, domains=0)
"""

import numpy as np

from isthmus.backbone import load_shared, shared_parameters
from isthmus.custom_backbone import AnyBackbone, make_backbone
from isthmus.encoding import Arrays
from isthmus.errors import ConfigError, Refused
from isthmus.features import Whitening
from isthmus.features.tuned import text_shape
from isthmus.records import Recipe


def requested_backbone(recipe: Recipe, arrays: Arrays, whitening: Whitening, *, domains: int) -> AnyBackbone:
    """A backbone with a request's parameters, with a classifier of so many domains.

    Raises:
        Refused: If they are not exactly the parameters of the recipe's shape, finite, or the text encoder that it
            trains is not here.
    """
    try:
        text = text_shape(recipe.features, recipe.training)
    except ConfigError as error:
        raise Refused(str(error), rule="backbone") from None
    backbone = make_backbone(whitening.matrix.shape[1], recipe.backbone, domains=domains, text=text)
    shared = shared_parameters(backbone)
    if arrays.keys() != shared.keys():
        raise Refused(f"the request's parameters are not those of its recipe: {sorted(arrays)[:5]}")
    for name, parameter in shared.items():
        array = arrays[name]
        if array.shape != tuple(parameter.shape) or not np.isfinite(array).all():
            raise Refused(f"parameter {name!r} must be finite and of shape {tuple(parameter.shape)}, got {array.shape}")
    load_shared(backbone, arrays)
    return backbone
