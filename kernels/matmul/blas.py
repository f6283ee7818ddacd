"""Matrix products from code without the GIL: SciPy's BLAS where there is one, the blocked Numba product otherwise.

Which product runs is settled when this module is imported; `blas_info` reports it, with the library behind it. Numba
calls the copy of BLAS that SciPy brings, through the symbol ``numba_xxgemm``, and looks for it at the first call. SciPy
takes 14 MB and 0.1 s to load, so it is loaded only once something asks for BLAS or its report: `gemm_backend`,
`blas_info`, or the choice itself where the processor has no AVX-512. An OpenBLAS that does not know a new processor
picks an old kernel set, at half of the speed ('Haswell' on one with AVX-512); it reads ``OPENBLAS_CORETYPE`` while it
is loaded, so it is loaded here, with the variable set for that moment only. A value that the user set stands:
`blas_info` says what it costs.

Unless ``THREADLOOM_GEMM`` says ``blas`` or ``numba``, Numba's own product runs where the processor has
AVX-512: on an AMD Zen 5 it is level with OpenBLAS's AVX-512 kernels on large matrices and ahead on small ones, it
depends on no thread count of BLAS, and its result is the same with every version of the library. Elsewhere BLAS runs,
if it is sound. `GemmBackend.BF16X3` is never chosen by itself: its results are less exact.

Which product runs is a number in memory that compiled code reads by a symbol, not a constant of the compilation:
Numba's cache on disk does not know constants, and would hand a later process the choice of an earlier one.
"""

import ctypes
import importlib
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import llvmlite.binding
import numpy as np
import threadpoolctl
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from threadloom.kernels.compiling import JIT_ENABLED, TARGET, Floats, jit_kernel
from threadloom.kernels.matmul.float32 import gemm_blocked
from threadloom.kernels.matmul.split import call_split, multiply_split, prepare_split


class GemmBackend(Enum):
    """What multiplies matrices; ``THREADLOOM_GEMM`` may say one of the first two values."""

    BLAS = "blas"
    NUMBA = "numba"
    BF16X3 = "bf16x3"  # three products of bfloat16: faster only on AMX, and exact to about 4e-6; see lowp_split_gemm


AVX512_FEATURES = ("avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512cd")
AVX512_KERNELS = frozenset({"skylakex", "cooperlake", "sapphirerapids"})
KNOWN_BAD_OPENBLAS = ("0.3.28", "0.3.29")
"""Versions that gave wrong products when several threads called them at once."""


@dataclass(frozen=True)
class BlasInfo:
    """What multiplies matrices in this process, and why it is that."""

    backend: GemmBackend  # what the kernels call now
    library: str  # path of the BLAS that SciPy loaded; "" when there is none, or none was needed yet
    name: str  # the library's kind as threadpoolctl names it, "openblas" mostly
    version: str  # of the library; "" when it does not say
    architecture: str  # the kernel set it uses; "" when it does not say
    overridden: bool  # whether its kernel set was chosen here and not by itself
    reason: str  # why it was overridden or not, and why the backend is what it is, in a sentence
    known_bad: bool  # one of the versions that are wrong under concurrent callers


@dataclass(frozen=True)
class _Library:
    """The BLAS that SciPy loaded: the fields of `BlasInfo`, `reason` about its kernel set alone."""

    library: str = ""
    name: str = ""
    version: str = ""
    architecture: str = ""
    overridden: bool = False
    reason: str = "SciPy's BLAS was not needed and not loaded"
    known_bad: bool = False


def _libraries() -> dict[str, dict[str, Any]]:
    return {str(lib["filepath"]): lib for lib in threadpoolctl.threadpool_info() if lib.get("user_api") == "blas"}


def _is_scipys(path: str) -> bool:
    """Return whether a library lies in a folder of SciPy's, ``scipy.libs`` in a wheel."""
    return "scipy" in Path(path).parent.name


