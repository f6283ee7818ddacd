"""Graphs of stages: the user's declarations, their settings, and their validation.

May import: core, policy, observe, run, processes.
"""

from threadloom.pipeline.graph.graph import Graph as Graph
from threadloom.pipeline.graph.parts import Part as Part
from threadloom.pipeline.graph.settings import RunOptions as RunOptions, StageOptions as StageOptions
from threadloom.pipeline.graph.sources import Shards as Shards
