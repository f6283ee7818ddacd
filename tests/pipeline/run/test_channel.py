"""Channels between real threads with forced interleavings: a reading of the clock shows that a thread now waits."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import pytest

from threadloom.pipeline import AdmissionError, Cancelled, Channel, Closed, Fifo, Gather, InOrder, PipelineError

pytestmark = pytest.mark.timeout(60)

PAIRS = InOrder[tuple[str, int]](order=lambda item: item)


def in_thread(fn: Callable[[], Any]) -> Future[Any]:
    future: Future[Any] = Future()

    def work() -> None:
        try:
            future.set_result(fn())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


class WaitClock:
    """A clock that always returns `now`. A channel reads it, holding its lock, just before a thread parks."""

    def __init__(self) -> None:
        self.now = 0
        self.read = threading.Semaphore(0)

    def __call__(self) -> int:
        self.read.release()
        return self.now

    @contextmanager
    def one_waits(self) -> Iterator[None]:
        """Return after the thread that the body starts waits: the next thread that takes the lock finds it parked."""
        while self.read.acquire(blocking=False):
            pass  # readings at the ends of earlier waits
        yield
        assert self.read.acquire(timeout=30)


def drain(channel: Channel[Any, Any]) -> list[Any]:
    taken = []
    while True:
        try:
            taken.append(channel.get())
        except Closed:
            return taken


def test_first_in_first_out_until_closed() -> None:
    channel = Channel[int, int](Fifo().begin(3), 3, producers=1)
    for item in range(3):
        channel.put(item)
    channel.close()
    assert drain(channel) == [0, 1, 2]
    with pytest.raises(Closed):
        channel.get()


def test_a_full_channel_blocks_its_sender() -> None:
    clock = WaitClock()
    channel = Channel[int, int](Fifo().begin(1), 1, producers=1, clock=clock)
    channel.put(0)
    with clock.one_waits():
        sent = in_thread(lambda: channel.put(1))
    assert not sent.done()
    assert channel.depth == 1
    assert channel.get() == 0
    sent.result(30)
    assert channel.get() == 1


def test_the_awaited_item_enters_a_full_channel() -> None:
    """Items 1 and 2 fill a capacity of 2, a third sender waits with 3, and 0 arrives last: no deadlock."""
    clock = WaitClock()
    channel = Channel[tuple[str, int], tuple[str, int]](PAIRS.begin(2), 2, producers=4, clock=clock)
    channel.put(("k", 1))
    channel.put(("k", 2))
    with clock.one_waits():
        third = in_thread(lambda: channel.put(("k", 3)))
    assert not third.done()
    channel.put(("k", 0))  # does not block: the bound is the capacity plus one per key
    assert channel.statistics().max_depth == 3
    taken = []
    for _ in range(4):
        taken.append(channel.get())
        channel.done()
    assert taken == [("k", index) for index in range(4)]
    third.result(30)


def test_a_certain_deadlock_raises() -> None:
    """The only producer would wait for capacity that only its own next item could free."""
    channel = Channel[tuple[str, int], tuple[str, int]](PAIRS.begin(2), 2, producers=1)
    channel.put(("k", 1))
    channel.put(("k", 2))
    with pytest.raises(AdmissionError, match="key 'k' waits for item 0 and holds 1, 2"):
        channel.put(("k", 3))


def test_a_deadlock_is_detected_when_the_last_other_producer_closes() -> None:
    clock = WaitClock()
    channel = Channel[tuple[str, int], tuple[str, int]](PAIRS.begin(1), 1, producers=2, clock=clock)
    channel.put(("k", 1))
    with clock.one_waits():
        sent = in_thread(lambda: channel.put(("k", 2)))
    channel.close()
    with pytest.raises(AdmissionError, match="waits for item 0"):
        sent.result(30)


def test_exclusive_receivers_wait_for_done_and_then_for_the_end() -> None:
    clock = WaitClock()
    channel = Channel[tuple[str, int], tuple[str, int]](PAIRS.begin(2), 2, producers=1, clock=clock)
    channel.put(("k", 0))
    channel.put(("k", 1))
    assert channel.get(0) == ("k", 0)
    with clock.one_waits():
        second = in_thread(lambda: channel.get(1))
    assert not second.done()
    channel.done(0)
    assert second.result(30) == ("k", 1)
    with clock.one_waits():
        end = in_thread(lambda: channel.get(0))
    channel.close()
    channel.done(1)  # only after this can no further item become ready
    with pytest.raises(Closed):
        end.result(30)


def test_a_group_is_taken_as_one_and_missing_items_are_named_at_the_end() -> None:
    channel = Channel[int, list[int]](Gather[int](lambda item: item % 2, 2).begin(1), 1, producers=1)
    for item in (0, 1, 2):
        channel.put(item)
    channel.close()
    assert channel.get() == [0, 2]
    with pytest.raises(AdmissionError, match="key 1 has 1"):
        channel.get()


@pytest.mark.parametrize("policy", [Fifo(), InOrder[int](order=lambda item: (0, item))])
def test_abort_wakes_all_waiting_threads(policy: Any) -> None:
    clock = WaitClock()
    empty, full = (Channel[int, int](policy.begin(1), 1, producers=9, clock=clock) for _ in range(2))
    full.put(0)
    waiting = []
    for _ in range(3):
        with clock.one_waits():
            waiting.append(in_thread(empty.get))
    for item in (1, 2, 3) if isinstance(policy, Fifo) else (2, 3, 4):
        with clock.one_waits():
            waiting.append(in_thread(lambda item=item: full.put(item)))  # type: ignore[misc]
    for channel in (empty, full):
        channel.abort()
        channel.abort()
    for future in waiting:
        with pytest.raises(Cancelled):
            future.result(30)
    for late in (full.get, lambda: empty.put(0)):
        with pytest.raises(Cancelled):
            late()


@pytest.mark.parametrize("policy", [Fifo(), InOrder[int](order=lambda item: (0, item), exclusive=False)])
@pytest.mark.parametrize("seen", [False, True])
def test_put_after_the_last_close_is_an_error(policy: Any, seen: bool) -> None:
    channel = Channel[int, int](policy.begin(2), 2, producers=2)
    channel.close()
    channel.put(0)  # one producer is left
    channel.close()
    if seen:
        assert channel.get() == 0
        with pytest.raises(Closed):
            channel.get()
    with pytest.raises(PipelineError, match=r"put\(\) was called after the last close\(\)"):
        channel.put(1)
    assert channel.statistics().items == 1
    assert drain(channel) == ([] if seen else [0])


def test_the_last_close_ends_the_wait_of_a_sender_that_no_producer_is() -> None:
    clock = WaitClock()
    channel = Channel[int, int](Fifo().begin(1), 1, producers=1, clock=clock)
    channel.put(0)
    with clock.one_waits():
        sent = in_thread(lambda: channel.put(1))
    channel.close()
    with pytest.raises(PipelineError, match="after the last close"):
        sent.result(30)
    assert drain(channel) == [0]


def test_close_wakes_waiting_receivers() -> None:
    clock = WaitClock()
    channel = Channel[int, int](Fifo().begin(1), 1, producers=2, clock=clock)
    with clock.one_waits():
        first = in_thread(channel.get)
    with clock.one_waits():
        second = in_thread(channel.get)
    channel.close()
    assert not first.done()
    channel.close()
    for future in (first, second):
        with pytest.raises(Closed):
            future.result(30)


@pytest.mark.parametrize("capacity", [1, 3])
def test_many_producers_and_consumers_pass_each_item_once(capacity: int) -> None:
    channel = Channel[int, int](Fifo().begin(capacity), capacity, producers=4)

    def produce(start: int) -> None:
        for item in range(start, 2000, 4):
            channel.put(item)
        channel.close()

    consumers = [in_thread(lambda: drain(channel)) for _ in range(4)]
    producers = [in_thread(lambda start=start: produce(start)) for start in range(4)]  # type: ignore[misc]
    for producer in producers:
        producer.result(30)
    assert sorted(item for consumer in consumers for item in consumer.result(30)) == list(range(2000))
    assert channel.statistics().max_depth <= capacity


def test_statistics_count_waits_in_progress() -> None:
    clock = WaitClock()
    channel = Channel[int, int](Fifo().begin(2), 2, producers=2, clock=clock)
    channel.put(0)
    channel.put(1)
    with clock.one_waits():
        sent = in_thread(lambda: channel.put(2))
    clock.now = 3_000_000_000
    statistics = channel.statistics()
    assert (statistics.depth, statistics.max_depth, statistics.mean_depth, statistics.items) == (2, 2, 1.5, 2)
    assert (statistics.blocked, statistics.starved) == (3.0, 0.0)
    channel.get()
    sent.result(30)
    clock.now = 9_000_000_000
    assert channel.statistics().blocked == 3.0
    assert channel.statistics().mean_depth == pytest.approx(5 / 3)
