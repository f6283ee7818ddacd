"""Errors, arenas, pools, weight banks, gradient lanes, shared arrays, events, core counts.

May import: nothing.
"""

from threadloom.pipeline.core.arena import (
    ALIGNMENT as ALIGNMENT,
    Arena as Arena,
    aligned_zeros as aligned_zeros,
    arena_size as arena_size,
)
from threadloom.pipeline.core.banks import (
    Banks as Banks,
    BankStatistics as BankStatistics,
    Lease as Lease,
    StaleVersion as StaleVersion,
    version_for as version_for,
)
from threadloom.pipeline.core.callables import (
    FunctionKind as FunctionKind,
    actor_class as actor_class,
    flushed as flushed,
    has_flush as has_flush,
    is_async_manager as is_async_manager,
    kind_of as kind_of,
    kind_of_instances as kind_of_instances,
)
from threadloom.pipeline.core.errors import (
    AdmissionError as AdmissionError,
    Cancelled as Cancelled,
    ChannelTimeout as ChannelTimeout,
    Closed as Closed,
    GraphError as GraphError,
    ItemTimeout as ItemTimeout,
    Label as Label,
    PipelineError as PipelineError,
    RouteError as RouteError,
    ShutdownTimeout as ShutdownTimeout,
    StageFailure as StageFailure,
    Stalled as Stalled,
    StandInError as StandInError,
    TooManySkipped as TooManySkipped,
    format_error as format_error,
    type_name as type_name,
    type_names as type_names,
)
from threadloom.pipeline.core.event import (
    SLICE as SLICE,
    OneShotEvent as OneShotEvent,
    wait_in_slices as wait_in_slices,
)
from threadloom.pipeline.core.interruption import (
    ForkCount as ForkCount,
    PostponedCalls as PostponedCalls,
    call_elsewhere as call_elsewhere,
    holds as holds,
    interrupts_threading as interrupts_threading,
)
from threadloom.pipeline.core.lanes import LanePlan as LanePlan, Lanes as Lanes, MonotonicCounter as MonotonicCounter
from threadloom.pipeline.core.shared import (
    PoolExhausted as PoolExhausted,
    SharedPool as SharedPool,
    SharedSlot as SharedSlot,
    map_memory as map_memory,
    slot_of as slot_of,
)
from threadloom.pipeline.core.slots import Pool as Pool, PoolStatistics as PoolStatistics
from threadloom.pipeline.core.system_memory import system_memory as system_memory
from threadloom.pipeline.core.threads import (
    BlasThreads as BlasThreads,
    affinity_cores as affinity_cores,
    available_cores as available_cores,
    blas_threads as blas_threads,
    loaded_blas as loaded_blas,
)
