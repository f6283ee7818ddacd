"""Tests of the declarations of a graph and their validation."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from threadloom.pipeline import SKIP, Fifo, Gather, Graph, GraphError, InOrder, PipelineError, Skip, SkipFailed

pytestmark = pytest.mark.timeout(60)


def identity(item: int) -> int:
    return item


def test_three_stages_in_a_dozen_lines() -> None:
    def halve(item: int) -> int | Skip:
        return SKIP if item % 2 else item // 2

    graph = Graph("line")
    numbers = graph.source("numbers", range(10))
    halves = graph.stage("halve", halve, after=numbers)
    pairs = graph.stage("pair", sum, after=halves, gather=Gather(count=2, partial=True))
    texts = graph.stage("text", str, after=pairs)
    graph.sink("out", after=texts)
    with graph.start() as run:
        assert list(run) == ["1", "5", "4"]


Build = Callable[[Graph], Any]
PLACE = InOrder[int](order=lambda item: (0, item))

INVALID: dict[str, tuple[Build, str]] = {
    "name used twice": (
        lambda g: g.stage("a", identity, after=g.source("a", [1])),
        "graph 'g' already has a source 'a': use a different name",
    ),
    "empty name": (lambda g: g.source("", [1]), "a source of graph 'g' has an empty name"),
    "no workers": (
        lambda g: g.stage("b", identity, after=g.source("a", [1]), workers=0),
        "'b' needs at least 1 worker",
    ),
    "no capacity": (lambda g: g.sink("b", after=g.source("a", [1]), capacity=0), "'b' needs a capacity of at least 1"),
    "workers as text": (
        lambda g: g.stage("b", identity, after=g.source("a", [1]), workers="2"),  # type: ignore[call-overload]
        "stage 'b' needs workers to be a whole number, such as 2, got '2'",
    ),
    "capacity None": (
        lambda g: g.sink("b", after=g.source("a", [1]), capacity=None),  # type: ignore[arg-type]
        "sink 'b' needs capacity to be a whole number, such as 2, got None",
    ),
    "ordered as text": (
        lambda g: g.stage("b", identity, after=g.source("a", [1]), ordered="no"),  # type: ignore[call-overload]
        "stage 'b' needs ordered to be True or False, got 'no'",
    ),
    "an option with a typo": (
        lambda g: g.stage("b", identity, after=g.source("a", [1]), worker=3),  # type: ignore[call-overload]
        "stage 'b' has no option 'worker': did you mean 'workers'?",
    ),
    "an option of a run with a typo": (
        lambda g: (g.sink("b", after=g.source("a", [1])), g.start(grase=3)),  # type: ignore[call-arg]
        "a run of graph 'g' has no option 'grase': did you mean 'grace'?",
    ),
    "a policy given as a class": (
        lambda g: g.stage("b", identity, after=g.source("a", [1]), on_error=SkipFailed),  # type: ignore[call-overload]
        "got the class SkipFailed: call it to create an instance",
    ),
    "an exception given as a policy": (
        lambda g: g.stage("b", identity, after=g.source("a", [1]), on_error=ValueError),  # type: ignore[call-overload]
        "got the class ValueError",
    ),
    "an admission given as a class": (
        lambda g: g.sink("b", after=g.source("a", [1]), admission=InOrder),  # type: ignore[arg-type]
        "got the class InOrder: call it",
    ),
    "a gather given as a class": (
        lambda g: g.stage("b", sum, after=g.source("a", [1]), gather=Gather),  # type: ignore[call-overload]
        "got the class Gather: call it",
    ),
    "a source that is no iterable": (
        lambda g: g.source("a", 5),  # type: ignore[arg-type]
        "'a' needs an iterable, or a function that returns one, got 5: to send a single item, put it into a list",
    ),
    "limit as text": (
        lambda g: g.stage("b", identity, after=g.source("a", [1]), limit="1"),  # type: ignore[call-overload]
        "stage 'b' needs limit to be a number of seconds, got '1'",
    ),
    "after nothing": (lambda g: g.stage("b", identity, after=[]), "'b' has no predecessors: pass at least one node"),
    "after no node": (
        lambda g: g.stage("b", identity, after=["a"]),  # type: ignore[arg-type, list-item]
        "invalid predecessor 'a' of stage 'b': expected a node",
    ),
    "other graph": (
        lambda g: g.sink("b", after=Graph("h").source("a", [1])),
        "predecessor 'a' of stage 'b' belongs to another graph",
    ),
    "duplicate predecessor": (lambda g: g.sink("b", after=[g.source("a", [1])] * 2), "'b' has a duplicate predecessor"),
    "no function": (
        lambda g: g.stage("b", 3, after=g.source("a", [1])),  # type: ignore[call-overload]
        "'b' needs a function, got 3",
    ),
    "gather and order": (
        lambda g: g.stage(  # type: ignore[call-overload]
            "b", sum, after=g.source("a", [1]), gather=Gather(count=2), admission=PLACE
        ),
        "'b' has both gather and admission=.*: omit admission",
    ),
    "gather as admission": (
        lambda g: g.stage("b", identity, after=g.source("a", [1]), admission=Gather(count=2)),
        "'b' has admission=Gather.*: use gather=Gather",
    ),
    "no source": (lambda g: g.check(), "has no source"),
    "source without successor": (lambda g: (g.source("a", [1]), g.start()), "source 'a' has no successor"),
    "resize unknown": (lambda g: g.resize("z", workers=2), r"has no stage 'z'; it has \[\]"),
    "resize source": (
        lambda g: g.resize(g.source("a", [1]).name, workers=2),
        "source 'a' has exactly one worker",
    ),
}


@pytest.mark.parametrize("case", INVALID)
def test_invalid_graphs_are_rejected(case: str) -> None:
    build, message = INVALID[case]
    before = threading.active_count()
    with pytest.raises(GraphError, match=message):
        build(Graph("g"))
    assert threading.active_count() == before


def test_a_rejected_stage_is_not_added() -> None:
    graph = Graph("g")
    numbers = graph.source("numbers", [1])
    with pytest.raises(GraphError):
        graph.stage("b", identity, after=numbers, workers=0)
    graph.stage("b", identity, after=numbers, workers=2)
    assert [stage.name for stage in graph.stages] == ["numbers", "b"]


def test_resize_changes_the_next_run() -> None:
    graph = Graph("g")
    graph.stage("b", identity, after=graph.source("numbers", [1]), admission=Fifo())
    graph.resize("b", workers=3, capacity=5)
    statistics = graph.run()["b"]
    assert statistics.workers == 3
    assert statistics.channel is not None
    assert statistics.channel.capacity == 5


def test_a_graph_can_be_run_repeatedly() -> None:
    graph = Graph("g")
    numbers = graph.source("numbers", lambda: iter(range(3)))
    ordered = graph.stage("b", identity, after=numbers, admission=PLACE)
    out = graph.sink("out", after=ordered)
    for _ in range(2):
        with graph.start() as run:
            assert list(run.items(out)) == [0, 1, 2]


def test_a_run_is_used_once_and_in_a_with_block() -> None:
    graph = Graph("g")
    graph.sink("out", after=graph.source("numbers", [1]))
    run = graph.start()
    with pytest.raises(PipelineError, match=r"use `with graph.start\(\) as run:`"):
        next(iter(run))
    with run:
        assert list(run) == [1]
    with pytest.raises(PipelineError, match="has already been used"), run:
        pass


def test_wrong_use_of_sinks_is_rejected() -> None:
    graph = Graph("g")
    numbers = graph.source("numbers", [1])
    graph.sink("one", after=numbers)
    graph.sink("two", after=numbers)
    with graph.start() as run:
        with pytest.raises(PipelineError, match=r"has 2 sinks: iterate one with run.items"):
            iter(run)
        with pytest.raises(PipelineError, match=r"has no sink 'three'; it has \['one', 'two'\]"):
            run.items("three")
        with pytest.raises(PipelineError, match="iterate them, then wait"):
            run.wait()
        assert [list(run.items("one")), list(run.items("two"))] == [[1], [1]]
        run.wait()
