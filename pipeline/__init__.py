"""The engine: stages, channels, slots, arenas, versions, lanes, threads, trace. There is no model in it.

This package stands on the standard library and NumPy, besides threadpoolctl (BLAS threads), multiprocess (process
stages), rich (the live view) and Matplotlib (the timeline); it never imports `kernels` or `stages`. Inside it, each
layer imports only those before it:

    errors                     what can go wrong
    admission, join, ordered,  decisions, apart from threads
    failure, control, watchdog
    histogram, statistics,     figures, and what they say
    diagnosis
    arena, slots, shared,      memory: aligned arenas, pools, arrays shared among processes, versioned weights,
    banks, lanes, lane_order   gradient lanes and their order
    gate, channel, turnstile,  what threads share
    trace
    stage, per_worker,         what a stage is, and one on processes
    processes
    sending, guard, worker     one thread of a stage, its ways out, its failures
    assembly, delivery, engine the parts of a run, what comes out, its threads
    settings, checks, graph    what people declare
    timeline, drawing, view    pictures of what happened, and of what happens
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
    StageFailure,
    Standstill,
    ThreadsLeft,
    TooManySkipped,
)
from threadloom.pipeline.core.lanes import LanePlan, Lanes, Milestone
from threadloom.pipeline.core.shared import PoolExhausted, SharedPool
from threadloom.pipeline.core.slots import Pool, PoolStatistics
from threadloom.pipeline.core.threads import available_cores, blas_threads, loaded_blas
from threadloom.pipeline.draw.drawing import GraphFormat, draw_graph
from threadloom.pipeline.draw.view import GraphView, LiveView, status_line
from threadloom.pipeline.graph.graph import Graph
from threadloom.pipeline.graph.settings import RunOptions, StageOptions
from threadloom.pipeline.observe.diagnosis import Diagnosis, Limit, Wait, explain
from threadloom.pipeline.observe.histogram import Distribution
from threadloom.pipeline.observe.stage import SKIP, Node, Sink, Skip
from threadloom.pipeline.observe.statistics import ChannelStatistics, RunStatistics, StageStatistics
from threadloom.pipeline.observe.timeline import draw_timeline
from threadloom.pipeline.observe.trace import Trace
from threadloom.pipeline.observe.trace_event import TraceEvent
from threadloom.pipeline.policy.admission import Fifo, Gather, InOrder, Policy
from threadloom.pipeline.policy.failure import Again, Attempt, DeadLetter, FailFast, OnError, Retry, SkipFailed, Verdict
from threadloom.pipeline.policy.join import Join
from threadloom.pipeline.policy.lane_order import LaneOrder
from threadloom.pipeline.processes.processes import (
    OnProcesses,
    ProcessError,
    ProcessTraceback,
    ProcessWorker,
    WorkerDied,
    WorkerTimeout,
    on_processes,
)
from threadloom.pipeline.run.channel import Channel
from threadloom.pipeline.run.engine import Abortable, Run
from threadloom.pipeline.run.watchdog import OnStuck, Stuck, Watchdog
from threadloom.pipeline.run.worker_state import PerWorker, per_worker

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
    "Diagnosis",
    "Distribution",
    "FailFast",
    "Fifo",
    "Gather",
    "Graph",
    "GraphError",
    "GraphFormat",
    "GraphView",
    "InOrder",
    "ItemTimeout",
    "Join",
    "Label",
    "LaneOrder",
    "LanePlan",
    "Lanes",
    "Lease",
    "Limit",
    "LiveView",
    "Milestone",
    "Node",
    "OnError",
    "OnProcesses",
    "OnStuck",
    "PerWorker",
    "PipelineError",
    "Policy",
    "Pool",
    "PoolExhausted",
    "PoolStatistics",
    "ProcessError",
    "ProcessTraceback",
    "ProcessWorker",
    "Retry",
    "RouteError",
    "Run",
    "RunOptions",
    "RunStatistics",
    "SharedPool",
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
    "Wait",
    "Watchdog",
    "WorkerDied",
    "WorkerTimeout",
    "aligned_zeros",
    "arena_size",
    "available_cores",
    "blas_threads",
    "draw_graph",
    "draw_timeline",
    "explain",
    "loaded_blas",
    "on_processes",
    "per_worker",
    "status_line",
    "version_for",
]
