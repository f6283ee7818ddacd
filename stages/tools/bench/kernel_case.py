"""One kernel to be timed: the call, its number per update, and the work that it must do."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threadloom.stages.config import Precision
from threadloom.stages.tools.bench.roofline import (
    KernelTime,
    KernelWork,
    Peaks,
    arithmetic_seconds,
    roofline_bound_of_steps,
)

LEAST_CALLS = 5

Call = Callable[[], object]


@dataclass(frozen=True)
class KernelCase:
    """One kernel with its arguments."""

    name: str
    calls: int
    """Calls per update."""
    work: KernelWork
    call: Call
    part_of: str | None = None
    """The kernel that calls this one; None for a top-level kernel."""
    prepare: Call | None = None
    """Restores arrays that the call overwrites; not timed."""
    steps: tuple[tuple[KernelWork, int], ...] = ()
    """Work and repetitions of consecutive steps, whose roofline bounds add up. Empty: the call is one step."""


def time_case(case: KernelCase, peaks: Peaks, seconds: float, precision: Precision = Precision.FLOAT32) -> KernelTime:
    """Time a kernel for about `seconds` seconds and at least `LEAST_CALLS` calls; return it with its roofline bound."""
    taken: list[float] = []
    _time_once(case)
    end = time.perf_counter() + seconds
    while len(taken) < LEAST_CALLS or time.perf_counter() < end:
        taken.append(_time_once(case))
    low, middle, high = statistics.quantiles(taken, n=4)
    floor, bound = roofline_bound_of_steps(case.steps or ((case.work, 1),), peaks, precision)
    arithmetic = arithmetic_seconds(case.work, peaks, precision)
    return KernelTime(case.name, case.calls, case.work, middle, (low, high), floor, bound, case.part_of, arithmetic)


def _time_once(case: KernelCase) -> float:
    if case.prepare is not None:
        case.prepare()
    begin = time.perf_counter()
    case.call()
    return time.perf_counter() - begin


def restorer(*arrays: NDArray[Any]) -> Call:
    """Return a call that restores the present content of arrays."""
    kept = [array.copy() for array in arrays]

    def restore() -> None:
        for array, content in zip(arrays, kept, strict=True):
            np.copyto(array, content)

    return restore
