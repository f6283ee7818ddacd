"""float32 products of linear layers in every variant, beside OpenBLAS and PyTorch, on one core.

    python -m benchmarks.products [--rounds N] [--shape ROWSxINxOUT ...]

Sides alternate within each round, in one process and one thread; figures are medians in GFLOP/s of the thread's CPU
time, so that other load on the machine counts less. Each side's result is compared with float64 first. Ours and
OpenBLAS are called by compiled code, as in training: the call from Python takes 20 µs, PyTorch's 1 µs.
"""

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels import GemmBackend, Op, gemm, gemm_backend
from threadloom.kernels.compiling import jit_kernel
from threadloom.kernels.matmul import VARIANTS, GemmVariant, ProductKind, gemm_variants
from threadloom.pipeline import blas_threads

SHAPES = (
    (256, 256, 1024),
    (256, 384, 1536),
    (512, 1536, 384),
    (512, 768, 3072),
    (256, 384, 16000),
    (192, 100, 333),
    (127, 129, 257),
    (257, 65, 1000),
    (1000, 127, 65),
    (64, 129, 50257),
)
"""Rows, inputs and outputs of a linear layer: those of docs/performance.md, and odd ones."""
MIN_SECONDS = 0.02
"""Minimum CPU time of one measurement."""

Matrix = NDArray[np.float32]
Call = Callable[[int], object]
"""Multiply as many times as the argument says."""


@jit_kernel
def multiply(a: Matrix, b: Matrix, out: Matrix, op_a: Op, op_b: Op, count: int) -> None:
    """Multiply `count` times, as kernels of training do."""
    for _ in range(count):
        gemm(a, b, out, op_a, op_b, 1.0, 0.0)


def products(rows: int, inputs: int, outputs: int) -> Iterator[tuple[str, Matrix, Matrix, Op, Op]]:
    """Yield the three products of a linear layer: name, stored operands, and how they are read."""
    rng = np.random.default_rng(0)
    x, w, dy = (rng.standard_normal(s, np.float32) for s in ((rows, inputs), (inputs, outputs), (rows, outputs)))
    yield "forward", x, w, Op.N, Op.N
    yield "dX", dy, w, Op.N, Op.T
    yield "dW", x, dy, Op.T, Op.N


def torch_call(a: Matrix, b: Matrix, out: Matrix) -> Call | None:
    """Return the product by PyTorch, or None if it is not installed."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(1)
    left, right, result = (torch.from_numpy(array) for array in (a, b, out))

    def call(count: int) -> None:
        for _ in range(count):
            torch.mm(left, right, out=result)

    return call


def seconds_per_call(call: Call) -> float:
    """Return the CPU time of a call, of as many as take `MIN_SECONDS`."""
    count = 1
    while True:
        begin = time.thread_time()
        call(count)
        if (spent := time.thread_time() - begin) >= MIN_SECONDS:
            return spent / count
        count = 2 * count if spent <= 0 else max(count + 1, int(1.2 * count * MIN_SECONDS / spent))


def select(side: str) -> contextlib.ExitStack:
    """Return a context in which `gemm` is that side."""
    stack = contextlib.ExitStack()
    if side == "OpenBLAS":
        stack.enter_context(gemm_backend(GemmBackend.BLAS))
    elif side != "PyTorch":
        stack.enter_context(gemm_backend(GemmBackend.NUMBA))
        stack.enter_context(gemm_variants(dict.fromkeys(ProductKind, GemmVariant(side))))
    return stack


def measure(a: Matrix, b: Matrix, op_a: Op, op_b: Op, rounds: int) -> dict[str, float]:
    """Return the median GFLOP/s of every side; raises ValueError if one is wrong."""
    left, right = a.T if op_a is Op.T else a, b.T if op_b is Op.T else b
    inner = left.shape[1]
    exact = left.astype(np.float64) @ right.astype(np.float64)
    out = np.zeros(exact.shape, np.float32)
    sides: dict[str, Call] = {v.value: lambda count: multiply(a, b, out, op_a, op_b, count) for v in VARIANTS}
    sides["OpenBLAS"] = sides[GemmVariant.IN_PLACE.value]
    if (call := torch_call(left, right, out)) is not None:
        sides["PyTorch"] = call
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for side, call in sides.items():
        out[...] = np.nan
        with select(side):
            call(1)
        error = float(np.abs(out - exact).max() / np.abs(exact).max())
        if not error < inner * 2.0**-23:
            raise ValueError(f"{side}: relative error {error:.1e}")
    for _ in range(rounds):
        for side, call in sides.items():
            with select(side):
                seconds[side].append(seconds_per_call(call))
    operations = 2.0 * exact.size * inner / 1e9
    return {side: operations / statistics.median(found) for side, found in seconds.items()}


def main() -> None:
    """Measure the shapes and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--shape", action="append", help="ROWSxINxOUT")
    options = parser.parse_args()
    shapes = [tuple(map(int, text.split("x"))) for text in options.shape] if options.shape else SHAPES
    titled = False
    with gemm_backend(GemmBackend.BLAS), blas_threads(1):
        for rows, inputs, outputs in shapes:
            for name, a, b, op_a, op_b in products(rows, inputs, outputs):
                rates = measure(a, b, op_a, op_b, options.rounds)
                if not titled:
                    print("| shape | product |", *(f"{side} |" for side in rates))
                    print("| --- | --- |", *("---: |" for _ in rates))
                    titled = True
                figures = (f"{rate:.0f} |" for rate in rates.values())
                print(f"| {rows} x {inputs} x {outputs} | {name} |", *figures, flush=True)


if __name__ == "__main__":
    main()
