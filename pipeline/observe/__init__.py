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
from threadloom.pipeline.observe.expectation import (
    expected_items as expected_items,
    with_expected_items as with_expected_items,
)
from threadloom.pipeline.observe.figures import render_png as render_png
from threadloom.pipeline.observe.formatting import (
    format_bytes as format_bytes,
    format_clock as format_clock,
    format_duration as format_duration,
    format_estimate as format_estimate,
    format_rate as format_rate,
    single_line as single_line,
)
from threadloom.pipeline.observe.histogram import Distribution as Distribution
from threadloom.pipeline.observe.loads import loads_of as loads_of
from threadloom.pipeline.observe.observer import Observer as Observer
from threadloom.pipeline.observe.open_telemetry import OpenTelemetryExporter as OpenTelemetryExporter
from threadloom.pipeline.observe.progress import (
    Progress as Progress,
    ProgressBar as ProgressBar,
    progress_of as progress_of,
)
from threadloom.pipeline.observe.prometheus import PrometheusExporter as PrometheusExporter
from threadloom.pipeline.observe.redrawing import is_redrawable as is_redrawable
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
