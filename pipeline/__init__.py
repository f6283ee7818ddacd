"""The engine: stages, channels, slots, arenas, versions, lanes, threads, trace. There is no model in it.

This package stands on the standard library and NumPy, and never imports `kernels` or `stages`. Inside it, each layer
imports only those before it:

    errors                     what can go wrong
    admission, statistics      decisions and figures, apart from threads
    channel, trace             what threads share
    stage                      one worker
    engine                     the threads of a run
    graph                      what people declare
    timeline                   pictures of what happened
"""

from pipeline.admission import Fifo, Gather, InOrder, Policy
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
from pipeline.stage import SKIP, Node, Sink, Skip
from pipeline.statistics import ChannelStatistics, RunStatistics, StageStatistics
from pipeline.timeline import draw_timeline
from pipeline.trace import Trace, TraceEvent

__all__ = [
    "SKIP",
    "Abortable",
    "AdmissionError",
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
    "Node",
    "PipelineError",
    "Policy",
    "Run",
    "RunStatistics",
    "Sink",
    "Skip",
    "StageFailure",
    "StageStatistics",
    "ThreadsLeft",
    "Trace",
    "TraceEvent",
    "draw_timeline",
]
