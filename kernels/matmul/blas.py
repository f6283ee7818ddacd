"""SciPy's BLAS: loading it with the right kernel set, at the first use, and calling its GEMM from compiled code.

Numba calls the copy of BLAS that SciPy ships, through the symbol ``numba_xxgemm``, which it looks up at the first call.
SciPy takes 14 MB and 0.1 s to load, so it is loaded only when something needs BLAS. An OpenBLAS that does not know a
new processor picks an old kernel set, at half of the speed ('Haswell' on one with AVX-512); it reads
``OPENBLAS_CORETYPE`` while it is loaded, so it is loaded here, with the variable set only meanwhile. A value set by the
user is respected; `Library.reason` reports its cost.
"""

import importlib
import os
import sys
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite.binding
import threadpoolctl
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from threadloom.kernels.compiling import jit_kernel, numba_type
from threadloom.kernels.matmul.operands import GemmArgs, Op
from threadloom.kernels.simd import INT8, INT32, INT64

AVX512_FEATURES = ("avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512cd")
AVX512_KERNELS = frozenset({"skylakex", "cooperlake", "sapphirerapids"})
KNOWN_BAD_OPENBLAS = ("0.3.28", "0.3.29")
"""Versions that returned wrong products when several threads called them at once."""


@dataclass(frozen=True)
class Library:
    """The BLAS that SciPy loaded."""

    library: str = ""  # path; "" if there is none, or none was needed yet
    name: str = ""  # the library's kind as threadpoolctl names it, mostly "openblas"
    version: str = ""  # "" if the library does not report it
    architecture: str = ""  # its kernel set; "" if the library does not report it
    overridden: bool = False  # True if the kernel set was chosen here and not by the library
    reason: str = "SciPy's BLAS was not needed and not loaded"  # why it was overridden or not, as a sentence
    known_bad: bool = False  # one of `KNOWN_BAD_OPENBLAS`


def _libraries() -> dict[str, dict[str, Any]]:
    return {str(lib["filepath"]): lib for lib in threadpoolctl.threadpool_info() if lib.get("user_api") == "blas"}


def _is_scipys(path: str) -> bool:
    """Return True if a library is in a folder of SciPy's, ``scipy.libs`` in a wheel."""
    return "scipy" in Path(path).parent.name


def _has_avx512() -> bool:
    try:
        features = llvmlite.binding.get_host_cpu_features()
    except RuntimeError:
        return False
    return all(features.get(name, False) for name in AVX512_FEATURES)


def _override_reason(before: dict[str, dict[str, Any]]) -> tuple[bool, str]:
    """Return whether to override the kernel set of SciPy's OpenBLAS, and why; `before`: the libraries loaded so far."""
    asked = os.environ.get("OPENBLAS_CORETYPE", "")
    if asked:
        slow = _has_avx512() and asked.lower() not in AVX512_KERNELS
        remedy = ", which leaves the processor's AVX-512 unused; unset it for up to twice the speed" if slow else ""
        return False, f"the environment sets OPENBLAS_CORETYPE={asked}{remedy}"
    if "scipy.linalg.cython_blas" in sys.modules or any(map(_is_scipys, before)):
        return False, "SciPy's BLAS was loaded before threadloom; import threadloom's packages first to let them choose"
    if not _has_avx512():
        return False, "the processor has no AVX-512, so the library's own choice is used"
    chosen = [str(lib.get("architecture", "")) for lib in before.values() if lib.get("internal_api") == "openblas"]
    if not chosen:
        return False, "NumPy uses no OpenBLAS that reports its kernel set"
    if any(name.lower() in AVX512_KERNELS for name in chosen):
        return False, f"OpenBLAS knows the processor ({chosen[0]})"
    return True, f"the processor has AVX-512, but OpenBLAS took it for {chosen[0]}"


