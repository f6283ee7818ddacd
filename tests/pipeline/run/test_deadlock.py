"""A run that cannot go on for want of an item is an error at once, whatever keeps its workers from bringing it."""

import threading
from collections.abc import Callable, Iterable, Sequence

import pytest

from threadloom.pipeline import AdmissionError, Graph, InOrder, Node, Run, StageFailure
from threadloom.pipeline.run.deadlock import DeadlockDetector, Inspectable

pytestmark = pytest.mark.timeout(20)

LATE = [*range(1, 30), 0]
"""What a channel of capacity 1 cannot put in order: the first comes last."""


def in_order(graph: Graph, node: Node[int]) -> None:
    """Add a stage that needs the items 0, 1, 2, ... in order, and holds one at most."""
    graph.stage("b", lambda item: item, after=node, capacity=1, admission=InOrder[int](lambda item: (0, item)))


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_an_ordered_stage_of_many_workers_sends_with_one(workers: int) -> None:
    graph = Graph("g")
    node = graph.stage("a", lambda item: item, after=graph.source("src", LATE), workers=workers, ordered=True)
    in_order(graph, node)
    with pytest.raises(StageFailure, match="key 0 waits for item 0") as caught:
        graph.run()
    assert isinstance(caught.value.__cause__, AdmissionError)


def test_workers_that_wait_for_the_key_in_the_hands_of_a_refused_one() -> None:
    """Of four workers two hold an item each, and the other two get none of these keys before they are done."""
    graph = Graph("g")
    one_by_one = InOrder[int](lambda item: (LATE.index(item) % 2, LATE.index(item) // 2))
    node = graph.stage(
        "a", lambda item: item, after=graph.source("src", LATE), workers=4, capacity=40, admission=one_by_one
    )
    in_order(graph, node)
    with pytest.raises(StageFailure, match="key 0 waits for item 0"):
        graph.run()


def test_a_producer_that_starves_behind_a_source_that_is_blocked() -> None:
    """The source cannot send item 0 to the second way while the first is full of those before it."""
    graph = Graph("g")
    source = graph.source("src", LATE)
    odd = graph.stage("odd", lambda item: item, after=source, when=lambda item: item > 0)
    even = graph.stage("even", lambda item: item, after=source, when=lambda item: item == 0)
    graph.sink("out", after=[odd, even], capacity=1, admission=InOrder[int](lambda item: (0, item)))
    with pytest.raises(StageFailure, match="key 0 waits for item 0"):
        list(graph)


def test_a_join_whose_lacking_item_is_behind_those_that_fill_it() -> None:
    graph = Graph("g")
    numbers = graph.source("numbers", range(100))
    some = graph.stage("some", lambda item: item, after=numbers, when=lambda item: item > 50)
    graph.sink("out", after=graph.join("join", sum, after=[numbers, some], keys=[int, int]))
    with pytest.raises(StageFailure, match="key 0 lacks an item of 'some'"):
        list(graph)


def test_it_becomes_certain_when_the_last_other_worker_ends() -> None:
    """`other` ends without a word to the suspected channel, when all that it could wait for is parked."""
    graph = Graph("g")
    node = graph.stage("a", lambda item: item, after=graph.source("src", LATE), workers=2, ordered=True)
    in_order(graph, node)
    graph.stage("other", lambda item: item, after=graph.source("more", range(2000)))
    with pytest.raises(StageFailure, match="key 0 waits for item 0"):
        graph.run()


# The decision, event by event.


class Fake:
    """A channel that is as it is told to be."""

    def __init__(self, *, suspected: bool = False, senders: int = 0, receivers: int = 0) -> None:
        self.suspected, self.paused, self.empty = suspected, False, True
        self.senders, self.receivers = senders, receivers
        self.failed = False

    def with_all_locked(self, others: Sequence[Inspectable], then: Callable[[], None]) -> None:
        if others:
            others[0].with_all_locked(others[1:], then)
        else:
            then()

    def parked(self) -> tuple[int, int]:
        return self.senders, self.receivers

    def has_blocked_senders(self) -> bool:
        return self.suspected

    def held(self) -> bool:
        return self.paused

    def idle(self) -> bool:
        return self.empty

    def fail_senders(self) -> None:
        self.failed = True


def detector_of(inner: Iterable[Fake], sinks: Iterable[Fake], working: int) -> DeadlockDetector:
    detector = DeadlockDetector()
    detector.watch(tuple(inner), tuple(sinks), lambda: working)
    detector.suspected = True
    return detector


def test_only_the_channel_in_doubt_gives_up_when_all_are_parked() -> None:
    before, suspect = Fake(senders=1, receivers=1), Fake(suspected=True, senders=1, receivers=1)
    detector_of([before, suspect], [], working=4).check()
    assert (before.failed, suspect.failed) == (False, True)


def test_a_worker_that_moves_may_bring_it() -> None:
    suspect = Fake(suspected=True, senders=1, receivers=1)
    detector = detector_of([suspect], [], working=3)
    detector.check()
    assert not suspect.failed
    assert detector.suspected


def test_a_pause_is_no_standstill() -> None:
    suspect = Fake(suspected=True, senders=1, receivers=1)
    suspect.paused = True
    detector_of([suspect], [], working=2).check()
    assert not suspect.failed


def test_a_caller_may_come_for_what_is_in_a_sink() -> None:
    suspect, sink = Fake(suspected=True, senders=1, receivers=1), Fake(senders=1)
    sink.empty = False
    detector = detector_of([suspect], [sink], working=3)
    detector.check()
    assert not suspect.failed
    sink.empty = True
    detector.check()
    assert suspect.failed


def test_the_caller_is_no_worker() -> None:
    suspect, sink = Fake(suspected=True, senders=1, receivers=1), Fake(receivers=1)
    detector_of([suspect], [sink], working=3).check()
    assert not suspect.failed


def test_a_doubt_that_has_passed_costs_nothing_more() -> None:
    detector = detector_of([Fake(senders=1)], [], working=1)
    detector.check()
    assert not detector.suspected


def test_the_end_of_one_sink_may_make_it_certain_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everyone is parked, but for a sink that still has items for its caller; he takes them, and is told of the end."""
    all_parked = threading.Event()
    decide = DeadlockDetector._decide

    def watched(detector: DeadlockDetector) -> None:
        decide(detector)
        inner, sinks = [each.parked() for each in detector._inner], [each.parked() for each in detector._sinks]
        assert detector._working is not None
        senders = sum(sent for sent, _ in sinks)
        if sum(map(sum, inner)) + senders == detector._working() and (0, 1) in sinks:
            all_parked.set()

    monkeypatch.setattr(DeadlockDetector, "_decide", watched)
    graph = Graph("two sinks")
    late = graph.source("late", range(1, 1000))  # item 0, which the others wait for, never comes
    passed = graph.stage("pass", lambda item: item, after=late, workers=2, ordered=True)
    graph.sink(
        "stuck",
        after=graph.stage(
            "turn", lambda item: item, after=passed, capacity=1, admission=InOrder(lambda item: (0, item))
        ),
    )
    graph.sink("free", after=graph.source("two", range(2)), capacity=4)
    told: list[BaseException] = []

    def consume(run: Run) -> None:
        try:
            list(run.items("stuck"))
        except StageFailure as failure:
            told.append(failure)

    with pytest.raises(StageFailure, match="wait for one still behind them"), graph.start() as run:
        consumer = threading.Thread(target=consume, args=(run,))
        consumer.start()
        assert all_parked.wait(30)
        assert not told
        assert list(run.items("free")) == [0, 1]
        consumer.join(30)
        assert told
        raise told[0]
