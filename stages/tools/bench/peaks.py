"""Peaks of the machine: the best rates of GEMM and memory, to which `threadloom bench` compares everything else.

A peak is the best of several measurements, because time that another program takes is no property of the machine.
(`threadloom doctor` reports means, which a run can expect.)
"""

from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from functools import partial

import numpy as np

from threadloom.kernels import GemmBackend, Op, blas_info, gemm, gemm_backend
from threadloom.pipeline import blas_threads
from threadloom.stages.config import Precision
from threadloom.stages.machine import (
    Machine,
    Work,
    stream_add,
    stream_add_in_place,
    stream_negate,
    throughput,
)
from threadloom.stages.tools.bench.roofline import BandwidthLevel, GemmPeak, Peaks

GEMM_SIZES = (256, 512, 768, 1024)
"""Rows, columns and inner size of the measured GEMMs; the smallest is about that of a micro-batch."""
WINDOWS = 6
"""Measurements of a rate, of which the best counts."""
LEVEL_BYTES = tuple(1 << power for power in range(18, 28))
"""Sizes at which the bandwidth of one core is measured, in addition to memory: 256 KiB to 128 MiB. For smaller arrays
a call from Python takes as long as the work."""
LEVEL_WINDOW = 1 / 3
"""Length of the window of such a measurement relative to the others, because there are many sizes."""
LEAST_STREAM = 192 << 20
SEPARATE_GEMM = (Precision.BF16, Precision.BF16X3)
"""Precisions with a GEMM kernel other than float32's."""


def measure_peaks(machine: Machine, cores: int, seconds: float = 4.0, precisions: Collection[Precision] = ()) -> Peaks:
    """Measure float32 GEMM by Numba and by BLAS, and bandwidths, in about `seconds` seconds, on one and `cores` cores.

    `precisions` are those of the measured configurations; their separate GEMMs are measured too.
    """
    blas = blas_info()
    backends = [GemmBackend.NUMBA, *([GemmBackend.BLAS] if blas.name and not blas.known_bad else [])]
    gemms: dict[int, list[float]] = {1: [], cores: []}
    streams_windows = len(PASSES) * (2 + LEVEL_WINDOW * len(LEVEL_BYTES))
    window = seconds / WINDOWS / (2 * len(backends) * len(FLOAT32_GEMMS) * len(GEMM_SIZES) + streams_windows)
    for backend in backends:
        with gemm_backend(backend), blas_threads(1):
            for count, rates in gemms.items():
                rates.append(_best_gemm(FLOAT32_GEMMS, count, window))
    others = tuple(_separate_gemm(precision, cores, window) for precision in SEPARATE_GEMM if precision in precisions)
    total = max(LEAST_STREAM, 4 * (machine.l3 or 0))
    if machine.memory_available is not None:
        total = min(total, machine.memory_available // 8)
    streams = {count: _best_stream(total // count, count, window) for count in (1, cores)}
    sizes = [size for size in LEVEL_BYTES if size < total]
    bandwidths = [_best_stream(size, 1, LEVEL_WINDOW * window) for size in sizes]
    return Peaks(
        cores, max(gemms[1]) / 1e9, max(gemms[cores]) / 1e9, streams[1], max(streams[cores], streams[1]),
        non_increasing([*map(BandwidthLevel, sizes, bandwidths), BandwidthLevel(total, streams[1])]), others,
    )  # fmt: skip


def non_increasing(levels: Sequence[BandwidthLevel]) -> tuple[BandwidthLevel, ...]:
    """Return levels, given from the smallest to the largest, with none slower than a larger one.

    Arrays of a smaller size fit wherever larger ones do, so a lower rate for the smaller size is a disturbance.
    """
    return tuple(
        BandwidthLevel(level.bytes, max(other.gb_per_s for other in levels[place:]))
        for place, level in enumerate(levels)
    )


def _best_rate(make: Callable[[int], Work], size: int, cores: int, window: float) -> float:
    return throughput([make(size) for _ in range(cores)], window, WINDOWS)


def _best_stream(size: int, cores: int, window: float) -> float:
    """Return the GB/s of `cores` cores with `size` bytes of arrays each, for the fastest kind of pass."""
    return max(_best_rate(make, size, cores, window) for make in PASSES) / 1e9


def _best_gemm(makes: Sequence[Callable[[int], Work]], cores: int, window: float) -> float:
    """Return the operations per second of the fastest kind and size of GEMM."""
    return max(_best_rate(make, size, cores, window) for make in makes for size in GEMM_SIZES)


def _separate_gemm(precision: Precision, cores: int, window: float) -> GemmPeak:
    """Measure the GEMM of bfloat16, or of bf16x3, which multiplies float32 by three products of bfloat16."""
    with ExitStack() as switches:
        if precision is Precision.BF16X3:
            switches.enter_context(gemm_backend(GemmBackend.BF16X3))
        makes = (_bf16_gemm,) if precision is Precision.BF16 else FLOAT32_GEMMS
        one, every = (_best_gemm(makes, count, window) / 1e9 for count in (1, cores))
    return GemmPeak(precision, one, max(one, every))


def _operands(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    a, b = (generator.standard_normal((size, size), dtype=np.float32) for _ in range(2))
    return a, b, np.zeros_like(a)


def _gemm(size: int, op_b: Op = Op.N) -> Work:
    a, b, out = _operands(size)
    return lambda: gemm(a, b, out, Op.N, op_b, 1.0, 0.0), 2.0 * size**3


FLOAT32_GEMMS: tuple[Callable[[int], Work], ...] = (_gemm, partial(_gemm, op_b=Op.T))
"""The GEMM of forward, and that of input gradients, whose second operand is transposed: a little faster."""


def _bf16_gemm(size: int) -> Work:
    """Return a GEMM with operands as in training: activations in bfloat16, weights packed in advance."""
    from threadloom.kernels.matmul import gemm_bf16, pack_float32, packed_shape, prepare_bf16
    from threadloom.kernels.simd import round_to_bf16  # the 16-bit kernels are loaded on demand

    prepare_bf16()
    a, b, out = _operands(size)
    bits, packed = round_to_bf16(a), np.empty(packed_shape(size, size), np.uint32)
    pack_float32(b, Op.N, packed)
    return lambda: gemm_bf16(bits, packed, out, False), 2.0 * size**3


PASSES: tuple[Callable[[int], Work], ...] = (stream_add, stream_add_in_place, stream_negate)
"""Kinds of passes. Their rates differ by up to a factor of two: a processor reads a line before it writes elsewhere."""
