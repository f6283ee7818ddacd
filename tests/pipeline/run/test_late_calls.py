"""Calls that exceed the time limit of their stage, under failure policies. Late calls wait for events, not for time."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.pipeline.run.helpers import Boom
from threadloom.pipeline import (
    Attempt,
    DeadLetter,
    Decision,
    FailFast,
    Graph,
    InOrder,
    ItemTimeout,
    OnError,
    Retry,
    ShutdownTimeout,
    SkipFailed,
    StageFailure,
    per_worker,
)
from threadloom.pipeline.run.late_calls import GivenUpError, TimedCalls

pytestmark = pytest.mark.timeout(60)

LIMIT = 0.05
"""Seconds; an item that is not held takes some microseconds."""


class Held:
    """A stage function that holds some items until they are released: the n-th call with an item, if in `held`."""

    def __init__(self, *held: tuple[int, int]) -> None:
        self.held = held
        self.released = threading.Event()
        self.calls: dict[int, int] = {}
        self.threads: list[str] = []

    def __call__(self, item: int) -> int:
        number = self.calls[item] = self.calls.get(item, 0) + 1
        self.threads.append(threading.current_thread().name)
        if (item, number) in self.held:
            assert self.released.wait(30)
        return 10 * item


def graph_of(fn: Any, items: int = 5, **options: Any) -> Graph:
    graph = Graph("g")
    work = graph.stage("work", fn, after=graph.source("draw", range(items)), **{"limit": LIMIT, **options})
    graph.sink("out", after=work)
    return graph


def collect(graph: Graph, held: Held, count: int) -> tuple[list[Any], Any]:
    """Return `count` results and the statistics at the end; the held calls are released once the results are there."""
    with graph.start() as run:
        items = iter(run)
        found = [next(items) for _ in range(count)]
        held.released.set()
        found += items
        return found, run.statistics()["work"]


def test_a_late_item_is_skipped_and_its_thread_replaced() -> None:
    held = Held((1, 1))
    found, work = collect(graph_of(held, on_error=SkipFailed()), held, 4)
    assert found == [0, 20, 30, 40]
    assert (work.skipped, work.replaced, work.workers, work.items_in, work.items_out) == (1, 1, 1, 5, 4)
    assert held.threads == ["g.work-0", "g.work-0", "g.work-1", "g.work-1", "g.work-1"]


def test_a_late_item_is_tried_again_by_another_thread() -> None:
    held = Held((1, 1), (1, 2))
    found, work = collect(graph_of(held, on_error=Retry(times=2, first=0)), held, 5)
    assert found == [0, 10, 20, 30, 40]
    assert (work.skipped, work.retried, work.replaced) == (0, 2, 2)
    assert held.calls[1] == 3


@pytest.mark.parametrize("policy", [FailFast(), SkipFailed(errors=OSError), SkipFailed(most=0), Retry(errors=OSError)])
def test_a_late_item_fails_the_run_where_the_policy_does(policy: OnError) -> None:
    held = Held((1, 1))
    with pytest.raises(
        StageFailure, match=r"'work' \(worker 0\) failed on 1: ItemTimeout: .* limit of 0.05 s"
    ) as caught:
        with graph_of(held, on_error=policy).start(grace=0.1) as run:
            list(run)
    assert isinstance(caught.value.__cause__, ItemTimeout)
    assert "in __call__" in str(caught.value)
    assert "g.work-0" in caught.value.__notes__[-1]  # it has not ended within the grace period
    held.released.set()


def test_an_error_of_the_policy_is_that_of_the_stage() -> None:
    class Broken(OnError):
        def decide(self, attempt: Attempt) -> Decision:
            raise Boom

    held = Held((1, 1))
    with pytest.raises(StageFailure, match=r"'work' \(worker 0\) failed on 1: Boom"):
        with graph_of(held, on_error=Broken()).start(grace=0.1) as run:
            list(run)
    held.released.set()


def test_a_thread_that_is_still_in_its_call_at_the_end_is_reported_after_the_grace_period() -> None:
    held = Held((4, 1))
    with pytest.raises(ShutdownTimeout, match=r"'g.work-0' is at:") as caught:
        with graph_of(held, on_error=SkipFailed()).start(grace=0.1) as run:
            found = list(run)
    assert found == [0, 10, 20, 30]
    assert list(caught.value.stacks) == ["g.work-0"]
    held.released.set()


def test_the_error_of_a_late_call_is_dropped() -> None:
    released = threading.Event()

    def work(item: int) -> int:
        if item == 1:
            assert released.wait(30)
            raise Boom
        return item

    with graph_of(work, on_error=SkipFailed()).start() as run:
        items = iter(run)
        assert [next(items) for _ in range(4)] == [0, 2, 3, 4]
        released.set()
        assert list(items) == []
    assert run.statistics()["work"].skipped == 1


def test_the_dead_letter_of_a_late_item_has_the_stack() -> None:
    held = Held((1, 1))
    graph = Graph("g")
    work = graph.stage("work", held, after=graph.source("draw", range(3)), limit=LIMIT, on_error=SkipFailed())
    graph.sink("out", after=[work, graph.dead_letters(work)])
    with graph.start() as run:
        items = iter(run)
        found: list[Any] = [next(items) for _ in range(3)]
        held.released.set()
        assert list(items) == []
    (letter,) = [each for each in found if isinstance(each, DeadLetter)]
    assert (letter.stage, letter.item, letter.attempts) == ("work", 1, 1)
    assert "in __call__" in str(letter.error)
    assert [each for each in found if not isinstance(each, DeadLetter)] == [0, 20]


@pytest.mark.parametrize("workers", [1, 3])
def test_an_ordered_stage_keeps_its_order_around_late_items(workers: int) -> None:
    held = Held((1, 1), (3, 1))
    policy = Retry(times=1, first=0, errors=lambda error: "on 3" in str(error), then=SkipFailed())
    graph = graph_of(held, 8, on_error=policy, ordered=True, workers=workers)
    found, work = collect(graph, held, 7)
    assert found == [0, 20, 30, 40, 50, 60, 70]
    assert (work.skipped, work.retried, work.replaced) == (1, 1, 2)


def test_an_exclusive_order_hands_out_the_next_item_of_the_key() -> None:
    held = Held((1, 1))
    order = InOrder[int](order=lambda item: (0, item))
    found, work = collect(graph_of(held, on_error=SkipFailed(), admission=order, workers=2), held, 4)
    assert found == [0, 20, 30, 40]
    assert work.replaced == 1


def test_an_expansion_is_given_up_as_a_whole() -> None:
    held = Held((1, 1))
    graph = graph_of(lambda item: [held(item), item], on_error=SkipFailed(), expand=True)
    found, work = collect(graph, held, 8)
    assert found == [0, 0, 20, 2, 30, 3, 40, 4]
    assert work.skipped == 1


def test_each_thread_sets_up_and_tears_down() -> None:
    held = Held((1, 1))
    log: list[str] = []

    @contextmanager
    def context() -> Iterator[Callable[[int], int]]:
        name = threading.current_thread().name
        log.append(f"enter {name}")
        try:
            yield held
        finally:
            log.append(f"exit {name}")

    found, _ = collect(graph_of(per_worker(context), on_error=SkipFailed()), held, 4)
    assert found == [0, 20, 30, 40]
    assert sorted(log) == ["enter g.work-0", "enter g.work-1", "exit g.work-0", "exit g.work-1"]


def test_the_pause_before_a_retry_does_not_count() -> None:
    failed: list[int] = []

    def work(item: int) -> int:
        if item == 1 and not failed:
            failed.append(item)
            raise Boom
        return item

    # A pause of four limits: were it part of the call, the watchdog would give the item up.
    with graph_of(work, on_error=Retry(first=4 * LIMIT)).start() as run:
        assert list(run) == [0, 1, 2, 3, 4]
    assert (run.statistics()["work"].retried, run.statistics()["work"].replaced) == (1, 0)


def test_a_stop_while_a_late_call_is_held() -> None:
    held = Held((0, 1))
    with pytest.raises(ShutdownTimeout), graph_of(held, on_error=SkipFailed()).start(grace=0.1) as run:
        items = iter(run)
        assert next(items) == 10
        run.drain()
        list(items)
    held.released.set()


def test_a_call_is_either_finished_or_given_up() -> None:
    now = 0
    calls = TimedCalls(lambda: now)
    assert calls.give_up(1.0) is None
    calls.begin("a", 1)
    now = 999_999_999
    assert calls.give_up(1.0) is None
    assert calls.seconds(now) == 0.999999999
    now = 10**9
    late = calls.give_up(1.0)
    assert late is not None
    assert (late.item, late.attempt, calls.given_up) == ("a", 1, True)
    assert calls.give_up(1.0) is None
    with pytest.raises(GivenUpError):
        calls.finish()
    calls = TimedCalls(lambda: now)
    calls.begin("b", 2)
    calls.finish()
    now = 10**10
    assert calls.give_up(1.0) is None
    assert not calls.given_up
