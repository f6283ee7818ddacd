"""The stages of one update: forward, backward, reducer, optimizer, evaluation, saving, and their arithmetic.

May import: models to checkpoint, in the order of docs/architecture.md.
"""

from threadloom.stages.step.backward import Backward
from threadloom.stages.step.compute import Compute, Float32Compute, Version, backward_with_embeddings, compute_for
from threadloom.stages.step.evaluate import EvaluateStage, ValidationLoss, Windows
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
    "EvaluateStage",
    "Float32Compute",
    "Forward",
    "Gradient",
    "Moments",
    "Optimizer",
    "Publish",
    "Reduce",
    "Save",
    "Snapshot",
    "ValidationLoss",
    "Version",
    "Windows",
    "backward_with_embeddings",
    "compute_for",
    "due",
    "never",
    "plan_micro_batches",
    "plan_shards",
]
