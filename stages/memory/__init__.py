"""What a run allocates and what flows through it: slots, scratch, items, loss scale, the memory plan.

May import: models, config, storage, machine.
"""

from threadloom.stages.memory.allocation_plan import (
    FLOAT,
    format_lanes,
    format_memory_plan,
    memory_plan,
)
from threadloom.stages.memory.float32 import (
    Bank,
    Float32Slot,
    Slot,
    activation_shapes,
    allocate_scratch,
    arrays_bytes,
    as_weights,
    logits_rows,
)
from threadloom.stages.memory.graph_items import (
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
from threadloom.stages.memory.ordered_accumulation import OrderedAccumulation
from threadloom.stages.memory.traffic import adamw_bytes, reduction_bytes

__all__ = [
    "FLOAT",
    "Bank",
    "Evaluation",
    "Event",
    "Float32Slot",
    "LossScaler",
    "MicroBatch",
    "MicroGradient",
    "OrderedAccumulation",
    "ReduceShard",
    "Saved",
    "ScaleState",
    "Scaled",
    "Slot",
    "Update",
    "UpdateShard",
    "activation_shapes",
    "adamw_bytes",
    "allocate_scratch",
    "arrays_bytes",
    "as_weights",
    "format_lanes",
    "format_memory_plan",
    "label",
    "logits_rows",
    "memory_plan",
    "reduction_bytes",
]
