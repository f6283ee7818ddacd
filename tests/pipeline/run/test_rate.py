"""Rate limits of stages and sources. The clock of these runs advances by itself, so that hardly any time is waited."""

import threading
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import pytest

from threadloom.pipeline import (
    BottleneckKind,
    Cancelled,
    Graph,
    GraphError,
    Rate,
    Shards,
    diagnose,
)
from threadloom.pipeline.observe import NodeKind, Phase
from threadloom.pipeline.run.stall_detection import WorkerSnapshot, find_blocker

pytestmark = pytest.mark.timeout(60)

US = 1000


class Clock:
    """A clock that advances by `step` nanoseconds with each reading, whichever thread reads it."""

    def __init__(self, step: int = US) -> None:
        self._readings = count(step=step)

    def __call__(self) -> int:
        return next(self._readings)


def times_of(build: Callable[[Callable[[Any], Any]], Graph], clock: Clock) -> list[int]:
    """Return the times of the calls of the function that `build` puts into a graph."""
    times: list[int] = []

    def work(item: Any) -> Any:
        times.append(clock())
        return item

    with build(work).start(clock=clock, watchdog=None) as run:
        list(run)
        assert run.statistics()["limited"].throttled > 0
    return times


def stage_graph(rate: Any, workers: int) -> Callable[[Callable[[Any], Any]], Graph]:
    def build(work: Callable[[Any], Any]) -> Graph:
        graph = Graph("g")
        node = graph.stage("limited", work, after=graph.source("draw", range(30)), rate=rate, workers=workers)
        graph.sink("out", after=node)
        return graph

    return build


def source_graph(rate: Any) -> Callable[[Callable[[Any], Any]], Graph]:
    def build(work: Callable[[Any], Any]) -> Graph:
        graph = Graph("g")
        node = graph.source("limited", Shards(lambda: map(work, range(20)), lambda: map(work, range(20))), rate=rate)
        graph.sink("out", after=node)
        return graph

    return build


@pytest.mark.parametrize("burst", [1, 4])
@pytest.mark.parametrize("graph_of", [partial(stage_graph, workers=3), source_graph])
def test_items_start_at_the_rate(graph_of: Any, burst: int) -> None:
    """The clock begins at 0: the n-th item passes after (n - burst) periods of 50 µs, and reads the clock later."""
    times = sorted(times_of(graph_of(Rate(20_000, burst)), Clock()))
    for number, time in enumerate(times, 1):
        assert time >= (number - burst) * 50 * US


def test_the_time_between_items_of_one_worker_is_at_least_the_period() -> None:
    times = times_of(stage_graph(20_000.0, 1), Clock())
    # The limit holds at the end of the wait; the function reads the clock later, by some readings of 1 µs.
    assert (times[-1] - times[0]) / (len(times) - 1) >= 49 * US


@pytest.mark.parametrize("source", [False, True])
def test_a_stop_and_a_drain_end_the_wait(source: bool) -> None:
    """The second item would start after an hour."""
    started = threading.Event()

    def draw() -> Any:
        for number in count():
            started.set()
            yield number

    for stop in ("cancel", "drain"):
        started.clear()
        graph = Graph("g")
        node = graph.source("draw", draw, rate=1 / 3600 if source else None)
        options: dict[str, Any] = {} if source else {"rate": 1 / 3600}
        graph.sink("out", after=graph.stage("work", int, after=node, **options))
        with graph.start() as run:
            items = iter(run)
            assert next(items) == 0
            assert started.wait(30)
            if stop == "drain" and source:
                run.drain()
                assert list(items) == []
            else:
                run.cancel()
                with pytest.raises(Cancelled):
                    next(items)


def test_a_paused_source_sends_nothing_when_its_time_comes() -> None:
    graph = Graph("g")
    graph.sink("out", after=graph.source("draw", range(5), rate=Rate(1e6)))
    with graph.start() as run:
        run.pause()
        run.resume()
        assert list(run) == list(range(5))


def test_the_rate_is_named_as_the_bottleneck() -> None:
    for source in (False, True):
        graph = Graph("g")
        node = graph.source("draw", range(20), rate=20_000.0 if source else None)
        options: dict[str, Any] = {} if source else {"rate": 20_000.0}
        node = graph.stage("work", int, after=node, **options)
        graph.sink("out", after=node)
        with graph.start(clock=Clock(US // 5)) as run:
            assert list(run) == list(range(20))
        found = diagnose(run.statistics())
        assert (found.kind, found.stage) == (BottleneckKind.RATE, "draw" if source else "work")
        assert "is waiting for its rate limit" in found.why


def test_a_stage_that_waits_for_its_rate_blocks_nothing() -> None:
    waiting = WorkerSnapshot("a", NodeKind.STAGE, 0, Phase.WAITING, 99, holds=True, throttled=True)
    source = WorkerSnapshot("s", NodeKind.SOURCE, 0, Phase.BLOCKED, 99)
    assert find_blocker([source, waiting]) is None


def test_an_invalid_rate_is_refused() -> None:
    graph = Graph("g")
    for rate in (0, -1.0, "3", float("inf"), True, Rate):
        with pytest.raises(GraphError, match="needs rate to be a positive number of items per second"):
            graph.source("draw", [1], rate=rate)  # type: ignore[arg-type]
