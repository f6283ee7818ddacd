"""A graph with its expected output, and plans of single faults, for the tests of the fault harness."""

from threadloom.pipeline import Graph
from threadloom.pipeline.testing import Fault, FaultPlan, Subject

COUNT = 60
"""Items of a `line`."""


def line(count: int = COUNT, workers: int = 1) -> Subject:
    """Return a graph with two stages of `workers` workers each, and its expected output."""
    graph = Graph("line")
    numbers = graph.source("draw", lambda: iter(range(1000, 1000 + count)))
    one = graph.stage("one", lambda item: item + 1000, after=numbers, workers=workers)
    two = graph.stage("two", lambda item: item + 1000, after=one, workers=workers)
    graph.sink("out", after=two)
    return Subject(
        graph, expected={"out": range(3000, 3000 + count)}, ordered=frozenset({"out"} if workers == 1 else ())
    )


def plan(*faults: Fault) -> FaultPlan:
    """Return a plan of these faults."""
    return FaultPlan(faults)
