"""The assembly of a training: memory, stages and graph; its sequential execution, warm-up, and a measured step.

May import: all above.
"""

from threadloom.stages.training.measured_step import (
    ENDLESS as ENDLESS,
    ExecutionMode as ExecutionMode,
    MeasuredStepRunner as MeasuredStepRunner,
    MeasuredStepWorker as MeasuredStepWorker,
    StepGate as StepGate,
)
from threadloom.stages.training.precisions import compute_for as compute_for
from threadloom.stages.training.sequential import replay as replay, stage_by_stage as stage_by_stage
from threadloom.stages.training.short_run import (
    RANDOM_VOCABULARY as RANDOM_VOCABULARY,
    ShortRun as ShortRun,
    measured_config as measured_config,
    short_run as short_run,
    tokens_per_second as tokens_per_second,
)
from threadloom.stages.training.training import Training as Training
from threadloom.stages.training.warmup import (
    SLOW as SLOW,
    compile_backward as compile_backward,
    compile_kernels as compile_kernels,
    compile_kernels_of as compile_kernels_of,
)
