"""The content of a picture of a graph, common to all formats."""

from dataclasses import dataclass

from threadloom.pipeline.graph import Graph
from threadloom.pipeline.observe import NodeKind, RunStatistics, Stage, StageStatistics, diagnose, format_rate
from threadloom.pipeline.policy import Gather

COLOURS = ("#eef3f8", "#dcebdc", "#fbeec2", "#fbd7a8", "#f6b3a2")
"""Fill of a node by its busy share, in steps of a fifth: from pale blue for idle to red for always busy."""


@dataclass(frozen=True)
class Box:
    """A node of the graph."""

    name: str
    kind: NodeKind
    after: tuple[str, ...]
    """Names of the predecessors."""
    lines: tuple[str, ...]
    """Text below the name: the settings, and with statistics the figures."""
    busy: float | None
    """Busy share of its time; None without statistics."""
    blocked: float
    """Share of its time blocked by a full channel downstream."""
    depth: str
    """Mean depth and capacity of the input channel, such as 1.8/2; empty without statistics or channel."""
    fill: float
    """Mean depth as a share of the capacity, at most 1."""
    is_bottleneck: bool


@dataclass(frozen=True)
class Picture:
    """A graph."""

    name: str
    boxes: tuple[Box, ...]
    caption: str
    """The diagnosis; empty without statistics."""


def picture_of(graph: Graph, statistics: RunStatistics | None) -> Picture:
    """Return the content of a picture of `graph`, with the figures of a run if `statistics` are passed."""
    diagnosis = diagnose(statistics) if statistics is not None else None
    bottleneck = diagnosis.stage if diagnosis else None
    boxes = []
    for stage in graph.stages:
        seen = statistics[stage.name] if statistics is not None and stage.name in statistics else None
        channel = seen.channel if seen else None
        lines = [_settings(stage)]
        if seen is not None and statistics is not None:
            lines.append(_figures(seen, statistics.elapsed))
        boxes.append(
            Box(
                stage.name,
                stage.kind,
                tuple(dict.fromkeys(stage.after)),
                tuple(line for line in lines if line),
                seen.busy_share if seen else None,
                seen.blocked_share if seen else 0.0,
                f"{channel.mean_depth:.1f}/{channel.capacity}" if channel else "",
                min(1.0, channel.mean_depth / channel.capacity) if channel else 0.0,
                stage.name == bottleneck,
            )
        )
    return Picture(graph.name, tuple(boxes), str(diagnosis) if diagnosis else "")


def _settings(stage: Stage) -> str:
    words = [stage.kind.value] if stage.kind is not NodeKind.STAGE else []
    if stage.workers > 1:
        words.append(f"{stage.workers} workers")
    if stage.kind is not NodeKind.SOURCE:
        words.append(f"capacity {stage.capacity}")
    if isinstance(stage.admission, Gather):
        words.append(f"groups of {stage.admission.count}")
    return " · ".join(words)


def _figures(seen: StageStatistics, elapsed: float) -> str:
    return f"{format_rate(seen.items_out, elapsed)} · {seen.busy_share:.0%} busy"


def fill_colour(busy: float) -> str:
    """Return the fill colour of a node with this busy share."""
    return COLOURS[min(len(COLOURS) - 1, int(max(0.0, busy) * len(COLOURS)))]
