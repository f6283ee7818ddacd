"""Groups that are complete after a time, in channels and graphs. No test waits for a time of its own."""

import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from tests.pipeline.run.test_channel import WaitClock, in_thread
from threadloom.pipeline import Channel, Closed, Gather, Graph, InOrder

pytestmark = pytest.mark.timeout(60)

HOUR = 3600 * 1_000_000_000


def channel(clock: Any, within: float = 3600, capacity: int = 2, workers: int = 1) -> Channel[int, list[int]]:
    policy = Gather[int](count=3, within=within, partial=True)
    return Channel(policy.begin(capacity), capacity, 1, clock, workers)


def test_a_receiver_gets_a_group_whose_time_has_come() -> None:
    clock = WaitClock()
    timed = channel(clock)
    timed.put(1)
    clock.now = HOUR - 1
    timed.put(2)
    clock.now = HOUR
    assert timed.get() == [1, 2]


def test_a_put_completes_a_group_whose_time_has_come() -> None:
    clock = WaitClock()
    timed = channel(clock)
    timed.put(1)
    clock.now = HOUR
    timed.put(2)
    assert timed.depth == 1
    assert timed.get() == [1]


def test_a_receiver_that_waits_is_woken_by_the_time() -> None:
    """The real clock. It waits before the item arrives, and is the second of two receivers."""
    policy = Gather[int](count=3, within=0.02, partial=True)
    timed = Channel[int, list[int]](policy.begin(2), 2, 1, workers=2)
    both = [in_thread(partial(timed.get, worker)) for worker in range(2)]
    timed.put(1)
    timed.put(2)
    taken = threading.Event()
    for each in both:
        each.add_done_callback(lambda done: taken.set())
    assert taken.wait(30)
    timed.put(3)
    assert sorted(each.result(30) for each in both) == [[1, 2], [3]]
    timed.close()
    with pytest.raises(Closed):
        timed.get()


def test_a_receiver_that_leaves_passes_the_wait_on() -> None:
    """A receiver with a limit holds the timer and gives up; the other receiver gets the group in time."""
    timed = Channel[int, list[int]](Gather[int](count=3, within=0.03, partial=True).begin(2), 2, 1, workers=2)
    first = in_thread(lambda: timed.get(0, timeout=0.001))
    second = in_thread(lambda: timed.get(1))
    timed.put(1)
    results = []
    try:
        results.append(first.result(30))
    except TimeoutError:
        results.append(second.result(30))
    assert results == [[1]]
    timed.abort()


def test_a_full_channel_with_a_group_that_is_due_is_no_deadlock() -> None:
    """All workers are parked at the first look of the detector: one of them waits for the time of a group."""
    graph = Graph("fork")
    count = graph.source("count", range(4))
    slow = graph.stage(
        "slow", list, after=count, gather=Gather(count=9, within=0.25, partial=True), when=lambda item: item == 0
    )
    flat = graph.stage("flat", lambda group: group[0], after=slow)
    order = InOrder[int](order=lambda item: (0, item))
    fast = graph.stage("fast", abs, after=count, when=lambda item: item > 0)
    graph.sink("out", after=graph.stage("order", abs, after=[flat, fast], admission=order, capacity=1))
    assert list(graph) == [0, 1, 2, 3]


@pytest.mark.parametrize("ordered", [False, True])
def test_groups_of_a_graph_have_the_clock_of_the_run(ordered: bool) -> None:
    """The source sets the clock; groups are those of the arrival times."""
    now = 0

    def items() -> Iterator[int]:
        nonlocal now
        for item, time in enumerate((0, 1, 5, 11, 12, 30)):
            now = time * 1_000_000_000
            yield item

    graph = Graph("clock")
    policy = Gather[int](count=100, within=10, partial=True)
    node = graph.stage("list", list, after=graph.source("count", items), gather=policy, workers=2, ordered=ordered)
    graph.sink("out", after=node)
    with graph.start(clock=lambda: now) as run:
        assert sorted(run) == [[0, 1, 2], [3, 4], [5]]


def test_weighted_groups_of_a_graph() -> None:
    graph = Graph("tokens")
    texts = graph.source("texts", ["a", "red wheel", "barrow", "glazed", "with", "rain water"])
    policy = Gather[str](count=12, weight=len, partial=True, sort=len)
    graph.sink("out", after=graph.stage("join", list, after=texts, gather=policy))
    assert list(graph) == [["a", "red wheel"], ["barrow", "glazed"], ["with"], ["rain water"]]


def test_sort_runs_without_the_lock_of_the_channel() -> None:
    """The sort key uses the channel from another thread, which would wait for the lock."""
    held: list[Any] = []

    def key(item: int) -> int:
        held.append(in_thread(lambda: groups.put(9)).result(30))
        return item

    groups = Channel[int, list[int]](Gather[int](count=2, sort=key, partial=True).begin(9), 9, 1)
    groups.put(2)
    groups.put(1)
    assert groups.get() == [1, 2]
    assert len(held) == 2
