"""The arrays that a run allocates and the items that refer to them: banks, slots, loss scale, the memory plan.

The classes of one number format are `Float32Memory` here and `Bits16Memory` in `stages.memory.bits16`, which is not
re-exported because it loads the kernels of 16 bits.

May import: models, config, storage, machine.
"""

from threadloom.stages.memory.allocation_plan import (
    FLOAT,
    check_allocation,
    format_lanes,
    format_memory_plan,
    memory_plan,
)
from threadloom.stages.memory.bank import Bank, as_weights
from threadloom.stages.memory.float32 import Float32Memory, Float32Slot, activation_shapes
from threadloom.stages.memory.graph_items import (
    Evaluation,
    Event,
    MicroBatch,
    MicroGradient,
    ReduceShard,
    Saved,
    StepParameters,
    Update,
    UpdateShard,
    label,
)
from threadloom.stages.memory.loss_scale import LossScaler, Scaled, ScaleState
from threadloom.stages.memory.ordered_accumulation import OrderedAccumulation
from threadloom.stages.memory.precision_memory import (
    MicroBatchSlot,
    PrecisionMemory,
    allocate_token_ids,
    arrays_bytes,
    logits_chunk_rows,
    token_ids_bytes,
)
from threadloom.stages.memory.traffic import adamw_bytes, reduction_bytes

__all__ = [
    "FLOAT",
    "Bank",
    "Evaluation",
    "Event",
    "Float32Memory",
    "Float32Slot",
    "LossScaler",
    "MicroBatch",
    "MicroBatchSlot",
    "MicroGradient",
    "OrderedAccumulation",
    "PrecisionMemory",
    "ReduceShard",
    "Saved",
    "ScaleState",
    "Scaled",
    "StepParameters",
    "Update",
    "UpdateShard",
    "activation_shapes",
    "adamw_bytes",
    "allocate_token_ids",
    "arrays_bytes",
    "as_weights",
    "check_allocation",
    "format_lanes",
    "format_memory_plan",
    "label",
    "logits_chunk_rows",
    "memory_plan",
    "reduction_bytes",
    "token_ids_bytes",
]
