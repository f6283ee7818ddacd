"""The measurement of the GEMM speeds of one core in every precision.

Precisions are measured in turn, so a falling clock frequency slows all of them equally. Time is CPU time of the thread,
which excludes preemption, or wall time if the thread's clock is too coarse, as on Windows.
"""

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Annotated

import msgspec

from threadloom.kernels import GemmBackend, blas_info
from threadloom.pipeline import blas_threads
from threadloom.stages.config import Precision
from threadloom.stages.machine import seconds_per_call
from threadloom.stages.speeds.products import OPERATIONS, PRODUCTS

MAX_ROUNDS, MIN_ROUNDS = 9, 3
"""Number of measurements of each precision, whose median counts. Slow machines do fewer."""
MAX_SECONDS = 0.4
"""Time limit of the rounds after the first `MIN_ROUNDS`."""
TICKS = 10
"""Minimum duration of a measurement, in steps of the clock."""
COARSE_TICK = 1e-3
"""Largest step of the thread's clock, in seconds, with which it is used."""

_Rate = Annotated[float, msgspec.Meta(gt=0)]


class Speeds(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """GFLOP/s of one core in each precision, including the conversion of activations; None: not measured."""

    float32: _Rate
    bf16: _Rate | None = None
    bf16x3: _Rate | None = None
    fp16: _Rate | None = None

    def of(self, precision: Precision) -> float | None:
        """Return the speed of a precision, or None if it was not measured; raises AttributeError for AUTO."""
        rate: float | None = getattr(self, precision.value)
        return rate


def measure_speeds() -> Speeds:
    """Measure every precision; kernels are compiled first if necessary."""
    calls = {precision: make() for precision, make in PRODUCTS.items()}
    seconds: dict[Precision, list[float]] = {precision: [] for precision in calls}
    with _one_blas_thread():
        for call in calls.values():
            call()
        clock, duration = _choose_clock()
        begin = time.perf_counter()
        for done in range(MAX_ROUNDS):
            if done >= MIN_ROUNDS and time.perf_counter() - begin > MAX_SECONDS:
                break
            for precision, call in calls.items():
                seconds[precision].append(seconds_per_call(call, duration, clock))
    rates = {precision.value: OPERATIONS / 1e9 / statistics.median(found) for precision, found in seconds.items()}
    return msgspec.convert(rates, Speeds)


def _choose_clock() -> tuple[Callable[[], float], float]:
    """Return the clock to measure with, and the minimum duration of a measurement in seconds."""
    tick = _tick(time.thread_time)
    if tick <= COARSE_TICK:
        return time.thread_time, TICKS * tick
    return time.perf_counter, TICKS * min(_tick(time.perf_counter), COARSE_TICK)


def _tick(clock: Callable[[], float]) -> float:
    """Return the smallest of up to five steps of a clock, or infinity if it does not advance in 10 ms."""
    steps: list[float] = []
    last, end = clock(), time.perf_counter() + 10 * COARSE_TICK
    while len(steps) < 5 and time.perf_counter() < end:
        now = clock()
        if now > last:
            steps.append(now - last)
            last = now
    return min(steps, default=math.inf)


@contextlib.contextmanager
def _one_blas_thread() -> Iterator[None]:
    """Limit BLAS to one thread if it is the float32 backend; the limit is process-wide, so it is set only then."""
    with blas_threads(1) if blas_info(load=False).backend is GemmBackend.BLAS else contextlib.nullcontext():
        yield
