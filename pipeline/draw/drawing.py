"""A graph as a picture: text for a terminal, Mermaid for a page, SVG for everything else.

From a graph alone it shows the nodes, their workers and capacities; with the statistics of a run also how busy each
stage is (the colour), what comes out a second, how full the channels are, and what sets the pace.
"""

from dataclasses import dataclass
from enum import Enum

from threadloom.pipeline.graph import Graph
from threadloom.pipeline.observe import NodeKind, RunStatistics, Stage, StageStatistics, diagnose, format_rate
from threadloom.pipeline.policy import Gather


class GraphFormat(Enum):
    """What a graph is drawn as."""

    TEXT = "text"
    """Box characters, for a terminal with a font of one width."""
    MERMAID = "mermaid"
    """A flowchart for Markdown: GitHub, GitLab and mkdocs draw it."""
    SVG = "svg"
    """A picture for a page or a browser."""


@dataclass(frozen=True)
class Box:
    """A node as every format shows it."""

    name: str
    kind: NodeKind
    before: tuple[str, ...]
    lines: tuple[str, ...]  # below the name: what it is, and with statistics what it does
    busy: float | None  # share of its time at work; None without statistics
    blocked: float  # share of its time waiting for room behind
    depth: str  # of the channel in front: "1.8 of 2"; empty without statistics or channel
    full: float  # the same as a share of the capacity
    slowest: bool  # whether it sets the pace


@dataclass(frozen=True)
class Picture:
    """A graph as every format shows it."""

    name: str
    boxes: tuple[Box, ...]
    caption: str  # what sets the pace, in words; empty without statistics


def draw_graph(
    graph: Graph,
    statistics: RunStatistics | None = None,
    format: GraphFormat = GraphFormat.TEXT,  # noqa: A002
) -> str:
    """Return a picture of a graph, coloured by busyness if there are statistics of a run of it.

    SVG and Mermaid are whole documents to be written to a file as they are (UTF-8). Names may hold any character.
    """
    from threadloom.pipeline.draw.svg import svg
    from threadloom.pipeline.draw.text import mermaid, text

    picture = _picture(graph, statistics)
    return {GraphFormat.TEXT: text, GraphFormat.MERMAID: mermaid, GraphFormat.SVG: svg}[format](picture)


def _picture(graph: Graph, statistics: RunStatistics | None) -> Picture:
    diagnosis = diagnose(statistics) if statistics is not None else None
    slowest = diagnosis.stage if diagnosis else None
    boxes = []
    for stage in graph.stages:
        seen = statistics[stage.name] if statistics is not None and stage.name in statistics else None
        channel = seen.channel if seen else None
        lines = [_settings(stage)]
        if seen is not None and statistics is not None:
            lines.append(_figures(stage, seen, statistics.elapsed))
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
                stage.name == slowest,
            )
        )
    return Picture(graph.name, tuple(boxes), str(diagnosis) if diagnosis else "")


def _settings(stage: Stage) -> str:
    words = [stage.kind.value] if stage.kind is not NodeKind.STAGE else []
    if stage.workers > 1:
        words.append(f"{stage.workers} workers")
    if stage.kind is not NodeKind.SOURCE:
        words.append(f"room for {stage.capacity}")
    if isinstance(stage.admission, Gather):
        words.append(f"by {stage.admission.count}")
    return " · ".join(words)


def _figures(stage: Stage, seen: StageStatistics, elapsed: float) -> str:
    return f"{format_rate(seen.items_out, elapsed)} · {seen.busy_share:.0%} busy"
