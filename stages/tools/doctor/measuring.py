"""Measurements for `threadloom doctor`: matrix multiply and memory bandwidth, on one core and on all.

The figures are means over a short time with every core busy, so that other load on the machine shows in them as it will
in a run.
"""

from dataclasses import dataclass

import numpy as np

from threadloom.kernels import Op, gemm
from threadloom.pipeline import blas_threads
from threadloom.stages.machine import Machine, Work, stream_add, stream_copy, throughput

GEMM_SIZE = 768
"""Rows, columns and inner size of the measured GEMM: 0.9 GFLOP, large enough for the peak."""
STREAM_BYTES = 64 << 20
"""Minimum size of one array in the measurement of memory, which is at least four times the last-level cache."""


@dataclass(frozen=True)
class MachineRates:
    """Measured rates on one core and on all, in concurrent Python threads with one BLAS thread each."""

    cores: int  # threads in the measurements of all cores
    gemm_one: float  # float32 GEMM, GFLOP/s
    gemm_all: float  # sum over all threads
    copy_one: float  # b = a, GB/s read and written; the read of the written line is not counted, as in STREAM
    copy_all: float
    add_one: float  # c = a + b, GB/s: two arrays read and one written, as in STREAM
    add_all: float

    @property
    def gemm_scaling(self) -> float:
        """GEMM throughput of all cores relative to one core: at best `cores`."""
        return self.gemm_all / self.gemm_one if self.gemm_one > 0 else 0.0


def measure_machine(machine: Machine, cores: int, seconds: float = 0.3) -> MachineRates:
    """Measure each rate for `seconds` seconds, on one and on `cores` cores. GEMM is measured with one BLAS thread."""
    total = max(STREAM_BYTES, 4 * (machine.l3 or 0))
    if machine.memory_available is not None:
        total = min(total, machine.memory_available // 8)  # three arrays, and a margin for other programs
    with blas_threads(1):
        gemms = [_gemm_work() for _ in range(cores)]
        gemm_one, gemm_all = (throughput(gemms[:count], seconds) / 1e9 for count in (1, cores))
        del gemms
    rates: dict[tuple[str, int], float] = {}
    for count in dict.fromkeys((1, cores)):
        size = total // count  # of each array
        rates["copy", count] = throughput([stream_copy(2 * size) for _ in range(count)], seconds) / 1e9
        rates["add", count] = throughput([stream_add(3 * size) for _ in range(count)], seconds) / 1e9
    return MachineRates(
        cores=cores,
        gemm_one=gemm_one,
        gemm_all=gemm_all,
        copy_one=rates["copy", 1],
        copy_all=rates["copy", cores],
        add_one=rates["add", 1],
        add_all=rates["add", cores],
    )


def _gemm_work() -> Work:
    generator = np.random.default_rng(0)
    a, b = (generator.standard_normal((GEMM_SIZE, GEMM_SIZE), dtype=np.float32) for _ in range(2))
    out = np.zeros_like(a)
    return lambda: gemm(a, b, out, Op.N, Op.N, 1.0, 0.0), 2.0 * GEMM_SIZE**3
