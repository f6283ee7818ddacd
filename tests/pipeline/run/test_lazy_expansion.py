"""Expansions under a failure policy that sends the elements as they are produced."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.pipeline.run.helpers import Boom
from threadloom.pipeline import (
    SKIP,
    Expansion,
    Graph,
    ItemTimeout,
    OnError,
    Retry,
    SkipFailed,
    StageFailure,
)
from threadloom.pipeline.run.started_expansion import StartedExpansion

pytestmark = pytest.mark.timeout(60)

LAZY = Expansion.LAZY


def graph_of(fn: Any, policy: OnError, items: int = 3, **options: Any) -> Graph:
    graph = Graph("g")
    node = graph.stage("work", fn, after=graph.source("draw", range(items)), expand=True, on_error=policy, **options)
    graph.sink("out", after=node)
    return graph


@pytest.mark.parametrize("policy", [SkipFailed(expansion=LAZY), Retry(expansion=LAZY)])
def test_an_element_arrives_before_the_next_is_produced(policy: OnError) -> None:
    arrived = threading.Event()

    def elements(item: int) -> Iterator[str]:
        yield "first"
        assert arrived.wait(30)
        yield "second"

    with graph_of(elements, policy, 1).start() as run:
        items = iter(run)
        assert next(items) == "first"
        arrived.set()
        assert list(items) == ["second"]


def test_an_error_before_the_first_element_is_skipped_or_retried() -> None:
    attempts: list[int] = []

    def elements(item: int) -> Iterator[Any]:
        yield SKIP
        if item == 1 and len(attempts) < 2:
            attempts.append(item)
            raise Boom
        yield item
        yield SKIP
        yield 10 * item

    with graph_of(elements, SkipFailed(expansion=LAZY)).start() as run:
        assert list(run) == [0, 0, 2, 20]
    assert run.statistics()["work"].skipped == 1
    with graph_of(elements, Retry(first=0, expansion=LAZY)).start() as run:
        assert list(run) == [0, 0, 1, 10, 2, 20]
    assert run.statistics()["work"].retried == 1


def test_an_error_after_the_first_element_fails_the_run() -> None:
    closed: list[str] = []

    def elements(item: int) -> Iterator[int]:
        try:
            yield 1
            yield 2
            raise Boom
        finally:
            closed.append(threading.current_thread().name)

    with pytest.raises(StageFailure, match=r"'work' \(worker 0\) failed on 0: Boom") as caught:
        list(graph_of(elements, SkipFailed(expansion=LAZY)))
    assert isinstance(caught.value.__cause__, Boom)
    assert "2 element(s) of this item had been sent" in caught.value.__cause__.__notes__[0]
    assert closed == ["g.work-0"]
    # Collected, the same items are skipped.
    with graph_of(elements, SkipFailed(share=1)).start() as run:
        assert list(run) == []


def test_an_ordered_stage_skips_the_whole_item() -> None:
    def elements(item: int) -> Iterator[int]:
        yield item
        if item == 1:
            raise Boom

    assert list(graph_of(elements, SkipFailed(expansion=LAZY), ordered=True, workers=2)) == [0, 2]


def test_a_generator_is_closed_when_the_run_ends_early() -> None:
    closed = threading.Event()

    def elements(item: int) -> Iterator[int]:
        try:
            yield from range(10**9)
        finally:
            closed.set()

    with graph_of(elements, SkipFailed(expansion=LAZY)).start() as run:
        assert next(iter(run)) == 0
    assert closed.is_set()


@pytest.mark.parametrize("at", [0, 1])
def test_a_late_element_is_skipped_only_if_it_is_the_first(at: int) -> None:
    released = threading.Event()

    def elements(item: int) -> Iterator[int]:
        for number in range(2):
            if (item, number) == (1, at):
                assert released.wait(30)
            yield 10 * item + number

    graph = graph_of(elements, SkipFailed(expansion=LAZY), limit=0.05)
    if at == 0:
        with graph.start() as run:
            items = iter(run)
            found = [next(items) for _ in range(4)]
            released.set()
            assert found + list(items) == [0, 1, 20, 21]
        assert run.statistics()["work"].replaced == 1
        return
    with pytest.raises(StageFailure, match=r"'work' \(worker 0\) failed on 1: ItemTimeout") as caught:
        with graph.start(grace=0.1) as run:
            list(run)
    assert isinstance(caught.value.__cause__, ItemTimeout)
    released.set()


def test_the_elements_of_a_started_expansion() -> None:
    assert list(StartedExpansion([])) == []
    assert list(StartedExpansion([SKIP, None, SKIP, 2, SKIP])) == [None, 2]
    with pytest.raises(ZeroDivisionError):
        StartedExpansion(1 // number for number in (0, 1))


def test_an_invalid_setting_is_refused() -> None:
    with pytest.raises(ValueError, match="SkipFailed: expected expansion to be Expansion"):
        SkipFailed(expansion="lazy")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Retry: expected expansion"):
        Retry(expansion=True)  # type: ignore[arg-type]
