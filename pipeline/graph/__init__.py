"""Graphs of stages: the user's declarations, their settings, and their validation.

May import: core, policy, observe, run, processes.
"""

from threadloom.pipeline.graph.graph import Graph
from threadloom.pipeline.graph.settings import RunOptions, StageOptions

__all__ = [
    "Graph",
    "RunOptions",
    "StageOptions",
]
