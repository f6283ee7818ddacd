"""Random graphs under random faults: a part of the soak test in every test run, and minutes of it on demand."""

from dataclasses import replace
from itertools import chain, count

import pytest

from benchmarks.soak import soak
from threadloom.pipeline import Graph, OnFailure, StageFailure
from threadloom.pipeline.observe import NodeKind
from threadloom.pipeline.testing import FaultKind, FaultPlan, exercise, random_subject

QUICK = 100
"""Number of seeds in every test run: the first ones, which contain every kind of fault and outcome."""
FIRST = 1200
"""Number of seeds with which the long soak test begins."""
MINUTES = 3
FROM = 1_000_000
"""Its next seeds start here."""


@pytest.mark.timeout(300)
def test_part_of_the_soak() -> None:
    figures = soak(range(QUICK), 0)
    assert figures.failures == []
    assert figures.graphs == QUICK
    assert {"success", "StageFailure", "Cancelled", "KeyboardInterrupt", "InjectedFault"} <= set(figures.outcomes)
    assert {kind.value for kind in FaultKind} - {"kill"} <= set(figures.faults)


@pytest.mark.soak
@pytest.mark.timeout(MINUTES * 60 + 120)
def test_the_long_soak() -> None:
    messages: list[str] = []
    figures = soak(chain(range(FIRST), count(FROM)), 0, MINUTES * 60, messages.append)
    assert figures.failures == [], "\n".join(messages)


def test_random_graphs_are_determined_by_their_seed_and_have_all_features() -> None:
    graphs = [random_subject(seed).graph for seed in range(200)]
    again = [random_subject(seed).graph for seed in range(200)]

    def shape(graph: Graph) -> list[str]:
        return [
            f"{s.name} {s.after} {s.workers} {s.capacity} {s.ordered} {type(s.admission).__name__}"
            for s in graph.stages
        ]

    assert [shape(graph) for graph in graphs] == [shape(graph) for graph in again]
    stages = [stage for graph in graphs for stage in graph.stages]
    assert {type(stage.admission).__name__ for stage in stages} == {"Fifo", "InOrder", "Gather", "Join", "Priority"}
    assert {stage.workers for stage in stages} == {1, 2, 3, 4}
    features = ("expand", "ordered", "when", "acquire", "via", "gathers", "concurrency", "shards", "rate")
    for feature in features:
        assert any(getattr(stage, feature) for stage in stages), feature
    assert {stage.kind for stage in stages if stage.concurrency} == {NodeKind.SOURCE, NodeKind.STAGE}


DRAINED = frozenset({FaultKind.RAISE, FaultKind.EXIT, FaultKind.POLICY, FaultKind.DELAY, FaultKind.HOLD})
"""Kinds with which a run that is drained can be checked most strictly: nothing but a stage ends it."""


@pytest.mark.timeout(120)
def test_random_graphs_deliver_the_items_before_a_failure() -> None:
    failures = 0
    for seed in range(60):
        subject = random_subject(seed)
        if any(stage.acquire for stage in subject.graph.stages):
            continue
        plan = FaultPlan.random(subject.graph, seed, calls=30, most=6, kinds=DRAINED)
        report = exercise(subject, replace(plan, on_failure=OnFailure.DRAIN)).check(f"seed {seed}")
        failures += isinstance(report.error, StageFailure)
    assert failures > 10
