"""Measuring loops: how much work cores do per second, and how long workers take in alternating rounds."""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

Work = tuple[Callable[[], object], float]
"""A call that releases the GIL, and the amount of work per call: floating-point operations or bytes."""


def seconds_per_call(
    call: Callable[[], object], seconds: float, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return the mean time of a call that is repeated until `seconds` have passed on `clock`, at least once.

    `seconds` must be above the resolution of the clock, or the mean may be 0.
    """
    begin, calls = clock(), 0
    while True:
        call()
        calls += 1
        elapsed = clock() - begin
        if elapsed >= seconds:
            return elapsed / calls


def throughput(
    work: Sequence[Work], seconds: float, windows: int = 1, reduce: Callable[[Iterable[float]], float] = max
) -> float:
    """Return the amount of work per second that all of `work` does together, each item on its own thread.

    Each call is made once before the measurement, which compiles it and touches its memory. The rate is measured over
    `windows` windows of `seconds` seconds, each of which all threads begin together; `reduce` selects one of the rates.
    """
    start = threading.Barrier(len(work))
    rates = [[0.0] * windows for _ in work]

    def measure(index: int) -> None:
        call, amount = work[index]
        call()
        for window in range(windows):
            start.wait()
            rates[index][window] = amount / seconds_per_call(call, seconds)

    threads = [threading.Thread(target=measure, args=(index,), name=f"timing-{index}") for index in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return reduce(map(sum, zip(*rates, strict=True)))


class TimedUpdates(Protocol):
    """The result of some updates."""

    @property
    def updates(self) -> int:
        """The number of updates that were timed."""

    @property
    def seconds(self) -> float:
        """The time that they took."""


Result = TypeVar("Result", bound=TimedUpdates, covariant=True)


class UpdateWorker(Protocol[Result]):
    """A training that makes updates on request, such as a `JsonWorkerProcess`."""

    @property
    def name(self) -> str:
        """The name of the worker in messages."""

    def run(self, updates: int) -> Result:
        """Make `updates` updates and return their result."""


def alternate_rounds(
    workers: Sequence[UpdateWorker[Result]],
    seconds: float,
    *,
    rounds: int,
    least_updates: int,
    warm_up: int,
    on_progress: Callable[[str], None],
) -> list[list[Result]]:
    """Run workers in alternating rounds, so that other load on the machine affects all of them; return their results.

    The result of each worker is a list with one entry per round. A worker runs for about `seconds` in total, and for at
    least `least_updates` updates per round. It makes `warm_up` updates before. Every other round is in reverse order.
    """
    pace: list[float] = []  # seconds per update of each worker, in its latest run
    for worker in workers:
        on_progress(f"warming up {worker.name}")
        worker.run(warm_up)
        result = worker.run(least_updates)
        pace.append(result.seconds / result.updates)
    results: list[list[Result]] = [[] for _ in workers]
    for number in range(rounds):
        on_progress(f"round {number + 1} of {rounds}")
        order = range(len(workers))
        for index in order if number % 2 == 0 else reversed(order):
            result = workers[index].run(max(least_updates, round(seconds / rounds / pace[index])))
            pace[index] = result.seconds / result.updates
            results[index].append(result)
    return results