def _has_avx512() -> bool:
    try:
        features = llvmlite.binding.get_host_cpu_features()
    except RuntimeError:
        return False
    return all(features.get(name, False) for name in AVX512_FEATURES)


def _override_reason(before: dict[str, dict[str, Any]]) -> tuple[bool, str]:
    """Return whether SciPy's OpenBLAS should be told its kernel set, and the reason; `before` is what is loaded."""
    asked = os.environ.get("OPENBLAS_CORETYPE", "")
    if asked:
        slow = _has_avx512() and asked.lower() not in AVX512_KERNELS
        remedy = ", which leaves the processor's AVX-512 unused; unset it for up to twice the speed" if slow else ""
        return False, f"the environment sets OPENBLAS_CORETYPE={asked}{remedy}"
    if "scipy.linalg.cython_blas" in sys.modules or any(map(_is_scipys, before)):
        return False, "SciPy's BLAS was loaded before threadloom; import threadloom's packages first to let them choose"
    if not _has_avx512():
        return False, "the processor has no AVX-512, the library's own choice stands"
    chosen = [str(lib.get("architecture", "")) for lib in before.values() if lib.get("internal_api") == "openblas"]
    if not chosen:
        return False, "NumPy uses no OpenBLAS that could be asked for its kernel set"
    if any(name.lower() in AVX512_KERNELS for name in chosen):
        return False, f"OpenBLAS knows the processor ({chosen[0]})"
    return True, f"the processor has AVX-512, but OpenBLAS took it for {chosen[0]}"


def _load() -> _Library:
    """Load SciPy's BLAS with the right kernel set, and say what it is."""
    before = _libraries()
    override, reason = _override_reason(before)
    if override:
        os.environ["OPENBLAS_CORETYPE"] = "SkylakeX"
    try:
        importlib.import_module("scipy.linalg.cython_blas")
        _numba_linalg().ensure_blas()  # refuses a BLAS whose integers are not as wide as Numba was built for
    except (ImportError, RuntimeError) as error:
        return _Library(reason=f"SciPy's BLAS cannot be loaded: {error}")
    finally:
        if override:
            del os.environ["OPENBLAS_CORETYPE"]  # child processes must not inherit it
    after = _libraries()
    new = [path for path in after if path not in before]
    scipys = [path for path in after if _is_scipys(path)]
    path = next(iter([*new, *scipys, *after]), "")
    library = after.get(path, {})
    version = str(library.get("version") or "")
    return _Library(
        path,
        str(library.get("internal_api", "")),
        version,
        str(library.get("architecture", "")),
        override,
        reason,
        library.get("internal_api") == "openblas" and version.startswith(KNOWN_BAD_OPENBLAS),
    )


_lock = threading.Lock()
_found: list[_Library] = []  # empty until something needed BLAS, then what was found; only `_loaded_library` adds to it


def _loaded_library() -> _Library:
    """Return SciPy's BLAS, loading it where that has not been done or tried yet."""
    with _lock:
        if not _found:
            _found.append(_load())
        return _found[0]


def _numba_linalg() -> Any:
    return importlib.import_module("numba.np.linalg")


def _keep_numba_from_loading_blas() -> None:
    """Import Numba's array functions without SciPy's BLAS, which they load only to know that it is there.

    Numba imports them before its first kernel, and would bring in all of ``scipy.linalg`` for a product that never
    calls it, before `_load` could choose the kernel set. Code that uses ``np.dot`` loses nothing: Numba asks for BLAS
    again when it compiles that. Where Numba is built another way, its own loading stands.
    """
    linalg = _numba_linalg()
    if "numba.np.arraymath" in sys.modules or not hasattr(linalg, "ensure_blas"):
        return
    asks = linalg.ensure_blas
    linalg.ensure_blas = lambda: None
    try:
        arraymath: Any = importlib.import_module("numba.np.arraymath")
    finally:
        linalg.ensure_blas = asks
    arraymath.ensure_blas = asks


