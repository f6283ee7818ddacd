"""Graphs that are added to other graphs: names, replaced sources, sinks as nodes, routes, joins, and mistakes."""

import re
from collections.abc import Iterable
from typing import Any

import pytest

from threadloom.pipeline import (
    DeadLetter,
    Gather,
    Graph,
    GraphError,
    InOrder,
    Node,
    Sink,
    SkipFailed,
    StageFailure,
    Trace,
    draw_graph,
)
from threadloom.pipeline.testing import Subject, hammer

pytestmark = pytest.mark.timeout(60)


def doubling() -> tuple[Graph, Node[int], Sink[int]]:
    """Return a part that doubles numbers, with its source and its sink; it can be run alone."""
    part = Graph("double")
    raw = part.source("raw", [1, 2])
    return part, raw, part.sink("out", after=part.stage("times", lambda n: 2 * n, after=raw, workers=2, ordered=True))


def test_a_part_is_a_graph_that_runs_alone_and_in_another() -> None:
    part, raw, out = doubling()
    assert list(out) == [2, 4]
    graph = Graph("outer")
    added = graph.add(part, {raw: graph.source("numbers", range(5))})
    found = graph.sink("found", after=added[out])
    assert [stage.name for stage in graph.stages] == ["numbers", "double/times", "found"]
    assert list(found) == [0, 2, 4, 6, 8]
    assert list(out) == [2, 4], "the part is unchanged"
    assert [stage.name for stage in part.stages] == ["raw", "times", "out"]


def test_a_part_can_be_added_several_times_one_after_the_other() -> None:
    part, raw, out = doubling()
    graph = Graph("outer")
    node: Node[int] = graph.source("numbers", [1, 2, 3])
    for name in ("first", "second", "third"):
        node = graph.add(part, {raw: node}, name=name)[out]
    assert list(graph.sink("out", after=node)) == [8, 16, 24]
    with pytest.raises(GraphError, match=r"graph 'outer' already has a stage 'first/times': use a different name"):
        graph.add(part, {raw: node}, name="first")


def test_parts_of_parts() -> None:
    part, raw, out = doubling()
    middle = Graph("middle")
    numbers = middle.source("numbers", [5])
    both = middle.sink("both", after=middle.add(part, {raw: numbers})[out])
    graph = Graph("outer")
    added = graph.add(middle, {numbers: graph.source("in", [7])})
    assert [stage.name for stage in graph.stages] == ["in", "middle/double/times"]
    assert list(graph.sink("out", after=added[both])) == [14]


def test_names_are_shown_in_drawings_traces_statistics_and_threads() -> None:
    part, raw, out = doubling()
    graph = Graph("outer")
    graph.sink("out", after=graph.add(part, {raw: graph.source("numbers", range(5))})[out])
    trace = Trace()
    with graph.start(trace=trace) as run:
        list(run)
    assert "double/times" in draw_graph(graph, run.statistics())
    assert "double/times" in {event.stage for event in trace.events()}
    assert run.statistics()["double/times"].items_out == 5


def test_sources_that_are_not_replaced_are_copied() -> None:
    part, _, out = doubling()
    graph = Graph("outer")
    assert list(graph.sink("out", after=graph.add(part)[out])) == [2, 4]


def add_up(numbers: Iterable[int]) -> int:
    return sum(numbers)


