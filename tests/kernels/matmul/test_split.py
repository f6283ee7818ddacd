"""bf16x3, a float32 GEMM by three bfloat16 products, on every path: against float64, guard pages, edges, threads."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st
from numpy.typing import NDArray

from tests.error_bounds import IN_BF16X3, allowed
from tests.kernels.allocations import allocations
from tests.kernels.bits16.support import Pages, gap_of_matrices, nearest, numbers, on_path, paths_here
from tests.kernels.comparison import assert_close, within
from tests.kernels.support import GemmCase, gemm_cases, shapes_with_fixtures
from tests.reference import Array
from tests.rounding_marks import product
from threadloom.kernels.compiling.jit import JIT_ENABLED
from threadloom.kernels.matmul.backend import GemmBackend, blas_info, gemm, gemm_backend
from threadloom.kernels.matmul.operands import Op
from threadloom.kernels.simd.features import DotPath

EPS = 2.0**-23
# Relative error of one product: a rest of 2**-17 in each operand, and the omitted product of the low terms, each at
# most 2**-8 of its number.
OMITTED = 2 * 2.0**-17 + 2.0**-16


@pytest.fixture(params=paths_here(), ids=lambda path: path.name)
def path(request: pytest.FixtureRequest) -> Iterator[DotPath]:
    with on_path(request.param), gemm_backend(GemmBackend.BF16X3):
        yield request.param


def terms(values: NDArray[Any]) -> tuple[Array, Array]:
    """Return the high and the low term of a split, in float64, by the rounding of the tests."""
    high = numbers(nearest(values))
    return high, numbers(nearest(np.asarray(values, np.float64) - high))


@dataclass(frozen=True)
class Case(GemmCase):
    """A GEMM, and the places of its arrays between guard pages."""

    beta: float = 1.0
    at_end: bool = True
    gap: int = 0


def check(case: Case) -> None:
    rows, columns, inner, alpha, beta = case.rows, case.columns, case.inner, case.alpha, case.beta
    rng = np.random.default_rng([rows, columns, inner])
    pages, gap = Pages(case.at_end), gap_of_matrices(case.gap, rows, columns, inner)
    a = rng.standard_normal((rows, inner)).astype(np.float32)
    b = rng.standard_normal((inner, columns)).astype(np.float32)
    before = rng.standard_normal((rows, columns)).astype(np.float32)
    out = pages.empty((rows, columns), np.float32, gap)
    if beta != 0.0:
        out[...] = before
    stored_a = pages.copy(a.T if case.op_a is Op.T else a, gap)
    stored_b = pages.copy(b.T if case.op_b is Op.T else b, gap)
    gemm(stored_a, stored_b, out, case.op_a, case.op_b, alpha, beta)
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    sizes = np.abs(alpha) * (np.abs(wide_a) @ np.abs(wide_b)) + np.abs(beta * before)
    # 3 K products (the zeros that pad K add no error), each sum rounded; alpha and beta.
    summing = (3 * inner + 8) * EPS * sizes
    expected = alpha * (wide_a @ wide_b) + (beta * before if beta else 0.0)
    assert within(out, expected, OMITTED * sizes + summing)
    (a_high, a_low), (b_high, b_low) = terms(a), terms(b)
    three = alpha * (a_low @ b_high + a_high @ b_low + a_high @ b_high) + (beta * before if beta else 0.0)
    assert within(out, three, summing)


@shapes_with_fixtures(50 if JIT_ENABLED else 10)
@given(
    case=gemm_cases(
        Case,
        (75, 100),
        (70, (250, 300)),
        alpha=st.sampled_from([1.0, -2.5]),
        beta=st.sampled_from([0.0, 1.0, 0.5]),
        at_end=st.booleans(),
        gap=st.sampled_from([0, 1, 7]),
    )
)
def test_products_equal_float64(path: DotPath, case: Case) -> None:
    assert blas_info().backend is GemmBackend.BF16X3
    check(case)


@pytest.mark.parametrize("op_a", list(Op))
@pytest.mark.parametrize("op_b", list(Op))
@pytest.mark.parametrize(("rows", "columns", "inner"), [(1, 1, 1), (32, 32, 32), (257, 33, 513), (8, 31, 256)])
def test_products_at_the_edges_of_blocks(
    path: DotPath, rows: int, columns: int, inner: int, op_a: Op, op_b: Op
) -> None:
    check(Case(rows, columns, inner, op_a, op_b))


def test_error_is_far_below_that_of_bfloat16(path: DotPath) -> None:
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((40, 300)).astype(np.float32), rng.standard_normal((300, 50)).astype(np.float32)
    out = np.empty((40, 50), np.float32)
    gemm(a, b, out, Op.N, Op.N, 1.0, 0.0)
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    bound = allowed(lambda: {"out": product(wide_a, wide_b)}, IN_BF16X3)["out"]
    assert bound < 2.0**-8 / 200
    assert_close(out, wide_a @ wide_b, bound)


def test_nan_infinity_and_the_largest_numbers(path: DotPath) -> None:
    """No infinity is multiplied by a low term of zero, which would be NaN."""
    a, b = np.ones((35, 40), np.float32), np.ones((40, 40), np.float32)
    large, odd_nan = np.array([0x7F7FC000, 0xFFFFFFFF], np.uint32).view(np.float32)
    a[4, 7], a[5, 8], a[6, 9], a[7, 0] = np.nan, -np.inf, large, odd_nan  # bfloat16 would round large to infinity
    b[3, 5], b[2, 6] = np.inf, 0.0
    out = np.empty((35, 40), np.float32)
    gemm(a, b, out, Op.N, Op.N, 1.0, 0.0)
    assert np.isnan(out[[4, 7]]).all()
    assert (np.delete(out[5], 5) == -np.inf).all() and np.isnan(out[5, 5])
    exact = np.full(39, float(large) + 39.0)
    assert within(np.delete(out[6], 5), exact, (OMITTED + (3 * 40 + 8) * EPS) * exact)
    rest = np.delete(out, [4, 5, 6, 7], 0)
    assert (rest[:, 5] == np.inf).all() and (rest[:, 6] == 39.0).all()
    assert (np.delete(rest, [5, 6], 1) == 40.0).all()


def test_concurrent_callers_get_the_same_bits(path: DotPath) -> None:
    rng = np.random.default_rng(5)
    a, b = rng.standard_normal((70, 300)).astype(np.float32), rng.standard_normal((300, 90)).astype(np.float32)
    barrier = Barrier(4)

    def work(_: int) -> list[bytes]:
        out, found = np.empty((70, 90), np.float32), []
        barrier.wait()
        for _repeat in range(5):
            gemm(a, b, out, Op.N, Op.N, 1.0, 0.0)
            found.append(out.tobytes())
        return found

    with ThreadPoolExecutor(4) as pool:
        results = [bits for many in pool.map(work, range(4)) for bits in many]
    assert len(set(results)) == 1


@pytest.mark.skipif(not JIT_ENABLED, reason="NumPy's products do not guarantee it")
def test_a_row_has_the_same_bits_in_any_number_of_rows(path: DotPath) -> None:
    rng = np.random.default_rng(6)
    a, b = rng.standard_normal((300, 90)).astype(np.float32), rng.standard_normal((90, 40)).astype(np.float32)
    whole: NDArray[Any] = np.empty((300, 40), np.float32)
    part: NDArray[Any] = np.empty((13, 40), np.float32)
    gemm(a, b, whole, Op.N, Op.N, 1.0, 0.0)
    gemm(a[250:263], b, part, Op.N, Op.N, 1.0, 0.0)
    assert (whole[250:263] == part).all()


@pytest.mark.skipif(not JIT_ENABLED, reason="NumPy allocates")
def test_no_allocation(path: DotPath) -> None:
    a = np.ones((40, 40), np.float32)
    b, out = a.copy(), a.copy()
    assert allocations(gemm, a, b, out, Op.T, Op.N, 1.0, 1.0) == 0