def _choose() -> tuple[GemmBackend, str]:
    """Return what multiplies unless `gemm_backend` says otherwise, and why; loads BLAS only if that decides."""
    wanted = os.environ.get("THREADLOOM_GEMM", "").strip().lower()
    names = [choice.value for choice in (GemmBackend.BLAS, GemmBackend.NUMBA)]  # bf16x3 is a precision of a run
    if wanted and wanted not in names:
        raise ValueError(f"THREADLOOM_GEMM must be one of {', '.join(names)}, not {wanted!r}")
    asked = f"THREADLOOM_GEMM={wanted}"
    if wanted and GemmBackend(wanted) is not GemmBackend.BLAS:
        return GemmBackend(wanted), asked
    if not wanted and all(TARGET.get(name, False) for name in AVX512_FEATURES):
        why = "on AVX-512 Numba's product is used, which is as fast or faster and the same bits for every BLAS"
        return GemmBackend.NUMBA, why
    library = _loaded_library()
    if not library.library:
        return GemmBackend.NUMBA, "so Numba's product is used"
    if wanted:
        return GemmBackend.BLAS, asked
    if library.known_bad:
        why = f"OpenBLAS {library.version} is wrong under concurrent callers, so Numba's product is used"
        return GemmBackend.NUMBA, why
    return GemmBackend.BLAS, ""


_FLAG_SYMBOL = "threadloom_gemm_backend"
_BACKENDS = (GemmBackend.NUMBA, GemmBackend.BLAS, GemmBackend.BF16X3)  # what the number in memory stands for
_default, _default_reason = _choose()
_choice = ctypes.c_int32(_BACKENDS.index(_default))  # the process's choice; compiled code reads it
llvmlite.binding.add_symbol(_FLAG_SYMBOL, ctypes.addressof(_choice))
if _default is GemmBackend.BF16X3:
    prepare_split()
if JIT_ENABLED:
    _keep_numba_from_loading_blas()


def blas_info(load: bool = True) -> BlasInfo:
    """Return what multiplies matrices in this process.

    SciPy's BLAS is loaded for the report if it is not yet there. With ``load=False`` it is not: who asks only for
    `backend` and `reason` gets the same backend, and empty fields about a library that nothing has needed.
    """
    library = _loaded_library() if load else next(iter(_found), _Library())
    reason = "; ".join(words for words in (library.reason, _default_reason) if words)
    return BlasInfo(**{**vars(library), "backend": _BACKENDS[_choice.value], "reason": reason})


@contextmanager
def gemm_backend(backend: GemmBackend) -> Iterator[None]:
    """Let every product of the process run on `backend` within the ``with`` block; for tests and the tuner.

    The choice is process-wide: enter it while no other thread is inside a kernel. The first block that asks for BLAS
    loads it, so a limit on its threads belongs inside the block.
    """
    if backend is GemmBackend.BLAS and not (library := _loaded_library()).library:
        raise RuntimeError(f"BLAS was asked for, but there is none ({library.reason}); install scipy")
    if backend is GemmBackend.BF16X3:
        prepare_split()
    earlier = _choice.value
    _choice.value = _BACKENDS.index(backend)
    try:
        yield
    finally:
        _choice.value = earlier


