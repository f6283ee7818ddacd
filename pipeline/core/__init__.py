"""Errors, arenas, pools, weight banks, gradient lanes, shared arrays, events, core counts.

May import: nothing.
"""

from threadloom.pipeline.core.arena import ALIGNMENT, Arena, aligned_zeros, arena_size
from threadloom.pipeline.core.banks import Banks, BankStatistics, Lease, StaleVersion, version_for
from threadloom.pipeline.core.errors import (
    AdmissionError,
    Cancelled,
    Closed,
    GraphError,
    ItemTimeout,
    Label,
    PipelineError,
    RouteError,
    ShutdownTimeout,
    StageFailure,
    Stalled,
    TooManySkipped,
)
from threadloom.pipeline.core.event import SLICE, OneShotEvent, wait_in_slices
from threadloom.pipeline.core.lanes import LanePlan, Lanes, MonotonicCounter
from threadloom.pipeline.core.shared import PoolExhausted, SharedPool, SharedSlot, map_memory, slot_of
from threadloom.pipeline.core.slots import Pool, PoolStatistics
from threadloom.pipeline.core.threads import BlasThreads, available_cores, blas_threads, loaded_blas

__all__ = [
    "ALIGNMENT",
    "SLICE",
    "AdmissionError",
    "Arena",
    "BankStatistics",
    "Banks",
    "BlasThreads",
    "Cancelled",
    "Closed",
    "GraphError",
    "ItemTimeout",
    "Label",
    "LanePlan",
    "Lanes",
    "Lease",
    "MonotonicCounter",
    "OneShotEvent",
    "PipelineError",
    "Pool",
    "PoolExhausted",
    "PoolStatistics",
    "RouteError",
    "SharedPool",
    "SharedSlot",
    "ShutdownTimeout",
    "StageFailure",
    "StaleVersion",
    "Stalled",
    "TooManySkipped",
    "aligned_zeros",
    "arena_size",
    "available_cores",
    "blas_threads",
    "loaded_blas",
    "map_memory",
    "slot_of",
    "version_for",
    "wait_in_slices",
]
