"""What the machine can do at best: the figures that `threadloom bench` measures everything else against.

A peak is the best that was seen, not a mean: what another program takes away in the meantime is no property of the
machine. (`threadloom doctor` takes the mean, because it says what a run may expect.)
"""

import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from functools import partial

import numpy as np

from threadloom.kernels import GemmBackend, blas_info, gemm, gemm_backend
from threadloom.pipeline import blas_threads
from threadloom.stages.config import Precision
from threadloom.stages.machine import Machine
from threadloom.stages.tools.bench.roofline import Level, Peaks, ProductPeak

GEMM_SIZES = (256, 512, 768, 1024)
"""The least is about that of a micro-batch's products."""
WINDOWS = 6
"""Measurements of which the best counts."""
LEVEL_BYTES = tuple(1 << power for power in range(18, 28))
"""256 KiB to 128 MiB: sizes at which one core's bandwidth is measured besides memory's. On less, a call from Python
takes as long as the work."""
LEVEL_WINDOW = 1 / 3
"""Of the window of all else: there are many of these."""
LEAST_STREAM = 192 << 20
OWN_PRODUCTS = (Precision.BF16, Precision.BF16X3)
"""Precisions with a product that is not float32's."""

Work = tuple[Callable[[], object], float]
"""A call that holds no GIL, and how much one call does: operations or bytes."""


def measure_peaks(machine: Machine, seconds: float = 4.0, precisions: Collection[Precision] = ()) -> Peaks:
    """Measure the float32 product, by Numba's and BLAS's, and bandwidths, in about so many seconds.

    `precisions`: what configurations compute in; those with a product of their own have it measured too.
    """
    cores, blas = machine.logical_cores, blas_info()
    backends = [GemmBackend.NUMBA, *([GemmBackend.BLAS] if blas.name and not blas.known_bad else [])]
    products: dict[int, list[float]] = {1: [], cores: []}
    streams_windows = len(PASSES) * (2 + LEVEL_WINDOW * len(LEVEL_BYTES))
    window = seconds / WINDOWS / (2 * len(backends) * len(PRODUCTS) * len(GEMM_SIZES) + streams_windows)
    for backend in backends:
        with gemm_backend(backend), blas_threads(1):
            for count, found in products.items():
                found.append(_best_product(PRODUCTS, count, window))
    others = tuple(_other_product(precision, cores, window) for precision in OWN_PRODUCTS if precision in precisions)
    total = max(LEAST_STREAM, 4 * (machine.l3 or 0))
    if machine.memory_available is not None:
        total = min(total, machine.memory_available // 8)
    streams = {count: _best_stream(total // count, count, window) for count in (1, cores)}
    sizes = [size for size in LEVEL_BYTES if size < total]
    rates = [_best_stream(size, 1, LEVEL_WINDOW * window) for size in sizes]
    return Peaks(
        cores, max(products[1]) / 1e9, max(products[cores]) / 1e9, streams[1], max(streams[cores], streams[1]),
        falling([*map(Level, sizes, rates), Level(total, streams[1])]), others,
    )  # fmt: skip


def falling(levels: Sequence[Level]) -> tuple[Level, ...]:
    """Return levels, from the smallest to the largest, of which none is slower than a larger one.

    What fits a larger size fits a smaller one: where the smaller was slower, something else was in its way.
    """
    return tuple(
        Level(level.bytes, max(other.gb_per_s for other in levels[place:])) for place, level in enumerate(levels)
    )


def _best_stream(size: int, cores: int, window: float) -> float:
    """Return the GB/s of so many cores, with arrays of so many bytes each, by the pass that they like best."""
    return max(best_rate([make(size) for _ in range(cores)], window) for make in PASSES) / 1e9


def _best_product(makes: Sequence[Callable[[int], Work]], cores: int, window: float) -> float:
    """Return operations in a second at the size that products of this kind like best."""
    return max(best_rate([make(size) for _ in range(cores)], window) for make in makes for size in GEMM_SIZES)


def _other_product(precision: Precision, cores: int, window: float) -> ProductPeak:
    """Measure bfloat16's product, or that of float32 made of three of them."""
    with ExitStack() as switches:
        if precision is Precision.BF16X3:
            switches.enter_context(gemm_backend(GemmBackend.BF16X3))
        makes = (_bf16_product,) if precision is Precision.BF16 else PRODUCTS
        one, every = (_best_product(makes, count, window) / 1e9 for count in (1, cores))
    return ProductPeak(precision, one, max(one, every))


def best_rate(work: Sequence[Work], window: float) -> float:
    """Return what all of `work` together, each in a thread of its own, does in a second in the best of some windows."""
    barrier = threading.Barrier(len(work))
    rates: list[list[float]] = [[] for _ in work]

    def repeat(index: int) -> None:
        call, amount = work[index]
        call()  # touches the memory and compiles
        for _ in range(WINDOWS):
            barrier.wait()
            calls, begin = 0, time.perf_counter()
            while (elapsed := time.perf_counter() - begin) < window or calls == 0:
                call()
                calls += 1
            rates[index].append(calls * amount / elapsed)

    threads = [threading.Thread(target=repeat, args=(index,), name=f"bench-{index}") for index in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return max(map(sum, zip(*rates, strict=True)))


def _product(size: int, turned: bool = False) -> Work:
    generator = np.random.default_rng(0)
    a, b = (generator.standard_normal((size, size), dtype=np.float32) for _ in range(2))
    out = np.zeros_like(a)
    return lambda: gemm(a, b, out, False, turned, 1.0, 0.0), 2.0 * size**3


PRODUCTS: tuple[Callable[[int], Work], ...] = (_product, partial(_product, turned=True))
"""Forward's kind, and that of the gradients of inputs, whose second factor is transposed: a little faster."""


def _bf16_product(size: int) -> Work:
    """Both operands as training has them: activations are bfloat16 already, weights are packed once an update."""
    from threadloom.kernels.matmul import gemm_bf16, pack_float32, packed_shape
    from threadloom.kernels.simd import round_to_bf16  # these kernels are loaded by those who use them

    generator = np.random.default_rng(0)
    a, b = (generator.standard_normal((size, size), dtype=np.float32) for _ in range(2))
    bits, words, out = round_to_bf16(a), np.empty(packed_shape(size, size), np.uint32), np.zeros_like(a)
    pack_float32(b, False, words)
    return lambda: gemm_bf16(bits, words, out, False), 2.0 * size**3


def stream(size: int) -> Work:
    """Return the sum of two arrays into a third, which together take `size` bytes, as work for `best_rate`."""
    count = max(size // 12, 1)
    a, b, c = np.ones(count, np.float32), np.ones(count, np.float32), np.zeros(count, np.float32)
    return partial(np.add, a, b, out=c), 12.0 * count


def _add_in_place(size: int) -> Work:
    """Return the sum of two arrays into the first: what is written is in the cache already."""
    count = max(size // 8, 1)
    a, b = np.ones(count, np.float32), np.zeros(count, np.float32)
    return partial(np.add, a, b, out=a), 12.0 * count


def _negate(size: int) -> Work:
    """Return the change of an array's sign: nothing else is read."""
    count = max(size // 4, 1)
    a = np.ones(count, np.float32)
    return partial(np.negative, a, out=a), 8.0 * count


PASSES: tuple[Callable[[int], Work], ...] = (stream, _add_in_place, _negate)
"""Kinds of passes; they differ by a factor of two, since a processor reads a line before it writes one elsewhere."""
