"""Configuration: what a domain folder and a federation file say, checked at birth.

    domain = load_domain("shopping")            # the folder, or its domain.toml
    federation = load_federation("demo.toml")   # names its domains' folders

Both files are strict TOML: an unknown key is an error that names the file, the key and the
nearest valid key. Everything is frozen after loading; paths are absolute. Settings that change
a privacy guarantee (`PrivacyPolicy`) live in the domain's file and nowhere else: a federation
file cannot lower them, because a coordinator's words are not covered by any signature.
"""

from isthmus.config.backbone import BackboneConfig, StartingBackbone
from isthmus.config.domain import (
    DomainCompute,
    DomainConfig,
    EngineName,
    Interactions,
    Items,
    Name,
    Precision,
    PrivacyPolicy,
    Split,
    TableFormat,
    load_domain,
)
from isthmus.config.federation import (
    Align,
    Augment,
    Clipping,
    ComputeConfig,
    EvaluationConfig,
    FeatureConfig,
    FederationConfig,
    LossName,
    OptimizerName,
    Trained,
    TrainingConfig,
    UpdateFormat,
    load_federation,
    require_text_encoder,
    require_trainable,
    seeded_run,
)
from isthmus.config.start import PublicDomain, PublicDomains, StartedFrom
from isthmus.config.strategy import StrategyConfig, StrategyName

__all__ = [
    "Align",
    "Augment",
    "BackboneConfig",
    "Clipping",
    "ComputeConfig",
    "DomainCompute",
    "DomainConfig",
    "EngineName",
    "EvaluationConfig",
    "FeatureConfig",
    "FederationConfig",
    "Interactions",
    "Items",
    "LossName",
    "Name",
    "OptimizerName",
    "Precision",
    "PrivacyPolicy",
    "PublicDomain",
    "PublicDomains",
    "Split",
    "StartedFrom",
    "StartingBackbone",
    "StrategyConfig",
    "StrategyName",
    "TableFormat",
    "Trained",
    "TrainingConfig",
    "UpdateFormat",
    "load_domain",
    "load_federation",
    "require_text_encoder",
    "require_trainable",
    "seeded_run",
]
