"""Observers of a run: begun before its workers, updated at intervals, ended once; their errors do not end the run."""

import logging
import threading
from collections.abc import Callable
from contextlib import nullcontext

import pytest

from tests.pipeline.run.helpers import Boom
from threadloom.pipeline import Graph, RunStatistics, StageFailure

pytestmark = pytest.mark.timeout(60)


class Recorder:
    """An observer that records its calls."""

    def __init__(self, interval: float | None = None) -> None:
        self.interval = interval
        self.calls: list[str] = []
        self.threads: list[str] = []
        self.updated = threading.Event()
        self.statistics: Callable[[], RunStatistics] | None = None

    def begin(self, statistics: Callable[[], RunStatistics]) -> None:
        self.statistics = statistics
        self._note("begin")

    def update(self) -> None:
        self._note("update")
        self.updated.set()

    def end(self, statistics: Callable[[], RunStatistics], *, complete: bool) -> None:
        self.statistics = None
        self._note(f"end, complete={complete}")

    def _note(self, call: str) -> None:
        self.calls.append(call)
        self.threads.append(threading.current_thread().name)


def waiting_for(event: threading.Event) -> Graph:
    """Return a graph whose only item is finished once the event is set."""
    graph = Graph("observed")

    def wait(item: int) -> int:
        assert event.wait(30)
        return item

    graph.sink("out", after=graph.stage("wait", wait, after=graph.source("one", [1])))
    return graph


def test_an_observer_is_begun_updated_in_a_thread_of_the_run_and_ended() -> None:
    fast, slow = Recorder(0.001), Recorder(None)
    with waiting_for(fast.updated).start(observers=[fast, slow]) as run:
        assert list(run) == [1]
    assert (fast.calls[0], fast.calls[-1]) == ("begin", "end, complete=True")
    assert set(fast.calls[1:-1]) == {"update"}
    assert slow.calls == ["begin", "end, complete=True"]
    main = threading.current_thread().name
    assert (fast.threads[0], fast.threads[-1]) == (main, main)
    assert set(fast.threads[1:-1]) == {"observed.observers"}


@pytest.mark.parametrize("how", ["break", "failure", "interrupt"])
def test_a_run_that_ends_early_is_not_complete(how: str) -> None:
    graph = Graph("early")
    graph.sink("out", after=graph.stage("work", lambda n: 1 // (4 - n), after=graph.source("numbers", range(100))))
    recorder = Recorder(60.0)
    raised = {"failure": pytest.raises(StageFailure), "interrupt": pytest.raises(KeyboardInterrupt)}
    with raised.get(how, nullcontext()), graph.start(observers=[recorder]) as run:
        for _ in run:
            if how == "break":
                break
            if how == "interrupt":
                raise KeyboardInterrupt
    assert recorder.calls == ["begin", "end, complete=False"]


def test_an_error_of_an_update_or_an_end_is_logged_and_the_run_continues(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Recorder):
        def update(self) -> None:
            super().update()
            raise Boom("update")

        def end(self, statistics: Callable[[], RunStatistics], *, complete: bool) -> None:
            super().end(statistics, complete=complete)
            raise Boom("end")

    broken, sound = Broken(0.001), Recorder(0.001)
    with caplog.at_level(logging.ERROR, "threadloom.pipeline.observers"):
        with waiting_for(broken.updated).start(observers=[sound, broken]) as run:
            assert list(run) == [1]
    assert broken.calls == ["begin", "update", "end, complete=True"]
    assert sound.calls[-1] == "end, complete=True"
    assert [record.getMessage() for record in caplog.records] == [
        "the observer 'Broken' failed; the run continues without it"
    ] * 2


def test_an_error_of_a_begin_is_raised_and_the_observers_before_it_are_ended() -> None:
    class Refusing(Recorder):
        def begin(self, statistics: Callable[[], RunStatistics]) -> None:
            raise Boom

    first = Recorder()
    with pytest.raises(Boom), waiting_for(threading.Event()).start(observers=[first, Refusing()]):
        raise AssertionError("the block is not entered")
    assert first.calls == ["begin", "end, complete=False"]


def test_an_observer_that_is_interrupted_as_it_begins_is_ended() -> None:
    class Interrupted(Recorder):
        def begin(self, statistics: Callable[[], RunStatistics]) -> None:
            super().begin(statistics)
            raise KeyboardInterrupt

    first, second, third = Recorder(), Interrupted(), Recorder()
    with pytest.raises(KeyboardInterrupt), waiting_for(threading.Event()).start(observers=[first, second, third]):
        raise AssertionError("the block is not entered")
    assert first.calls == second.calls == ["begin", "end, complete=False"]
    assert third.calls == []


def test_statistics_may_be_read_until_the_end() -> None:
    class Last(Recorder):
        found: RunStatistics | None = None

        def end(self, statistics: Callable[[], RunStatistics], *, complete: bool) -> None:
            assert self.statistics == statistics
            self.found = statistics()
            super().end(statistics, complete=complete)

    last = Last()
    graph = Graph("counted")
    graph.stage("work", abs, after=graph.source("numbers", range(30)))
    returned = graph.run(observers=[last])
    assert last.found is not None
    assert last.found["work"] == returned["work"]
    assert returned["work"].items_in == 30
