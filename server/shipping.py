"""From a run's state to the backbone that everybody gets.

shipped = shipped_backbone(state, federation)
"""

from isthmus.backbone import load_shared, without_classifier
from isthmus.backbone_file import ShippedBackbone
from isthmus.config import FederationConfig
from isthmus.custom_backbone import make_backbone
from isthmus.features import Whitening
from isthmus.server.checkpoint import RunState
from isthmus.text_changes import shape_in


def shipped_backbone(state: RunState, federation: FederationConfig) -> ShippedBackbone:
    """The best evaluated backbone of a run, ready to score."""
    whitening = Whitening(mean=state.whitening["mean"], matrix=state.whitening["matrix"])
    best = without_classifier(state.best)
    backbone = make_backbone(whitening.matrix.shape[1], federation.backbone.shape, text=shape_in(best))
    load_shared(backbone, best)
    return ShippedBackbone(
        backbone=backbone.eval(),
        whitening=whitening,
        features=federation.features,
        round=state.best_round,
        start=federation.started_from(),
    )
