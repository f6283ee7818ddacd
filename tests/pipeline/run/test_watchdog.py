"""The watchdog: whom it blames and when, by made-up snapshots; and runs that really stand still."""

import logging
import threading
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
    Retry,
    Run,
    SkipFailed,
    StageFailure,
    Stalled,
    StallReport,
    Watchdog,
)
from threadloom.pipeline.observe.stage import NodeKind
from threadloom.pipeline.observe.statistics import Phase
from threadloom.pipeline.run.watchdog import StallTimer, WorkerSnapshot, find_blocker, next_check, overdue

pytestmark = pytest.mark.timeout(60)

BUSY, WAITING, BLOCKED = Phase.BUSY, Phase.WAITING, Phase.BLOCKED
SOON = 0.02


def stage(name: str, phase: Phase, seconds: float = 1, holds: bool = False) -> WorkerSnapshot:
    return WorkerSnapshot(name, NodeKind.STAGE, 0, phase, seconds, holds=holds)


def source(phase: Phase, seconds: float = 1) -> WorkerSnapshot:
    return WorkerSnapshot("source", NodeKind.SOURCE, 0, phase, seconds)


def sink(name: str, parked: bool, full: bool) -> WorkerSnapshot:
    return WorkerSnapshot(name, NodeKind.SINK, 0, WAITING, 1, parked=parked, full=full)


BLAMED: dict[str, tuple[list[WorkerSnapshot], str | None]] = {
    "nobody": ([], None),
    "an idle source is not": ([source(BUSY, 99), stage("a", WAITING), sink("out", parked=True, full=False)], None),
    "the busy stage": ([source(BLOCKED, 99), stage("a", BUSY), stage("b", WAITING, 50)], "a"),
    "the one that is longest": ([stage("a", BUSY, 1), stage("b", BUSY, 2)], "b"),
    "who waits in acquire": ([source(BLOCKED), stage("a", WAITING, holds=True), stage("b", WAITING)], "a"),
    "a caller elsewhere is not": ([source(BLOCKED), stage("a", BLOCKED), sink("out", parked=False, full=True)], None),
    "the sink that nobody drains": (
        [
            source(BLOCKED),
            stage("a", WAITING),
            sink("one", parked=True, full=False),
            sink("two", parked=False, full=True),
        ],
        "two",
    ),
    "who is blocked by a join": (
        [source(BLOCKED), stage("join", WAITING), sink("out", parked=True, full=False)],
        "source",
    ),
}


@pytest.mark.parametrize("case", BLAMED)
def test_whom_a_standstill_waits_for(case: str) -> None:
    snapshots, name = BLAMED[case]
    found = find_blocker(snapshots)
    assert (found[0].stage if found else None) == name


def test_limits_are_looked_at_when_they_are_due() -> None:
    snapshots = [stage("a", BUSY, 1), stage("b", BUSY, 7), stage("c", BUSY, 99)]
    assert overdue(snapshots, {"a": 1.5, "b": 7.5}) is None
    assert next_check(snapshots, {"a": 1.5, "b": 7.5}, after=60) == 0.5
    assert overdue(snapshots, {"a": 1.5, "b": 7.0}) == snapshots[1]
    assert next_check([], {"a": 1.5}, after=60) == 1.5  # an item that begins now is due then
    assert next_check([], {}, after=60) == 15


class StallTimerMachine(RuleBasedStateMachine):
    """Time that passes with and without progress; told once, after long enough, and again only after progress."""

    def __init__(self) -> None:
        super().__init__()
        self.timer = StallTimer(after=10, now=0)
        self.now = self.still = 0
        self.progress = 0
        self.told = False
        self.timer.look(0, 0, True)

    @rule(seconds=st.integers(1, 6), items=st.sampled_from([0, 0, 0, 1]), waits=st.sampled_from([True, True, False]))
    def look(self, seconds: int, items: int, waits: bool) -> None:
        self.now += seconds
        self.progress += items
        self.still = 0 if items or not waits else self.still + seconds
        if not self.still:
            self.told = False
        due = self.timer.look(self.now, self.progress, waits)
        assert due == (self.still >= 10 and not self.told)
        self.told |= due


test_stall_timer = StallTimerMachine.TestCase


class Held:
    """A stage function that returns when it is let go."""

    def __init__(self) -> None:
        self.let = threading.Event()

    def __call__(self, item: int) -> int:
        assert self.let.wait(30)
        return item

    def tell(self, stuck: StallReport) -> None:
        self.stuck = stuck
        self.let.set()


def graph_of(fn: Any, **options: Any) -> Graph:
    graph = Graph("g")
    graph.sink("out", after=graph.stage("work", fn, after=graph.source("draw", [7]), **options))
    return graph


def drain(run: Run) -> list[int]:
    return list(run)


