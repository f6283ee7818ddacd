"""What a run allocates and what flows through it: slots, scratch, items, loss scale, the memory plan.

May import: models, config, storage, machine.
"""

from threadloom.stages.memory.float32 import (
    Bank,
    FloatSlot,
    Slot,
    activation_shapes,
    allocate_scratch,
    arrays_bytes,
    as_weights,
    logits_rows,
)
from threadloom.stages.memory.items import (
    Evaluation,
    Event,
    MicroBatch,
    MicroGradient,
    ReduceShard,
    Saved,
    Update,
    UpdateShard,
    label,
)
from threadloom.stages.memory.loss_scale import LossScaler, Scaled, ScaleState
from threadloom.stages.memory.ordered_accumulation import LaneTurns, kept_bytes
from threadloom.stages.memory.plan import FLOAT, lanes_text, memory_plan, most_in_backward, plan_table

__all__ = [
    "FLOAT",
    "Bank",
    "Evaluation",
    "Event",
    "FloatSlot",
    "LaneTurns",
    "LossScaler",
    "MicroBatch",
    "MicroGradient",
    "ReduceShard",
    "Saved",
    "ScaleState",
    "Scaled",
    "Slot",
    "Update",
    "UpdateShard",
    "activation_shapes",
    "allocate_scratch",
    "arrays_bytes",
    "as_weights",
    "kept_bytes",
    "label",
    "lanes_text",
    "logits_rows",
    "memory_plan",
    "most_in_backward",
    "plan_table",
]
