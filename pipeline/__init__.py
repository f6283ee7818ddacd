"""The engine: stages, channels, slots, arenas, versions, lanes, threads, trace. There is no model in it.

This package stands on the standard library and NumPy, and never imports `kernels` or `stages`. Inside it, each layer
imports only those before it:

    errors                     what can go wrong
    admission, statistics      decisions and figures, apart from threads
    arena, slots, banks, lanes memory: aligned arenas, pools, versioned weights, gradient lanes and their order
    channel, trace             what threads share
    stage, per_worker          what a stage is
    worker                     one thread of a stage
    engine                     the threads of a run
    graph                      what people declare
    timeline                   pictures of what happened
"""

from pipeline.admission import Fifo, Gather, InOrder, Policy
from pipeline.arena import ALIGNMENT, Arena, aligned_zeros, arena_size
from pipeline.banks import Banks, BankStatistics, Lease, StaleVersion, version_for
from pipeline.channel import Channel
from pipeline.engine import Abortable, Run
from pipeline.errors import (
    AdmissionError,
    Cancelled,
    Closed,
    GraphError,
    Label,
    PipelineError,
    StageFailure,
    ThreadsLeft,
)
from pipeline.graph import Graph
from pipeline.lane_order import LaneOrder
from pipeline.lanes import LanePlan, Lanes, Milestone
from pipeline.per_worker import PerWorker, per_worker
from pipeline.slots import Pool, PoolStatistics
from pipeline.stage import SKIP, Node, Sink, Skip
from pipeline.statistics import ChannelStatistics, RunStatistics, StageStatistics
from pipeline.threads import available_cores, blas_threads, loaded_blas
from pipeline.timeline import draw_timeline
from pipeline.trace import Trace, TraceEvent

__all__ = [
    "ALIGNMENT",
    "SKIP",
    "Abortable",
    "AdmissionError",
    "Arena",
    "BankStatistics",
    "Banks",
    "Cancelled",
    "Channel",
    "ChannelStatistics",
    "Closed",
    "Fifo",
    "Gather",
    "Graph",
    "GraphError",
    "InOrder",
    "Label",
    "LaneOrder",
    "LanePlan",
    "Lanes",
    "Lease",
    "Milestone",
    "Node",
    "PerWorker",
    "PipelineError",
    "Policy",
    "Pool",
    "PoolStatistics",
    "Run",
    "RunStatistics",
    "Sink",
    "Skip",
    "StageFailure",
    "StageStatistics",
    "StaleVersion",
    "ThreadsLeft",
    "Trace",
    "TraceEvent",
    "aligned_zeros",
    "arena_size",
    "available_cores",
    "blas_threads",
    "draw_timeline",
    "loaded_blas",
    "per_worker",
    "version_for",
]