@cache
def _load() -> Library:
    """Load SciPy's BLAS with the right kernel set and describe it."""
    before = _libraries()
    override, reason = _override_reason(before)
    if override:
        os.environ["OPENBLAS_CORETYPE"] = "SkylakeX"
    try:
        importlib.import_module("scipy.linalg.cython_blas")
        _numba_linalg().ensure_blas()  # refuses a BLAS whose integers are not as wide as Numba was built for
    except (ImportError, RuntimeError) as error:
        return Library(reason=f"SciPy's BLAS cannot be loaded: {error}")
    finally:
        if override:
            del os.environ["OPENBLAS_CORETYPE"]  # child processes must not inherit it
    after = _libraries()
    new = [path for path in after if path not in before]
    scipys = [path for path in after if _is_scipys(path)]
    path = next(iter([*new, *scipys, *after]), "")
    library = after.get(path, {})
    version = str(library.get("version") or "")
    return Library(
        path,
        str(library.get("internal_api", "")),
        version,
        str(library.get("architecture", "")),
        override,
        reason,
        library.get("internal_api") == "openblas" and version.startswith(KNOWN_BAD_OPENBLAS),
    )


_lock = threading.Lock()  # two threads must not load it at once: the second would report it as loaded by others


def loaded_library() -> Library:
    """Return SciPy's BLAS; the first call loads it."""
    with _lock:
        return _load()


def library_so_far() -> Library:
    """Return SciPy's BLAS if it was loaded, else a `Library` without a path."""
    with _lock:
        return _load() if _load.cache_info().currsize else Library()


def _numba_linalg() -> Any:
    return importlib.import_module("numba.np.linalg")


def keep_numba_from_loading_blas() -> None:
    """Import Numba's array functions without SciPy's BLAS, which they load only to find out whether it is installed.

    Numba imports them before its first kernel, and would load all of ``scipy.linalg`` for a product that never calls
    it, before `loaded_library` could choose the kernel set. Code that uses ``np.dot`` loses nothing: Numba loads BLAS
    when it compiles that. In a Numba that is built differently, nothing is changed.
    """
    linalg = _numba_linalg()
    if "numba.np.arraymath" in sys.modules or not hasattr(linalg, "ensure_blas"):
        return
    ensure_blas = linalg.ensure_blas
    linalg.ensure_blas = lambda: None
    try:
        arraymath: Any = importlib.import_module("numba.np.arraymath")
    finally:
        linalg.ensure_blas = ensure_blas
    arraymath.ensure_blas = ensure_blas


@intrinsic
def _xxgemm(typing_context: Any, args: Any, lda: Any, ldb: Any, ldc: Any) -> Any:
    """Call ``numba_xxgemm`` for the transpose of a `GemmArgs` product; the leading dimensions count floats."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        args, lda, ldb, ldc = arguments
        a, op_a, b, op_b, out, rows, columns, inner, alpha, beta = cgutils.unpack_tuple(builder, args)
        pointer = INT8.as_pointer()
        matrix, size = [pointer, INT64], [INT64] * 3
        function_type = ir.FunctionType(INT32, [INT8] * 3 + size + [pointer, *matrix, *matrix, pointer, *matrix])
        function = cgutils.get_or_insert_function(builder.module, function_type, "numba_xxgemm")

        def letter(op: Any) -> Any:
            transposed = builder.icmp_signed("==", op, ir.Constant(INT64, int(Op.T)))
            return builder.select(transposed, ir.Constant(INT8, ord("T")), ir.Constant(INT8, ord("N")))

        def by_reference(value: Any) -> Any:
            return builder.bitcast(cgutils.alloca_once_value(builder, value), pointer)

        def address(matrix: Any) -> Any:
            return builder.inttoptr(builder.extract_value(matrix, 0), pointer)

        kind = ir.Constant(INT8, ord("s"))
        return builder.call(
            function,
            [
                *(kind, letter(op_b), letter(op_a), columns, rows, inner),
                *(by_reference(alpha), address(b), ldb, address(a), lda),
                *(by_reference(beta), address(out), ldc),
            ],
        )

    return types.int32(numba_type(GemmArgs), types.intp, types.intp, types.intp), codegen


@jit_kernel
def gemm_blas(p: GemmArgs) -> None:
    """Compute ``p.out = alpha * op(a) @ op(b) + beta * out`` by BLAS.

    BLAS reads a row-major matrix as its transpose, so it computes ``out.T = op(b).T @ op(a).T``. A matrix of one row
    may have any stride, but BLAS refuses a leading dimension below the row's length.
    """
    width_a = p.rows if p.op_a == Op.T else p.inner
    width_b = p.inner if p.op_b == Op.T else p.columns
    _xxgemm(p, max(p.a.stride // 4, width_a), max(p.b.stride // 4, width_b), max(p.out.stride // 4, p.columns))
