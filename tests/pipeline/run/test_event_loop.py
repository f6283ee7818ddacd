"""Coroutine stages: items in flight on event loops, with the order, policies, limits and statistics of other stages."""

import asyncio
import gc
import sys
import threading
import weakref
from collections import Counter
from typing import Any

import pytest

from tests.pipeline.run.coroutines import Fn, Gate, double, forever, graph_of
from tests.pipeline.run.helpers import Boom
from threadloom.pipeline import (
    Cancelled,
    DeadLetter,
    Graph,
    InOrder,
    ItemTimeout,
    Pool,
    Retry,
    ShutdownTimeout,
    SkipFailed,
    StageFailure,
)

pytestmark = pytest.mark.timeout(60)


class Doubler:
    """An object that is called like a coroutine function."""

    async def __call__(self, item: int) -> int:
        return await double(item)


@pytest.mark.parametrize(
    ("fn", "options"),
    [
        (double, {}),
        (double, {"concurrency": 3, "workers": 2, "ordered": True}),
        (Doubler(), {}),
        (lambda item: double(item), {"concurrency": 1}),  # noqa: PLW0108 - it is no coroutine function
    ],
)
def test_coroutines_run_and_their_results_are_sent(fn: Fn, options: dict[str, Any]) -> None:
    graph = graph_of(fn, **options)
    assert list(graph) == [0, 2, 4, 6, 8, 10]
    assert list(graph) == [0, 2, 4, 6, 8, 10]  # new loops in each run


def test_as_many_items_are_in_flight_as_the_concurrency_allows() -> None:
    gate = Gate(5)

    async def meet(item: int) -> int:
        await gate.wait()  # a smaller concurrency would wait forever
        gate.arrived -= 1
        return item

    with graph_of(meet, range(40), concurrency=5).start() as run:
        assert sorted(run) == list(range(40))
    assert gate.most == 5
    assert run.statistics()["work"].workers == 5


def test_each_worker_has_a_loop_in_a_thread_of_its_own() -> None:
    arrived: list[str] = []

    async def meet(item: int) -> str:
        arrived.append(threading.current_thread().name)
        while len(arrived) < 6:  # all are in flight at once, three on each loop
            await asyncio.sleep(0)
        return arrived[item]

    names = Counter(graph_of(meet, range(6), workers=2, concurrency=3))
    assert names == {"async.work-loop-0": 3, "async.work-loop-1": 3}


@pytest.mark.parametrize("ordered", [True, False])
def test_order(ordered: bool) -> None:
    finished: list[int] = []
    found: list[int] = []

    async def let_the_others_pass(item: int) -> int:
        while item == 0 and len(finished if ordered else found) < 3:
            await asyncio.sleep(0)
        finished.append(item)
        return item

    for item in graph_of(let_the_others_pass, range(4), concurrency=4, ordered=ordered):
        found.append(item)  # noqa: PERF402 - the coroutines look at it
    assert finished[-1] == 0
    assert found == [0, 1, 2, 3] if ordered else found[-1] == 0


