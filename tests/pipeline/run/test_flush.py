"""Objects with `flush`: the results of the state that is left at the end of the input are sent."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest

from tests.pipeline.run.helpers import Boom
from threadloom.pipeline import SKIP, Gather, Graph, GraphError, Skip, SkipFailed, StageFailure, per_worker

pytestmark = pytest.mark.timeout(60)


class Batcher:
    """Collects items into lists of `count`."""

    def __init__(self, count: int = 4) -> None:
        self.count = count
        self.items: list[int] = []
        self.flushed = 0
        self.lock = threading.Lock()

    def __call__(self, item: int) -> list[int] | Skip:
        with self.lock:
            self.items.append(item)
            if len(self.items) < self.count:
                return SKIP
            batch, self.items = self.items, []
            return batch

    def flush(self) -> Iterator[list[int]]:
        """Yield the incomplete batch."""
        self.flushed += 1
        if self.items:
            yield self.items


def batches(fn: Any, items: Iterable[int] = range(10), **options: Any) -> list[Any]:
    graph = Graph("batches")
    graph.sink("out", after=graph.stage("batch", fn, after=graph.source("count", items), **options))
    return list(graph)


def test_the_rest_is_sent_at_the_end_of_the_input() -> None:
    batcher = Batcher()
    assert batches(batcher) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert batches(Batcher(), []) == []
    assert batcher.flushed == 1


def test_an_object_that_is_shared_is_flushed_once_after_all_items() -> None:
    """Worker 0 is still in a call when the other workers have come to the end of the input."""
    others = threading.Event()
    batcher = Batcher(100)

    def fn(item: int) -> Any:
        if item == 0:
            assert others.wait(30)
        if item == 9:
            others.set()
        return batcher(item)

    class Waiting(Batcher):
        def __call__(self, item: int) -> Any:
            return fn(item)

        def flush(self) -> Iterator[list[int]]:
            return batcher.flush()

    assert [sorted(each) for each in batches(Waiting(), workers=4)] == [list(range(10))]
    assert batcher.flushed == 1


@pytest.mark.parametrize("ordered", [False, True])
def test_every_worker_flushes_its_own_object(ordered: bool) -> None:
    """Each of three workers gets at least one item, because none is finished before all have begun."""
    barrier = threading.Barrier(3)
    made: list[Batcher] = []

    class Own(Batcher):
        def __call__(self, item: int) -> Any:
            if not self.items:
                barrier.wait(30)
            return super().__call__(item)

    def make() -> Any:
        made.append(Own(100))
        return nullcontext(made[-1])

    got = batches(per_worker(make), workers=3, ordered=ordered, capacity=3)
    assert sorted(item for batch in got for item in batch) == list(range(10))
    assert [each.flushed for each in made] == [1, 1, 1]
    assert len(got) == 3


def test_flushed_results_of_an_ordered_stage_follow_those_of_all_items() -> None:
    """Worker indices decide about the order of the flushed results; item 0 is finished last."""
    last = threading.Event()

    class Marking:
        def __call__(self, item: int) -> int:
            if item == 0:
                assert last.wait(30)
            if item == 5:
                last.set()
            return item

        def flush(self) -> list[str]:
            return [threading.current_thread().name.rpartition("-")[2]]

    got = batches(per_worker(lambda: nullcontext(Marking())), range(6), workers=3, ordered=True, capacity=9)
    assert got == [0, 1, 2, 3, 4, 5, "0", "1", "2"]


def test_a_worker_that_is_dismissed_flushes() -> None:
    graph = Graph("resized")
    gate = threading.Semaphore(0)

    def items() -> Iterator[int]:
        yield from range(8)
        assert gate.acquire(timeout=30)

    node = graph.stage("batch", per_worker(lambda: nullcontext(Batcher(100))), after=graph.source("count", items))
    graph.resize("batch", workers=4)
    graph.sink("out", after=node)
    with graph.start() as run:
        run.resize("batch", workers=1)
        gate.release()
        assert sorted(item for batch in run for item in batch) == list(range(8))


def test_flush_comes_before_tear_down_and_is_counted() -> None:
    calls: list[str] = []

    class Writer(Batcher):
        def __enter__(self) -> "Writer":
            return self

        def __exit__(self, *error: object) -> None:
            calls.append("tear-down")

        def flush(self) -> Iterator[list[int]]:
            calls.append("flush")
            return super().flush()

    graph = Graph("writer")
    graph.sink("out", after=graph.stage("write", per_worker(Writer), after=graph.source("count", range(5))))
    with graph.start() as run:
        assert list(run) == [[0, 1, 2, 3], [4]]
        statistics = run.statistics()["write"]
    assert calls == ["flush", "tear-down"]
    assert (statistics.items_in, statistics.items_out) == (5, 2)


def test_a_group_is_flushed_after_partial_groups() -> None:
    class Sums:
        total = 0

        def __call__(self, group: list[int]) -> Skip:
            self.total += sum(group)
            return SKIP

        def flush(self) -> list[int]:
            return [self.total]

    assert batches(Sums(), gather=Gather(count=4, partial=True)) == [45]


@pytest.mark.parametrize("result", ["text", 7, b"bytes"])
def test_results_that_are_no_iterable_are_refused(result: object) -> None:
    class Wrong(Batcher):
        def flush(self) -> Any:
            return result

    with pytest.raises(StageFailure, match=r"failed on flush: TypeError: flush\(\) of Wrong returned"):
        batches(Wrong())


def test_flush_may_return_nothing() -> None:
    class Quiet(Batcher):
        def flush(self) -> Any:
            return None

    assert batches(Quiet()) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_an_error_of_flush_is_that_of_the_stage_and_policies_do_not_skip_it() -> None:
    class Broken(Batcher):
        def flush(self) -> Iterator[list[int]]:
            yield [-1]
            raise Boom

    graph = Graph("broken", on_failure="drain")
    node = graph.stage("batch", Broken(), after=graph.source("count", range(5)), on_error=SkipFailed())
    graph.sink("out", after=node)
    got: list[Any] = []
    with pytest.raises(StageFailure, match=r"stage 'batch' .* failed on flush: Boom"):
        got.extend(graph)
    assert got == [[0, 1, 2, 3], [-1]]


@pytest.mark.parametrize("on_failure", ["stop", "drain"])
def test_a_failed_stage_is_not_flushed_and_those_downstream_are_if_drained(on_failure: Any) -> None:
    failed, downstream = Batcher(), Batcher(3)

    def call(item: int) -> Any:
        if item == 9:
            raise Boom
        return Batcher.__call__(failed, item)

    class Failing(Batcher):
        def __call__(self, item: int) -> Any:
            return call(item)

        def flush(self) -> Any:
            raise AssertionError

    graph = Graph("failing", on_failure=on_failure)
    node = graph.stage("batch", Failing(), after=graph.source("count", range(20)))
    graph.sink("out", after=graph.stage("again", downstream, after=node))
    got: list[Any] = []
    with pytest.raises(StageFailure, match="failed on 9"):
        got.extend(graph)
    if on_failure == "drain":
        assert got == [[[0, 1, 2, 3], [4, 5, 6, 7]]]
    assert downstream.flushed == (on_failure == "drain")


def test_a_coroutine_function_with_flush_is_refused_and_accumulate_explained() -> None:
    class Async(Batcher):
        async def __call__(self, item: int) -> Any:  # type: ignore[override]
            return item

    class Aggregator:
        def accumulate(self, item: int) -> None: ...
        def flush(self) -> None: ...

    for fn, message in (
        (Async(), "a coroutine function with a method flush"),
        (per_worker(Async), "a coroutine function with a method flush"),  # type: ignore[arg-type]
        (Aggregator(), "rename its method accumulate to __call__"),
    ):
        graph = Graph("refused")
        with pytest.raises(GraphError, match=message):
            graph.stage("batch", fn, after=graph.source("count", range(3)))  # type: ignore[arg-type]
