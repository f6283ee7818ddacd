"""Leaving, cancelling and interrupting runs, and threads that do not end. conftest checks that no thread is left."""

import signal
import sys
import threading
import time
from _thread import interrupt_main as interrupt_main_later, start_new_thread
from collections.abc import Iterator
from typing import Any

import pytest

from tests.pipeline.run.helpers import Boom, WaitingResource, consume
from threadloom.pipeline import Cancelled, Graph, ShutdownTimeout, StageFailure
from threadloom.pipeline.core.event import OneShotEvent

pytestmark = pytest.mark.timeout(60)


def endless(closed: threading.Event | None = None) -> Iterator[int]:
    item = 0
    try:
        while True:
            yield item
            item += 1
    finally:
        if closed is not None:
            closed.set()


@pytest.mark.parametrize("leave", ["break", "raise", "at once"])
def test_leaving_early_ends_all_threads(leave: str) -> None:
    closed = threading.Event()
    pool = WaitingResource()
    graph = Graph("endless")
    graph.sink("out", after=graph.stage("work", int, after=graph.source("draw", lambda: endless(closed)), workers=2))
    with pytest.raises(Boom) if leave == "raise" else graph.start() as _, graph.start(resources=[pool]) as run:
        if leave != "at once":
            for item in run:
                if item >= 5:
                    if leave == "raise":
                        raise Boom
                    break
    if leave != "at once":
        assert closed.is_set()  # the `finally` of the generator has run
    assert pool.aborted.is_set()


def test_cancel_from_another_thread_ends_the_iteration() -> None:
    graph = Graph("endless")
    graph.sink("out", after=graph.stage("work", int, after=graph.source("draw", endless)))
    with graph.start() as run:
        with pytest.raises(Cancelled, match="'endless' was cancelled"):
            for item in run:
                if item == 3:
                    threading.Thread(target=run.cancel).start()
        with pytest.raises(Cancelled):
            next(iter(run))


def test_waiting_for_a_cancelled_run_raises() -> None:
    pool = WaitingResource()
    graph = Graph("waiting")
    graph.stage("work", int, after=graph.source("draw", [1]), acquire=pool.take)
    with graph.start(resources=[pool]) as run:
        assert pool.entered.wait(30)
        run.cancel()
        with pytest.raises(Cancelled):
            run.wait()


def interrupt_main() -> None:
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


@pytest.mark.parametrize("sink", [True, False])
def test_ctrl_c_while_the_caller_waits(sink: bool) -> None:
    pool = WaitingResource()

    def work(item: int) -> int:
        if item == 3:
            interrupt_main()
            pool.take(item)
        return item

    graph = Graph("interrupted")
    node = graph.stage("work", work, after=graph.source("draw", endless), workers=2)
    if sink:
        graph.sink("out", after=node)
    with pytest.raises(KeyboardInterrupt), graph.start(resources=[pool]) as run:
        consume(run)
    assert pool.aborted.is_set()


@pytest.mark.parametrize("sink", [True, False])
def test_ctrl_c_just_before_the_caller_waits(sink: bool) -> None:
    """Forced by an interrupt that is pending for the main thread and does not end its wait."""
    pool = WaitingResource()

    def work(item: int) -> None:
        begun = time.monotonic()
        while (
            time.monotonic() < begun + 0.05
        ):  # until the caller waits; if it does not yet, the test passes without checking this case
            pass
        interrupt_main_later()
        pool.take(item)

    graph = Graph("interrupted")
    node = graph.stage("work", work, after=graph.source("draw", endless))
    if sink:
        graph.sink("out", after=node)
    with pytest.raises(KeyboardInterrupt), graph.start(resources=[pool]) as run:
        consume(run)


def test_ctrl_c_at_many_points_of_a_busy_run() -> None:
    for at in range(0, 400, 8):

        def work(item: int, at: int = at) -> int:
            if item == at:
                interrupt_main()
            return item

        graph = Graph("interrupted")
        graph.sink("out", after=graph.stage("work", work, after=graph.source("draw", endless), workers=2))
        with pytest.raises(KeyboardInterrupt), graph.start() as run:
            consume(run)


def test_a_second_ctrl_c_waits_for_the_threads() -> None:
    class Impatient(WaitingResource):
        """A second Ctrl-C is pressed while the run is being stopped."""

        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def abort(self) -> None:
            self.calls += 1
            if self.calls == 1:
                signal.raise_signal(signal.SIGINT)
            super().abort()

    pool = Impatient()

    def work(item: int) -> int:
        interrupt_main()
        pool.take(item)
        return item

    graph = Graph("impatient")
    graph.sink("out", after=graph.stage("work", work, after=graph.source("draw", endless)))
    with pytest.raises(KeyboardInterrupt), graph.start(resources=[pool]) as run:
        consume(run)
    assert pool.calls >= 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("impatient")]


