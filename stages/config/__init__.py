"""The settings of a run, open and resolved; the learning-rate schedule; errors about input.

May import: models.
"""

from threadloom.stages.config.errors import ConfigError, InputError, UnknownSettingError, printable
from threadloom.stages.config.resolved import (
    BatchSizes,
    ResolvedCheckpoint,
    ResolvedConfig,
    ResolvedEvaluation,
    ResolvedLossScale,
    ResolvedModel,
    ResolvedSchedule,
    ResolvedThreads,
)
from threadloom.stages.config.schedule import learning_rate
from threadloom.stages.config.settings import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    Gemm,
    LossScaleConfig,
    LossScaling,
    MatmulPrecision,
    ModelConfig,
    OptimizerConfig,
    Precision,
    ScheduleConfig,
    ScheduleKind,
    ThreadsConfig,
    TokenizerKind,
    TraceConfig,
    flatten,
)

__all__ = [
    "BatchSizes",
    "CheckpointConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "EvaluationConfig",
    "Gemm",
    "InputError",
    "LossScaleConfig",
    "LossScaling",
    "MatmulPrecision",
    "ModelConfig",
    "OptimizerConfig",
    "Precision",
    "ResolvedCheckpoint",
    "ResolvedConfig",
    "ResolvedEvaluation",
    "ResolvedLossScale",
    "ResolvedModel",
    "ResolvedSchedule",
    "ResolvedThreads",
    "ScheduleConfig",
    "ScheduleKind",
    "ThreadsConfig",
    "TokenizerKind",
    "TraceConfig",
    "UnknownSettingError",
    "flatten",
    "learning_rate",
    "printable",
]