def test_an_exclusive_order_has_one_item_per_key_in_flight() -> None:
    busy: Counter[int] = Counter()

    async def alone(item: int) -> int:
        busy[item % 3] += 1
        await asyncio.sleep(0)
        assert busy[item % 3] == 1
        busy[item % 3] -= 1
        return item

    order = InOrder[int](order=lambda item: (item % 3, item // 3))
    found = list(graph_of(alone, range(30), concurrency=4, admission=order))
    assert all([item for item in found if item % 3 == key] == list(range(key, 30, 3)) for key in range(3))


def test_acquired_resources_bound_the_items_in_flight() -> None:
    pool = Pool(range(2))
    taken: list[int] = []
    most = 0

    def acquire(item: int) -> None:
        taken.append(pool.take())

    async def use(item: int) -> int:
        nonlocal most
        most = max(most, len(taken))
        await asyncio.sleep(0)
        return item

    def free(item: int) -> int:
        pool.give_back(taken.pop())
        return item

    graph = Graph("slots")
    node = graph.stage("work", use, after=graph.source("draw", range(20)), acquire=acquire, concurrency=4)
    graph.sink("out", after=graph.stage("free", free, after=node))
    with graph.start(resources=[pool]) as run:
        assert sorted(run) == list(range(20))
    assert most <= 2


# Failures.


@pytest.mark.parametrize("kind", [Boom, SystemExit, asyncio.CancelledError])
def test_an_error_ends_the_run_and_names_the_item(kind: type[BaseException]) -> None:
    cleaned: list[int] = []

    async def fail_at_two(item: int) -> None:
        if item == 2:
            raise kind("two")
        try:
            await forever()
        finally:
            await asyncio.sleep(0)
            cleaned.append(item)

    with pytest.raises(StageFailure, match=r"stage 'work' .* failed on 2") as caught:
        list(graph_of(fail_at_two, range(6), concurrency=3))
    assert type(caught.value.__cause__) is kind
    assert set(cleaned) >= {0, 1}


def test_policies_apply() -> None:
    calls: Counter[int] = Counter()

    async def fail_often(item: int) -> int:
        calls[item] += 1
        if item % 3 == 1 and calls[item] < 3:
            raise Boom
        if item % 3 == 2:
            raise ValueError(item)
        return item

    graph = Graph("policies")
    policy = Retry(times=2, first=0, then=SkipFailed(errors=ValueError))
    node = graph.stage("work", fail_often, after=graph.source("draw", range(9)), concurrency=4, on_error=policy)
    letters: list[DeadLetter] = []
    graph.stage("letters", letters.append, after=graph.dead_letters(node))
    graph.sink("out", after=node)
    with graph.start() as run:
        assert sorted(run) == [0, 1, 3, 4, 6, 7]
    assert sorted(letter.item for letter in letters) == [2, 5, 8]
    assert run.statistics()["work"].skipped == 3
    assert run.statistics()["work"].retried == 12


def test_the_delay_of_a_retry_does_not_block_the_loop_and_ends_with_the_run() -> None:
    calls: Counter[int] = Counter()

    async def fail_once(item: int) -> int:
        calls[item] += 1
        if item == 0 and calls[0] == 1:
            raise Boom
        return item

    iterator = iter(graph_of(fail_once, range(6), concurrency=2, on_error=Retry(first=1000, longest=1000)))
    assert [next(iterator) for _ in range(5)] == [1, 2, 3, 4, 5]
    iterator.close()  # type: ignore[attr-defined]
    assert calls[0] == 1


def test_a_coroutine_is_cancelled_at_the_limit_and_the_policy_decides() -> None:
    cancelled: list[int] = []

    async def hang_at_two(item: int) -> int:
        if item == 2:
            try:
                await forever()
            except asyncio.CancelledError:
                cancelled.append(item)
                raise
        return item

    options = {"concurrency": 2, "limit": 0.05}
    assert sorted(graph_of(hang_at_two, on_error=SkipFailed(errors=ItemTimeout), **options)) == [0, 1, 3, 4, 5]
    with pytest.raises(StageFailure, match=r"failed on 2: ItemTimeout: the item exceeded the time limit of 0.05 s"):
        list(graph_of(hang_at_two, **options))
    assert cancelled == [2, 2]


def test_a_timeout_of_the_function_is_an_error_of_the_function() -> None:
    async def give_up(item: int) -> None:
        async with asyncio.timeout(0):
            await forever()

    with pytest.raises(StageFailure, match="failed on 0: TimeoutError"):
        list(graph_of(give_up, limit=30))


def test_a_function_that_is_no_coroutine_function_is_named() -> None:
    with pytest.raises(StageFailure, match="with `concurrency` returned str, expected a coroutine: use `workers`"):
        list(graph_of(str, concurrency=2))


def test_a_failed_run_frees_its_items_without_the_collector() -> None:
    class Item:
        pass

    async def fail(item: Item) -> None:
        await asyncio.sleep(0)
        raise Boom

    def run_once() -> "weakref.ref[Item]":
        item = Item()
        with pytest.raises(StageFailure):
            list(graph_of(fail, [item], concurrency=2))
        return weakref.ref(item)

    run_once()  # what asyncio creates once
    gc.collect()
    gc.disable()
    try:
        assert run_once()() is None
    finally:
        gc.enable()


def test_a_loop_that_is_stopped_by_a_callback_fails_the_run() -> None:
    async def stop(item: int) -> None:
        asyncio.get_running_loop().call_soon(sys.exit)
        await forever()

    with pytest.raises(StageFailure, match="stage 'work'"):
        list(graph_of(stop, concurrency=2))


# The end of a run.


def test_a_cancelled_run_cancels_the_tasks_once_and_waits_for_their_clean_up() -> None:
    entered, turns, release = threading.Semaphore(0), threading.Semaphore(0), threading.Event()
    cleaned: list[int] = []

    async def wait(item: int) -> None:
        entered.release()
        try:
            await forever()
        finally:
            while not release.is_set():
                turns.release()
                await asyncio.sleep(0)  # a second cancellation would be raised here
            cleaned.append(item)

    graph = graph_of(wait, range(9), concurrency=4)
    with pytest.raises(Cancelled, match="'async' was cancelled"), graph.start() as run:
        for _ in range(4):
            assert entered.acquire(timeout=30)
        for _ in range(2):
            run.cancel()
            while turns.acquire(blocking=False):
                pass
            for _ in range(20):  # the loop has carried out the command, and all clean up
                assert turns.acquire(timeout=30)
        release.set()
        list(run)
    assert sorted(cleaned) == [0, 1, 2, 3]


def test_a_task_that_ignores_its_cancellation_is_reported_after_the_grace() -> None:
    entered, released = threading.Event(), threading.Event()

    async def stubborn(item: int) -> None:
        entered.set()
        released.wait(30)  # blocks the loop

    graph = graph_of(stubborn, range(1))
    with pytest.raises(ShutdownTimeout, match=r"async\.work-loop-0") as caught, graph.start(grace=0.1):
        assert entered.wait(30)
    assert "released.wait(30)" in caught.value.stacks["async.work-loop-0"]
    released.set()
