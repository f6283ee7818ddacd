"""The engine: stages, channels, slots, arenas, versions, lanes, threads, trace. There is no model in it.

This package stands on the standard library and NumPy, and never imports `kernels` or `stages`. Inside it, each layer
imports only those before it:

    errors                     what can go wrong
    admission, join, ordered,  decisions, apart from threads
    failure, control, watchdog
    statistics                 figures
    arena, slots, banks, lanes memory: aligned arenas, pools, versioned weights, gradient lanes and their order
    gate, channel, turnstile,  what threads share
    trace
    stage, per_worker          what a stage is
    sending, guard, worker     one thread of a stage, its ways out, its failures
    assembly, delivery, engine the parts of a run, what comes out, its threads
    settings, checks, graph    what people declare
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
    ItemTimeout,
    Label,
    PipelineError,
    RouteError,
    StageFailure,
    Standstill,
    ThreadsLeft,
    TooManySkipped,
)
from pipeline.failure import Again, Attempt, DeadLetter, FailFast, OnError, Retry, SkipFailed, Verdict
from pipeline.graph import Graph
from pipeline.join import Join
from pipeline.lane_order import LaneOrder
from pipeline.lanes import LanePlan, Lanes, Milestone
from pipeline.per_worker import PerWorker, per_worker
from pipeline.settings import RunOptions, StageOptions
from pipeline.slots import Pool, PoolStatistics
from pipeline.stage import SKIP, Node, Sink, Skip
from pipeline.statistics import ChannelStatistics, RunStatistics, StageStatistics
from pipeline.threads import available_cores, blas_threads, loaded_blas
from pipeline.timeline import draw_timeline
from pipeline.trace import Trace
from pipeline.trace_event import TraceEvent
from pipeline.watchdog import OnStuck, Stuck, Watchdog

__all__ = [
    "ALIGNMENT",
    "SKIP",
    "Abortable",
    "AdmissionError",
    "Again",
    "Arena",
    "Attempt",
    "BankStatistics",
    "Banks",
    "Cancelled",
    "Channel",
    "ChannelStatistics",
    "Closed",
    "DeadLetter",
    "FailFast",
    "Fifo",
    "Gather",
    "Graph",
    "GraphError",
    "InOrder",
    "ItemTimeout",
    "Join",
    "Label",
    "LaneOrder",
    "LanePlan",
    "Lanes",
    "Lease",
    "Milestone",
    "Node",
    "OnError",
    "OnStuck",
    "PerWorker",
    "PipelineError",
    "Policy",
    "Pool",
    "PoolStatistics",
    "Retry",
    "RouteError",
    "Run",
    "RunOptions",
    "RunStatistics",
    "Sink",
    "Skip",
    "SkipFailed",
    "StageFailure",
    "StageOptions",
    "StageStatistics",
    "StaleVersion",
    "Standstill",
    "Stuck",
    "ThreadsLeft",
    "TooManySkipped",
    "Trace",
    "TraceEvent",
    "Verdict",
    "Watchdog",
    "aligned_zeros",
    "arena_size",
    "available_cores",
    "blas_threads",
    "draw_timeline",
    "loaded_blas",
    "per_worker",
    "version_for",
]
