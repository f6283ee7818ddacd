"""float32 GEMM on every backend (BLAS, Numba, bf16x3) against float64, and with concurrent callers."""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier

import numpy as np
import pytest
import threadpoolctl
from hypothesis import given, strategies as st

from tests.error_bounds import product_error
from tests.kernels.comparison import assert_within
from tests.kernels.support import GemmCase, Guarded, float32_numbers, gemm_cases, shapes_with_fixtures
from tests.reference import Array
from threadloom.kernels.compiling.arrays import Floats
from threadloom.kernels.matmul.backend import GemmBackend, blas_info, gemm, gemm_backend
from threadloom.kernels.matmul.operands import Op


@pytest.fixture(params=list(GemmBackend), ids=lambda backend: backend.value)
def backend(request: pytest.FixtureRequest) -> Iterator[GemmBackend]:
    with gemm_backend(request.param):
        yield request.param


def error_bound(a: Array, b: Array, *added: Array, alpha: float = 1.0) -> Array:
    """Return the error allowed to each element of ``alpha * a @ b + sum(added)`` with the selected backend.

    bf16x3 sums three products for each product x y. Their absolutes add up to at most
    (1 + 2**-8)**2 + 2 * 2**-8 * (1 + 2**-8) < 1.02 of |x y|, and they omit at most 2**-16 + 2 * 2**-17 of it, times
    the same factor.
    """
    if blas_info().backend is not GemmBackend.BF16X3:
        return product_error(a, b, *added, alpha=alpha)
    omitted = 2.0**-15 * np.abs(alpha) * (np.abs(a) @ np.abs(b))
    return 1.02 * (omitted + product_error(a, b, *added, alpha=alpha, splits=3))


def place(memory: Guarded, values: Array, strided: bool) -> Floats:
    """Return the values as a contiguous float32 array, or as columns of a wider array with guards around."""
    if not strided:
        return memory.copy(values)
    view = memory.empty_columns(*values.shape)
    view[...] = values
    return view


@dataclass(frozen=True)
class Case(GemmCase):
    """A GEMM; `strided` arrays are columns of wider ones."""

    strided: bool = False


def check(case: Case) -> None:
    rows, columns, inner, alpha, beta = case.rows, case.columns, case.inner, case.alpha, case.beta
    rng = np.random.default_rng([rows, columns, inner])
    memory = Guarded()
    a, b = float32_numbers(rng, rows, inner), float32_numbers(rng, inner, columns)
    before = float32_numbers(rng, rows, columns)
    out = place(memory, np.full((rows, columns), np.nan) if beta == 0.0 else before, case.strided)
    stored_a = place(memory, a.T if case.op_a is Op.T else a, case.strided)
    stored_b = place(memory, b.T if case.op_b is Op.T else b, case.strided)
    gemm(stored_a, stored_b, out, case.op_a, case.op_b, alpha, beta)
    added = [beta * before] if beta else []
    expected = sum(added, alpha * (a @ b))
    assert_within(out, expected, error_bound(a, b, *added, alpha=alpha))
    memory.check()


@shapes_with_fixtures(80)
@given(case=gemm_cases(Case, (70, 90), (40, (250, 530)), beta=st.sampled_from([0.0, 1.0]), strided=st.booleans()))
def test_product_equals_float64(backend: GemmBackend, case: Case) -> None:
    assert blas_info().backend is backend
    check(case)


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("beta", [0.0, 1.0])
@pytest.mark.parametrize(("op_a", "op_b"), list(itertools.product(Op, Op)))
@pytest.mark.parametrize(
    ("rows", "columns", "inner"), [(1, 1, 1), (1, 33, 257), (9, 1, 256), (64, 96, 512), (8, 32, 1), (517, 545, 259)]
)
def test_product_at_the_edges_of_blocks(
    backend: GemmBackend, rows: int, columns: int, inner: int, op_a: Op, op_b: Op, beta: float, strided: bool
) -> None:
    check(Case(rows, columns, inner, op_a, op_b, beta=beta, strided=strided))


def test_alpha_and_beta_other_than_zero_and_one(backend: GemmBackend) -> None:
    check(Case(13, 35, 300, Op.N, Op.T, alpha=-2.5, beta=0.5))


def test_nan_and_infinity(backend: GemmBackend) -> None:
    a, b, out = np.ones((9, 10), np.float32), np.ones((10, 40), np.float32), np.zeros((9, 40), np.float32)
    a[4, 7] = np.nan
    b[3, 5] = np.inf
    gemm(a, b, out, Op.N, Op.N, 1.0, 0.0)
    assert np.isnan(out[4]).all()
    assert (out[np.arange(9) != 4, 5] == np.inf).all()
    assert np.isfinite(np.delete(np.delete(out, 4, 0), 5, 1)).all()


SHAPES = [(64, 128, 512), (33, 70, 257), (128, 300, 65), (5, 1000, 96), (256, 256, 256)]


@pytest.mark.parametrize("callers", [2, 4])
def test_concurrent_callers_get_the_same_bits(backend: GemmBackend, callers: int) -> None:
    """OpenBLAS 0.3.28 and 0.3.29 return wrong products here."""
    rng = np.random.default_rng(callers)

    def matrix(rows: int, columns: int) -> Floats:
        return rng.standard_normal((rows, columns), np.float32)

    work = [[(matrix(rows, inner), matrix(columns, inner)) for rows, columns, inner in SHAPES] for _ in range(callers)]
    start = Barrier(callers)

    def multiply(mine: list[tuple[Floats, Floats]]) -> list[Floats]:
        results = []
        for a, b in mine:
            out = np.full((len(a), len(b)), np.nan, np.float32)
            gemm(a, b, out, Op.N, Op.T, 1.0, 0.0)
            results.append(out)
        return results

    def caller(mine: list[tuple[Floats, Floats]]) -> list[list[Floats]]:
        start.wait(timeout=30)
        return [multiply(mine) for _ in range(25)]

    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        alone = [multiply(mine) for mine in work]
        for (a, b), out in zip(work[0], alone[0], strict=True):
            wide_a, wide_b = a.astype(np.float64), b.T.astype(np.float64)
            assert_within(out, wide_a @ wide_b, error_bound(wide_a, wide_b))
        with ThreadPoolExecutor(callers) as pool:
            together = list(pool.map(caller, work))
    for expected, rounds in zip(alone, together, strict=True):
        for results in rounds:
            for result, out in zip(results, expected, strict=True):
                np.testing.assert_array_equal(result, out)


def test_the_backend_is_reported_and_restored() -> None:
    info = blas_info()
    assert info.reason
    other = GemmBackend.NUMBA if info.backend is GemmBackend.BLAS else GemmBackend.BLAS
    with gemm_backend(other):
        assert blas_info().backend is other
    assert blas_info() == info
    assert not (info.known_bad and info.backend is GemmBackend.BLAS)
