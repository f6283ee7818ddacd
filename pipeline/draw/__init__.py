"""Pictures of graphs (text, Mermaid, SVG), and the live view of a run on a terminal.

May import: core, policy, observe, graph.
"""

from threadloom.pipeline.draw.drawing import GraphFormat, draw_graph
from threadloom.pipeline.draw.live_view import GraphView, LiveView, status_line
from threadloom.pipeline.draw.redrawing import is_redrawable

__all__ = [
    "GraphFormat",
    "GraphView",
    "LiveView",
    "draw_graph",
    "is_redrawable",
    "status_line",
]
