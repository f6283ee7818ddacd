"""Pictures of a graph: text for a terminal, Mermaid for Markdown, SVG for browsers.

They show the nodes with their workers and capacities; with the statistics of a run also the busy share (the colour) and
the rate of each stage, the depths of the channels, and the bottleneck.
"""

from enum import Enum

from threadloom.pipeline.draw.mermaid import mermaid
from threadloom.pipeline.draw.picture import picture_of
from threadloom.pipeline.draw.svg import svg
from threadloom.pipeline.draw.text import text
from threadloom.pipeline.graph import Graph
from threadloom.pipeline.observe import RunStatistics


class GraphFormat(Enum):
    """The format of a picture of a graph."""

    TEXT = "text"
    """Box-drawing characters, for a terminal with a monospaced font."""
    MERMAID = "mermaid"
    """A flowchart for Markdown, which GitHub, GitLab and mkdocs render."""
    SVG = "svg"
    """A vector image."""


def draw_graph(
    graph: Graph,
    statistics: RunStatistics | None = None,
    format: GraphFormat = GraphFormat.TEXT,  # noqa: A002
) -> str:
    """Return a picture of a graph, coloured by busy share if `statistics` of a run are passed.

    SVG and Mermaid are complete documents, to be written to a file as UTF-8. Names may contain any characters.
    """
    draw = {GraphFormat.TEXT: text, GraphFormat.MERMAID: mermaid, GraphFormat.SVG: svg}[format]
    return draw(picture_of(graph, statistics))
