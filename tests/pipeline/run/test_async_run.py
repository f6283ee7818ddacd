"""Runs that are used from coroutines: the loop is never blocked, and a cancelled task ends its run."""

import asyncio
import itertools
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import aclosing
from typing import Any

import pytest

from tests.pipeline.run.helpers import Boom
from threadloom.pipeline import Cancelled, Graph, GraphError, PipelineError, Run, StageFailure
from threadloom.pipeline.run.thread_group import ThreadGroup

pytestmark = pytest.mark.timeout(60)


def graph_of(items: Any = range(6), fn: Callable[[int], int] = int) -> Graph:
    graph = Graph("threads")
    graph.sink("out", after=graph.stage("work", fn, after=graph.source("draw", items)))
    return graph


def run(main: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(main)


def let_the_loop(call: Callable[[], object]) -> None:
    """Let the loop make a call in its next cycle, which never comes if the present task blocks it."""
    asyncio.get_running_loop().call_soon(call)


def threads_of(name: str) -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(name)]


def test_a_sink_a_graph_and_a_run_are_iterated() -> None:
    graph = Graph("typed")
    out = graph.sink("out", after=graph.source("draw", range(6)))

    async def main() -> None:
        assert [item async for item in out] == [0, 1, 2, 3, 4, 5]
        assert [item async for item in graph] == [0, 1, 2, 3, 4, 5]
        async with graph.start() as each:
            assert [item async for item in each] == [0, 1, 2, 3, 4, 5]
            assert each.statistics()["out"].items_out == 6
        async with graph.start() as each:
            assert [item async for item in each.items(out)] == [0, 1, 2, 3, 4, 5]
        assert threads_of("typed") == []

    run(main())


def test_the_loop_runs_while_a_task_awaits_an_item_or_the_end() -> None:
    released = [threading.Event() for _ in range(4)]

    def wait(item: int) -> int:
        assert released[item].wait(30)
        return item

    async def main() -> None:
        found = []
        async with graph_of(range(3), wait).start() as each:
            let_the_loop(released[0].set)
            async for item in each:
                found.append(item)
                let_the_loop(released[item + 1].set)
        assert found == [0, 1, 2]
        graph = Graph("no sink")
        graph.stage("work", wait, after=graph.source("draw", [3]))
        released[3].clear()
        async with graph.start() as each:
            let_the_loop(released[3].set)
            await each.wait()

    run(main())


