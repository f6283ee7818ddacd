"""The arrays that a run allocates and the items that refer to them: banks, slots, loss scale, the memory plan.

The classes of one number format are `Float32Memory` here and `Bits16Memory` in `stages.memory.bits16`, which is not
re-exported because it loads the kernels of 16 bits.

May import: models, layouts, config, storage, machine.
"""

from threadloom.stages.memory.allocation_plan import (
    FLOAT as FLOAT,
    check_allocation as check_allocation,
    format_lanes as format_lanes,
    format_memory_plan as format_memory_plan,
    memory_plan as memory_plan,
)
from threadloom.stages.memory.bank import Bank as Bank, FrozenWeights as FrozenWeights, overlaid as overlaid
from threadloom.stages.memory.float32 import Float32Memory as Float32Memory
from threadloom.stages.memory.graph_items import (
    BatchLoss as BatchLoss,
    Evaluation as Evaluation,
    Event as Event,
    GradientNoise as GradientNoise,
    LossParts as LossParts,
    MicroBatch as MicroBatch,
    MicroGradient as MicroGradient,
    ReduceShard as ReduceShard,
    Saved as Saved,
    StepParameters as StepParameters,
    Update as Update,
    UpdateShard as UpdateShard,
    label as label,
)
from threadloom.stages.memory.loss_scale import LossScaler as LossScaler, Scaled as Scaled, ScaleState as ScaleState
from threadloom.stages.memory.matrix_rows import (
    MatrixRows as MatrixRows,
    balanced as balanced,
    matrix_rows as matrix_rows,
)
from threadloom.stages.memory.ordered_accumulation import OrderedAccumulation as OrderedAccumulation
from threadloom.stages.memory.precision_memory import (
    DROPOUT_KEY_BYTES as DROPOUT_KEY_BYTES,
    MicroBatchSlot as MicroBatchSlot,
    PrecisionMemory as PrecisionMemory,
    allocate_starts as allocate_starts,
    allocate_token_ids as allocate_token_ids,
    arrays_bytes as arrays_bytes,
    logits_chunk_rows as logits_chunk_rows,
    starts_bytes as starts_bytes,
    token_ids_bytes as token_ids_bytes,
)
from threadloom.stages.memory.rotation import (
    bases_bytes as bases_bytes,
    rotated_parts as rotated_parts,
    scratch_elements as scratch_elements,
)
from threadloom.stages.memory.spike_guard import GuardState as GuardState, SpikeGuard as SpikeGuard
from threadloom.stages.memory.team import TeamMemory as TeamMemory, allocate_teams as allocate_teams
from threadloom.stages.memory.traffic import adamw_bytes as adamw_bytes, reduction_bytes as reduction_bytes
