"""Routes: each item is sent to one branch, every branch is used, and an item without a branch is an error."""

from collections import Counter
from enum import Enum

import pytest
from hypothesis import given, strategies as st

from threadloom.pipeline import Graph, GraphError, RouteError, StageFailure

pytestmark = pytest.mark.timeout(60)


class Size(Enum):
    SMALL = "small"
    LARGE = "large"


def size(item: int) -> Size:
    return Size.SMALL if item < 5 else Size.LARGE


def identity(item: int) -> int:
    return item


@given(items=st.lists(st.integers(0, 9), max_size=40), workers=st.integers(1, 3))
def test_each_item_is_sent_to_one_branch(items: list[int], workers: int) -> None:
    calls: list[int] = []

    def counted(item: int) -> Size:
        calls.append(item)
        return size(item)

    graph = Graph("g")
    drawn = graph.stage("draw", identity, after=graph.source("numbers", items), workers=workers)
    ways = graph.route("size", counted, after=drawn, to=list(Size))
    small = graph.stage("small", lambda item: ("small", item), after=ways[Size.SMALL], workers=workers)
    large = graph.stage("large", lambda item: ("large", item), after=ways[Size.LARGE])
    expected = Counter((size(item).value, item) for item in items)
    assert Counter(graph.sink("out", after=[small, large])) == expected
    assert sorted(calls) == sorted(items)  # the key function is called once per item


def test_branches_can_be_merged_and_other_stages_get_every_item() -> None:
    graph = Graph("g")
    numbers = graph.source("numbers", range(9))
    ways = graph.route("rest", lambda item: item % 3, after=numbers, to=[0, 1, 2])
    two = graph.stage("two", identity, after=[ways[0], ways[2]])
    one = graph.stage("one", lambda item: -item, after=ways[1])
    seen: list[int] = []
    graph.stage("all", seen.append, after=numbers)
    assert sorted(graph.sink("out", after=[one, two])) == [-7, -4, -1, 0, 2, 3, 5, 6, 8]
    assert seen == list(range(9))


def test_a_key_without_a_branch_fails_the_run() -> None:
    graph = Graph("g")
    ways = graph.route("rest", lambda item: item % 3, after=graph.source("numbers", range(9)), to=[0, 1])
    graph.sink("out", after=[ways[0], ways[1]])
    with pytest.raises(StageFailure, match=r"'numbers' .* route 'rest' returned 2; expected one of \[0, 1\]") as caught:
        list(graph)
    assert isinstance(caught.value.__cause__, RouteError)


def test_invalid_routes_are_rejected() -> None:
    graph = Graph("g")
    numbers = graph.source("numbers", [1])
    with pytest.raises(GraphError, match="route 'r' has no branches: list their keys"):
        graph.route("r", size, after=numbers, to=[])
    with pytest.raises(GraphError, match=r"route 'r' has a duplicate key"):
        graph.route("r", size, after=numbers, to=[Size.SMALL, Size.SMALL])
    with pytest.raises(GraphError, match="route 'r' needs a key function, got 3"):
        graph.route("r", 3, after=numbers, to=[1])  # type: ignore[arg-type]
    ways = graph.route("r", size, after=numbers, to=list(Size))
    with pytest.raises(GraphError, match="graph 'g' already has a route 'r'"):
        graph.route("r", size, after=numbers, to=list(Size))
    with pytest.raises(GraphError, match=r"route 's' cannot follow branch .* of route 'r': use one key function"):
        graph.route("s", size, after=ways[Size.SMALL], to=list(Size))
    with pytest.raises(GraphError, match="'b' has both `when` and a branch"):
        graph.stage("b", identity, after=ways[Size.SMALL], when=bool)
    graph.stage("b", identity, after=ways[Size.SMALL])
    with pytest.raises(GraphError, match=r"branch .*LARGE.* of route 'r' has no successor: add a stage"):
        graph.check()
    graph.stage("c", identity, after=[ways[Size.LARGE]])
    graph.check()
    graph.stage("d", identity, after=ways[Size.LARGE])
    with pytest.raises(GraphError, match="has two successors, 'c' and 'd', expected one"):
        graph.check()
