"""The memory of a run is freed with its last reference, without the garbage collector."""

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from threadloom.pipeline import Cancelled, Gather, Graph, Run, SkipFailed, StageFailure, Watchdog

pytestmark = pytest.mark.timeout(60)


class Heavy:
    """A stage function whose memory should be freed."""

    def __call__(self, item: int) -> int:
        if item == 13:
            raise ValueError("thirteen")
        return item

    def abort(self) -> None:
        """Do nothing: no thread waits here."""


def add(items: list[int]) -> int:
    return sum(items)


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def graph_of(heavy: Heavy, count: int) -> Graph:
    graph = Graph("heavy")
    numbers = graph.source("numbers", range(count))
    work = graph.stage("work", heavy, after=numbers, workers=3, ordered=True, limit=30.0)
    pairs = graph.stage("pairs", add, after=work, gather=Gather(key=lambda item: item // 2, count=2))
    graph.sink("out", after=pairs, when=lambda item: item >= 0)
    return graph


def still_alive(work: Callable[[Heavy], Run]) -> list[object]:
    """Return those of the stage function and the run that are alive after all references to them were dropped."""
    heavy = Heavy()
    watched = weakref.ref(heavy), weakref.ref(work(heavy))
    del heavy
    return [each() for each in watched if each() is not None]


class Dividend:
    """An item on which a stage fails."""

    def __rtruediv__(self, other: object) -> object:
        raise ZeroDivisionError


@pytest.mark.parametrize("start", [True, False])
def test_the_item_of_a_failed_run(start: bool) -> None:
    """The failure refers to the frames that had the item; with the failure, both are freed."""

    def fail(items: list[Dividend]) -> None:
        graph = Graph("failing")
        numbers = graph.source("numbers", lambda: iter([items.pop()]))
        sink = graph.sink("out", after=graph.stage("divide", lambda item: 1 / item, after=numbers))
        with pytest.raises(StageFailure):
            if start:
                with graph.start() as run:
                    list(run)
            else:
                list(sink)

    items = [Dividend()]
    watched = weakref.ref(items[0])
    fail(items)
    assert watched() is None


def test_after_the_end_of_the_input() -> None:
    def whole(heavy: Heavy) -> Run:
        with graph_of(heavy, 12).start(resources=[heavy], watchdog=Watchdog(after=30)) as run:
            assert sum(run) == sum(range(12))
        assert run.statistics()["work"].items_in == 12
        return run

    assert still_alive(whole) == []


def test_after_leaving_early() -> None:
    def part(heavy: Heavy) -> Run:
        with graph_of(heavy, 12).start(resources=[heavy]) as run:
            next(iter(run))
        return run

    assert still_alive(part) == []


def test_after_skipped_items_were_counted() -> None:
    def skipping(heavy: Heavy) -> Run:
        graph = Graph("skips")
        work = graph.stage("work", heavy, after=graph.source("numbers", range(20)), on_error=SkipFailed())
        graph.sink("out", after=work)
        with graph.start() as run:
            assert len(list(run)) == 19
        assert run.statistics()["work"].skipped == 1
        return run

    assert still_alive(skipping) == []


def test_an_iterator_that_outlives_its_run_raises_the_outcome() -> None:
    ended: Iterator[Any] = iter(())
    failed = left = ended
    with graph_of(Heavy(), 12).start() as run:
        ended = iter(run)
        list(ended)
    with pytest.raises(StageFailure, match="thirteen"), graph_of(Heavy(), 20).start() as run:
        failed = iter(run)
        list(failed)
    with graph_of(Heavy(), 12).start() as run:
        left = iter(run)
    del run
    assert list(ended) == []
    with pytest.raises(StageFailure, match="thirteen"):
        next(failed)
    with pytest.raises(Cancelled):
        next(left)
