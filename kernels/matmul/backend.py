"""float32 matrix product of every kernel, and the choice of its backend: BLAS, Numba, or three bfloat16 products.

The backend is chosen when this module is imported; `blas_info` reports it, with the library behind it. Unless
``THREADLOOM_GEMM`` is ``blas`` or ``numba``, Numba's GEMM runs if the processor has AVX-512, or AVX2 with FMA: one
product is level with OpenBLAS's, trainings are faster (on Zen 3, with AVX2, 1.12 to 1.19 times), it does not depend on
BLAS's number of threads, teams of threads can divide it, and its result is the same with every version of the library.
On other processors BLAS runs, if it is sound. `GemmBackend.BF16X3` is never chosen automatically: its results are less
exact.

BLAS is loaded only if something needs it or its report: `gemm_backend`, `blas_info`, or the choice itself on those
other processors.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

import numpy as np

from threadloom.kernels.compiling import JIT_ENABLED, TARGET, Floats, ProcessSwitch, jit_kernel
from threadloom.kernels.matmul.blas import (
    AVX512_FEATURES,
    gemm_blas,
    keep_numba_from_loading_blas,
    library_so_far,
    loaded_library,
)
from threadloom.kernels.matmul.float32 import call_blocked, prepare_blocked
from threadloom.kernels.matmul.operands import GemmArgs, Op, gemm_args
from threadloom.kernels.matmul.split import call_split, multiply_split, prepare_split
from threadloom.kernels.simd import HAS_AVX2


class GemmBackend(Enum):
    """Implementation of the float32 product; ``THREADLOOM_GEMM`` may be one of the first two values."""

    BLAS = "blas"
    NUMBA = "numba"
    BF16X3 = "bf16x3"  # three products of bfloat16: faster only on AMX, exact to about 4e-6; see kernels.matmul.split


@dataclass(frozen=True)
class BlasInfo:
    """Backend of the float32 product in this process, the BLAS library, and the reasons for both."""

    backend: GemmBackend  # used by the kernels now
    library: str  # path of the BLAS that SciPy loaded; "" if there is none, or none was needed yet
    name: str  # the library's kind as threadpoolctl names it, mostly "openblas"
    version: str  # of the library; "" if the library does not report it
    architecture: str  # its kernel set; "" if the library does not report it
    overridden: bool  # True if the kernel set was chosen by threadloom and not by the library
    reason: str  # why it was overridden or not, and why the backend was chosen, as a sentence
    known_bad: bool  # one of the versions that are wrong under concurrent callers


def _choose() -> tuple[GemmBackend, str]:
    """Return the default backend and the reason for it; loads BLAS only if that decides."""
    wanted = os.environ.get("THREADLOOM_GEMM", "").strip().lower()
    names = [choice.value for choice in (GemmBackend.BLAS, GemmBackend.NUMBA)]  # bf16x3 is a precision of a run
    if wanted and wanted not in names:
        raise ValueError(f"THREADLOOM_GEMM must be one of {', '.join(names)}, not {wanted!r}")
    asked = f"THREADLOOM_GEMM={wanted}"
    if wanted and GemmBackend(wanted) is not GemmBackend.BLAS:
        return GemmBackend(wanted), asked
    vectors = "AVX-512" if all(TARGET.get(name, False) for name in AVX512_FEATURES) else "AVX2" if HAS_AVX2 else None
    if not wanted and vectors:
        why = f"on {vectors} Numba's GEMM is used, which is as fast or faster and the same bits for every BLAS"
        return GemmBackend.NUMBA, why
    library = loaded_library()
    if not library.library:
        return GemmBackend.NUMBA, "so Numba's GEMM is used"
    if wanted:
        return GemmBackend.BLAS, asked
    if library.known_bad:
        why = f"OpenBLAS {library.version} is wrong under concurrent callers, so Numba's GEMM is used"
        return GemmBackend.NUMBA, why
    return GemmBackend.BLAS, ""


_NUMBA, _BF16X3 = 0, 2  # indices in the switch, read by compiled code
_default, _default_reason = _choose()
_switch = ProcessSwitch("threadloom_gemm_backend", (GemmBackend.NUMBA, GemmBackend.BLAS, GemmBackend.BF16X3), _default)
_read_backend = _switch.read
if JIT_ENABLED:
    keep_numba_from_loading_blas()


def blas_info(load: bool = True) -> BlasInfo:
    """Return the backend of the float32 product in this process, and the BLAS library.

    SciPy's BLAS is loaded for the report if it is not loaded yet. With ``load=False`` it is not: callers that need only
    `backend` and `reason` get the same backend, and empty fields about a library that nothing has needed.
    """
    library = loaded_library() if load else library_so_far()
    reason = "; ".join(part for part in (library.reason, _default_reason) if part)
    return BlasInfo(**{**vars(library), "backend": _switch.current, "reason": reason})


@contextmanager
def gemm_backend(backend: GemmBackend) -> Iterator[None]:
    """Let every product of the process run on `backend` within the ``with`` block; for tests and the tuner.

    The choice is process-wide: enter it while no other thread is inside a kernel. The first block that selects BLAS
    loads it, so a limit on its threads belongs inside the block. RuntimeError if there is no BLAS.
    """
    if backend is GemmBackend.BLAS and not (library := loaded_library()).library:
        raise RuntimeError(f"no BLAS is available ({library.reason}); install scipy")
    if backend is GemmBackend.BF16X3:
        prepare_split()
    elif backend is GemmBackend.NUMBA:
        prepare_blocked()
    with _switch.set_to(backend):
        yield


@jit_kernel
def gemm_at(p: GemmArgs) -> None:
    """Compute ``p.out = alpha * op(a) @ op(b) + beta * out`` on the process's backend; for compiled code only."""
    backend = _read_backend()
    if backend == _NUMBA:
        call_blocked(p)
    elif backend == _BF16X3:
        call_split(p)
    else:
        gemm_blas(p)


@jit_kernel
def _gemm_compiled(a: Floats, b: Floats, out: Floats, op_a: Op, op_b: Op, alpha: float, beta: float) -> None:
    gemm_at(gemm_args(a, b, out, op_a, op_b, alpha, beta))


def _gemm_numpy(a: Floats, b: Floats, out: Floats, op_a: Op, op_b: Op, alpha: float, beta: float) -> None:
    multiply = multiply_split if _switch.current is GemmBackend.BF16X3 else np.matmul
    product = np.float32(alpha) * multiply(a.T if op_a == Op.T else a, b.T if op_b == Op.T else b)
    if beta == 0:
        out[...] = product
    else:
        out[...] = np.float32(beta) * out + product


if JIT_ENABLED:
    _gemm = _gemm_compiled
else:
    _gemm = _gemm_numpy


@jit_kernel
def gemm(a: Floats, b: Floats, out: Floats, op_a: Op, op_b: Op, alpha: float, beta: float) -> None:
    """Compute ``out = alpha * op_a(a) @ op_b(b) + beta * out`` in float32.

    `out` is (M, N), op_a(a) (M, K) and op_b(b) (K, N). Each array is row-major or a view of columns of such an array:
    elements are contiguous within a row, and the rows a stride apart. With ``beta == 0`` the earlier content of `out`,
    NaN included, does not matter. `out` must not overlap `a` or `b`.
    """
    _gemm(a, b, out, op_a, op_b, alpha, beta)
