"""The assembly of a training: memory, stages and graph; its sequential execution, warm-up, and a measured step.

May import: all above.
"""

from threadloom.stages.training.measured_step import (
    ENDLESS,
    ExecutionMode,
    MeasuredStepRunner,
    MeasuredStepWorker,
    StepGate,
)
from threadloom.stages.training.precisions import compute_for
from threadloom.stages.training.sequential import replay, stage_by_stage
from threadloom.stages.training.short_run import RANDOM_VOCABULARY, measured_config, tokens_per_second
from threadloom.stages.training.training import Training
from threadloom.stages.training.warmup import SLOW, compile_backward, compile_kernels

__all__ = [
    "ENDLESS",
    "RANDOM_VOCABULARY",
    "SLOW",
    "ExecutionMode",
    "MeasuredStepRunner",
    "MeasuredStepWorker",
    "StepGate",
    "Training",
    "compile_backward",
    "compile_kernels",
    "compute_for",
    "measured_config",
    "replay",
    "stage_by_stage",
    "tokens_per_second",
]
