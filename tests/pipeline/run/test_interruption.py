"""Code that interrupts the engine in its own thread: finalisers, dropped iterators, the exit, a fork, signals."""

import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from threadloom.pipeline import (
    Cancelled,
    Channel,
    Closed,
    Fifo,
    Gather,
    Graph,
    InOrder,
    PipelineError,
    Run,
    StageFailure,
)
from threadloom.pipeline.core import OneShotEvent
from threadloom.pipeline.run import thread_group

pytestmark = pytest.mark.timeout(30)

PROMPT = 8.0
"""Seconds within which everything here ends: one by guarantee 4, the rest for a loaded machine. A wait for threads that
do not end takes the grace period of 10 s."""


class Interrupting:
    """A policy state around another that makes a call in the middle of a method, as a finaliser would."""

    def __init__(self, inner: Any, call: Callable[[], object]) -> None:
        self._inner = inner
        self._call: Callable[[], object] | None = call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def ready(self) -> bool:
        call, self._call = self._call, None
        if call is not None:
            call()
        ready: bool = self._inner.ready()
        return ready


def test_a_finaliser_that_puts_into_a_channel_does_not_hang() -> None:
    """Since CPython 3.12 the collector runs inside `put` itself, while the lock of the channel is held."""
    channel = Channel[Any, Any](Fifo().begin(10**6), 10**6, producers=1)
    made = 0

    class Putting:
        def __init__(self) -> None:
            self.cycle = self

        def __del__(self) -> None:
            channel.put(None)

    for _ in range(5000):
        Putting()
        made += 1
        channel.put(1)
        while channel.get() is None:
            made -= 1
    gc.collect()
    deadline = time.monotonic() + 10
    while made:  # those that were put by another thread arrive later
        assert time.monotonic() < deadline
        if channel.depth:
            channel.get()
            made -= 1


@pytest.mark.parametrize("admission", [Gather[int](count=1), InOrder[int](lambda item: (0, item))])
def test_calls_that_interrupt_a_channel_are_made_by_another_thread(admission: Any) -> None:
    """`get` is interrupted while it holds the lock: a put, and the close after it, are carried out afterwards."""
    errors: list[PipelineError] = []

    def interrupt() -> None:
        channel.put(0)
        channel.close()
        try:
            channel.get()
        except PipelineError as error:
            errors.append(error)

    channel = Channel[Any, Any](Interrupting(admission.begin(2), interrupt), 2, producers=1)  # type: ignore[arg-type]
    assert channel.get() in (0, [0])
    assert [type(each) for each in errors] == [PipelineError]
    channel.done()
    with pytest.raises(Closed):
        channel.get()


def test_an_abort_that_interrupts_a_channel_ends_the_wait() -> None:
    channel = Channel[Any, Any](
        Interrupting(Gather[int](count=1).begin(1), lambda: channel.abort()),  # type: ignore[arg-type]  # noqa: PLW0108
        1,
        producers=1,
    )
    with pytest.raises(Cancelled):
        channel.get()


@pytest.mark.parametrize("command", [Run.cancel, Run.drain, lambda run: (run.pause(), run.resume(), run.cancel())])
def test_commands_that_interrupt_a_channel_of_the_run(command: Callable[[Run], object]) -> None:
    graph = Graph("interrupted")
    node = graph.stage("work", int, after=graph.source("draw", itertools.count))
    graph.sink("out", after=node)
    with pytest.raises(Cancelled) if command is not Run.drain else warnings.catch_warnings(), graph.start() as run:
        next(iter(run))
        with run._parts.channels["work"]._lock:  # as if `put` had been interrupted here
            command(run)
            run.statistics()
        for _ in run:
            pass


def test_an_iterator_in_a_cycle_that_its_own_worker_collects() -> None:
    """The collector closes the iterator in a worker, which must not wait for itself."""
    dropped = threading.Event()

    def work(item: int) -> int:
        if item == 2:  # the sink is not full yet
            assert dropped.wait(PROMPT)
            gc.collect()
        return item

    def forget() -> list[threading.Thread]:
        graph = Graph("forgotten")
        sink = graph.sink("out", after=graph.stage("work", work, after=graph.source("draw", itertools.count)))
        cycle: list[Any] = [iter(sink)]
        cycle.append(cycle)
        next(cycle[0])
        return [each for each in threading.enumerate() if each.name.startswith("forgotten.")]

    gc.disable()
    try:
        threads = forget()
        dropped.set()
        for thread in threads:
            thread.join(PROMPT)
            assert not thread.is_alive()
    finally:
        gc.enable()


