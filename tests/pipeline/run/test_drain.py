"""Runs with on_failure="drain": the results before the failing item are delivered, in any interleaving."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.pipeline.run.helpers import Boom, WaitingResource
from threadloom.pipeline import (
    Gather,
    Graph,
    GraphError,
    OnFailure,
    PipelineError,
    Run,
    Shards,
    SkipFailed,
    StageFailure,
    TooManySkipped,
    per_worker,
)

pytestmark = pytest.mark.timeout(60)


def failing_on(*bad: object) -> Any:
    def fn(item: Any) -> Any:
        if item in bad:
            raise Boom(item)
        return item

    return fn


def drained(graph: Graph) -> tuple[list[Any], StageFailure]:
    """Return the delivered items and the failure of a run."""
    got: list[Any] = []
    with pytest.raises(StageFailure) as caught:
        got.extend(iter(graph))  # `extend` keeps the items before the error
    return got, caught.value


def ended(run: Run, stage: str) -> None:
    """Wait until every worker of a stage has ended."""
    for worker in run._parts.workers_of(stage):
        assert worker.ended.wait(30)


@pytest.mark.parametrize("capacity", [1, 100])
@pytest.mark.parametrize("workers", [1, 3])
def test_a_chain_delivers_the_items_before_the_failing_one(workers: int, capacity: int) -> None:
    graph = Graph("chain", on_failure="drain")
    first = graph.stage("first", abs, after=graph.source("count", range(20)), workers=workers, capacity=capacity)
    second = graph.stage("second", failing_on(7), after=first, workers=workers, capacity=capacity)
    third = graph.stage("third", abs, after=second, workers=workers, capacity=capacity)
    graph.sink("out", after=third, capacity=capacity)
    got, failure = drained(graph)
    assert got == list(range(7))
    assert (failure.stage, failure.item) == ("second", "7")
    assert isinstance(failure.__cause__, Boom)


def test_a_source_that_fails_before_anything_is_read_delivers_what_it_yielded() -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise Boom

    graph = Graph("source")
    graph.sink("out", after=graph.source("count", items), capacity=100)
    with pytest.raises(StageFailure, match="count"), graph.start(on_failure=OnFailure.DRAIN) as run:
        ended(run, "count")
        got = list[int]()
        got.extend(run)
    assert got == list(range(5))


def test_items_before_the_failing_one_that_are_slower_are_delivered() -> None:
    """Item 5 fails while items 3 and 4 are in the hands of other workers; item 6 is finished before."""
    six, failed = threading.Event(), threading.Event()

    def fn(item: int) -> int:
        if item == 5:
            assert six.wait(30)
            failed.set()
            raise Boom
        if item == 6:
            six.set()
        elif item in {3, 4}:
            assert failed.wait(30)
        return item

    graph = Graph("slow", on_failure="drain")
    node = graph.stage("fn", fn, after=graph.source("count", range(20)), workers=4)
    graph.sink("out", after=node)
    got, failure = drained(graph)
    assert got == list(range(5))
    assert failure.item == "5"


def test_of_two_failures_of_a_stage_the_earlier_item_is_raised() -> None:
    failed = threading.Event()

    def fn(item: int) -> int:
        if item == 5:
            failed.set()
            raise Boom
        if item == 3:
            assert failed.wait(30)
            raise Boom
        return item

    graph = Graph("two", on_failure="drain")
    graph.sink("out", after=graph.stage("fn", fn, after=graph.source("count", range(20)), workers=4))
    got, failure = drained(graph)
    assert (got, failure.item) == ([0, 1, 2], "3")


def test_a_later_failure_downstream_is_that_of_an_earlier_item() -> None:
    upstream = threading.Event()

    def early(item: int) -> int:
        if item == 7:
            upstream.set()
            raise Boom
        return item

    def late(item: int) -> int:
        assert item or upstream.wait(30)  # nothing passes before the failure upstream
        return int(failing_on(4)(item))

    graph = Graph("late", on_failure="drain")
    first = graph.stage("early", early, after=graph.source("count", range(20)))
    graph.sink("out", after=graph.stage("late", late, after=first, capacity=10))
    got, failure = drained(graph)
    assert (got, failure.stage) == ([0, 1, 2, 3], "late")


def test_a_failure_upstream_of_a_failed_stage_is_that_of_a_later_item() -> None:
    downstream = threading.Event()

    def early(item: int) -> int:
        if item == 7:
            assert downstream.wait(30)
            raise Boom
        return item

    graph = Graph("upstream", on_failure="drain")
    first = graph.stage("early", early, after=graph.source("count", range(20)), capacity=10)
    second = graph.stage("late", failing_on(4), after=first)
    graph.sink("out", after=second, capacity=10)
    got: list[int] = []
    with pytest.raises(StageFailure) as caught, graph.start() as run:
        ended(run, "late")
        downstream.set()
        ended(run, "early")
        got.extend(run)
    assert (got, caught.value.stage) == ([0, 1, 2, 3], "late")


@pytest.mark.parametrize("first", [0, 1])
def test_shards_in_rounds_end_before_the_failing_element(first: int) -> None:
    """Shard 1 raises in place of its third element, before or after shard 0 has sent it."""
    raised, sent = threading.Event(), threading.Event()

    def good() -> Iterator[int]:
        yield from (0, 1)
        assert first or raised.wait(30)
        yield 2
        sent.set()
        yield from range(3, 50)

    def bad() -> Iterator[int]:
        yield from (100, 101)
        assert not first or sent.wait(30)
        raised.set()
        raise Boom

    graph = Graph("rounds", on_failure="drain")
    graph.sink("out", after=graph.source("read", Shards(good, bad), ordered=True), capacity=9)
    assert drained(graph)[0] == [0, 100, 1, 101, 2]


def test_shards_without_an_order_deliver_what_each_has_yielded() -> None:
    def bad() -> Iterator[int]:
        yield from (100, 101)
        raise Boom

    graph = Graph("shards", on_failure="drain")
    graph.sink("out", after=graph.source("read", Shards(range(50), bad)))
    got, _ = drained(graph)
    assert [item for item in got if item >= 100] == [100, 101]
    assert (good := [item for item in got if item < 100]) == list(range(len(good)))


@pytest.mark.parametrize("workers", [1, 2])
def test_elements_before_the_error_of_an_expansion_are_delivered(workers: int) -> None:
    def expand(item: int) -> Iterator[int]:
        yield item
        if item == 3:
            raise Boom
        yield -item

    graph = Graph("expand", on_failure="drain")
    node = graph.stage("expand", expand, after=graph.source("count", range(1, 9)), expand=True, workers=workers)
    graph.sink("out", after=node)
    assert drained(graph)[0] == [1, -1, 2, -2, 3]


def test_a_join_delivers_the_tuples_before_the_failing_item_though_the_other_branch_fills_it() -> None:
    full = threading.Event()

    def left(item: int) -> int:
        if item == 3:
            assert full.wait(30)
            raise Boom
        return item

    def right(item: int) -> int:
        if item == 6:
            full.set()  # 3, 4 and 5 have been sent or are being sent
        return item

    graph = Graph("join", on_failure="drain")
    count = graph.source("count", range(30))
    arms = (
        graph.stage("left", left, after=count, capacity=8),
        graph.stage("right", right, after=count, workers=2),
    )
    graph.sink("out", after=graph.join("join", tuple, after=arms, capacity=3))
    got, failure = drained(graph)
    assert (got, failure.stage) == ([(0, 0), (1, 1), (2, 2)], "left")


@pytest.mark.parametrize(("partial", "expected"), [(False, [[0, 1, 2]]), (True, [[0, 1, 2], [3, 4]])])
def test_an_incomplete_group_before_the_failing_item_is_delivered_with_partial(partial: bool, expected: Any) -> None:
    graph = Graph("groups", on_failure="drain")
    node = graph.stage("fail", failing_on(5), after=graph.source("count", range(20)))
    graph.sink("out", after=graph.stage("list", list, after=node, gather=Gather(count=3, partial=partial)))
    assert drained(graph)[0] == expected


def test_every_sink_gets_the_items_before_the_failing_one_and_the_last_raises() -> None:
    graph = Graph("sinks", on_failure="drain")
    count = graph.source("count", range(100))
    graph.sink("bad", after=graph.stage("fail", failing_on(5), after=count), capacity=100)
    graph.sink("good", after=graph.stage("pass", abs, after=count), capacity=100)
    with graph.start() as run:
        assert list(run.items("bad")) == [0, 1, 2, 3, 4]
        got: list[int] = []
        with pytest.raises(StageFailure):
            got.extend(run.items("good"))
    assert got[:5] == [0, 1, 2, 3, 4]
    assert got == list(range(len(got)))


def test_stages_without_successors_process_the_items_before_the_failing_one() -> None:
    seen: list[int] = []
    graph = Graph("effects")
    node = graph.stage("fail", failing_on(5), after=graph.source("count", range(20)))
    graph.stage("see", seen.append, after=node)
    with pytest.raises(StageFailure):
        graph.run(on_failure="drain")
    assert seen == [0, 1, 2, 3, 4]


def test_stages_and_sources_that_only_lead_to_the_failed_stage_are_not_waited_for() -> None:
    resource = WaitingResource()

    def items() -> Iterator[int]:
        yield from range(6)
        resource.take(None)  # ends by the abort of the resources only

    graph = Graph("useless", on_failure="drain", resources=[resource])
    graph.sink("out", after=graph.stage("fail", failing_on(5), after=graph.source("count", items)))
    assert drained(graph)[0] == [0, 1, 2, 3, 4]


def test_leaving_the_block_ends_a_draining_run_with_its_failure() -> None:
    graph = Graph("leave", on_failure="drain")
    graph.sink("out", after=graph.stage("fail", failing_on(5), after=graph.source("count", range(20))), capacity=20)
    with pytest.raises(StageFailure, match="failed on 5"), graph.start() as run:
        ended(run, "fail")
        assert next(iter(run)) == 0


def test_set_up_and_tear_down_are_drained() -> None:
    class Broken:
        def __init__(self, enter: bool) -> None:
            self.enter = enter

        def __enter__(self) -> Any:
            if self.enter:
                raise Boom
            return abs

        def __exit__(self, *error: object) -> None:
            raise Boom

    for enter, expected in ((True, []), (False, [0, 1, 2])):
        graph = Graph("broken", on_failure="drain")
        node = graph.stage("broken", per_worker(lambda: Broken(enter)), after=graph.source("count", range(3)))  # noqa: B023
        graph.sink("out", after=node)
        got, failure = drained(graph)
        assert got == expected
        assert failure.item == ("set-up" if enter else "tear-down")


def test_too_many_skipped_items_are_reported_after_the_results() -> None:
    graph = Graph("skipped", on_failure="drain")
    policy = SkipFailed(share=0.1, least=100)
    node = graph.stage("skip", failing_on(1, 2, 3), after=graph.source("count", range(9)), on_error=policy)
    graph.sink("out", after=node)
    got, failure = drained(graph)
    assert got == [0, 4, 5, 6, 7, 8]
    assert isinstance(failure.__cause__, TooManySkipped)


def test_a_result_that_cannot_be_sent_is_the_end() -> None:
    graph = Graph("when", on_failure="drain")
    node = graph.stage("pass", abs, after=graph.source("count", range(20)), workers=3)
    graph.sink("out", after=node, when=lambda item: 1 / (5 - item) != 0)
    assert drained(graph)[0] == [0, 1, 2, 3, 4]


def test_what_cannot_be_drained_is_refused() -> None:
    graph = Graph("refused")
    node = graph.stage("take", abs, after=graph.source("count", range(3)), acquire=abs)
    graph.sink("out", after=node)
    with pytest.raises(GraphError, match="stage 'take' has acquired"):
        graph.start(on_failure="drain")
    with pytest.raises(GraphError, match="on_failure to be one of stop, drain, got 'finish'"):
        graph.start(on_failure="finish")  # type: ignore[arg-type]
    graph = Graph("resized", on_failure="drain")
    graph.sink("out", after=graph.stage("one", abs, after=graph.source("count", range(3))))
    with graph.start() as run:
        with pytest.raises(PipelineError, match="declare it with ordered=True"):
            run.resize("one", workers=2)
        assert list(run) == [0, 1, 2]


def test_a_run_that_is_not_drained_ends_at_once() -> None:
    """The default: the items that wait in the channels are dropped."""
    graph = Graph("stop")
    graph.sink("out", after=graph.stage("fail", failing_on(5), after=graph.source("count", range(20))), capacity=20)
    with pytest.raises(StageFailure, match="failed on 5"), graph.start() as run:
        ended(run, "fail")
        next(iter(run))
