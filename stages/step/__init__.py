"""The stages of one update, from drawing tokens to saving, and the protocol of the arithmetic that they call.

`stages.step.optimizers` has the optimizers; `stages.step.float32` and `stages.step.bits16` implement `Compute`.

May import: all above.
"""

from threadloom.stages.step.backward import Backward
from threadloom.stages.step.compute import Compute, Version, backward_with_embeddings
from threadloom.stages.step.evaluate import EvaluateStage, Validation, ValidationLoss, Windows
from threadloom.stages.step.forward import Draw, Embed, Forward, plan_micro_batches
from threadloom.stages.step.reducer import Collect, Gradient, Reduce, TrainingDiverged, plan_shards
from threadloom.stages.step.saving import CheckpointOutput, CheckpointSnapshot, RunRecord, Save, due_every, never
from threadloom.stages.step.update import Clip, Publish

__all__ = [
    "Backward",
    "CheckpointOutput",
    "CheckpointSnapshot",
    "Clip",
    "Collect",
    "Compute",
    "Draw",
    "Embed",
    "EvaluateStage",
    "Forward",
    "Gradient",
    "Publish",
    "Reduce",
    "RunRecord",
    "Save",
    "TrainingDiverged",
    "Validation",
    "ValidationLoss",
    "Version",
    "Windows",
    "backward_with_embeddings",
    "due_every",
    "never",
    "plan_micro_batches",
    "plan_shards",
]
