"""Floating-point environment of the threads that BLAS creates.

A kernel sets the register of the thread that calls it (`kernels.compiling.float_environment`), and a BLAS with more
than one thread computes parts of a product in worker threads. A new thread inherits the register of its creator
(POSIX). OpenBLAS creates its threads when it is loaded, and again at the first product after they have been ended, as
before a fork. So they are ended here, and the next product, called from a kernel, creates them. Whether they then
flush subnormal numbers is read off a product, so any BLAS may be asked.

Assumption: no other thread is inside BLAS on entry and exit.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from threadloom.kernels.compiling import JIT_ENABLED, Floats, jit_kernel
from threadloom.kernels.matmul.blas import gemm_blas, loaded_library
from threadloom.kernels.matmul.operands import Op, gemm_args

_SIZE = 384  # large enough that every BLAS divides the product among all of its threads, up to about a hundred
_SUBNORMAL = np.float32(1e-39)


@contextmanager
def flushing_blas_threads() -> Iterator[bool]:
    """Let the threads of SciPy's BLAS flush subnormal numbers to zero within the block, as kernels do.

    Yields False if some of them do not, because the library has no way to restart its threads. The results are then the
    same in every run, but a diverging run may become slow. Enter the block after the number of threads was set, and
    while no other thread is inside BLAS.
    """
    if not JIT_ENABLED or not loaded_library().library or _every_thread_flushes():
        yield True
        return
    end_threads = getattr(ctypes.CDLL(loaded_library().library), "blas_thread_shutdown_", None)
    if end_threads is None:
        yield False
        return
    end_threads()
    try:
        yield _every_thread_flushes()
    finally:
        end_threads()  # later callers of BLAS get threads that inherit their register


def _every_thread_flushes() -> bool:
    """Return True if no thread that takes part in a product keeps subnormal operands."""
    a, b = np.full((_SIZE, _SIZE), _SUBNORMAL), np.ones((_SIZE, _SIZE), np.float32)
    out = np.ones((_SIZE, _SIZE), np.float32)
    _multiply(a, b, out)
    return not out.any()


@jit_kernel
def _multiply(a: Floats, b: Floats, out: Floats) -> None:
    gemm_blas(gemm_args(a, b, out, Op.N, Op.N, 1.0, 0.0))
