"""Tests of ordered stages: NumberedAdmission and ReorderBuffer by events, and whole runs with forced overtaking."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from threadloom.pipeline import SKIP, Fifo, Gather, Graph, InOrder, Skip, StageFailure
from threadloom.pipeline.policy.ordered import FinishedItem, NumberedAdmission, ReorderBuffer

pytestmark = pytest.mark.timeout(60)


def test_no_item_is_taken_beyond_the_window() -> None:
    state = NumberedAdmission(Fifo().begin(9), capacity=1, workers=1)
    for item in "abc":
        state.put(None, item)
    assert [state.take(0), state.take(1)] == [(0, "a"), (1, "b")]
    assert not state.ready()
    assert state.in_hand()  # so that the input does not end yet
    state.sent()
    assert state.take(0) == (2, "c")
    state.sent()
    assert not state.in_hand()


class ReorderBufferMachine(RuleBasedStateMachine):
    """Workers that take consecutive numbers and finish in any order; one worker at a time sends."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer = ReorderBuffer()
        self.taken = 0
        self.hands: set[int] = set()
        self.kept: set[int] = set()
        self.sending: int | None = None
        self.left: list[int] = []

    @rule()
    def take(self) -> None:
        self.hands.add(self.taken)
        self.taken += 1

    @precondition(lambda self: self.hands)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.hands)))
        self.hands.remove(number)
        self.kept.add(number)
        self._got(self.buffer.finish(number, FinishedItem(number, [])), before=self.sending)

    @precondition(lambda self: self.sending is not None)
    @rule()
    def sent(self) -> None:
        assert self.sending is not None
        self.left.append(self.sending)
        self.sending = None
        self._got(self.buffer.next(), before=None)

    def _got(self, finished: FinishedItem | None, before: int | None) -> None:
        if before is not None:
            assert finished is None, "two workers send at the same time"
        elif finished is not None:
            self.kept.remove(finished.item)
            self.sending = finished.item

    @invariant()
    def items_leave_in_order(self) -> None:
        assert self.left == list(range(len(self.left)))

    @invariant()
    def the_next_item_is_not_kept(self) -> None:
        if self.sending is None:
            assert len(self.left) not in self.kept


test_reorder_buffer = ReorderBufferMachine.TestCase


class Overtaking:
    """A stage function that returns the first item of each pair after the second."""

    def __init__(self) -> None:
        self.done = [threading.Event() for _ in range(200)]

    def __call__(self, item: int) -> int:
        if item % 2 == 0:
            assert self.done[item + 1].wait(30)
        self.done[item].set()
        return item


def test_an_ordered_stage_keeps_the_order() -> None:
    graph = Graph("g")
    work = graph.stage("work", Overtaking(), after=graph.source("draw", range(60)), workers=2, ordered=True)
    assert list(graph.sink("out", after=work)) == list(range(60))


def test_an_unordered_stage_sends_in_order_of_completion() -> None:
    graph = Graph("g")
    work = graph.stage("work", Overtaking(), after=graph.source("draw", range(2)), workers=2)
    assert list(graph.sink("out", after=work)) == [1, 0]


def test_workers_continue_while_an_earlier_item_is_processed() -> None:
    """Item 0 returns after item 3, so the other worker processes items 1, 2 and 3 before that."""
    third = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            assert third.wait(30)
        if item == 3:
            third.set()
        return item

    graph = Graph("g")
    node = graph.stage("work", work, after=graph.source("draw", range(4)), workers=2, ordered=True)
    assert list(graph.sink("out", after=node)) == [0, 1, 2, 3]


@given(
    count=st.integers(0, 40),
    workers=st.integers(1, 4),
    capacity=st.integers(1, 3),
    modulus=st.sampled_from([0, 2, 3]),
    copies=st.integers(1, 3),
    batch=st.integers(1, 4),
    keyed=st.booleans(),
)
def test_order_is_kept_without_gaps_for_any_settings(
    count: int, workers: int, capacity: int, modulus: int, copies: int, batch: int, keyed: bool
) -> None:
    def thin(item: int) -> int | Skip:
        return SKIP if modulus and item % modulus == 0 else item

    def copy(items: list[int]) -> Iterator[int]:
        for item in items:
            yield from [item] * copies

    graph = Graph("g")
    options: Any = {"workers": workers, "capacity": capacity, "ordered": True}
    order = InOrder[int](order=lambda item: (item % 2, item // 2), exclusive=True) if keyed else Fifo()
    thinned = graph.stage("thin", thin, after=graph.source("draw", range(count)), admission=order, **options)
    copied = graph.stage("copy", copy, after=thinned, gather=Gather(count=batch, partial=True), expand=True, **options)
    out = graph.sink("out", after=copied)
    expected = [item for item in range(count) if not modulus or item % modulus for _ in range(copies)]
    assert list(out) == (expected if not keyed else sorted(expected)) or keyed
    if keyed:
        assert sorted(graph) == expected


def test_an_error_while_sending_an_item_of_another_worker_names_that_item() -> None:
    second = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            assert second.wait(30)
        return item

    def key(item: int) -> str:
        if item == 1:
            raise ValueError
        return "a"

    class Watch:
        """Sets `second` when item 2 is started: then the second worker has finished item 1, which is kept."""

        def __call__(self, item: int) -> None:
            if item == 2:
                second.set()

    graph = Graph("g")
    draw = graph.source("draw", range(3))
    node = graph.stage("work", work, after=draw, workers=2, ordered=True, acquire=Watch())
    graph.sink("out", after=graph.route("kind", key, after=node, to=["a"])["a"])
    with pytest.raises(StageFailure, match=r"stage 'work' \(worker \d\) failed on 1: ValueError"):
        list(graph)