def test_a_stuck_stage_is_named_with_item_thread_and_stack() -> None:
    held = Held()
    with graph_of(held).start(watchdog=Watchdog(SOON, held.tell), label=lambda item: {"item": item}) as run:
        assert drain(run) == [7]
    stuck = held.stuck
    assert (stuck.stage, stuck.worker, stuck.thread, stuck.item) == ("work", 0, "g.work-0", "item=7")
    assert "in __call__" in stuck.stack
    assert "stage 'work' (worker 0) has been inside its function for" in str(stuck)
    assert stuck.seconds >= SOON


def test_it_can_be_written_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    held = Held()

    class Release(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            held.let.set()

    logger, handler = logging.getLogger("threadloom.pipeline.run.watchdog"), Release()
    logger.addHandler(handler)
    try:
        with graph_of(held).start(watchdog=Watchdog(SOON)) as run:
            drain(run)
    finally:
        logger.removeHandler(handler)
    assert "nothing has moved for 0.02 s: stage 'work' (worker 0)" in caplog.text


def test_it_can_fail_the_run_and_a_thread_that_stays_is_reported() -> None:
    held = Held()
    with pytest.raises(StageFailure, match=r"'work' .* failed on 7: Stalled: nothing has moved") as caught:
        with graph_of(held).start(watchdog=Watchdog(SOON, OnStall.FAIL), grace=0.1) as run:
            drain(run)
    assert isinstance(caught.value.__cause__, Stalled)
    assert "g.work-0" in caught.value.__notes__[0]
    held.let.set()


def test_sinks_drained_one_after_the_other_are_found() -> None:
    graph = Graph("g")
    numbers = graph.source("numbers", range(100))
    graph.sink("one", after=numbers)
    graph.sink("two", after=numbers)
    with pytest.raises(
        StageFailure, match=r"stage 'two' .* nobody has taken from it, while the caller waits at another"
    ):
        with graph.start(watchdog=Watchdog(SOON, OnStall.FAIL)) as run:
            for name in ("one", "two"):
                list(run.items(name))


def test_a_join_that_lacks_an_item_is_found() -> None:
    """The other source may still make it, so that this is no certain error; but it takes its time."""
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
    with pytest.raises(StageFailure, match=r"stage 'numbers' .* blocked at a full channel"):
        with graph.start(watchdog=Watchdog(SOON, OnStall.FAIL), resources=[Resource()]) as run:
            drain(run)


def test_who_waits_for_a_resource_is_found() -> None:
    held = Held()
    with graph_of(int, acquire=held).start(watchdog=Watchdog(SOON, held.tell)) as run:
        drain(run)
    assert "waiting in `acquire`" in held.stuck.doing


def test_idle_sources_callers_elsewhere_and_pauses_are_not_stuck() -> None:
    told: list[StallReport] = []
    looks = threading.Semaphore(0)
    more = threading.Event()

    def draw() -> Iterator[int]:
        yield 0
        assert more.wait(30)
        yield from range(1, 20)

    graph = Graph("g")
    graph.sink("out", after=graph.stage("work", int, after=graph.source("draw", draw)))
    with graph.start(watchdog=Watchdog(SOON, told.append)) as run:
        look = run._look

        def counted() -> Any:
            looks.release()
            return look()

        assert run._watch is not None
        object.__setattr__(run._watch._run, "look", counted)
        items = iter(run)
        assert next(items) == 0
        for step in (more.set, run.pause, run.resume):
            for _ in range(9):  # longer than it waits
                assert looks.acquire(timeout=30)
            step()
        assert list(items) == list(range(1, 20))
    assert told == []


def test_an_error_of_the_callback_is_not_lost() -> None:
    held = Held()

    def broken(stuck: StallReport) -> None:
        held.let.set()
        raise KeyError

    with pytest.raises(StageFailure, match=r"'watchdog' .* failed on a standstill: KeyError"):
        with graph_of(held).start(watchdog=Watchdog(SOON, broken)) as run:
            run._over.wait()
            drain(run)


@pytest.mark.parametrize("watchdog", [None, Watchdog()])
def test_an_item_over_its_limit_fails_the_run_whatever_the_policy(watchdog: Watchdog | None) -> None:
    held = Held()
    graph = graph_of(held, limit=SOON, on_error=Retry(then=SkipFailed()))
    with pytest.raises(
        StageFailure, match=r"'work' .* failed on 7: ItemTimeout: it took longer than .* 0.02 s"
    ) as caught:
        with graph.start(watchdog=watchdog, grace=0.1) as run:
            drain(run)
    assert isinstance(caught.value.__cause__, ItemTimeout)
    assert "in __call__" in str(caught.value)
    held.let.set()


def test_a_run_need_not_be_watched() -> None:
    with graph_of(int).start(watchdog=None) as run:
        assert not [thread for thread in threading.enumerate() if thread.name == "g.watchdog"]
        assert drain(run) == [7]
    with pytest.raises(ValueError, match="after > 0"):
        Watchdog(0)
    with pytest.raises(GraphError, match="'work' needs a limit of more than 0 seconds"):
        graph_of(int, limit=0)
