"""Tests of the controller of real runs. Its intervals are ended by the tests, on a clock that only they advance."""

import logging
import re
from collections.abc import Iterator

import pytest

from tests.pipeline.run.controlled_line import (
    HOUR,
    QUICK,
    SECOND,
    Clock,
    Consumer,
    FirstHalf,
    SecondHalf,
    Work,
    control_of,
    line,
)
from threadloom.pipeline import (
    BalanceRules,
    Controller,
    Graph,
    OnFailure,
    StageFailure,
    WorkerChange,
)

pytestmark = pytest.mark.timeout(60)


def test_workers_follow_the_bottleneck_that_moves_at_half_time(caplog: pytest.LogCaptureFixture) -> None:
    """`decode` is slow in the first half and gets a worker of `encode`; then it is the other way round."""
    items, clock = 60, Clock()
    decode, encode = Work(), Work()
    expected = list(line(Work(), Work(), range(items)))
    decode.set_open(False)
    heard: list[WorkerChange] = []
    controller = Controller(HOUR, rules=QUICK, on_change=heard.append)
    caplog.set_level(logging.INFO, "threadloom.pipeline.controller")
    with line(decode, encode, range(items)).start(controller=controller, clock=clock, watchdog=None) as run:
        consumer = Consumer(run)
        consumer.start()
        first = FirstHalf(run, clock, decode)
        decode.await_inside(2)
        control_of(run).step()  # the begin of the first interval
        first(2)
        assert list(run.worker_changes) == []
        first(2)
        decode.await_inside(3)
        assert run.statistics()["decode"].workers == 3
        first(3)  # three items per second instead of two: kept
        first(3)

        encode.set_open(False)
        decode.set_open(True)
        encode.await_inside(1)
        second = SecondHalf(run, clock, encode)
        second(1, 2)
        assert len(list(run.worker_changes)) == 1
        second(1, 2)
        encode.await_inside(2)
        second(2, 2)
        second(2, 2)
        encode.set_open(True)
        consumer.join(30)
    assert consumer.items == expected == list(range(2, items + 2))
    assert [(each.giver, each.receiver, each.undo) for each in run.worker_changes] == [
        ("encode", "decode", False), ("decode", "encode", False),
    ]  # fmt: skip
    assert [dict(each.workers) for each in run.worker_changes] == [
        {"decode": 3, "encode": 1}, {"decode": 2, "encode": 2},
    ]  # fmt: skip
    assert [each.elapsed for each in run.worker_changes] == [2.0, 6.0]
    assert tuple(heard) == run.worker_changes
    one, other = [str(each) for each in run.worker_changes]
    assert one == "moved a worker from 'encode' (starved 100% of the time) to 'decode' (busy 100%)"
    assert re.fullmatch(r"moved a worker from 'decode' \(\w+ \d+% of the time\) to 'encode' \(busy 100%\)", other)
    assert [record.getMessage() for record in caplog.records] == [f"graph 'line': {each}" for each in (one, other)]


def test_a_paused_run_is_not_measured_and_a_drained_one_is_left_alone() -> None:
    clock, decode, encode = Clock(), Work(), Work()
    decode.set_open(False)
    with line(decode, encode, range(1000)).start(
        controller=Controller(HOUR, rules=QUICK), clock=clock, watchdog=None
    ) as run:
        consumer = Consumer(run)
        consumer.start()
        decode.await_inside(2)
        interval = FirstHalf(run, clock, decode)
        control_of(run).step()
        interval(2)
        run.pause()
        for _ in range(5):
            clock.now += SECOND
            control_of(run).step()
        run.resume()
        control_of(run).step()  # begins an interval
        assert list(run.worker_changes) == []
        interval(2)
        assert len(list(run.worker_changes)) == 1  # justified before and after the pause
        run.drain()
        decode.await_inside(3)
        for _ in range(5):
            begun = decode.begun
            decode.finish(1)
            clock.now += SECOND
            control_of(run).step()
        assert begun and len(list(run.worker_changes)) == 1
        decode.set_open(True)
        consumer.join(30)
    assert consumer.items == list(range(2, len(consumer.items) + 2))


def test_the_thread_of_the_controller_decides_and_ends_with_its_run() -> None:
    """Moves on every occasion, in a run that is complete and in one that is cancelled; leaked threads fail the test."""
    eager = BalanceRules(saturated=0.0, spare=1.0, confirm=1, settle=0, judge=1, rest=0, gain=0.0, change=0.0)
    changes: list[WorkerChange] = []
    controller = Controller(0.0005, rules=eager, budget=6, on_change=changes.append)

    def until_changed() -> Iterator[int]:
        item = 0
        while len(changes) < 5:
            yield item
            item += 1

    with line(Work(), Work(), until_changed).start(controller=controller) as run:
        found = list(run)
    assert found == list(range(2, len(found) + 2))
    assert tuple(changes) == run.worker_changes
    assert all(sum(each.workers.values()) <= 6 and min(each.workers.values()) >= 1 for each in changes)
    changes.clear()
    with line(Work(), Work(), until_changed).start(controller=controller) as run:
        next(iter(run))
        run.cancel()


def test_a_failure_ends_a_controlled_run() -> None:
    def fail(item: int) -> int:
        if item == 100:
            raise ValueError("no")
        return item

    for on_failure in OnFailure:
        graph = Graph("failing")
        read = graph.source("read", range(1000))
        graph.sink("out", after=graph.stage("work", fail, after=read, workers=3))
        with pytest.raises(StageFailure, match="no"), graph.start(
            controller=Controller(0.0005), on_failure=on_failure
        ) as run:  # fmt: skip
            list(run)


def test_a_stage_with_one_worker_keeps_the_order_of_its_results() -> None:
    """Without the controller it has one worker; the second one finishes an item before the first has finished its."""
    clock, decode, encode = Clock(), Work(), Work()
    graph = Graph("one")
    read = graph.source("read", range(100))
    decoded = graph.stage("decode", decode, after=read)
    graph.sink("out", after=graph.stage("encode", encode, after=decoded, workers=2))
    decode.set_open(False)
    controller = Controller(HOUR, {"decode": 2, "encode": 2}, rules=QUICK)
    with graph.start(controller=controller, clock=clock, watchdog=None) as run:
        consumer = Consumer(run)
        consumer.start()
        decode.await_inside(1)
        control_of(run).step()
        interval = FirstHalf(run, clock, decode)
        interval(1, 2)
        interval(1, 2)
        decode.await_inside(2)
        decode.set_open(True)
        consumer.join(30)
    assert [each.workers for each in run.worker_changes] == [{"decode": 2, "encode": 1}]
    assert consumer.items == list(range(2, 102))


def test_a_graph_without_stages_to_control_runs() -> None:
    graph = Graph("alone")
    graph.sink("out", after=graph.source("read", range(3)))
    with graph.start(controller=Controller(0.001)) as run:
        assert list(run) == [0, 1, 2]
    assert list(run.worker_changes) == []
