"""Asynchronous sources: iterables and generators that are iterated on an event loop."""

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.pipeline.run.helpers import Boom
from threadloom.pipeline import Cancelled, Graph, GraphError, Retry, Shards, SkipFailed, StageFailure, Trace
from threadloom.pipeline.run.loop_workers import EventLoops

pytestmark = pytest.mark.timeout(60)


def graph_of(items: Any) -> Graph:
    graph = Graph("async")
    graph.sink("out", after=graph.stage("next", int, after=graph.source("draw", items)))
    return graph


async def count(many: int = 6) -> AsyncIterator[int]:
    for number in range(many):
        await asyncio.sleep(0)
        yield number


class Countable:
    """An asynchronous iterable."""

    def __aiter__(self) -> AsyncIterator[int]:
        return count()


async def listed() -> list[int]:
    await asyncio.sleep(0)
    return [0, 1, 2, 3, 4, 5]


async def counted() -> AsyncIterator[int]:
    return count()


@pytest.mark.parametrize("items", [count, Countable(), Countable, listed, counted])
def test_items_in_each_run(items: Any) -> None:
    graph, trace = graph_of(items), Trace()
    with graph.start(trace=trace) as run:
        assert list(run) == [0, 1, 2, 3, 4, 5]
    assert run.statistics()["draw"].items_out == 6
    assert len([event for event in trace.events() if event.stage == "draw"]) == 6
    assert list(graph) == [0, 1, 2, 3, 4, 5]


def test_an_iterator_object_is_used_once_and_stays_open() -> None:
    class Counter:
        number = 0
        closed = False

        def __aiter__(self) -> "Counter":
            return self

        async def __anext__(self) -> int:
            self.number += 1
            return self.number

        async def aclose(self) -> None:
            self.closed = True

    items = Counter()
    graph = graph_of(items)
    found = []
    for run in range(2):
        for item in graph:
            found.append(item)
            if len(found) % 3 == 0:
                assert items.number >= item
                break
        assert len(found) == 3 * (run + 1)
    assert found[:3] == [1, 2, 3]
    assert found[3] > 3
    assert not items.closed


def test_the_time_of_the_set_up_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0
    start = EventLoops.start

    def slow(loops: EventLoops, *args: Any) -> None:
        nonlocal now
        start(loops, *args)
        now += 10_000_000_000

    monkeypatch.setattr(EventLoops, "start", slow)
    with graph_of(count).start(clock=lambda: now) as run:
        assert list(run) == [0, 1, 2, 3, 4, 5]
    assert run.statistics()["draw"].busy == 10


def test_a_generator_is_closed_on_its_loop_when_the_run_ends_early() -> None:
    closed: list[str] = []

    async def endless() -> AsyncIterator[int]:
        number = 0
        try:
            while True:
                yield (number := number + 1)
        finally:
            await asyncio.sleep(0)
            closed.append(threading.current_thread().name)

    for item in graph_of(endless):
        if item == 5:
            break
    assert closed == ["async.draw-loop-0"]


def test_a_source_that_waits_ends_at_once() -> None:
    entered = threading.Event()
    cancelled = threading.Event()

    async def silent() -> AsyncIterator[int]:
        entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        yield 0

    with pytest.raises(Cancelled), graph_of(silent).start() as run:
        assert entered.wait(30)
        run.cancel()
        list(run)
    assert cancelled.is_set()


def test_drain_ends_the_source_and_closes_it() -> None:
    closed = threading.Event()

    async def endless() -> AsyncIterator[int]:
        try:
            while True:
                await asyncio.sleep(0)
                yield 1
        finally:
            closed.set()

    with graph_of(endless).start() as run:
        next(iter(run))
        run.drain()
        assert set(run) <= {1}
    assert closed.is_set()


def test_an_error_is_that_of_the_source() -> None:
    async def failing() -> AsyncIterator[int]:
        yield 0
        raise Boom

    with pytest.raises(StageFailure, match=r"stage 'draw' \(worker 0\) failed on item 1 of the source: Boom"):
        list(graph_of(failing))


def test_a_coroutine_that_returns_no_iterable() -> None:
    async def nothing() -> None:
        pass

    with pytest.raises(StageFailure, match="'NoneType' object is not iterable"):
        list(graph_of(nothing))
    with pytest.raises(GraphError, match="needs an iterable"):
        graph_of(asyncio.Event())


class Flaky:
    """An asynchronous iterator of which each third call raises, and which can continue."""

    def __init__(self) -> None:
        self.calls = 0

    def __aiter__(self) -> "Flaky":
        return self

    async def __anext__(self) -> int:
        self.calls += 1
        await asyncio.sleep(0)
        if self.calls % 3 == 0:
            raise Boom
        if self.calls > 10:
            raise StopAsyncIteration
        return self.calls


@pytest.mark.parametrize("policy", [SkipFailed(), Retry(first=0)])
def test_policies_of_sources_apply(policy: Any) -> None:
    graph = Graph("policies")
    graph.sink("out", after=graph.source("draw", Flaky, on_error=policy))
    assert list(graph) == [1, 2, 4, 5, 7, 8, 10]


def test_shards_may_be_asynchronous() -> None:
    graph = Graph("shards")
    graph.sink("out", after=graph.source("draw", Shards(count, Countable(), [10, 11]), ordered=True))
    assert list(graph) == [0, 0, 10, 1, 1, 11, 2, 2, 3, 3, 4, 4, 5, 5]
