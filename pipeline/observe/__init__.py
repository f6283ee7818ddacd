"""Observation of a run: declarations of nodes, statistics, diagnosis, traces, timelines, formatting.

May import: core, policy.
"""

from threadloom.pipeline.observe.diagnosis import (
    BottleneckKind as BottleneckKind,
    Diagnosis as Diagnosis,
    Wait as Wait,
    diagnose as diagnose,
    find_bottleneck as find_bottleneck,
)
from threadloom.pipeline.observe.figures import render_png as render_png
from threadloom.pipeline.observe.formatting import (
    format_bytes as format_bytes,
    format_clock as format_clock,
    format_duration as format_duration,
    format_estimate as format_estimate,
    format_rate as format_rate,
)
from threadloom.pipeline.observe.histogram import Distribution as Distribution
from threadloom.pipeline.observe.stage import (
    SKIP as SKIP,
    Branch as Branch,
    Node as Node,
    NodeKind as NodeKind,
    Port as Port,
    Route as Route,
    Sink as Sink,
    Skip as Skip,
    Stage as Stage,
    Via as Via,
)
from threadloom.pipeline.observe.statistics import (
    ChannelStatistics as ChannelStatistics,
    Counters as Counters,
    Phase as Phase,
    RunStatistics as RunStatistics,
    StageStatistics as StageStatistics,
    summarise as summarise,
)
from threadloom.pipeline.observe.timeline import TimelineOptions as TimelineOptions, draw_timeline as draw_timeline
from threadloom.pipeline.observe.trace import Trace as Trace
from threadloom.pipeline.observe.trace_event import Ids as Ids, RawEvent as RawEvent, TraceEvent as TraceEvent
