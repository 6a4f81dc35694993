"""From a run's state to the backbone that everybody gets.

shipped = shipped_backbone(state, federation)
"""

from isthmus.backbone import Backbone, load_shared
from isthmus.backbone_file import ShippedBackbone
from isthmus.config import FederationConfig
from isthmus.features import Whitening
from isthmus.server.checkpoint import RunState


def shipped_backbone(state: RunState, federation: FederationConfig) -> ShippedBackbone:
    """The best evaluated backbone of a run, ready to score."""
    whitening = Whitening(mean=state.whitening["mean"], matrix=state.whitening["matrix"])
    backbone = Backbone(whitening.matrix.shape[1], federation.backbone.shape)
    load_shared(backbone, state.best)
    return ShippedBackbone(
        backbone=backbone.eval(),
        whitening=whitening,
        features=federation.features,
        round=state.best_round,
        start=federation.started_from(),
    )
