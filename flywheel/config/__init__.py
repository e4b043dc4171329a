"""The experiment file: what it may say, how it is read, and how a mistake in it is explained.

An `Experiment` is one complete, validated description of a run. `load` reads YAML, applies
``--set`` overrides and reports the first mistakes as one `ConfigError`; `dump` writes the same
experiment back with every default filled in, which is what a run stores beside its results.
"""

from __future__ import annotations

from flywheel.config.data import DatasetConfig
from flywheel.config.endpoints import (
    LEARNING,
    CandidateConfig,
    ClientConfig,
    ModelConfig,
    TokenPrice,
)
from flywheel.config.evaluation import (
    FreeTextConfig,
    JudgeConfig,
    JudgingConfig,
    MetricConfig,
    ParityConfig,
    ProductionConfig,
    RankingConfig,
    SamplingConfig,
    ScoringConfig,
)
from flywheel.config.experiment import Experiment, TrackingConfig, engines
from flywheel.config.files import dump, load, schema, secret, validate
from flywheel.config.measuring import CascadeConfig, LatencyConfig, SloConfig
from flywheel.config.methods import (
    SERVABLE_RANKS,
    BaseConfig,
    FullConfig,
    IclConfig,
    LoraConfig,
    MethodsConfig,
    TrainerConfig,
)
from flywheel.config.search import BudgetConfig, SchedulerConfig, SearchConfig

__all__ = [
    "LEARNING",
    "SERVABLE_RANKS",
    "BaseConfig",
    "BudgetConfig",
    "CandidateConfig",
    "CascadeConfig",
    "ClientConfig",
    "DatasetConfig",
    "Experiment",
    "FreeTextConfig",
    "FullConfig",
    "IclConfig",
    "JudgeConfig",
    "JudgingConfig",
    "LatencyConfig",
    "LoraConfig",
    "MethodsConfig",
    "MetricConfig",
    "ModelConfig",
    "ParityConfig",
    "ProductionConfig",
    "RankingConfig",
    "SamplingConfig",
    "SchedulerConfig",
    "ScoringConfig",
    "SearchConfig",
    "SloConfig",
    "TokenPrice",
    "TrackingConfig",
    "TrainerConfig",
    "dump",
    "engines",
    "load",
    "schema",
    "secret",
    "validate",
]
