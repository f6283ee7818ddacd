"""Pictures of a graph and of a live run: text, Mermaid, SVG, terminal.

May import: core, policy, observe, graph.
"""

from threadloom.pipeline.draw.drawing import GraphFormat, draw_graph
from threadloom.pipeline.draw.live_view import GraphView, LiveView, status_line

__all__ = [
    "GraphFormat",
    "GraphView",
    "LiveView",
    "draw_graph",
    "status_line",
]
