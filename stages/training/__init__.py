"""The assembly of a training: its graph, its sequential replay, warm-up, one measured step.

May import: models to step.
"""

from threadloom.stages.training.measured_step import ENDLESS, Gate, Way, Worker
from threadloom.stages.training.sequential import replay, stage_by_stage
from threadloom.stages.training.training import Output, Training, Validation
from threadloom.stages.training.warmup import SLOW, compile_kernels

__all__ = [
    "ENDLESS",
    "SLOW",
    "Gate",
    "Output",
    "Training",
    "Validation",
    "Way",
    "Worker",
    "compile_kernels",
    "replay",
    "stage_by_stage",
]