def test_an_iterator_collected_inside_the_threading_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its threads cannot end before the caller has left the module: it must not wait for them."""
    monkeypatch.setattr(thread_group, "LAST_STEPS", 2 * PROMPT)  # a wait takes at least as long as the grace period
    graph = Graph("forgotten")
    sink = graph.sink("out", after=graph.stage("work", int, after=graph.source("draw", itertools.count)))
    iterator = iter(sink)
    next(iterator)
    threads = [each for each in threading.enumerate() if each.name.startswith("forgotten.")]
    with threading._active_limbo_lock:  # type: ignore[attr-defined]  # as if a thread had been interrupted as it ends
        begin = time.monotonic()
        del iterator
        assert time.monotonic() - begin < PROMPT
    for thread in threads:
        thread.join(PROMPT)
        assert not thread.is_alive()


def test_no_run_starts_inside_the_threading_module() -> None:
    """Its threads would not start before the caller has left the module."""
    graph = Graph("late")
    graph.sink("out", after=graph.source("draw", itertools.count))
    with (
        threading._active_limbo_lock,  # type: ignore[attr-defined]  # as in a finaliser there
        pytest.raises(PipelineError, match="interrupted the threading module"),
        graph.start(),
    ):
        pass


def test_a_worker_that_waits_for_its_own_run_is_refused() -> None:
    graph = Graph("circular")
    entered = threading.Event()

    def work(item: int) -> None:
        assert entered.wait(PROMPT)
        run.wait()

    graph.stage("work", work, after=graph.source("draw", [1]))
    with pytest.raises(PipelineError, match="waits for the end of its own run"), graph.start() as run:
        entered.set()
        run.wait()


PEEK = """
import itertools, sys, time
from threadloom.pipeline import Graph
graph = Graph("peek")
it = iter(graph.sink("out", after=graph.stage("work", int, after=graph.source("draw", itertools.count))))
print(next(it), time.time())
"""


@pytest.mark.parametrize(
    "after", ["", "keep = {'it': it}; keep['keep'] = keep", "1/0", "import atexit; atexit.register(it.close)"]
)
def test_a_program_that_keeps_an_iterator_ends_at_once(after: str) -> None:
    # Timed from the end of the program's code, so that the start of Python does not count.
    ended = subprocess.run(
        [sys.executable, "-c", PEEK + after], capture_output=True, text=True, timeout=25, check=False
    )
    item, last_line = ended.stdout.split()
    assert item == "0"
    assert time.time() - float(last_line) < PROMPT
    assert ended.stderr == "" if after != "1/0" else "ZeroDivisionError" in ended.stderr.splitlines()[-1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_sees_that_the_threads_are_not_its_own() -> None:
    graph = Graph("forked")
    graph.sink("out", after=graph.stage("work", int, after=graph.source("draw", itertools.count)))
    with graph.start() as run:
        items = iter(run)
        next(items)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of any fork with threads
            pid = os.fork()
        if pid == 0:
            signal.alarm(25)
            answers = 0
            for call in (lambda: next(items), run.cancel, run.wait, lambda: run.resize("work", workers=2)):
                try:
                    call()
                except PipelineError as error:
                    answers += "belongs to the parent" in str(error)
            run.statistics()
            began = time.monotonic()
            run.__exit__(None, None, None)
            os._exit(0 if answers == 4 and time.monotonic() - began < PROMPT else 1)
        assert os.waitpid(pid, 0)[1] == 0
        next(items)  # the parent continues
        with pytest.raises(StopIteration):
            run.drain()
            while True:
                next(items)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_leaves_a_failed_run_of_its_parent_without_an_error() -> None:
    graph = Graph("forked")
    graph.sink("out", after=graph.stage("work", lambda item: 1 // 0, after=graph.source("draw", [1])))
    with pytest.raises(StageFailure), graph.start() as run:
        assert run.wait_decided(PROMPT)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            try:
                run.__exit__(None, None, None)
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0


def test_an_event_set_in_the_middle_of_its_own_set() -> None:
    event = OneShotEvent()
    event.is_set = True  # interrupted before the waiting threads are woken
    waiting = threading.Thread(target=event._blocked.acquire, args=(True, 10))
    waiting.start()
    event.set()
    waiting.join(PROMPT)
    assert not waiting.is_alive()
    event.set()
    assert event.wait()
