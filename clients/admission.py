"""Whether a domain builds the backbone that a request names: three questions, none of which needs its data.

    require_admitted(recipe, policy, compute)                  # before anything: allowed? installed?
    require_admitted(recipe, policy, compute, whitening)       # before it is built: as it must be?

A built-in backbone always passes.
"""

from isthmus.clients.backbone_check import require_protocol
from isthmus.config import DomainCompute
from isthmus.custom_backbone import require_installed
from isthmus.errors import ConfigError, Refused
from isthmus.features import Whitening
from isthmus.privacy.policy import Policy
from isthmus.records import Recipe


def require_admitted(
    recipe: Recipe, policy: Policy, compute: DomainCompute, whitening: Whitening | None = None
) -> None:
    """Refuse a custom backbone by its name and hash or, where there are features, by what it does.

    Args:
        recipe: Names it.
        policy: Of the domain.
        compute: Says by which engine it would be trained.
        whitening: That makes its features.

    Raises:
        PolicyRefused: If the policy does not name it, or names it with the hash of another version.
        Refused: If it is not installed; with a whitening, if it cannot be made, or breaks its protocol.

    Guarantees:
        - No code of a backbone that the policy does not allow is run; without a whitening, of none.
    """
    try:
        policy.check_backbone(recipe.backbone.module)
        require_installed(recipe.backbone)
        if whitening is not None:
            require_protocol(recipe.backbone, whitening.matrix.shape[1], compute)
    except ConfigError as error:
        raise Refused(str(error), rule="backbone") from None
