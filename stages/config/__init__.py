"""The settings of a run, open and resolved; the learning-rate schedule; errors about input.

May import: models.
"""

from threadloom.stages.config.context_warmup import ContextWarmup as ContextWarmup, context_warmup as context_warmup
from threadloom.stages.config.data import (
    Borders as Borders,
    ConversationLayout as ConversationLayout,
    DataConfig as DataConfig,
    Digits as Digits,
    InvalidRecords as InvalidRecords,
    Packing as Packing,
    Shuffle as Shuffle,
    SpecialTokens as SpecialTokens,
    TokenizerKind as TokenizerKind,
    TokenOrder as TokenOrder,
)
from threadloom.stages.config.divisors import divisors as divisors
from threadloom.stages.config.dropout import NO_DROPOUT as NO_DROPOUT, DropoutConfig as DropoutConfig
from threadloom.stages.config.embedding import (
    BYTES as BYTES,
    DIGITS as DIGITS,
    INITIAL_DEVIATION as INITIAL_DEVIATION,
    EmbeddingBasis as EmbeddingBasis,
    EmbeddingConfig as EmbeddingConfig,
    EmbeddingLattice as EmbeddingLattice,
    EmbeddingLayout as EmbeddingLayout,
    most_places as most_places,
)
from threadloom.stages.config.errors import (
    ConfigError as ConfigError,
    InputError as InputError,
    UnknownSettingError as UnknownSettingError,
    printable as printable,
)
from threadloom.stages.config.gpt2 import Gpt2Config as Gpt2Config, ResolvedGpt2 as ResolvedGpt2
from threadloom.stages.config.guard import GuardConfig as GuardConfig, SpikeAction as SpikeAction
from threadloom.stages.config.llama import (
    LlamaConfig as LlamaConfig,
    ResolvedLlama as ResolvedLlama,
    RotaryConfig as RotaryConfig,
    RotaryScaling as RotaryScaling,
)
from threadloom.stages.config.lora import ALL_LINEAR as ALL_LINEAR, LoraConfig as LoraConfig
from threadloom.stages.config.loss import LossConfig as LossConfig
from threadloom.stages.config.optimizer import (
    DelayCorrection as DelayCorrection,
    OptimizerConfig as OptimizerConfig,
    OptimizerGroup as OptimizerGroup,
    TensorRates as TensorRates,
)
from threadloom.stages.config.resolved import (
    BatchSizes as BatchSizes,
    ResolvedCheckpoint as ResolvedCheckpoint,
    ResolvedConfig as ResolvedConfig,
    ResolvedEvaluation as ResolvedEvaluation,
    ResolvedLossScale as ResolvedLossScale,
    ResolvedModel as ResolvedModel,
    ResolvedOptimizer as ResolvedOptimizer,
    ResolvedSchedule as ResolvedSchedule,
    ResolvedThreads as ResolvedThreads,
)
from threadloom.stages.config.schedule import (
    cooldown_start as cooldown_start,
    learning_rate as learning_rate,
    rate_under_delay as rate_under_delay,
)
from threadloom.stages.config.schedule_settings import (
    Cooldown as Cooldown,
    ScheduleConfig as ScheduleConfig,
    ScheduleKind as ScheduleKind,
)
from threadloom.stages.config.section import Section as Section, flatten as flatten
from threadloom.stages.config.settings import (
    DEFAULT_ARCHITECTURE as DEFAULT_ARCHITECTURE,
    MODEL_CONFIGS as MODEL_CONFIGS,
    CheckpointConfig as CheckpointConfig,
    Config as Config,
    EvaluationConfig as EvaluationConfig,
    Gemm as Gemm,
    LossScaleConfig as LossScaleConfig,
    LossScaling as LossScaling,
    MatmulPrecision as MatmulPrecision,
    ModelConfig as ModelConfig,
    Precision as Precision,
    ThreadsConfig as ThreadsConfig,
    TraceConfig as TraceConfig,
    model_config_of as model_config_of,
)
from threadloom.stages.config.trained import TrainConfig as TrainConfig
from threadloom.stages.config.transformer import (
    ModelArchitecture as ModelArchitecture,
    TransformerConfig as TransformerConfig,
)
