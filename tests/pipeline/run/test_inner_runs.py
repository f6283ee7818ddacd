"""A stage function that iterates another run: the end of the inner run is a failure of the stage, and of no other."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Queue
from typing import Any

import pytest

from threadloom.pipeline import Cancelled, Graph, Retry, Run, SkipFailed, StageFailure, per_worker

pytestmark = pytest.mark.timeout(60)


def inner_graph() -> Graph:
    graph = Graph("inner")
    graph.sink("out", after=graph.source("count", itertools.count))
    return graph


def cancelled_inner(item: int) -> int:
    with inner_graph().start() as run:
        run.cancel()
        return item + sum(run)


def outer(fn: Callable[[int], Any], **options: Any) -> Graph:
    graph = Graph("outer")
    node = graph.stage("work", fn, after=graph.source("draw", [7]), **options)
    graph.sink("out", after=node)
    return graph


def on_its_own(fn: Callable[[int], int]) -> Any:
    @contextmanager
    def managed() -> Iterator[Callable[[int], int]]:
        yield fn

    return per_worker(managed)


@pytest.mark.parametrize("wrap", [lambda fn: fn, on_its_own])
def test_a_cancelled_inner_run_is_a_failure_of_the_stage(wrap: Callable[[Any], Any]) -> None:
    with pytest.raises(StageFailure, match=r"stage 'work' \(worker 0\) failed on 7: Cancelled") as caught:
        list(outer(wrap(cancelled_inner)))
    assert isinstance(caught.value.__cause__, Cancelled)
    assert "'inner' was cancelled" in str(caught.value.__cause__)


def test_policies_apply_to_a_cancelled_inner_run() -> None:
    calls = 0

    def flaky(item: int) -> int:
        nonlocal calls
        calls += 1
        return cancelled_inner(item) if calls < 3 else item

    assert list(outer(flaky, on_error=Retry(times=2, first=0))) == [7]
    assert calls == 3
    graph = Graph("skip")
    draw = graph.source("draw", [0, 5])
    node = graph.stage("work", lambda item: item or cancelled_inner(item), after=draw, on_error=SkipFailed())
    graph.sink("out", after=node)
    assert list(graph) == [5]


@pytest.mark.parametrize("on_error", [None, SkipFailed(), Retry(first=0)])
def test_cancelled_is_no_failure_once_the_outer_run_is_over(on_error: Any) -> None:
    runs: Queue[Run] = Queue()

    def work(item: int) -> int:
        runs.get(timeout=30).cancel()  # the outer run; the inner one is cancelled afterwards
        return cancelled_inner(item)

    graph = outer(work, **({} if on_error is None else {"on_error": on_error}))
    with pytest.raises(Cancelled, match="'outer' was cancelled"), graph.start() as run:
        runs.put(run)
        list(run)
    assert runs.empty()
    assert run.statistics()["work"].skipped == 0
