"""Which engine computes users' gradients of a backbone.

    with engine_for(backbone, compute)(backbone) as engine: ...

A domain chooses by name (`compute.engine`), and both are exact. Books need a rule for each kind of layer, and the
built-in backbone is made of such. A custom one need not be: Opacus' hooks know every layer, by `torch.func` where they
have no rule of their own, and hold each user's gradient in memory.
"""

from collections.abc import Callable

from torch import nn

from isthmus.clients.bookkeeping import BookKeeping
from isthmus.clients.gradients import Engine, OpacusHooks
from isthmus.config import DomainCompute, EngineName, Precision
from isthmus.custom_backbone import CustomBackbone
from isthmus.errors import EngineError

ENGINES: dict[EngineName, Callable[[nn.Module], Engine]] = {
    EngineName.BOOKKEEPING: BookKeeping,
    EngineName.OPACUS: OpacusHooks,
}


def engine_for(module: nn.Module, compute: DomainCompute) -> Callable[[nn.Module], Engine]:
    """The engine that a domain has chosen; Opacus' hooks where a custom backbone has a layer without a rule for books.

    Args:
        module: That is trained.
        compute: Of the domain.

    Raises:
        EngineError: If there is such a layer, and `precision` needs books.
    """
    if compute.engine is EngineName.BOOKKEEPING and isinstance(module, CustomBackbone):
        try:
            BookKeeping(module)
        except EngineError:
            if compute.precision is not Precision.FLOAT32:
                raise
            return OpacusHooks
    return ENGINES[compute.engine]
