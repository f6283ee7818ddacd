"""The stages of one update: forward, backward, reducer, optimizer, evaluation, saving, and their arithmetic.

May import: models to checkpoint, in the order of docs/architecture.md.
"""

from threadloom.stages.step.backward import Backward
from threadloom.stages.step.compute import Compute, Float32Compute, Version, backward_alone, compute_for
from threadloom.stages.step.evaluate import Evaluate, Evaluator, Windows
from threadloom.stages.step.forward import Draw, Embed, Forward, plan_micro_batches
from threadloom.stages.step.optimizer import ApplyUpdate, Clip, Moments, Optimizer, Publish
from threadloom.stages.step.reducer import Collect, Gradient, Reduce, plan_shards
from threadloom.stages.step.saving import Save, Snapshot, due, never

__all__ = [
    "ApplyUpdate",
    "Backward",
    "Clip",
    "Collect",
    "Compute",
    "Draw",
    "Embed",
    "Evaluate",
    "Evaluator",
    "Float32Compute",
    "Forward",
    "Gradient",
    "Moments",
    "Optimizer",
    "Publish",
    "Reduce",
    "Save",
    "Snapshot",
    "Version",
    "Windows",
    "backward_alone",
    "compute_for",
    "due",
    "never",
    "plan_micro_batches",
    "plan_shards",
]
