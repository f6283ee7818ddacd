"""Tests of run control: the state machines by hypothesis, and runs paused, drained and resized at forced moments."""

import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from threadloom.pipeline import Cancelled, Graph, PipelineError, Run
from threadloom.pipeline.policy.control import ACTIVE_STATES, RunAction, RunControl, RunState, WorkerCount
from threadloom.pipeline.run.source_gate import SourceGate

pytestmark = pytest.mark.timeout(60)

PROMPT = 20.0
"""Seconds for a command to take effect: usually milliseconds, more on a loaded machine."""


class ControlMachine(RuleBasedStateMachine):
    """Commands in any order, and the effect of their actions on channels and sources."""

    def __init__(self) -> None:
        super().__init__()
        self.control = RunControl()
        self.held = self.closed = self.aborted = False
        self.first: Cancelled | None = None

    @rule(order=st.sampled_from(["begin", "pause", "resume", "drain", "end"]))
    def give(self, order: str) -> None:
        if order == "end" and self.control.state is RunState.READY:
            return
        self._carry_out(getattr(self.control, order)())

    @rule()
    def stop(self) -> None:
        reason = Cancelled()
        self.first = self.first or reason
        self._carry_out(self.control.stop(reason))

    def _carry_out(self, actions: tuple[RunAction, ...]) -> None:
        for action in actions:
            self.held = action is RunAction.HOLD or (self.held and action is not RunAction.RELEASE)
            self.closed |= action is RunAction.CLOSE_SOURCES
            self.aborted |= action is RunAction.ABORT

    @invariant()
    def the_actions_match_the_state(self) -> None:
        state = self.control.state
        if state in ACTIVE_STATES:
            assert self.held == (state is RunState.PAUSED)
            assert self.closed == (state is RunState.DRAINING)
            assert not self.aborted
        if state is RunState.STOPPING:
            assert self.aborted

    @invariant()
    def the_first_outcome_is_kept(self) -> None:
        assert self.control.outcome is self.first


class WorkerCountMachine(RuleBasedStateMachine):
    """Workers that ask for items, and changes of their intended number."""

    def __init__(self) -> None:
        super().__init__()
        self.count = WorkerCount(2)
        self.workers = 2

    @rule(wanted=st.integers(1, 6))
    def resize(self, wanted: int) -> None:
        self.workers += self.count.resize(wanted)

    @precondition(lambda self: self.count.should_exit)
    @rule()
    def one_exits(self) -> None:
        self.count.leave()
        self.workers -= 1

    @invariant()
    def there_are_enough_workers(self) -> None:
        assert self.workers == self.count.present >= self.count.wanted >= 1


test_control = ControlMachine.TestCase
test_worker_count = WorkerCountMachine.TestCase


