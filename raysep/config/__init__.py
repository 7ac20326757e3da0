"""The configuration of a run: its keys, defaults and consistency checks.

Every class is frozen and refuses unknown keys; the resolved configuration of a run contains all defaults. Nothing here
imports images, models or Ray: `stages.validation` has the checks that do.
"""

from raysep.config.base import Dtype, Precision, Section
from raysep.config.data import (
    CapConfig,
    DataConfig,
    DomainConfig,
    SourceConfig,
    SplitConfig,
)
from raysep.config.finetune import AshaConfig, AugmentConfig, FinetuneConfig, SearchSpace
from raysep.config.models import BASELINE, ModelConfig, Pooling
from raysep.config.run import BaselinesConfig, EmbedConfig, ReportConfig, RunConfig, ScoreConfig
from raysep.config.service import ComputeConfig, MonitoringConfig, NodeShape

__all__ = [
    "BASELINE",
    "AshaConfig",
    "AugmentConfig",
    "BaselinesConfig",
    "CapConfig",
    "ComputeConfig",
    "DataConfig",
    "DomainConfig",
    "Dtype",
    "EmbedConfig",
    "FinetuneConfig",
    "ModelConfig",
    "MonitoringConfig",
    "NodeShape",
    "Pooling",
    "Precision",
    "ReportConfig",
    "RunConfig",
    "ScoreConfig",
    "SearchSpace",
    "Section",
    "SourceConfig",
    "SplitConfig",
]
