"""The watchdog: the blocker of a run, from constructed snapshots, and runs that stall."""

import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from threadloom.pipeline import (
    Graph,
    GraphError,
    ItemTimeout,
    OnStall,
    Run,
    StageFailure,
    Stalled,
    StallReport,
    Watchdog,
)
from threadloom.pipeline.observe.stage import NodeKind
from threadloom.pipeline.observe.statistics import Phase
from threadloom.pipeline.run.stall_detection import StallTimer, WorkerSnapshot, find_blocker, next_check, overdue

pytestmark = pytest.mark.timeout(60)

BUSY, WAITING, BLOCKED = Phase.BUSY, Phase.WAITING, Phase.BLOCKED
SOON = 0.02


def stage(name: str, phase: Phase, seconds: float = 1, holds: bool = False) -> WorkerSnapshot:
    return WorkerSnapshot(name, NodeKind.STAGE, 0, phase, seconds, holds=holds)


def source(phase: Phase, seconds: float = 1) -> WorkerSnapshot:
    return WorkerSnapshot("source", NodeKind.SOURCE, 0, phase, seconds)


def sink(name: str, parked: bool, full: bool) -> WorkerSnapshot:
    return WorkerSnapshot(name, NodeKind.SINK, 0, WAITING, 1, parked=parked, full=full)


BLOCKERS: dict[str, tuple[list[WorkerSnapshot], str | None]] = {
    "nothing": ([], None),
    "not an idle source": ([source(BUSY, 99), stage("a", WAITING), sink("out", parked=True, full=False)], None),
    "the busy stage": ([source(BLOCKED, 99), stage("a", BUSY), stage("b", WAITING, 50)], "a"),
    "the longest busy stage": ([stage("a", BUSY, 1), stage("b", BUSY, 2)], "b"),
    "a stage that waits in acquire": ([source(BLOCKED), stage("a", WAITING, holds=True), stage("b", WAITING)], "a"),
    "not a caller elsewhere": ([source(BLOCKED), stage("a", BLOCKED), sink("out", parked=False, full=True)], None),
    "a full sink that nobody reads": (
        [
            source(BLOCKED),
            stage("a", WAITING),
            sink("one", parked=True, full=False),
            sink("two", parked=False, full=True),
        ],
        "two",
    ),
    "a source blocked by a join": (
        [source(BLOCKED), stage("join", WAITING), sink("out", parked=True, full=False)],
        "source",
    ),
}


@pytest.mark.parametrize("case", BLOCKERS)
def test_the_blocker_of_a_stalled_run(case: str) -> None:
    snapshots, name = BLOCKERS[case]
    found = find_blocker(snapshots)
    assert (found[0].stage if found else None) == name


def test_time_limits_are_checked_when_they_are_due() -> None:
    snapshots = [stage("a", BUSY, 1), stage("b", BUSY, 7), stage("c", BUSY, 99)]
    assert overdue(snapshots, {"a": 1.5, "b": 7.5}) is None
    assert next_check(snapshots, {"a": 1.5, "b": 7.5}, after=60) == 0.5
    assert overdue(snapshots, {"a": 1.5, "b": 7.0}) == snapshots[1]
    assert next_check([], {"a": 1.5}, after=60) == 1.5  # the limit of an item that starts now
    assert next_check([], {}, after=60) == 15


class StallTimerMachine(RuleBasedStateMachine):
    """Time passes with and without progress; a stall is reported once, and again only after progress."""

    def __init__(self) -> None:
        super().__init__()
        self.timer = StallTimer(after=10, now=0)
        self.now = self.still = 0
        self.progress = 0
        self.reported = False
        self.timer.update(0, 0, True)

    @rule(seconds=st.integers(1, 6), items=st.sampled_from([0, 0, 0, 1]), blocked=st.sampled_from([True, True, False]))
    def advance(self, seconds: int, items: int, blocked: bool) -> None:
        self.now += seconds
        self.progress += items
        self.still = 0 if items or not blocked else self.still + seconds
        if not self.still:
            self.reported = False
        due = self.timer.update(self.now, self.progress, blocked)
        assert due == (self.still >= 10 and not self.reported)
        self.reported |= due


test_stall_timer = StallTimerMachine.TestCase


class Held:
    """A stage function that returns once it is released."""

    def __init__(self) -> None:
        self.released = threading.Event()

    def __call__(self, item: int) -> int:
        assert self.released.wait(30)
        return item

    def receive(self, report: StallReport) -> None:
        self.report = report
        self.released.set()


def graph_of(fn: Any, **options: Any) -> Graph:
    graph = Graph("g")
    graph.sink("out", after=graph.stage("work", fn, after=graph.source("draw", [7]), **options))
    return graph


def drain(run: Run) -> list[int]:
    return list(run)


def test_a_stall_report_names_stage_item_thread_and_stack() -> None:
    held = Held()
    with graph_of(held).start(watchdog=Watchdog(SOON, held.receive), label=lambda item: {"item": item}) as run:
        assert drain(run) == [7]
    report = held.report
    assert (report.stage, report.worker, report.thread, report.item) == ("work", 0, "g.work-0", "item=7")
    assert "in __call__" in report.stack
    assert "stage 'work' (worker 0) has been inside its function for" in str(report)
    assert report.seconds >= SOON


