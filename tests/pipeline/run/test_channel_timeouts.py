"""Time limits of `put` and `get`, of channels and of sinks, on a clock that the tests set."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.pipeline.run.test_channel import PAIRS, WaitClock, in_thread
from threadloom.pipeline import (
    AdmissionError,
    Cancelled,
    Channel,
    ChannelTimeout,
    Closed,
    Fifo,
    Gather,
    Graph,
    InOrder,
    PipelineError,
    StageFailure,
)

pytestmark = pytest.mark.timeout(60)


def fifo(capacity: int = 1, **options: Any) -> Channel[int, int]:
    return Channel(Fifo().begin(capacity), capacity, producers=1, **options)


def test_calls_that_do_not_wait() -> None:
    channel = fifo()
    with pytest.raises(ChannelTimeout, match="no item within 0 s"):
        channel.get(timeout=0)
    channel.put(1, timeout=0)
    with pytest.raises(ChannelTimeout, match="no capacity within 0 s: the channel holds 1 items"):
        channel.put(2, timeout=0)
    assert channel.get(timeout=0) == 1
    channel.close()
    with pytest.raises(Closed):
        channel.get(timeout=0)
    assert issubclass(ChannelTimeout, TimeoutError)
    assert issubclass(ChannelTimeout, PipelineError)


def test_waits_end_after_their_time() -> None:
    """The real clock: the waits are as short as they may be."""
    channel = fifo()
    with pytest.raises(ChannelTimeout):
        channel.get(timeout=0.001)
    channel.put(1)
    with pytest.raises(ChannelTimeout):
        channel.put(2, timeout=0.001)
    statistics = channel.statistics()
    assert statistics.starved >= 0.001
    assert statistics.blocked >= 0.001
    assert (channel.receivers_wait, channel.senders_wait) == (False, False)


def test_what_arrives_in_time_is_returned_and_a_wait_ends_with_the_channel() -> None:
    clock = WaitClock()
    channel = fifo(clock=clock)
    with clock.one_waits():
        got = in_thread(lambda: channel.get(timeout=3600))
    channel.put(1)
    assert got.result(30) == 1
    channel.put(2)
    with clock.one_waits():
        sent = in_thread(lambda: channel.put(3, timeout=3600))
    assert channel.get() == 2
    sent.result(30)
    with clock.one_waits():
        blocked = in_thread(lambda: channel.put(4, timeout=3600))
    channel.abort()
    with pytest.raises(Cancelled):
        blocked.result(30)


def test_a_wake_up_that_comes_with_the_end_of_the_time_is_not_lost() -> None:
    """The item has arrived, and the clock has passed the limit, when the receiver looks again."""
    clock = WaitClock()
    channel = fifo(clock=clock)
    with clock.one_waits():
        got = in_thread(lambda: channel.get(timeout=1))
    clock.now = 2_000_000_000
    channel.put(1)
    assert got.result(30) == 1


def test_a_thread_that_waits_no_longer_takes_no_wake_up_of_another() -> None:
    """The first receiver has given up: the item wakes the second."""
    clock = WaitClock()
    channel = fifo(clock=clock)
    with clock.one_waits():
        first = in_thread(lambda: channel.get(timeout=0.05))
    with clock.one_waits():
        second = in_thread(channel.get)
    clock.now = 1_000_000_000
    with pytest.raises(ChannelTimeout):
        first.result(30)
    channel.put(1)
    assert second.result(30) == 1


def test_a_sender_with_a_time_limit_is_no_deadlock() -> None:
    """It may put the missing item after its limit; one without a limit may not."""
    channel = Channel[tuple[str, int], tuple[str, int]](PAIRS.begin(1), 1, producers=1)
    channel.put(("k", 1))
    with pytest.raises(ChannelTimeout):
        channel.put(("k", 2), timeout=0.001)
    with pytest.raises(AdmissionError, match="waits for item 0"):
        channel.put(("k", 2))
    channel.put(("k", 0), timeout=0.001)
    assert channel.get() == ("k", 0)
    channel.done()
    assert channel.get() == ("k", 1)


def test_a_deadlock_needs_all_producers_without_a_limit() -> None:
    clock = WaitClock()
    channel = Channel[tuple[str, int], tuple[str, int]](PAIRS.begin(1), 1, producers=2, clock=clock)
    channel.put(("k", 1))
    with clock.one_waits():
        limited = in_thread(lambda: channel.put(("k", 2), timeout=3600))
    with clock.one_waits():
        patient = in_thread(lambda: channel.put(("k", 3)))
    channel.put(("k", 0))
    for index in range(4):
        assert channel.get() == ("k", index)
        channel.done()
    limited.result(30)
    patient.result(30)


def test_a_group_completes_in_the_time_of_a_get() -> None:
    channel = Channel[int, list[int]](Gather[int](count=2).begin(1), 1, producers=1)
    channel.put(1)
    with pytest.raises(ChannelTimeout):
        channel.get(timeout=0)
    channel.put(2)
    assert channel.get(timeout=0) == [1, 2]


def test_a_sink_is_read_with_a_time_limit() -> None:
    gate = threading.Semaphore(0)

    def items() -> Iterator[int]:
        for item in range(3):
            assert gate.acquire(timeout=30)
            yield item

    graph = Graph("timed")
    sink = graph.sink("out", after=graph.source("count", items))
    with graph.start() as run:
        out = run.items(sink)
        with pytest.raises(ChannelTimeout):
            out.get(timeout=0.001)
        assert out.try_get(None) is None
        gate.release()
        assert out.get(timeout=30) == 0
        gate.release(2)
        assert out.get() == 1
        assert next(out) == 2
        with pytest.raises(Closed, match="sink 'out' has delivered all"):
            out.get(timeout=30)
        with pytest.raises(Closed):
            out.try_get(None)
        assert list(out) == []
        assert run.statistics()["out"].items_out == 3


def test_a_failure_is_raised_by_a_get_with_a_time_limit() -> None:
    graph = Graph("failing")
    graph.sink("out", after=graph.stage("fail", lambda item: 1 // item, after=graph.source("count", [0])))
    with graph.start() as run, pytest.raises(StageFailure, match="ZeroDivisionError"):
        iter(run).get(timeout=30)


def test_the_first_index_of_a_key_is_asked_without_the_lock_of_the_channel() -> None:
    """The function uses the channel from another thread, which would wait for the lock."""

    def first(key: str) -> int:
        if key == "outer":
            in_thread(lambda: channel.put(("inner", 5))).result(30)
        return 5

    policy = InOrder[tuple[str, int]](lambda item: item, first=first, count=2)
    channel = Channel[tuple[str, int], tuple[str, int]](policy.begin(4), 4, producers=1)
    channel.put(("outer", 6))
    channel.put(("inner", 6))
    taken = []
    for _ in range(2):
        taken.append(channel.get())
        channel.done()
    assert taken == [("inner", 5), ("inner", 6)]
