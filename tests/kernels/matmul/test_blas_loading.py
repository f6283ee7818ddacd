"""SciPy's BLAS is loaded at its first use, at any time, and compiled code finds it, also code loaded from the cache."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from threadloom.kernels.compiling.jit import JIT_ENABLED
from threadloom.kernels.matmul.backend import GemmBackend, blas_info

ROOT = Path(__file__).parents[3]

needs_own_default = pytest.mark.skipif(
    not JIT_ENABLED or blas_info(load=False).backend is not GemmBackend.NUMBA,
    reason="this process uses BLAS, which is loaded at import",
)

PRELUDE = """
import sys
import numpy as np
from tests.error_bounds import product_error
from threadloom.kernels import GemmBackend
from threadloom.kernels import blas_info
from threadloom.kernels import gemm, Op
from threadloom.kernels import gemm_backend

def loaded():
    return "scipy.linalg" in sys.modules

def product_is_right():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((37, 64), np.float32), rng.standard_normal((64, 45), np.float32)
    out = np.full((37, 45), np.nan, np.float32)
    gemm(a, b, out, Op.N, Op.N, 1.0, 0.0)
    a, b = a.astype(np.float64), b.astype(np.float64)
    return bool((np.abs(out - a @ b) <= product_error(a, b)).all())
"""


def in_a_fresh_process(body: str, **environment: str) -> str:
    """Run statements after the prelude in a new process and return their output."""
    inherited = {name: value for name, value in os.environ.items() if name != "THREADLOOM_GEMM"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PRELUDE + body], cwd=ROOT, env={**inherited, **environment},
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(not JIT_ENABLED, reason="NumPy multiplies if nothing is compiled")
@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ("+avx2,+fma", "numba packed-prefetch"),
        ("+avx2,+fma,+avx512f,+avx512dq,+avx512bw,+avx512vl,+avx512cd", "numba in-place"),
        ("+avx2", "blas in-place"),
        ("+sse4.2", "blas in-place"),
    ],
)
def test_the_default_product_follows_from_the_vectors(features: str, expected: str) -> None:
    """Nothing is compiled, so that a processor without these features can tell too."""
    body = """
from threadloom.kernels.matmul import DEFAULT_VARIANT
print(blas_info(load=False).backend.value, DEFAULT_VARIANT.value)
"""
    assert in_a_fresh_process(body, NUMBA_CPU_NAME="x86-64", NUMBA_CPU_FEATURES=features) == expected


@needs_own_default
def test_training_with_the_numba_product_loads_no_blas() -> None:
    body = """
from threadloom.stages.training.warmup import compile_kernels
import threadloom.stages.run.session
compile_kernels(lambda sentence: None)
info = blas_info(load=False)
assert info.backend is GemmBackend.NUMBA and info.reason and not info.library
print(loaded(), product_is_right())
"""
    assert in_a_fresh_process(body) == "False True"


@needs_own_default
def test_the_first_product_by_blas_loads_it() -> None:
    body = """
before = loaded(), product_is_right(), loaded()
with gemm_backend(GemmBackend.BLAS):
    inside = loaded(), product_is_right(), blas_info().backend is GemmBackend.BLAS
print(*before, *inside, product_is_right(), blas_info().backend is GemmBackend.NUMBA)
"""
    assert in_a_fresh_process(body) == "False True False True True True True True"


@needs_own_default
def test_the_report_loads_the_library() -> None:
    body = """
before = blas_info(load=False)
info = blas_info()
print(loaded(), bool(info.name), info.backend is before.backend, blas_info(load=False) == info)
"""
    assert in_a_fresh_process(body) == "True True True True"


@pytest.mark.skipif(not JIT_ENABLED, reason="NumPy multiplies if nothing is compiled")
def test_the_environment_selects_blas() -> None:
    body = "print(loaded(), blas_info(load=False).backend.value, product_is_right())"
    assert in_a_fresh_process(body, THREADLOOM_GEMM="blas") == "True blas True"


@needs_own_default
def test_the_kernel_set_is_chosen_at_the_first_use() -> None:
    """The environment variable is set only during loading, and a value of the user's is respected."""
    body = """
import os
product_is_right()
info = blas_info()
print(os.environ.get("OPENBLAS_CORETYPE"), info.overridden, "OPENBLAS_CORETYPE=Haswell" in info.reason)
"""
    assert in_a_fresh_process(body, OPENBLAS_CORETYPE="Haswell") == "Haswell False True"


@needs_own_default
def test_np_dot_still_compiles_in_other_code() -> None:
    """Numba does not load BLAS at import, but does when it compiles a user's kernel with ``np.dot``."""
    body = """
import numba
product_is_right()

@numba.njit
def dot(a, b):
    return np.dot(a, b)

a, b = np.full((3, 4), 2.0), np.full((4, 5), 3.0)
print(loaded(), (dot(a, b) == 24.0).all(), loaded())
"""
    assert in_a_fresh_process(body) == "False True True"


def test_an_unknown_backend_is_rejected() -> None:
    run = "import threadloom.kernels.matmul.backend"
    environment = {**os.environ, "THREADLOOM_GEMM": "fast"}
    done = subprocess.run([sys.executable, "-c", run], cwd=ROOT, env=environment, capture_output=True, check=False)
    assert done.returncode != 0
    assert b"THREADLOOM_GEMM must be one of blas, numba, not 'fast'" in done.stderr
