"""The threads of BLAS flush subnormal numbers within the block, and keep them outside."""

from collections.abc import Iterator

import numpy as np
import pytest
import threadpoolctl

from threadloom.kernels.compiling.arrays import Floats
from threadloom.kernels.compiling.jit import JIT_ENABLED
from threadloom.kernels.matmul import blas_threads
from threadloom.kernels.matmul.backend import GemmBackend, gemm, gemm_backend
from threadloom.kernels.matmul.blas import Library, loaded_library
from threadloom.kernels.matmul.blas_threads import flushing_blas_threads
from threadloom.kernels.matmul.operands import Op

pytestmark = pytest.mark.timeout(90)

SIZE = 256
SUBNORMAL = np.full((SIZE, SIZE), 1e-39, np.float32)
ONES = np.ones((SIZE, SIZE), np.float32)


@pytest.fixture(autouse=True)
def several_threads() -> Iterator[None]:
    if not JIT_ENABLED:
        pytest.skip("there is no compiled code")
    with gemm_backend(GemmBackend.BLAS):
        if loaded_library().name != "openblas":
            pytest.skip("SciPy has no OpenBLAS")
        with threadpoolctl.threadpool_limits(3, user_api="blas"):
            yield


def product() -> Floats:
    """Return the product of subnormal numbers by a kernel."""
    out = np.full((SIZE, SIZE), 7.0, np.float32)
    gemm(SUBNORMAL, ONES, out, Op.N, Op.N, 1.0, 0.0)
    return out


def products_of_scipy() -> Floats:
    from scipy.linalg.blas import sgemm

    found: Floats = sgemm(1.0, SUBNORMAL, ONES)
    return found


def test_every_thread_flushes_within_the_block_and_keeps_subnormal_numbers_after_it() -> None:
    with flushing_blas_threads() as flushing:
        assert flushing
        for _ in range(3):
            assert not product().any()
    assert products_of_scipy().all()
    with pytest.raises(KeyError), flushing_blas_threads():
        raise KeyError
    assert products_of_scipy().all()


def test_a_library_that_cannot_restart_its_threads_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    products_of_scipy()  # in this thread: those of BLAS keep subnormal numbers now
    monkeypatch.setattr("ctypes.CDLL", lambda path: object())
    with flushing_blas_threads() as flushing:
        assert not flushing


def test_without_a_blas_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas_threads, "loaded_library", Library)
    with flushing_blas_threads() as flushing:
        assert flushing


def test_one_thread_flushes_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda path: pytest.fail("threads need not be restarted"))
    with threadpoolctl.threadpool_limits(1, user_api="blas"), flushing_blas_threads() as flushing:
        assert flushing
