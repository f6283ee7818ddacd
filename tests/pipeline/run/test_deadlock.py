"""Deadlock detection: a run that can never get an item it needs fails at once, wherever its workers wait."""

import threading
import time
from collections.abc import Iterable

import pytest

from threadloom.pipeline import AdmissionError, Graph, InOrder, Node, Run, StageFailure
from threadloom.pipeline.run.deadlock import QUIET, ChannelSnapshot, DeadlockDetector

pytestmark = pytest.mark.timeout(20)

LATE = [*range(1, 30), 0]
"""Items that a channel of capacity 1 cannot put in order: the first arrives last."""


def in_order(graph: Graph, node: Node[int]) -> None:
    """Add a stage that takes the items 0, 1, 2, ... in order, with an input channel of capacity 1."""
    graph.stage("b", lambda item: item, after=node, capacity=1, admission=InOrder[int](lambda item: (0, item)))


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_an_ordered_stage_of_many_workers_sends_with_one(workers: int) -> None:
    graph = Graph("g")
    node = graph.stage("a", lambda item: item, after=graph.source("src", LATE), workers=workers, ordered=True)
    in_order(graph, node)
    with pytest.raises(StageFailure, match="key 0 waits for item 0") as caught:
        graph.run()
    assert isinstance(caught.value.__cause__, AdmissionError)