def test_the_loop_runs_during_the_start_and_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    start, shut_down = ThreadGroup.start, Run.shut_down

    def slow(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            assert release.wait(30)
            return function(*args)

        return call

    monkeypatch.setattr(ThreadGroup, "start", slow(start))
    monkeypatch.setattr(Run, "shut_down", slow(shut_down))

    async def main() -> None:
        let_the_loop(release.set)
        async with graph_of().start() as each:
            assert await anext(aiter(each)) == 0
            release.clear()
            let_the_loop(release.set)

    run(main())


@pytest.mark.parametrize("use", ["sink", "run", "wait"])
def test_a_cancelled_task_ends_its_run(use: str) -> None:
    entered, inside, stopped = threading.Event(), threading.Event(), threading.Event()

    def silent() -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            stopped.set()

    def work(item: int) -> int:
        entered.set()
        return item

    async def consume() -> None:
        graph = Graph("cancelled")
        node = graph.stage("work", work, after=graph.source("draw", silent))
        if use == "wait":
            async with graph.start() as each:
                inside.set()
                await each.wait()
        never = graph.sink("never", after=node, when=lambda item: False)
        if use == "run":
            async with graph.start() as each:
                inside.set()
                async for _ in each:
                    pass
        inside.set()
        async for _ in never:
            pass

    async def main() -> None:
        task = asyncio.create_task(consume())
        while not (entered.is_set() and inside.is_set()):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert stopped.is_set()
        assert threads_of("cancelled") == []

    run(main())


def test_a_time_out_ends_the_run() -> None:
    async def main() -> None:
        graph = Graph("late")
        graph.sink("out", after=graph.source("draw", itertools.count), when=lambda item: item < 3)
        found: list[int] = []
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(None) as scope:
                async for item in graph:
                    found += [item]
                    if item == 2:
                        scope.reschedule(0)  # now
        assert found == [0, 1, 2]
        assert threads_of("late") == []

    run(main())


def test_a_task_that_is_cancelled_again_still_waits_for_the_threads() -> None:
    entered, release = threading.Event(), threading.Event()

    def work(item: int) -> int:
        entered.set()
        assert release.wait(30)
        return item

    async def consume() -> None:
        async for _ in graph_of(fn=work):
            pass

    async def main() -> None:
        task = asyncio.create_task(consume())
        while not entered.is_set():
            await asyncio.sleep(0)
        for _ in range(3):
            task.cancel()
            for _ in range(5):
                await asyncio.sleep(0)
        assert not task.done()
        assert threads_of("threads") != []
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert threads_of("threads") == []

    run(main())


def test_a_task_that_is_cancelled_during_the_start_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    starting, release = threading.Event(), threading.Event()
    start = ThreadGroup.start

    def slow(group: ThreadGroup, threads: Any) -> None:
        starting.set()
        assert release.wait(30)
        start(group, threads)

    monkeypatch.setattr(ThreadGroup, "start", slow)

    async def consume() -> None:
        async with graph_of(itertools.count).start():
            raise AssertionError("the task was cancelled before")

    async def main() -> None:
        task = asyncio.create_task(consume())
        while not starting.is_set():
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert threads_of("threads") == []

    run(main())


def test_errors_arrive_at_the_loop_or_at_the_end_of_the_block() -> None:
    def fail(item: int) -> int:
        if item == 2:
            raise Boom
        return item

    async def main() -> None:
        with pytest.raises(StageFailure, match=r"stage 'work' \(worker 0\) failed on 2: Boom"):
            async for _ in graph_of(fn=fail):
                pass
        started = graph_of(fn=fail).start()
        with pytest.raises(StageFailure, match="failed on 2"):
            async with started:
                while started.outcome is None:
                    await asyncio.sleep(0)
        with pytest.raises(Boom) as caught:
            async with graph_of(fn=fail).start() as each:
                while started.outcome is None or each.statistics()["work"].items_in < 3:
                    await asyncio.sleep(0)
                raise Boom
        assert caught.value.args == ()

    run(main())


def test_a_break_leaves_the_run_to_the_end_of_its_block() -> None:
    async def main() -> None:
        found = []
        async with graph_of().start() as each:
            for _ in range(3):
                async for item in each:
                    found.append(item)
                    break
            rest = each.items("out")
        assert found == [0, 1, 2]
        with pytest.raises(Cancelled):
            await anext(rest)

    run(main())


def test_a_break_out_of_a_graph_is_closed_by_the_loop() -> None:
    async def main() -> None:
        graph = graph_of(itertools.count)
        async for item in graph:
            if item == 3:
                break
        while threads_of("threads"):
            await asyncio.sleep(0)
        async with aclosing(graph.__aiter__()) as items:  # type: ignore[type-var]
            async for item in items:
                if item == 3:
                    break
        assert threads_of("threads") == []

    run(main())


def test_several_sinks_in_one_task_each() -> None:
    graph = Graph("two")
    source = graph.source("draw", range(50))
    even = graph.sink("even", after=source, when=lambda item: item % 2 == 0)
    odd = graph.sink("odd", after=source, when=lambda item: item % 2 == 1)

    async def main() -> None:
        async with graph.start() as each:

            async def collect(sink: Any) -> list[int]:
                return [item async for item in each.items(sink)]

            found = [*await asyncio.gather(collect(even), collect(odd))]
            assert found == [list(range(0, 50, 2)), list(range(1, 50, 2))]
        with pytest.raises(GraphError, match="each in its own thread or task"):
            async for _ in even:
                pass
        with pytest.raises(GraphError, match="with 2 sinks, expected 1"):
            aiter(graph)

    run(main())


def test_commands() -> None:
    async def main() -> None:
        async with graph_of(itertools.count).start() as each:
            items = aiter(each)
            assert await anext(items) == 0
            each.pause()
            each.resume()
            await each.resize("work", workers=2)
            assert each.statistics()["work"].workers == 2
            each.drain()
            assert len({item async for item in items}) >= 1
        async with graph_of(itertools.count).start() as each:
            each.cancel()
            with pytest.raises(Cancelled):
                await anext(aiter(each))

    run(main())


def test_a_run_is_used_once() -> None:
    async def main() -> None:
        started = graph_of().start()
        async with started as each:
            with pytest.raises(PipelineError, match="has already been used"):
                async with started:
                    pass
            assert [item async for item in each] == [0, 1, 2, 3, 4, 5]

    run(main())


def test_coroutines_all_the_way() -> None:
    async def draw() -> Any:
        for number in range(20):
            await asyncio.sleep(0)
            yield number

    async def double(item: int) -> int:
        await asyncio.sleep(0)
        return 2 * item

    async def main() -> None:
        graph = Graph("all")
        out = graph.sink("out", after=graph.stage("double", double, after=graph.source("draw", draw), concurrency=5))
        assert sorted([item async for item in out]) == list(range(0, 40, 2))

    run(main())