@intrinsic
def _chosen(typing_context: Any) -> Any:
    """Read the process's choice of product (int32) by its symbol."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        flag = cgutils.add_global_variable(builder.module, ir.IntType(32), _FLAG_SYMBOL)
        return builder.load(flag)

    return types.int32(), codegen


@intrinsic
def _sgemm(
    typing_context: Any,
    ta: Any,
    tb: Any,
    m: Any,
    n: Any,
    k: Any,
    alpha: Any,
    a: Any,
    lda: Any,
    b: Any,
    ldb: Any,
    beta: Any,
    c: Any,
    ldc: Any,
) -> Any:
    """Call ``numba_xxgemm`` for float32 in BLAS's own order (columns first); `a`, `b`, `c` are addresses."""
    word, single = types.intp, types.float32
    letters, sizes = [types.uint8] * 2, [word] * 3
    signature = types.int32(*letters, *sizes, single, word, word, word, word, single, word, word)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc = arguments
        char, whole, pointer = ir.IntType(8), ir.IntType(64), ir.IntType(8).as_pointer()
        function_type = ir.FunctionType(
            ir.IntType(32),
            [char, char, char, whole, whole, whole, pointer, pointer, whole, pointer, whole, pointer, pointer, whole],
        )
        function = cgutils.get_or_insert_function(builder.module, function_type, "numba_xxgemm")

        def by_reference(value: Any) -> Any:
            return builder.bitcast(cgutils.alloca_once_value(builder, value), pointer)

        def address(value: Any) -> Any:
            return builder.inttoptr(value, pointer)

        kind = ir.Constant(char, ord("s"))
        return builder.call(
            function,
            [
                *(kind, ta, tb, m, n, k),
                *(by_reference(alpha), address(a), lda, address(b), ldb),
                *(by_reference(beta), address(c), ldc),
            ],
        )

    return signature, codegen


_NO, _YES = np.uint8(ord("N")), np.uint8(ord("T"))


@jit_kernel
def _gemm_compiled(
    a: Floats, b: Floats, out: Floats, transpose_a: bool, transpose_b: bool, alpha: float, beta: float
) -> None:
    rows, columns = out.shape
    inner = a.shape[0] if transpose_a else a.shape[1]
    lda, ldb, ldc = a.strides[0] // 4, b.strides[0] // 4, out.strides[0] // 4
    at, bt, ct = a.ctypes.data, b.ctypes.data, out.ctypes.data
    chosen = _chosen()
    if chosen == 0:
        gemm_blocked(at, lda, transpose_a, bt, ldb, transpose_b, ct, ldc, rows, columns, inner, alpha, beta)
        return
    if chosen == 2:
        call_split(at, lda, transpose_a, bt, ldb, transpose_b, ct, ldc, rows, columns, inner, alpha, beta)
        return
    # BLAS reads a C-order matrix as its transpose, so it is asked for out.T = b.T @ a.T. A matrix of one row may have
    # any stride, and BLAS refuses a leading dimension below the row's length.
    _sgemm(
        _YES if transpose_b else _NO,
        _YES if transpose_a else _NO,
        columns,
        rows,
        inner,
        np.float32(alpha),
        bt,
        max(ldb, b.shape[1]),
        at,
        max(lda, a.shape[1]),
        np.float32(beta),
        ct,
        max(ldc, columns),
    )


def _gemm_numpy(
    a: Floats, b: Floats, out: Floats, transpose_a: bool, transpose_b: bool, alpha: float, beta: float
) -> None:
    multiply = multiply_split if _BACKENDS[_choice.value] is GemmBackend.BF16X3 else np.matmul
    product = np.float32(alpha) * multiply(a.T if transpose_a else a, b.T if transpose_b else b)
    if beta == 0:
        out[...] = product
    else:
        out[...] = np.float32(beta) * out + product


if JIT_ENABLED:
    _gemm = _gemm_compiled
else:
    _gemm = _gemm_numpy


@jit_kernel
def gemm(a: Floats, b: Floats, out: Floats, transpose_a: bool, transpose_b: bool, alpha: float, beta: float) -> None:
    """Compute ``out = alpha * op(a) @ op(b) + beta * out`` in float32; op transposes where asked.

    `out` is (M, N), op(a) (M, K) and op(b) (K, N). Each array is in C order or a view of columns of one: its elements
    lie side by side within a row, and its rows a stride apart. With ``beta == 0`` the earlier content of `out`, NaN
    included, does not matter. `out` must not overlap `a` or `b`.
    """
    _gemm(a, b, out, transpose_a, transpose_b, alpha, beta)