def test_receivers_wait_for_a_key_whose_worker_is_blocked() -> None:
    """Two of four workers hold an item each; the other two get no item of these keys before the first two are done."""
    graph = Graph("g")
    one_by_one = InOrder[int](lambda item: (LATE.index(item) % 2, LATE.index(item) // 2))
    node = graph.stage(
        "a", lambda item: item, after=graph.source("src", LATE), workers=4, capacity=40, admission=one_by_one
    )
    in_order(graph, node)
    with pytest.raises(StageFailure, match="key 0 waits for item 0"):
        graph.run()


def test_a_producer_starves_downstream_of_a_blocked_source() -> None:
    """The source cannot send item 0 to the second branch while the first is full of earlier items."""
    graph = Graph("g")
    source = graph.source("src", LATE)
    odd = graph.stage("odd", lambda item: item, after=source, when=lambda item: item > 0)
    even = graph.stage("even", lambda item: item, after=source, when=lambda item: item == 0)
    graph.sink("out", after=[odd, even], capacity=1, admission=InOrder[int](lambda item: (0, item)))
    with pytest.raises(StageFailure, match="key 0 waits for item 0"):
        list(graph)


def test_the_missing_item_of_a_join_is_upstream_of_those_that_fill_it() -> None:
    graph = Graph("g")
    numbers = graph.source("numbers", range(100))
    some = graph.stage("some", lambda item: item, after=numbers, when=lambda item: item > 50)
    graph.sink("out", after=graph.join("join", sum, after=[numbers, some], keys=[int, int]))
    with pytest.raises(StageFailure, match="key 0 lacks an item of 'some'"):
        list(graph)


def test_a_deadlock_becomes_certain_when_the_last_other_worker_ends() -> None:
    """`other` ends without using the suspected channel, after all other workers have parked."""
    graph = Graph("g")
    node = graph.stage("a", lambda item: item, after=graph.source("src", LATE), workers=2, ordered=True)
    in_order(graph, node)
    graph.stage("other", lambda item: item, after=graph.source("more", range(2000)))
    with pytest.raises(StageFailure, match="key 0 waits for item 0"):
        graph.run()


# The decision, driven event by event.


class FakeChannel:
    """A channel in a given state, with an object for each parked thread."""

    def __init__(self, *, suspected: bool = False, senders: int = 0, receivers: int = 0) -> None:
        self.suspected, self.paused, self.empty = suspected, False, True
        self.senders = tuple(object() for _ in range(senders))
        self.receivers = tuple(object() for _ in range(receivers))
        self.looks = 0
        self.failed = False

    def snapshot(self) -> ChannelSnapshot:
        self.looks += 1
        return ChannelSnapshot(self.senders, self.receivers, self.suspected, self.paused, self.empty)

    def fail_senders(self) -> None:
        self.failed = True


class RestlessChannel(FakeChannel):
    """A channel whose receiver continues between two looks, and waits again."""

    def snapshot(self) -> ChannelSnapshot:
        self.receivers = (object(),)
        return super().snapshot()


def detector_of(inner: Iterable[FakeChannel], sinks: Iterable[FakeChannel], alive: int) -> DeadlockDetector:
    detector = DeadlockDetector()
    detector.watch(tuple(inner), tuple(sinks), lambda: alive)
    return detector


def test_only_the_suspected_channel_fails_when_all_workers_are_parked() -> None:
    other, suspect = FakeChannel(senders=1, receivers=1), FakeChannel(suspected=True, senders=1, receivers=1)
    detector_of([other, suspect], [], alive=4).look()
    assert (other.failed, suspect.failed) == (False, True)


def test_a_running_worker_may_send_the_item() -> None:
    suspect = FakeChannel(suspected=True, senders=1, receivers=1)
    detector = detector_of([suspect], [], alive=3)
    detector.look()
    assert not suspect.failed


def test_a_paused_run_is_not_deadlocked() -> None:
    suspect = FakeChannel(suspected=True, senders=1, receivers=1)
    suspect.paused = True
    detector_of([suspect], [], alive=2).look()
    assert not suspect.failed


def test_the_caller_may_take_an_item_from_a_sink() -> None:
    suspect, sink = FakeChannel(suspected=True, senders=1, receivers=1), FakeChannel(senders=1)
    sink.empty = False
    detector = detector_of([suspect], [sink], alive=3)
    detector.look()
    assert not suspect.failed
    sink.empty = True
    detector.look()
    assert suspect.failed


def test_the_caller_is_not_counted_as_a_worker() -> None:
    suspect, sink = FakeChannel(suspected=True, senders=1, receivers=1), FakeChannel(receivers=1)
    detector_of([suspect], [sink], alive=3).look()
    assert not suspect.failed


def test_a_worker_that_has_moved_between_two_looks_is_not_parked() -> None:
    suspect = FakeChannel(suspected=True, senders=1)
    detector_of([suspect, RestlessChannel()], [], alive=2).look()
    assert not suspect.failed


def test_no_channel_is_looked_at_more_than_once_per_quiet_period() -> None:
    """Each of a hundred blocked senders asks; the first look serves all."""
    suspect = FakeChannel(suspected=True, senders=1)
    detector = detector_of([suspect], [], alive=2)
    for _ in range(100):
        detector.check()
    assert suspect.looks == 1


def test_channels_that_move_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short and a long way into a join: the short one waits at the full join while the long one moves."""
    looks: list[object] = []
    monkeypatch.setattr(DeadlockDetector, "look", looks.append)
    graph = Graph("deep")
    source = node = graph.source("numbers", range(300))
    for depth in range(10):
        node = graph.stage(f"pass{depth}", lambda item: item, after=node)
    join: Node[int] = graph.join("join", sum, after=[source, node])
    graph.sink("out", after=join)
    began = time.monotonic()
    assert list(graph) == [2 * item for item in range(300)]
    assert len(looks) <= (time.monotonic() - began) / QUIET


@pytest.mark.timeout(60)
def test_a_deadlock_in_a_graph_of_a_thousand_stages_is_found() -> None:
    """No recursion, and no cost that grows with the square of the depth: the time limit of this test is that bound."""
    graph = Graph("deep")
    source = node = graph.source("numbers", range(10_000))
    for depth in range(1000):
        node = graph.stage(f"pass{depth}", lambda item: item, after=node, capacity=1)
    never = graph.stage("never", lambda item: item, after=node, when=lambda item: item < 0)
    graph.sink("out", after=graph.join("join", sum, after=[source, never]))
    with pytest.raises(StageFailure, match="lacks an item of 'never'"):
        list(graph)


def test_the_end_of_one_sink_makes_a_deadlock_at_another_certain(monkeypatch: pytest.MonkeyPatch) -> None:
    """All workers are parked while one sink still holds items; once they are taken, the deadlock is certain."""
    all_parked = threading.Event()
    look = DeadlockDetector.look

    def watched(detector: DeadlockDetector) -> None:
        look(detector)
        sinks = [each.snapshot() for each in detector.sinks]
        waits = [len(each.senders + each.receivers) for each in (each.snapshot() for each in detector.inner)]
        assert detector.alive is not None
        senders = sum(len(each.senders) for each in sinks)
        if sum(waits) + senders == detector.alive() and [len(each.receivers) for each in sinks] == [1, 0]:
            all_parked.set()

    monkeypatch.setattr(DeadlockDetector, "look", watched)
    graph = Graph("two sinks")
    late = graph.source("late", range(1, 1000))  # item 0, which the others wait for, is never sent
    passed = graph.stage("pass", lambda item: item, after=late, workers=2, ordered=True)
    graph.sink(
        "stuck",
        after=graph.stage(
            "turn", lambda item: item, after=passed, capacity=1, admission=InOrder(lambda item: (0, item))
        ),
    )
    graph.sink("free", after=graph.source("two", range(2)), capacity=4)
    failures: list[BaseException] = []

    def consume(run: Run) -> None:
        try:
            list(run.items("stuck"))
        except StageFailure as failure:
            failures.append(failure)

    with pytest.raises(StageFailure, match="deadlock: the channel is full"), graph.start() as run:
        consumer = threading.Thread(target=consume, args=(run,))
        consumer.start()
        assert all_parked.wait(30)
        assert not failures
        assert list(run.items("free")) == [0, 1]
        consumer.join(30)
        assert failures
        raise failures[0]
