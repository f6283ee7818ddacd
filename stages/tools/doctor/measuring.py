"""What a machine does: matrix products and memory, on one core and on all, for `threadloom doctor`.

The figures are means over a moment, with every core busy: other work on the machine shows in them, as it will in a run.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from threadloom.kernels import gemm
from threadloom.pipeline import blas_threads
from threadloom.stages.machine.machine import Machine

GEMM_SIZE = 768
"""Rows, columns and inner size of the measured product: 0.9 GFLOP, large enough for the peak."""
STREAM_BYTES = 64 << 20
"""Least size of one array in the measurement of memory; at least four times the last cache."""


@dataclass(frozen=True)
class Measured:
    """What was measured, on one core and on all at once, in concurrent Python threads with one BLAS thread each."""

    cores: int  # threads in the measurements of all cores
    gemm_one: float  # float32 matrix product, GFLOP/s
    gemm_all: float  # the sum over all threads
    copy_one: float  # b = a in memory, GB/s read and written (a write's own read is not counted, as in STREAM)
    copy_all: float
    add_one: float  # c = a + b, GB/s: two arrays read and one written, as in STREAM
    add_all: float

    @property
    def gemm_scaling(self) -> float:
        """How many cores' worth of products all cores give: `cores` at best."""
        return self.gemm_all / self.gemm_one if self.gemm_one > 0 else 0.0


def measure_machine(machine: Machine, seconds: float = 0.3) -> Measured:
    """Measure products and memory on one core and on all, `seconds` for each; limits BLAS to one thread meanwhile."""
    cores = machine.logical_cores
    total = max(STREAM_BYTES, 4 * (machine.l3 or 0))
    if machine.memory_available is not None:
        total = min(total, machine.memory_available // 8)  # three arrays, and room for others
    with blas_threads(1):
        gemm_work = [_gemm_work() for _ in range(cores)]
        gemm_one, gemm_all = (rate(gemm_work[:count], seconds) / 1e9 for count in (1, cores))
        del gemm_work
    rates: dict[tuple[str, int], float] = {}
    for count in dict.fromkeys((1, cores)):
        arrays = [_stream_arrays(total // count) for _ in range(count)]
        rates["copy", count] = rate([_copy_work(*three) for three in arrays], seconds) / 1e9
        rates["add", count] = rate([_add_work(*three) for three in arrays], seconds) / 1e9
    return Measured(
        cores=cores,
        gemm_one=gemm_one,
        gemm_all=gemm_all,
        copy_one=rates["copy", 1],
        copy_all=rates["copy", cores],
        add_one=rates["add", 1],
        add_all=rates["add", cores],
    )


Work = tuple[Callable[[], object], float]
"""A call that holds no GIL, and how much one call does: floating-point operations or bytes."""


def rate(work: Sequence[Work], seconds: float) -> float:
    """What all of `work`, each in a thread of its own, does in a second, measured over `seconds`."""
    start = threading.Barrier(len(work))
    done = [0.0] * len(work)

    def repeat(index: int) -> None:
        call, amount = work[index]
        call()  # touches the memory and compiles
        start.wait()
        calls, begin = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - begin) < seconds or calls == 0:
            call()
            calls += 1
        done[index] = calls * amount / elapsed

    threads = [threading.Thread(target=repeat, args=(index,), name=f"doctor-{index}") for index in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done)


def _gemm_work() -> Work:
    generator = np.random.default_rng(0)
    a, b = (generator.standard_normal((GEMM_SIZE, GEMM_SIZE), dtype=np.float32) for _ in range(2))
    out = np.zeros_like(a)
    return lambda: gemm(a, b, out, False, False, 1.0, 0.0), 2.0 * GEMM_SIZE**3


def _stream_arrays(size: int) -> tuple[Any, Any, Any]:
    count = max(1, size // 4)
    return np.ones(count, np.float32), np.ones(count, np.float32), np.zeros(count, np.float32)


def _copy_work(a: Any, b: Any, c: Any) -> Work:
    return lambda: np.copyto(c, a), 2.0 * a.nbytes


def _add_work(a: Any, b: Any, c: Any) -> Work:
    return lambda: np.add(a, b, out=c), 3.0 * a.nbytes
