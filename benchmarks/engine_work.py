"""The work of `benchmarks.engines`: the functions that every engine calls, and the feed of item numbers.

Every result contains the number of its item, so that results can be compared and timed in any order.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

MEGABYTES_10 = 10 * (1 << 20) // 8
"""Elements of float64 in 10 MiB."""


class EnginePart(Enum):
    """The part of an engine that a workload uses."""

    THREADS = "one function on threads"
    PROCESSES = "one function on processes"
    JOIN = "two functions of each item on threads, their results joined by item"


@dataclass(frozen=True)
class EngineWorkload:
    """One row of the comparison."""

    name: str
    part: EnginePart
    functions: tuple[Callable[[int], Any], ...]
    """One function, or the two of `EnginePart.JOIN`."""
    items: int
    """Items per round of the throughput."""
    interval: float
    """Seconds between two items of a round of the latency, during which every engine becomes idle."""

    def results(self, count: int) -> list[Any]:
        """Return the summaries of the results of a plain loop over `count` items."""
        return [self.summary(self.result(number)) for number in range(count)]

    def result(self, number: int) -> Any:
        """Return the result of one item, computed in the calling thread."""
        values = tuple(function(number) for function in self.functions)
        return values if self.part is EnginePart.JOIN else values[0]

    def summary(self, result: Any) -> tuple[int, ...] | tuple[float, ...]:
        """Return a small tuple that identifies a result and begins with the number of its item."""
        if self.part is EnginePart.PROCESSES:
            array = np.asarray(result)
            return int(array[0]), float(array[-1]), float(array.size)
        if self.part is EnginePart.JOIN:
            return tuple(each for part in result for each in part)
        return tuple(result) if isinstance(result, tuple | list) else (int(result),)  # DataLoader converts to lists


class Feed:
    """The numbers 0 to `count` - 1, one every `interval` seconds, with the time at which each was sent."""

    def __init__(self, count: int, interval: float = 0.0) -> None:
        self.count, self.interval = count, interval
        self.sent: dict[int, float] = {}
        """Number → time of its first hand-over, in seconds of `time.perf_counter`."""

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        begin = time.perf_counter()
        for number in range(self.count):
            pause = begin + number * self.interval - time.perf_counter()
            if pause > 0:
                time.sleep(pause)
            self.sent.setdefault(number, time.perf_counter())
            yield number


def no_op(number: int) -> int:
    """Return the item."""
    return number


def numpy_work(size: int, number: int) -> tuple[int, float]:
    """Compute `size` sines, which releases the GIL."""
    return number, float(np.sin(np.arange(size, dtype=np.float64)).sum() + number)


def numpy_square(size: int, number: int) -> tuple[int, float]:
    """Compute the other branch of the join."""
    return number, float(np.sqrt(np.arange(size, dtype=np.float64)).sum() - number)


def filled_array(size: int, number: int) -> NDArray[np.float64]:
    """Return an array of `size` elements, all equal to the item, as a decoder would return a picture."""
    return np.full(size, float(number))


def elements_per_millisecond() -> int:
    """Return the number of sines that this machine computes in a millisecond: the best of several measurements."""
    size = 20_000
    best = min(_seconds(numpy_work, size) for _ in range(15))
    return max(1000, int(size * 1e-3 / best))


def _seconds(function: Callable[[int, int], object], size: int) -> float:
    begin = time.perf_counter()
    function(size, 1)
    return time.perf_counter() - begin


def workloads(scale: float = 1.0, array_elements: int = MEGABYTES_10) -> list[EngineWorkload]:
    """Return the four workloads; `scale` multiplies their numbers of items."""
    size = elements_per_millisecond()

    def count(items: int) -> int:
        return max(4, int(items * scale))

    work, square = partial(numpy_work, size), partial(numpy_square, size)
    array = partial(filled_array, array_elements)
    return [
        EngineWorkload("no-op", EnginePart.THREADS, (no_op,), count(5000), 0.005),
        EngineWorkload("1 ms of NumPy", EnginePart.THREADS, (work,), count(1000), 0.01),
        EngineWorkload("10 MB arrays from processes", EnginePart.PROCESSES, (array,), count(100), 0.1),
        EngineWorkload("fan-out and join", EnginePart.JOIN, (work, square), count(500), 0.01),
    ]
