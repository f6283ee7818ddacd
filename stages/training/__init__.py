"""The assembly of a training: its graph, its sequential replay, warm-up, one measured step.

May import: models to step.
"""

from threadloom.stages.training.measured_step import ENDLESS, ExecutionMode, MeasuredStepWorker, StepGate
from threadloom.stages.training.sequential import replay, stage_by_stage
from threadloom.stages.training.short_run import RANDOM_VOCABULARY, measured_config, tokens_per_second
from threadloom.stages.training.training import Output, Training, Validation
from threadloom.stages.training.warmup import SLOW, compile_kernels

__all__ = [
    "ENDLESS",
    "RANDOM_VOCABULARY",
    "SLOW",
    "ExecutionMode",
    "MeasuredStepWorker",
    "Output",
    "StepGate",
    "Training",
    "Validation",
    "compile_kernels",
    "measured_config",
    "replay",
    "stage_by_stage",
    "tokens_per_second",
]