def routed() -> tuple[Graph, Node[int], Sink[int], Node[DeadLetter]]:
    """Return a part with a route, a join, groups, dead letters, and a sink that selects and merges."""
    part = Graph("routed")
    raw = part.source("raw", range(6))
    numbers = part.stage("check", lambda n: n if n != 3 else 1 // 0, after=raw, on_error=SkipFailed())
    ways = part.route("parity", lambda n: n % 2, after=numbers, to=(0, 1))
    even = part.stage("even", lambda n: n, after=ways[0])
    odd = part.stage("odd", lambda n: -n, after=ways[1])
    joined = part.join("pair", add_up, after=(even, odd), drop_unmatched=True)
    sink = part.sink("kept", after=[joined, even], when=lambda n: n >= 0)
    return part, raw, sink, part.dead_letters(numbers)


def test_routes_joins_dead_letters_and_merging_sinks() -> None:
    part, raw, sink, letters = routed()
    graph = Graph("outer")
    added = graph.add(part, {raw: graph.source("numbers", range(6))})
    failed = graph.stage("failed", lambda letter: 1000 + letter.item, after=added[letters])
    graph.sink("all", after=[added[sink], failed])
    # Even: 0 2 4; odd: -1 -5; pairs by position: -1 and -3; the sink keeps those from 0 on.
    assert sorted(graph) == [0, 2, 4, 1003]
    assert {"routed/parity"} == {via.route.name for stage in graph.stages for via in stage.via if hasattr(via, "route")}
    assert "routed/kept" in [stage.name for stage in graph.stages], "it selects, so it is a stage"


def test_a_branch_of_a_part_is_a_node() -> None:
    part = Graph("part")
    raw = part.source("raw", range(4))
    ways = part.route("parity", lambda n: n % 2, after=part.stage("same", abs, after=raw), to=(0, 1))
    part.stage("dropped", abs, after=ways[0])
    graph = Graph("outer")
    added = graph.add(part, {raw: graph.source("numbers", range(6))})
    assert sorted(graph.sink("odd", after=added[ways[1]])) == [1, 3, 5]


def test_an_input_may_be_a_branch_or_dead_letters() -> None:
    part, raw, out = doubling()
    graph = Graph("outer")
    ways = graph.route("parity", lambda n: n % 2, after=graph.source("numbers", range(6)), to=(0, 1))
    found = graph.add(part, {raw: ways[1]})[out]
    graph.stage("rest", abs, after=ways[0])
    assert list(graph.sink("out", after=found)) == [2, 6, 10]


def test_a_sink_with_an_order_orders() -> None:
    part = Graph("sorted")
    raw = part.source("raw", [0])
    out = part.sink("out", after=raw, admission=InOrder(order=lambda n: (None, n)), capacity=8)
    graph = Graph("outer")
    added = graph.add(part, {raw: graph.source("numbers", [2, 0, 1, 3])})
    assert list(graph.sink("found", after=added[out])) == [0, 1, 2, 3]


def test_a_sink_that_selects_selects() -> None:
    part = Graph("odd")
    raw = part.source("raw", [0])
    out = part.sink("out", after=raw, when=lambda n: n % 2 == 1)
    graph = Graph("outer")
    added = graph.add(part, {raw: graph.source("numbers", range(5))})
    assert list(graph.sink("found", after=added[out])) == [1, 3]


def test_errors_of_a_join_name_the_inputs_with_their_prefix() -> None:
    part = Graph("part")
    raw = part.source("raw", [0])
    all_, odd = part.stage("all", abs, after=raw), part.stage("odd", abs, after=raw, when=lambda n: n % 2 == 1)
    out = part.sink("out", after=part.join("pair", add_up, after=(all_, odd)))
    graph = Graph("outer")
    added = graph.add(part, {raw: graph.source("numbers", range(3))})
    graph.sink("found", after=added[out])
    with pytest.raises(StageFailure, match=r"stage 'part/pair' .* lacks an item of 'part/odd'"):
        list(graph)


def test_groups_keep_their_settings() -> None:
    part = Graph("groups")
    raw = part.source("raw", [0])
    out = part.sink("out", after=part.stage("sum", add_up, after=raw, gather=Gather(count=2, partial=True), workers=3))
    graph = Graph("outer")
    added = graph.add(part, {raw: graph.source("numbers", range(5))})
    assert sorted(graph.sink("found", after=added[out])) == [1, 4, 5]
    assert graph.stages[1].workers == 3


def wrong_inputs() -> list[tuple[Any, str]]:
    part, raw, _ = doubling()
    graph = Graph("outer")
    numbers = graph.source("numbers", [1])
    keys = "inputs of part 'double' needs its sources (raw) as keys, got "
    text: Any = "raw"
    other = Graph("other").source("numbers", [1])
    times = Node[int]("times", part)
    return [
        (lambda: graph.add(graph, {}), "graph 'outer' cannot be added to itself"),
        (
            lambda: graph.add(part, {other: numbers}),
            keys + "Node(",
        ),
        (
            lambda: graph.add(part, {times: numbers}),
            keys + "Node(",
        ),
        (
            lambda: graph.add(part, {text: numbers}),
            keys + "'raw'",
        ),
        (lambda: graph.add(part, {raw: other}), "input 'raw' of part 'double' needs a node of the graph, got Node("),
        (lambda: graph.add(part, {raw: raw}), "input 'raw' of part 'double' needs a node of the graph, got Node("),
        (lambda: graph.add(part, {raw: numbers})[other], "part 'double' has no node 'numbers'"),
        (lambda: graph.add(text, {}), "graph 'outer' needs a graph to add, got 'raw'"),
    ]


@pytest.mark.parametrize("number", range(len(wrong_inputs())))
def test_mistakes_are_named(number: int) -> None:
    call, message = wrong_inputs()[number]
    with pytest.raises(GraphError, match=re.escape(message)):
        call()


def test_a_route_of_a_replaced_source_follows_the_input_but_not_a_branch() -> None:
    part = Graph("part")
    raw = part.source("raw", range(4))
    ways = part.route("parity", lambda n: n % 2, after=raw, to=(0, 1))
    even, odd = part.stage("even", lambda n: (0, n), after=ways[0]), part.stage("odd", lambda n: (1, n), after=ways[1])
    out = part.sink("out", after=[even, odd])
    graph = Graph("outer")
    numbers = graph.source("numbers", range(3))
    branch = graph.route("all", bool, after=graph.stage("same", abs, after=numbers), to=(True, False))[True]
    with pytest.raises(GraphError, match="branch 0 of route 'parity' of 'raw' in part 'part' cannot be taken from its"):
        graph.add(part, {raw: branch})
    graph = Graph("outer")
    added = graph.add(part, {raw: graph.source("numbers", range(3))})
    assert sorted(graph.sink("found", after=added[out])) == [(0, 0), (0, 2), (1, 1)]


def test_dead_letters_of_a_replaced_source_need_a_stage() -> None:
    part = Graph("part")
    raw = part.source("raw", iter([1]), on_error=SkipFailed())
    part.sink("out", after=[raw, part.dead_letters(raw)])
    graph = Graph("outer")
    numbers = graph.source("numbers", [1])
    with pytest.raises(GraphError, match="the dead letters of a stage of 'raw' in part 'part' cannot be taken from"):
        graph.add(part, {raw: numbers})
    assert [stage.name for stage in graph.stages] == ["numbers"], "nothing was added"


def test_two_inputs_from_one_node_need_a_stage() -> None:
    part = Graph("part")
    first, second = part.source("first", [1]), part.source("second", [2])
    part.sink("out", after=part.stage("merge", abs, after=[first, second]))
    graph = Graph("outer")
    numbers = graph.source("numbers", [1])
    with pytest.raises(GraphError, match="'merge' of part 'part' would follow 'numbers' twice: insert a stage"):
        graph.add(part, {first: numbers, second: numbers})


def test_a_graph_with_parts_under_faults() -> None:
    def build() -> Subject:
        part, raw, sink, letters = routed()
        graph = Graph("outer")
        added = graph.add(part, {raw: graph.source("numbers", range(12))})
        failed = graph.stage("failed", lambda letter: letter.item, after=added[letters])
        graph.sink("all", after=[added[sink], failed])
        return Subject(graph)

    hammer(build, range(5))
