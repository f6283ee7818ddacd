"""Observation of a run: declarations of nodes, statistics, diagnosis, traces, timelines, formatting.

May import: core, policy.
"""

from threadloom.pipeline.observe.diagnosis import BottleneckKind, Diagnosis, Wait, diagnose, find_bottleneck
from threadloom.pipeline.observe.figures import render_png
from threadloom.pipeline.observe.formatting import (
    format_bytes,
    format_clock,
    format_duration,
    format_estimate,
    format_rate,
)
from threadloom.pipeline.observe.histogram import Distribution
from threadloom.pipeline.observe.stage import SKIP, Branch, Node, NodeKind, Port, Route, Sink, Skip, Stage, Via
from threadloom.pipeline.observe.statistics import (
    ChannelStatistics,
    Counters,
    Phase,
    RunStatistics,
    StageStatistics,
    summarise,
)
from threadloom.pipeline.observe.timeline import TimelineOptions, draw_timeline
from threadloom.pipeline.observe.trace import Trace
from threadloom.pipeline.observe.trace_event import Ids, RawEvent, TraceEvent

__all__ = [
    "SKIP",
    "BottleneckKind",
    "Branch",
    "ChannelStatistics",
    "Counters",
    "Diagnosis",
    "Distribution",
    "Ids",
    "Node",
    "NodeKind",
    "Phase",
    "Port",
    "RawEvent",
    "Route",
    "RunStatistics",
    "Sink",
    "Skip",
    "Stage",
    "StageStatistics",
    "TimelineOptions",
    "Trace",
    "TraceEvent",
    "Via",
    "Wait",
    "diagnose",
    "draw_timeline",
    "find_bottleneck",
    "format_bytes",
    "format_clock",
    "format_duration",
    "format_estimate",
    "format_rate",
    "render_png",
    "summarise",
]
