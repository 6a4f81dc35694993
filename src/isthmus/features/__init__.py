"""Public item text in, whitened item features out: the same axes in every domain, or each domain's own.

    features = encode_texts(titles, "minilm", cache_dir=default_cache_dir())   # (items, 384)
    moments = text_moments(features)                       # of one public catalogue; may leave the domain
    whitening = fit_whitening([moments, *others], eps=1e-3, dim=None)          # one transform for all domains
    whitening = own_axes(whitening, features)              # or one's own, where nothing is learned about axes
    item_features = whitening.apply(features)              # what the backbone reads

The encoder is frozen and chosen by name. Importing this package imports neither torch nor
transformers; a run whose texts are all in the cache never does.
"""

from isthmus.features.cache import FeatureCache, default_cache_dir
from isthmus.features.encoders import encode_texts, encoder_dim, encoder_identity
from isthmus.features.sharing import one_copy
from isthmus.features.whitening import TextMoments, Whitening, fit_whitening, own_axes, text_moments

__all__ = [
    "FeatureCache",
    "TextMoments",
    "Whitening",
    "default_cache_dir",
    "encode_texts",
    "encoder_dim",
    "encoder_identity",
    "fit_whitening",
    "one_copy",
    "own_axes",
    "text_moments",
]
