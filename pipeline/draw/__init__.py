"""Pictures of graphs (text, Mermaid, SVG), and the live view of a run on a terminal.

May import: core, policy, observe, graph.
"""

from threadloom.pipeline.draw.drawing import GraphFormat as GraphFormat, draw_graph as draw_graph
from threadloom.pipeline.draw.live_view import GraphView as GraphView, LiveView as LiveView, status_line as status_line