class Steps:
    """A stage function that signals the start of each item, and returns when permitted."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.let = threading.Semaphore(0)

    def __call__(self, item: int) -> int:
        self.begun.release()
        assert self.let.acquire(timeout=30)
        return item

    def await_begun(self, count: int = 1, seconds: float = 30) -> bool:
        return all(self.begun.acquire(timeout=seconds) for _ in range(count))

    def finish(self, count: int = 1) -> None:
        self.let.release(count)


def endless() -> Iterator[int]:
    item = 0
    while True:
        yield item
        item += 1


def graph_of(work: Steps, workers: int = 1, ordered: bool = False) -> Graph:
    graph = Graph("g")
    drawn = graph.source("draw", endless)
    graph.sink("out", after=graph.stage("work", work, after=drawn, workers=workers, ordered=ordered), capacity=100)
    return graph


def alive(stage: str = "work") -> int:
    return sum(thread.name.startswith(f"g.{stage}-") for thread in threading.enumerate())


def falls_to(count: int, stage: str = "work") -> bool:
    """Wait until at most `count` workers of a stage are alive, for at most `PROMPT` seconds."""
    deadline = time.monotonic() + PROMPT
    while alive(stage) > count and time.monotonic() < deadline:
        time.sleep(0.01)
    return alive(stage) <= count


@pytest.mark.parametrize("ordered", [False, True])
def test_additional_workers_start_immediately(ordered: bool) -> None:
    work = Steps()
    with graph_of(work, ordered=ordered).start() as run:
        assert work.await_begun()
        run.resize("work", workers=4)
        assert work.await_begun(3)  # in parallel with the first, which has not finished
        assert run.statistics()["work"].workers == 4
        work.finish(1000)
        items = [item for item, _ in zip(run, range(50), strict=False)]
        assert sorted(items) == items or not ordered
        run.cancel()


def test_excess_workers_exit_after_their_item() -> None:
    work = Steps()
    with graph_of(work, workers=4).start() as run:
        assert work.await_begun(4)
        run.resize("work", workers=1)
        work.finish(3)
        assert falls_to(1)
        assert run.statistics()["work"].workers == 1
        work.finish(1000)
        assert len([item for item, _ in zip(run, range(20), strict=False)]) == 20
        run.resize("work", workers=2)
        run.cancel()


def test_idle_excess_workers_exit_immediately() -> None:
    more = threading.Event()

    def draw() -> Iterator[int]:
        yield 1
        assert more.wait(30)
        yield 2

    graph = Graph("g")
    graph.sink("out", after=graph.stage("work", int, after=graph.source("draw", draw), workers=3))
    with graph.start() as run:
        items = iter(run)
        assert next(items) == 1
        run.resize("work", workers=1)
        assert falls_to(1)
        run.resize("work", workers=2)
        more.set()
        assert list(items) == [2]


@pytest.mark.parametrize("sizes", [(5, 1, 3), (1, 4, 1), (2, 2), (1,)])
def test_each_item_is_delivered_once_under_resizing(sizes: tuple[int, ...]) -> None:
    graph = Graph("g")
    first = graph.stage("first", int, after=graph.source("draw", range(600)), workers=3)
    second = graph.stage("second", int, after=first, workers=2, ordered=True)
    graph.sink("out", after=second)
    found = []
    with graph.start() as run:
        for place, item in enumerate(run):
            found.append(item)
            if place % 20 == 0:
                run.resize("first", workers=sizes[place // 20 % len(sizes)])
                run.resize("second", workers=sizes[(place // 20 + 1) % len(sizes)])
    assert sorted(found) == list(range(600))


def test_no_workers_are_added_to_an_ended_stage() -> None:
    graph = Graph("g")
    last = threading.Event()

    def slow(item: int) -> int:
        assert last.wait(30)
        return item

    done = graph.stage("done", int, after=graph.source("draw", [1]))
    graph.sink("out", after=graph.stage("slow", slow, after=done))
    with graph.start() as run:
        assert falls_to(0, "done")
        run.resize("done", workers=3)
        last.set()
        assert list(run) == [1]
        run.resize("done", workers=3)
    run.resize("done", workers=3)


def test_paused_workers_finish_their_item_and_take_no_further_one() -> None:
    work = Steps()
    with graph_of(work, workers=2).start() as run:
        items = iter(run)
        assert work.await_begun(2)
        run.pause()
        work.finish(2)
        assert sorted([next(items), next(items)]) == [0, 1]  # items in progress are delivered
        assert not work.await_begun(seconds=0.05)
        run.resume()
        assert work.await_begun(2)
        work.finish(1000)
        next(items)
        run.cancel()


def test_a_paused_run_can_be_drained_and_cancelled() -> None:
    for order, expected in ((Run.drain, None), (Run.cancel, Cancelled)):
        work = Steps()
        with graph_of(work).start() as run:
            assert work.await_begun()
            run.pause()
            work.finish(1000)
            order(run)
            if expected:
                with pytest.raises(expected):
                    list(run)
            else:
                assert list(run) == list(range(run.statistics()["draw"].items_out))


def test_drain_delivers_items_in_flight_and_ends_the_sources() -> None:
    work = Steps()
    with graph_of(work, workers=2, ordered=True).start() as run:
        assert work.await_begun(2)
        run.drain()
        work.finish(1000)
        found = list(run)
        drawn = run.statistics()["draw"].items_out
    assert found == list(range(drawn))
    assert 2 <= drawn <= 6  # two in workers, two in the channel, one in the source


def test_a_graph_without_sinks_is_drained_and_waited_for() -> None:
    work = Steps()
    graph = Graph("g")
    graph.stage("work", work, after=graph.source("draw", endless))
    with graph.start() as run:
        assert work.await_begun()
        run.drain()
        work.finish(1000)
        run.wait()
        assert run.statistics()["work"].items_in == run.statistics()["draw"].items_out


def test_a_held_source_resumes_or_ends() -> None:
    gate = SourceGate()
    passed: list[bool] = []
    for order, expected in ((SourceGate.release, True), (SourceGate.close, False)):
        gate.hold()
        thread = threading.Thread(target=lambda: passed.append(gate.check()))
        thread.start()
        order(gate)
        thread.join(30)
        assert passed.pop() is expected
    gate.abort()
    with pytest.raises(Cancelled):
        gate.check()


def test_invalid_resizes_are_rejected() -> None:
    work = Steps()
    with graph_of(work).start() as run:
        for name in ("draw", "out", "nothing"):
            with pytest.raises(PipelineError, match=rf"no stage '{name}' with workers to change; it has \['work'\]"):
                run.resize(name, workers=2)
        with pytest.raises(PipelineError, match="'work' needs at least 1 worker, got workers=0"):
            run.resize("work", workers=0)
        work.finish(1000)
        run.cancel()
