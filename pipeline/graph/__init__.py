"""What people declare: graphs of stages, their settings, and the checks on both.

May import: core, policy, observe, run, processes.
"""

from threadloom.pipeline.graph.graph import Graph
from threadloom.pipeline.graph.settings import RunOptions, StageOptions

__all__ = [
    "Graph",
    "RunOptions",
    "StageOptions",
]