def test_a_stall_can_be_logged(caplog: pytest.LogCaptureFixture) -> None:
    held = Held()

    class Release(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            held.released.set()

    logger, handler = logging.getLogger("threadloom.pipeline.watchdog"), Release()
    logger.addHandler(handler)
    try:
        with graph_of(held).start(watchdog=Watchdog(SOON)) as run:
            drain(run)
    finally:
        logger.removeHandler(handler)
    assert "no progress for 0.02 s: stage 'work' (worker 0)" in caplog.text


def test_a_stall_can_fail_the_run_and_a_remaining_thread_is_reported() -> None:
    held = Held()
    with pytest.raises(StageFailure, match=r"'work' .* failed on 7: Stalled: no progress") as caught:
        with graph_of(held).start(watchdog=Watchdog(SOON, OnStall.FAIL), grace=0.1) as run:
            drain(run)
    assert isinstance(caught.value.__cause__, Stalled)
    assert "g.work-0" in caught.value.__notes__[0]
    held.released.set()


def test_sinks_drained_one_after_the_other_are_reported() -> None:
    graph = Graph("g")
    numbers = graph.source("numbers", range(100))
    graph.sink("one", after=numbers)
    graph.sink("two", after=numbers)
    with pytest.raises(StageFailure, match=r"stage 'two' .* full and not read, while the caller waits at another sink"):
        with graph.start(watchdog=Watchdog(SOON, OnStall.FAIL)) as run:
            for name in ("one", "two"):
                list(run.items(name))


def test_a_join_that_lacks_an_item_is_reported() -> None:
    """The other source may still send it, so the run is not deadlocked; but it stalls."""
    failed = threading.Event()

    class Resource:
        def abort(self) -> None:
            failed.set()

    def late() -> Iterator[int]:
        assert failed.wait(30)
        yield 0

    graph = Graph("g")
    numbers, other = graph.source("numbers", range(100)), graph.source("other", late)
    joined = graph.join("join", sum, after=[numbers, other], keys=[int, int])
    graph.sink("out", after=joined)
    with pytest.raises(StageFailure, match=r"stage 'numbers' .* blocked by a full channel"):
        with graph.start(watchdog=Watchdog(SOON, OnStall.FAIL), resources=[Resource()]) as run:
            drain(run)


def test_a_worker_that_waits_for_a_resource_is_reported() -> None:
    held = Held()
    with graph_of(int, acquire=held).start(watchdog=Watchdog(SOON, held.receive)) as run:
        drain(run)
    assert "waiting in `acquire`" in held.report.doing


def test_idle_sources_callers_elsewhere_and_pauses_are_not_stalls() -> None:
    reports: list[StallReport] = []
    readings = threading.Semaphore(0)  # of the run's clock by the watchdog: it reads it once or twice per check
    more = threading.Event()

    def draw() -> Iterator[int]:
        yield 0
        assert more.wait(30)
        yield from range(1, 20)

    graph = Graph("g")
    graph.sink("out", after=graph.stage("work", int, after=graph.source("draw", draw)))

    def clock() -> int:
        if threading.current_thread().name == "g.watchdog":
            readings.release()
        return time.perf_counter_ns()

    with graph.start(watchdog=Watchdog(SOON, reports.append), clock=clock) as run:
        items = iter(run)
        assert next(items) == 0
        for step in (more.set, run.pause, run.resume):
            for _ in range(18):  # at least nine checks, more than twice the time after which a stall is reported
                assert readings.acquire(timeout=30)
            step()
        assert list(items) == list(range(1, 20))
    assert reports == []


def test_an_error_of_the_callback_fails_the_run() -> None:
    held = Held()

    def broken(report: StallReport) -> None:
        held.released.set()
        raise KeyError

    with pytest.raises(StageFailure, match=r"'watchdog' .* failed on a stalled run: KeyError"):
        with graph_of(held).start(watchdog=Watchdog(SOON, broken)) as run:
            run.wait_decided()
            drain(run)


@pytest.mark.parametrize("watchdog", [None, Watchdog()])
def test_an_item_over_its_time_limit_fails_the_run(watchdog: Watchdog | None) -> None:
    """Without a failure policy; see test_late_calls."""
    held = Held()
    graph = graph_of(held, limit=SOON)
    with pytest.raises(
        StageFailure, match=r"'work' .* failed on 7: ItemTimeout: the item exceeded the time limit of 0.02 s"
    ) as caught:
        with graph.start(watchdog=watchdog, grace=0.1) as run:
            drain(run)
    assert isinstance(caught.value.__cause__, ItemTimeout)
    assert "in __call__" in str(caught.value)
    held.released.set()


def test_a_run_without_a_watchdog() -> None:
    with graph_of(int).start(watchdog=None) as run:
        assert not [thread for thread in threading.enumerate() if thread.name == "g.watchdog"]
        assert drain(run) == [7]
    with pytest.raises(ValueError, match="after > 0"):
        Watchdog(0)
    with pytest.raises(GraphError, match="'work' needs a limit of more than 0 seconds"):
        graph_of(int, limit=0)