def test_a_second_ctrl_c_during_the_join(monkeypatch: pytest.MonkeyPatch) -> None:
    joining, again = threading.Event(), threading.Event()
    calls = []
    wait = OneShotEvent.wait

    def watched(gate: OneShotEvent, seconds: float = -1) -> bool:
        calls.append(gate)
        joining.set()
        if calls.count(gate) > 1:  # the join was interrupted and repeated
            again.set()
        return wait(gate, seconds)

    def work(item: int) -> int:
        interrupt_main()
        assert joining.wait(30)
        interrupt_main()
        assert again.wait(30)
        return item

    monkeypatch.setattr(OneShotEvent, "wait", watched)
    graph = Graph("impatient")
    graph.sink("out", after=graph.stage("work", work, after=graph.source("draw", endless)))
    with pytest.raises(KeyboardInterrupt), graph.start() as run:
        consume(run)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("impatient")]


@pytest.mark.parametrize("failing", [True, False])
def test_a_thread_that_does_not_end_is_reported_with_its_stack(failing: bool) -> None:
    entered, release = threading.Event(), threading.Event()

    def never_returns(item: int) -> None:
        entered.set()
        release.wait(30)

    def fail(item: int) -> None:
        assert entered.wait(30)
        if failing:
            raise Boom

    graph = Graph("stuck")
    source = graph.source("draw", [1])
    graph.stage("forever", never_returns, after=source)
    graph.stage("fail", fail, after=source)
    try:
        with pytest.raises(StageFailure if failing else ShutdownTimeout) as caught, graph.start(grace=0.05) as run:
            assert entered.wait(30)
            if failing:
                run.wait()
        report = caught.value.__notes__[0] if failing else str(caught.value)
        assert "thread 'stuck.forever-0' is at" in report
        assert "never_returns" in report
    finally:
        release.set()


def test_threads_that_cannot_be_started_end_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def refuse(self: threading.Thread) -> None:
        if self.name == "refused.work-1":
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    graph = Graph("refused")
    graph.sink("out", after=graph.stage("work", int, after=graph.source("draw", endless), workers=3))
    with pytest.raises(RuntimeError, match="can't start"), graph.start():
        pass


def test_ctrl_c_while_a_thread_is_being_started_waits_for_that_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forced: the thread that was requested starts only while the interrupt is being handled."""
    start, wait = threading.Thread.start, OneShotEvent.wait
    interrupted, may_start = threading.Event(), threading.Event()
    started_names: list[str] = []

    def slow(self: threading.Thread) -> None:
        if not self.name.startswith("interrupted."):
            start(self)
            return

        done = threading.Event()

        def later() -> None:
            may_start.wait(30)
            start(self)
            started_names.append(self.name)
            done.set()

        start_new_thread(later, ())
        if not interrupted.is_set():
            interrupted.set()
            interrupt_main()
        for _ in range(5):
            if done.wait(6):
                return
            interrupt_main()  # Python drops an interrupt that arrives in a weakref callback
        pytest.fail("the interrupt did not end the run")

    def watched(gate: OneShotEvent, seconds: float = -1) -> bool:
        if seconds >= 0 and interrupted.is_set():  # the run is being shut down
            may_start.set()
        return wait(gate, seconds)

    monkeypatch.setattr(threading.Thread, "start", slow)
    monkeypatch.setattr(OneShotEvent, "wait", watched)
    graph = Graph("interrupted")
    graph.stage("work", int, after=graph.source("draw", endless))
    with pytest.raises(KeyboardInterrupt), graph.start(watchdog=None):
        pass
    left = ["interrupted.draw-0", "interrupted.work-0"]
    started = started_names.copy()
    may_start.set()
    assert started == left, "a thread was started after the end of the run"
    assert not [thread for thread in threading.enumerate() if thread.name in left]


def test_an_interrupt_that_a_start_raises_ends_the_threads_started(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def interrupted(self: threading.Thread) -> None:
        start(self)
        if self.name == "interrupted.work-1":
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    graph = Graph("interrupted")
    graph.stage("work", int, after=graph.source("draw", endless), workers=3)
    with pytest.raises(KeyboardInterrupt), graph.start():
        pass
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("interrupted.")]


def test_a_run_can_be_interrupted_at_any_moment_of_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread sends Ctrl-C after increasing delays, so that it occurs anywhere in `__enter__`."""

    # Python drops an error of a weakref callback (`threading` has one for each thread): then Ctrl-C is sent again.
    def press_again(dropped: Any) -> None:
        assert dropped.exc_type is KeyboardInterrupt
        threading.Timer(0.01, interrupt_main).start()  # after this function, whose errors are dropped too

    monkeypatch.setattr(sys, "unraisablehook", press_again)
    for at in range(60):
        graph = Graph("interrupted")
        graph.stage("work", int, after=graph.source("draw", endless), workers=4)
        pressing = threading.Timer(at * 2e-5, interrupt_main)
        before = set(threading.enumerate())
        with pytest.raises(KeyboardInterrupt):
            pressing.start()
            with graph.start() as run:
                run.wait()
        pressing.join()
        deadline = time.monotonic() + 20  # the last instructions of threads whose join was interrupted (CPython 3.11)
        while set(threading.enumerate()) - before:
            assert time.monotonic() < deadline
