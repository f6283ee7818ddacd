"""Coroutine stages: set-up and tear-down on event loops, asynchronous expansions, observation and control."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Self

import pytest

from tests.pipeline.run.coroutines import Fn, Gate, double, forever, graph_of
from tests.pipeline.run.helpers import Boom
from threadloom.pipeline import (
    SKIP,
    Cancelled,
    Graph,
    GraphError,
    OnStall,
    SkipFailed,
    StageFailure,
    Trace,
    Watchdog,
    on_processes,
    per_worker,
)

pytestmark = pytest.mark.timeout(60)

# Set-up and tear-down.


class Client:
    """A client that is opened and closed on the loop of its worker."""

    log: list[str]

    async def __aenter__(self) -> Self:
        await asyncio.sleep(0)
        self.loop = asyncio.get_running_loop()
        self.log.append("open")
        return self

    async def __call__(self, item: int) -> int:
        assert asyncio.get_running_loop() is self.loop
        return await double(item)

    async def __aexit__(self, kind: object, error: BaseException | None, tb: object) -> None:
        await asyncio.sleep(0)
        self.log.append(f"close {error!r}")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_client_is_opened_once_per_worker_and_closed_after_the_last_item(workers: int) -> None:
    class Logged(Client):
        log: list[str] = []  # noqa: RUF012

    found = graph_of(per_worker(Logged), range(50), workers=workers, concurrency=5)
    assert sorted(found) == list(range(0, 100, 2))
    assert Logged.log == ["open"] * workers + ["close None"] * workers


@asynccontextmanager
async def connected() -> AsyncIterator[Fn]:
    yield double


@contextmanager
def opened() -> Iterator[Fn]:
    yield double


@pytest.mark.parametrize(("manager", "options"), [(connected, {}), (opened, {"concurrency": 2})])
def test_other_context_managers_for_coroutine_functions(manager: Any, options: dict[str, Any]) -> None:
    assert sorted(graph_of(per_worker(manager), **options)) == [0, 2, 4, 6, 8, 10]


def test_a_coroutine_function_that_a_set_up_returns_needs_a_concurrency() -> None:
    with pytest.raises(StageFailure, match=r"set-up: .* is a coroutine function: pass concurrency=N"):
        list(graph_of(per_worker(opened)))


def test_an_error_is_passed_to_the_tear_down() -> None:
    class Failing(Client):
        log: list[str] = []  # noqa: RUF012

        async def __call__(self, item: int) -> int:
            raise Boom(str(item))

    with pytest.raises(StageFailure, match="failed on 0: Boom"):
        list(graph_of(per_worker(Failing)))
    assert Failing.log == ["open", "close Boom('0')"]


@pytest.mark.parametrize("at", ["set-up", "tear-down"])
def test_errors_of_set_up_and_tear_down(at: str) -> None:
    class Broken(Client):
        log: list[str] = []  # noqa: RUF012

        async def __aenter__(self) -> Self:
            if at == "set-up":
                raise Boom
            return await super().__aenter__()

        async def __aexit__(self, *details: Any) -> None:
            raise Boom

    with pytest.raises(StageFailure, match=f"stage 'work' .* failed on {at}: Boom"):
        list(graph_of(per_worker(Broken), concurrency=3))


def test_a_set_up_that_waits_is_cancelled_with_the_run() -> None:
    entered = threading.Event()

    class Waiting(Client):
        log: list[str] = []  # noqa: RUF012

        async def __aenter__(self) -> Self:
            entered.set()
            await forever()
            return self

    with pytest.raises(Cancelled), graph_of(per_worker(Waiting), concurrency=3).start() as run:
        assert entered.wait(30)
        run.cancel()
        list(run)
    assert Waiting.log == []


# Expansions.


def test_skipped_results_and_expansions() -> None:
    async def odd(item: int) -> Any:
        return item if item % 2 else SKIP

    async def twice(item: int) -> AsyncIterator[Any]:
        yield item
        yield SKIP
        await asyncio.sleep(0)
        yield -item

    async def listed(item: int) -> list[int]:
        return [item, -item]

    expected = [0, 0, 1, -1, 2, -2]
    assert list(graph_of(odd)) == [1, 3, 5]
    assert list(graph_of(twice, range(3))) == expected
    assert list(graph_of(twice, range(3), concurrency=3, ordered=True)) == expected
    assert sorted(graph_of(twice, range(3), concurrency=3)) == sorted(expected)
    assert list(graph_of(listed, range(3), expand=True)) == expected
    assert list(graph_of(twice, range(3), on_error=SkipFailed())) == expected


def test_an_endless_expansion_is_lazy_and_closed_on_its_loop() -> None:
    made, closed = 0, []

    async def count(item: int) -> AsyncIterator[int]:
        nonlocal made
        task = asyncio.current_task()
        try:
            while True:
                made += 1
                yield made
        finally:
            await asyncio.sleep(0)
            closed.append(asyncio.current_task() is task)  # one task for all elements, as time-outs need it

    graph = Graph("lazy")
    out = graph.sink("out", after=graph.stage("count", count, after=graph.source("draw", [1])))
    for element in out:
        if element == 3:
            break
    assert closed == [True]
    assert made <= 3 + 2 + 1 + 1  # delivered, in the channel, being sent, and one more


def test_an_expansion_that_fails_is_skipped_as_a_whole() -> None:
    async def fail_late(item: int) -> AsyncIterator[int]:
        yield item
        if item == 1:
            raise Boom

    assert list(graph_of(fail_late, range(3), on_error=SkipFailed())) == [0, 2]
    with pytest.raises(StageFailure, match="failed on 1: Boom"):
        list(graph_of(fail_late, range(3)))


def test_a_limit_applies_to_each_element() -> None:
    async def hang_late(item: int) -> AsyncIterator[int]:
        yield item
        await forever()

    with pytest.raises(StageFailure, match="failed on 0: ItemTimeout"):
        list(graph_of(hang_late, range(3), limit=0.05))


# Observation and control.


def test_traces_and_statistics_have_one_row_per_item_in_flight() -> None:
    gate, trace = Gate(3), Trace()

    async def meet(item: int) -> int:
        await gate.wait()
        return item

    with graph_of(meet, range(3), concurrency=3).start(trace=trace) as run:
        list(run)
    events = [event for event in trace.events() if event.stage == "work"]
    assert sorted(event.worker for event in events) == [0, 1, 2]
    assert max(event.start_ns for event in events) < min(event.end_ns for event in events)  # all overlap
    statistics = run.statistics()["work"]
    assert (statistics.items_in, statistics.items_out, statistics.workers, statistics.tasks.count) == (3, 3, 3, 3)


def test_the_watchdog_reports_the_stack_of_the_coroutine() -> None:
    now, waits = 0, threading.Event()

    def clock() -> int:
        nonlocal now
        now += waits.is_set() * 1_000_000_000  # time passes only while the coroutine waits
        return now

    async def inner() -> None:
        asyncio.get_running_loop().call_soon(waits.set)
        await forever()

    async def wait(item: int) -> None:
        await inner()

    graph, watchdog = graph_of(wait, range(1)), Watchdog(after=0.05, act=OnStall.FAIL)
    with pytest.raises(StageFailure, match=r"no progress for 0\.05 s: stage 'work'") as caught:
        with graph.start(watchdog=watchdog, clock=clock) as run:
            list(run)
    text = str(caught.value.__cause__)
    assert text.index("in wait") < text.index("in inner") < text.index("in forever")
    assert "event_loop.py" not in text


def test_resize_changes_the_number_of_loops() -> None:
    gates: dict[asyncio.AbstractEventLoop, int] = {}
    arrived, release = threading.Semaphore(0), threading.Event()

    async def wait(item: int) -> int:
        gates[asyncio.get_running_loop()] = item
        arrived.release()
        while not release.is_set():
            await asyncio.sleep(0)
        return item

    with graph_of(wait, range(12), concurrency=2).start() as run:
        for _ in range(2):
            assert arrived.acquire(timeout=30)
        run.resize("work", workers=3)
        for _ in range(4):
            assert arrived.acquire(timeout=30)
        release.set()
        assert sorted(run) == list(range(12))
    assert len(gates) == 3


def test_a_stage_without_successors_runs() -> None:
    seen = []

    async def keep(item: int) -> None:
        await asyncio.sleep(0)
        seen.append(item)

    graph = Graph("no sink")
    graph.stage("keep", keep, after=graph.source("draw", range(5)), concurrency=5)
    graph.run()
    assert sorted(seen) == [0, 1, 2, 3, 4]


def test_a_join_of_coroutines() -> None:
    async def add(pair: tuple[int, int]) -> int:
        return sum(pair)

    graph = Graph("join")
    source = graph.source("draw", range(5))
    node = graph.stage("double", double, after=source, concurrency=3, ordered=True)
    graph.sink("out", after=graph.join("add", add, after=(source, node)))
    assert list(graph) == [0, 3, 6, 9, 12]


def test_impossible_concurrencies_are_refused() -> None:
    def generate(item: int) -> Iterator[int]:
        yield item

    cases: list[tuple[Fn, Any, str]] = [
        (double, 0, "needs a concurrency of at least 1, got concurrency=0"),
        (double, None, "has a coroutine function, and needs a concurrency of at least 1, got None"),
        (double, "2", "needs concurrency to be a whole number, such as 100, got '2'"),
        (generate, 2, "has a generator function and concurrency=2, .*: use workers=2"),
        (on_processes(abs), 2, "runs in processes, which have no concurrency: use workers=2"),
    ]
    for fn, concurrency, message in cases:
        with pytest.raises(GraphError, match=message):
            graph_of(fn, concurrency=concurrency)


def test_an_awaitable_that_is_no_coroutine_is_awaited() -> None:
    def start(item: int) -> Awaitable[int]:
        return asyncio.ensure_future(double(item))

    assert sorted(graph_of(start, concurrency=2)) == [0, 2, 4, 6, 8, 10]
