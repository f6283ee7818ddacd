"""The settings of a run, open and resolved; the learning-rate schedule; errors about input.

May import: models.
"""

from threadloom.stages.config.errors import (
    ConfigError as ConfigError,
    InputError as InputError,
    UnknownSettingError as UnknownSettingError,
    printable as printable,
)
from threadloom.stages.config.resolved import (
    BatchSizes as BatchSizes,
    ResolvedCheckpoint as ResolvedCheckpoint,
    ResolvedConfig as ResolvedConfig,
    ResolvedEvaluation as ResolvedEvaluation,
    ResolvedLossScale as ResolvedLossScale,
    ResolvedModel as ResolvedModel,
    ResolvedSchedule as ResolvedSchedule,
    ResolvedThreads as ResolvedThreads,
)
from threadloom.stages.config.schedule import learning_rate as learning_rate
from threadloom.stages.config.settings import (
    CheckpointConfig as CheckpointConfig,
    Config as Config,
    DataConfig as DataConfig,
    EvaluationConfig as EvaluationConfig,
    Gemm as Gemm,
    LossScaleConfig as LossScaleConfig,
    LossScaling as LossScaling,
    MatmulPrecision as MatmulPrecision,
    ModelConfig as ModelConfig,
    OptimizerConfig as OptimizerConfig,
    Precision as Precision,
    ScheduleConfig as ScheduleConfig,
    ScheduleKind as ScheduleKind,
    ThreadsConfig as ThreadsConfig,
    TokenizerKind as TokenizerKind,
    TraceConfig as TraceConfig,
    flatten as flatten,
)
