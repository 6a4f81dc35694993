"""Before the first round: the axes that all domains share, and the backbone that they begin with.

    state = first_state(federation, moments, run)
    prior = text_prior_of(state.best, federation.backbone.shape)

A federation begins with the text prior, or with a backbone that was trained in the open (`[backbone] start`). One that
has learned something about the axes of item features brings its own: what it knows means nothing in others. One that
has not is used in the axes of the federation's own catalogues, which fit them better (docs/adr/0024-in-the-open.md).
"""

import torch

from isthmus.backbone import Backbone, learned_axes, shared_arrays
from isthmus.backbone_file import ShippedBackbone, load_backbone
from isthmus.config import BackboneConfig, FederationConfig
from isthmus.custom_backbone import AnyBackbone, make_backbone
from isthmus.encoding import Arrays
from isthmus.errors import ConfigError
from isthmus.features import TextMoments, Whitening, fit_whitening
from isthmus.features.tuned import text_shape
from isthmus.server.checkpoint import RunState


def first_state(federation: FederationConfig, moments: dict[str, TextMoments], run: str) -> RunState:
    """The state before round 1.

    Args:
        federation: The recipe.
        moments: Of each domain's public text.
        run: Id of the run.

    Raises:
        ConfigError: If what is started from does not fit, or the domains' texts were encoded by something else.
        RunError: If it cannot be read.
    """
    digest = federation.digest()
    start = None if federation.start_path is None else load_backbone(federation.start_path)
    whitening = _axes(federation, moments, start)
    arrays = shared_arrays(_fresh(federation, whitening))
    if start is not None:
        if isinstance(start.backbone, Backbone) and start.backbone.text is not None:
            raise ConfigError(f"{federation.start_path}: it changes a text encoder, and no federation can begin so")
        arrays |= shared_arrays(start.backbone)  # all of them but a domain classifier, which starts at zero
    if federation.digest() != digest:
        raise ConfigError(f"{federation.start_path} was changed while it was read; start again")
    return RunState(
        run=run,
        digest=digest,
        round=0,
        arrays=arrays,
        best=arrays,
        best_round=0,
        best_gain=0.0,
        whitening=whitening.arrays(),
        strategy={},
        average=arrays if federation.strategy.average else {},
    )


def text_prior_of(arrays: Arrays, shape: BackboneConfig) -> Arrays:
    """The same parameters with everything undone that makes a difference to the text prior.

    Args:
        arrays: Shared parameters, none of them a change of a text encoder: no start has any.
        shape: Theirs.

    Guarantees:
        - A backbone with them predicts what an untrained one does.
    """
    with torch.random.fork_rng(devices=[]):
        fresh = shared_arrays(Backbone(arrays["head.weight"].shape[0], shape))
    return arrays | {name: fresh[name] for name in ("recency.weight", "head.weight")}


def _axes(federation: FederationConfig, moments: dict[str, TextMoments], start: ShippedBackbone | None) -> Whitening:
    """Common axes: the start's, where it has learned something about them."""
    if start is None or not learned_axes(start.backbone):
        settings = federation.features
        pooled = [moments[name] for name in sorted(moments)]
        return fit_whitening(pooled, eps=settings.whitening_eps, dim=settings.dim)
    return start.whitening


def _fresh(federation: FederationConfig, whitening: Whitening) -> AnyBackbone:
    """The text prior, its other parameters drawn."""
    with torch.random.fork_rng(devices=[]):
        if federation.seed is not None:
            torch.manual_seed(federation.seed)
        else:
            torch.seed()
        return make_backbone(
            whitening.matrix.shape[1],
            federation.backbone.shape,
            domains=federation.training.classes,
            text=text_shape(federation.features, federation.training),
        )
