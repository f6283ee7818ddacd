"""A line of two stages whose work the tests let through, item after item, on a clock that only they advance."""

import threading
import time
from collections.abc import Callable, Iterable

from threadloom.pipeline import BalanceRules, Graph, Run
from threadloom.pipeline.run.worker_control import WorkerControl

Items = Iterable[int] | Callable[[], Iterable[int]]

SECOND = 1_000_000_000
HOUR = 3600.0
"""Interval of a controller whose thread never decides: the tests call `step`."""
QUICK = BalanceRules(confirm=2, settle=0, judge=1, rest=1)


class Clock:
    """A clock in nanoseconds that tests advance."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


class Work:
    """A stage function that is open, or lets calls return in the order in which they began, when permitted."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._open = True
        self._allowed = 0  # calls that may return
        self.inside = 0
        self.begun = 0

    def __call__(self, item: int) -> int:
        with self._condition:
            self.inside += 1
            self.begun += 1
            place = self.begun
            self._condition.notify_all()
            assert self._condition.wait_for(lambda: self._open or place <= self._allowed, 30)
            self.inside -= 1
            self._condition.notify_all()
            return item + 1

    def set_open(self, is_open: bool) -> None:
        with self._condition:
            self._open, self._allowed = is_open, self.begun - self.inside
            self._condition.notify_all()

    def finish(self, calls: int) -> None:
        with self._condition:
            self._allowed += calls
            self._condition.notify_all()

    def await_inside(self, workers: int, begun: int = 0) -> None:
        """Wait until `workers` calls are in progress and `begun` have begun in all."""
        with self._condition:
            ready = self._condition.wait_for(lambda: self.inside == workers and self.begun >= begun, 30)
            assert ready, (self.inside, self.begun)


class Consumer(threading.Thread):
    """A thread that iterates the sink of a run."""

    def __init__(self, run: Run) -> None:
        super().__init__(name="consumer")
        self.items: list[int] = []
        self._run = run

    def run(self) -> None:
        self.items += self._run


def line(decode: Work, encode: Work, items: Items, workers: int = 2) -> Graph:
    graph = Graph("line")
    read = graph.source("read", items)
    decoded = graph.stage("decode", decode, after=read, workers=workers, ordered=True)
    encoded = graph.stage("encode", encode, after=decoded, workers=workers, ordered=True)
    graph.sink("out", after=encoded)
    return graph


def control_of(run: Run) -> WorkerControl:
    assert run.worker_control is not None
    return run.worker_control


def await_parked(run: Run, stage: str, successor: str, source: bool = False) -> None:
    """Wait until all workers of a stage wait in a channel, and also the source, which sends to that stage."""
    own, following = run._parts.channels[stage], run._parts.channels[successor]
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        state = own.snapshot()
        waiting = len(state.receivers) + len(following.snapshot().senders)
        if waiting == own.workers and (not source or state.senders):
            return
        time.sleep(0.001)
    raise AssertionError(f"the workers of {stage!r} do not wait: {waiting} of {own.workers} do")


class FirstHalf:
    """Intervals in which `decode` is slow and `encode` starves."""

    def __init__(self, run: Run, clock: Clock, slow: Work) -> None:
        self.run, self.clock, self.slow = run, clock, slow

    def __call__(self, workers: int, calls: int = 1) -> None:
        """Let each of `workers` workers of the slow stage finish some calls; end the interval a second later."""
        for _ in range(calls):
            begun = self.slow.begun
            self.slow.finish(workers)
            self.slow.await_inside(workers, begun + workers)
        self.await_idle()
        self.clock.now += SECOND
        control_of(self.run).step()

    def await_idle(self) -> None:
        await_parked(self.run, "encode", "out")


class SecondHalf(FirstHalf):
    """Intervals in which `encode` is slow and `decode` waits for it."""

    def await_idle(self) -> None:
        await_parked(self.run, "decode", "encode", source=True)
