"""The configuration of a run: what may be said, what is assumed, and what contradicts itself.

Every class is frozen, refuses unknown keys, and writes each of its defaults into the resolved
configuration of the run. Nothing here touches images, models or Ray: those checks are in `checks.py`.
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
