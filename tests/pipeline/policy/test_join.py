"""Tests of joins: the state by events, whole runs, and errors."""

from functools import partial
from typing import Any

import pytest
from hypothesis import given, strategies as st

from threadloom.pipeline import SKIP, AdmissionError, Graph, GraphError, Join, Skip, StageFailure

pytestmark = pytest.mark.timeout(60)


def identity(item: Any) -> Any:
    return item


def mark(way: int, item: int) -> tuple[int, int]:
    return item, way


def put(state: Any, place: int, item: object) -> None:
    ticket = state.ticket((place, item))
    assert state.fits(ticket)
    state.put(ticket, (place, item))


def test_a_tuple_is_complete_with_one_item_of_each_input() -> None:
    state = Join(("a", "b", "c"), keys=(len, len, len)).begin(2)
    put(state, 0, "xx")
    put(state, 2, "zz")
    assert not state.ready()
    put(state, 1, "y")
    put(state, 1, "yy")
    assert state.take(0) == ("xx", "yy", "zz")
    assert not state.ready()
    with pytest.raises(AdmissionError, match="key 1 lacks an item of 'a' and 'c'"):
        state.finish()


def test_an_input_may_run_ahead_by_the_capacity() -> None:
    state = Join(("a", "b")).begin(2)
    put(state, 0, "x0")
    put(state, 0, "x1")
    assert not state.fits(state.ticket((0, "x2")))
    put(state, 1, "y0")
    put(state, 0, "x2")
    put(state, 1, "y1")
    assert state.depth() == 2
    assert state.fits(state.ticket((1, "y2")))  # completes the tuple started by x2
    assert [state.take(0), state.take(0)] == [("x0", "y0"), ("x1", "y1")]


def test_a_duplicate_key_is_rejected_until_its_tuple_is_complete() -> None:
    state = Join(("a", "b"), keys=(identity, identity)).begin(4)
    put(state, 0, 7)
    with pytest.raises(AdmissionError, match="duplicate key 7 from 'a' before an item of 'b'"):
        put(state, 0, 7)
    put(state, 1, 7)
    put(state, 0, 7)
    put(state, 1, 7)
    assert [state.take(0), state.take(0)] == [(7, 7), (7, 7)]


def test_unmatched_items_can_be_dropped() -> None:
    state = Join(("a", "b"), drop_unmatched=True).begin(4)
    put(state, 0, 7)
    state.finish()
    assert not state.ready()


@given(
    count=st.integers(0, 30),
    inputs=st.integers(2, 4),
    workers=st.integers(1, 3),
    capacity=st.integers(3, 4),
    keyed=st.booleans(),
)
def test_fork_and_join_combine_the_same_items(
    count: int, inputs: int, workers: int, capacity: int, keyed: bool
) -> None:
    graph = Graph("g")
    numbers = graph.source("numbers", range(count))
    ways = [
        graph.stage(f"way {each}", partial(mark, each), after=numbers, workers=workers, ordered=True)
        for each in range(inputs)
    ]
    keys = [lambda pair: pair[0]] * inputs if keyed else None
    joined = graph.join("join", identity, after=ways, keys=keys, capacity=capacity)
    found = list(graph.sink("out", after=joined))
    assert found == [tuple((item, each) for each in range(inputs)) for item in range(count)]


def test_several_sources_in_any_order_of_arrival() -> None:
    graph = Graph("g")
    left = graph.source("left", [3, 1, 2])
    right = graph.source("right", ["b", "ccc", "aa"])
    joined = graph.join("pair", identity, after=(left, right), keys=(identity, len), capacity=3, workers=2)
    assert sorted(graph.sink("out", after=joined)) == [(1, "b"), (2, "aa"), (3, "ccc")]


def test_an_unmatched_item_is_reported_at_the_end_of_the_input() -> None:
    def odd(item: int) -> int | Skip:
        return item if item % 2 else SKIP

    graph = Graph("g")
    numbers = graph.source("numbers", range(3))
    odds = graph.stage("odds", odd, after=numbers)
    graph.join("pair", identity, after=(numbers, odds), keys=(identity, identity), capacity=8)
    with pytest.raises(StageFailure, match=r"'pair'.*key 0 lacks an item of 'odds'; key 2 lacks an item of 'odds'"):
        graph.run()


def test_full_inputs_without_matching_keys_are_a_deadlock() -> None:
    graph = Graph("g")
    graph.join(
        "pair",
        identity,
        after=(graph.source("up", range(100)), graph.source("down", range(99, -1, -1))),
        keys=(identity, identity),
    )
    with pytest.raises(StageFailure, match=r"the channel is full .* lacks an item of"):
        graph.run()


def test_invalid_joins_are_rejected() -> None:
    graph = Graph("g")
    numbers, others = graph.source("numbers", [1]), graph.source("others", [1])
    with pytest.raises(GraphError, match=r"join 'j' needs at least 2 inputs, got 1"):
        graph.join("j", identity, after=[numbers])
    with pytest.raises(GraphError, match=r"join 'j' has 2 inputs but 1 key functions: pass one per input"):
        graph.join("j", identity, after=[numbers, others], keys=[identity])
    with pytest.raises(GraphError, match="'j' has a duplicate predecessor"):
        graph.join("j", identity, after=[numbers, numbers])
