"""bfloat16 products on every path against float64, packed layouts, guard pages, several threads."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st
from numpy.typing import NDArray

from tests.error_bounds import gamma
from tests.kernels.allocations import allocations
from tests.kernels.bits16.support import Pages, gap_of_matrices, nearest, numbers, on_path, paths_here, random_bits
from tests.kernels.comparison import within
from tests.kernels.support import shapes_with_fixtures
from threadloom.kernels.compiling.jit import JIT_ENABLED
from threadloom.kernels.matmul.bf16 import (
    gemm_bf16,
    gemm_rows_bf16,
    gemm_sum_bf16,
    linear_bf16,
    linear_gelu_bf16,
    prepare_bf16,
)
from threadloom.kernels.matmul.operands import Op
from threadloom.kernels.matmul.pack import pack_bf16, pack_float32, packed_shape, transpose_bf16, unpack_bf16
from threadloom.kernels.simd.features import DotPath

EPS = 2.0**-23
ROUNDING = 2.0**-8  # half a unit in the last place of bfloat16, relative


@pytest.fixture(params=paths_here(), ids=lambda path: path.name)
def path(request: pytest.FixtureRequest) -> Iterator[DotPath]:
    with on_path(request.param):
        yield request.param


shapes = shapes_with_fixtures(60 if JIT_ENABLED else 8)
sizes: dict[str, st.SearchStrategy[Any]] = {
    "rows": st.integers(1, 75),
    "columns": st.integers(1, 100),
    "inner": st.integers(1, 140),
    "at_end": st.booleans(),
    "gap": st.sampled_from([0, 1, 7]),
}


NO_SECOND = np.zeros((0, 0), np.uint16), np.zeros(packed_shape(0, 0), np.uint32)
"""Operands of the second product of a layer that has none."""


def packed(pages: Pages, source: NDArray[Any], op: Op = Op.N) -> NDArray[Any]:
    """Pack by the kernel into poisoned memory between guard pages."""
    inner, columns = source.shape[::-1] if op is Op.T else source.shape
    out = pages.empty(packed_shape(inner, columns), np.uint32)
    (pack_float32 if source.dtype == np.float32 else pack_bf16)(source, op, out)
    return out


def check(rows: int, columns: int, inner: int, at_end: bool, gap: int) -> None:
    """Compare every kind of product with float64."""
    rng = np.random.default_rng([rows, columns, inner])
    pages, gap = Pages(at_end), gap_of_matrices(gap, rows, columns, inner)
    a, b = pages.copy(random_bits(rng, rows, inner), gap), pages.copy(random_bits(rng, inner, columns), gap)
    packed_b = packed(pages, b)
    exact = numbers(a) @ numbers(b)
    error = (inner + 2) * EPS * (np.abs(numbers(a)) @ np.abs(numbers(b)))

    out = pages.empty((rows, columns), np.float32, gap)
    gemm_bf16(a, packed_b, out, False)
    assert within(out, exact, error)
    out[...] = np.nan
    gemm_rows_bf16(a, b, out, False)
    assert within(out, exact, error)
    before = out.astype(np.float64)
    gemm_rows_bf16(a, b, out, True)
    assert within(out, before + exact, error + 2 * EPS * np.abs(before))
    before = out.astype(np.float64)
    gemm_bf16(a, packed_b, out, True)
    assert within(out, before + exact, error + 2 * EPS * np.abs(before))

    bias = pages.copy(rng.standard_normal(columns).astype(np.float32))
    sums, error = exact + bias, error + 4 * EPS * (np.abs(exact) + np.abs(bias))
    short = pages.empty((rows, columns), np.uint16, gap)
    linear_bf16(a, packed_b, *NO_SECOND, bias, short)
    assert within(numbers(short), sums, error + ROUNDING * np.abs(sums))

    pre, gelu = pages.empty((rows, columns), np.uint16, gap), pages.empty((rows, columns), np.uint16, gap)
    linear_gelu_bf16(a, packed_b, *NO_SECOND, bias, pre, gelu)
    assert (pre == short).all()
    check_gelu(pre, gelu)


def check_gelu(pre: NDArray[Any], found: NDArray[Any]) -> None:
    """Compare a GELU with that of the rounded numbers that it was computed from."""
    v = numbers(pre)
    with np.errstate(over="ignore"):
        expected = v / (1.0 + np.exp(-2.0 * np.sqrt(2.0 / np.pi) * (v + 0.044715 * v**3)))
    # The sigmoid has the error of `gelu_units`, with an argument of at most 88; below it, it is 0.
    error = (gamma(3 * (1 + 88) + 4) + ROUNDING) * np.abs(expected) + 2.0**-125 * np.abs(v)
    assert within(numbers(found), expected, error)


def check_sums(rows: int, columns: int, inner: int, inner2: int, at_end: bool, gap: int) -> None:
    """Compare every kind of sum of two products with float64; without a second one, with the bits of one product."""
    rng = np.random.default_rng([rows, columns, inner, inner2])
    pages, gap = Pages(at_end), gap_of_matrices(gap, rows, columns, inner, inner2)
    a, b = pages.copy(random_bits(rng, rows, inner), gap), random_bits(rng, inner, columns)
    a2, b2 = pages.copy(random_bits(rng, rows, inner2), gap), random_bits(rng, inner2, columns)
    operands = a, packed(pages, b), a2, packed(pages, b2)
    exact = numbers(a) @ numbers(b) + numbers(a2) @ numbers(b2)
    magnitude = np.abs(numbers(a)) @ np.abs(numbers(b)) + np.abs(numbers(a2)) @ np.abs(numbers(b2))
    error = (inner + inner2 + 2) * EPS * magnitude

    out, one = pages.empty((rows, columns), np.float32, gap), pages.empty((rows, columns), np.float32, gap)
    for accumulate in (False, True):
        before = out.astype(np.float64) if accumulate else np.zeros_like(exact)
        gemm_sum_bf16(*operands, out, accumulate)
        gemm_bf16(*operands[:2], one, accumulate)
        assert within(out, before + exact, error + 2 * EPS * (np.abs(before) + magnitude))
        assert inner2 > 0 or (out == one).all()

    bias = pages.copy(rng.standard_normal(columns).astype(np.float32))
    short, single = pages.empty((rows, columns), np.uint16, gap), pages.empty((rows, columns), np.uint16, gap)
    for added in (bias, bias[:0]):
        sums = exact + added if added.size else exact
        linear_bf16(*operands, added, short)
        linear_bf16(*operands[:2], *NO_SECOND, added, single)
        bound = error + 4 * EPS * (np.abs(exact) + np.abs(bias))
        assert within(numbers(short), sums, bound + ROUNDING * (np.abs(sums) + bound))
        assert inner2 > 0 or (short == single).all()
    gelu = pages.empty((rows, columns), np.uint16, gap)
    linear_gelu_bf16(*operands, bias[:0], single, gelu)
    assert (single == short).all()
    check_gelu(single, gelu)


@shapes
@given(**sizes)
def test_products_equal_float64(path: DotPath, rows: int, columns: int, inner: int, at_end: bool, gap: int) -> None:
    check(rows, columns, inner, at_end, gap)


@pytest.mark.parametrize(("rows", "columns", "inner"), [(1, 1, 1), (32, 32, 32), (33, 65, 4097), (40, 31, 8300)])
def test_products_at_the_edges_of_blocks(path: DotPath, rows: int, columns: int, inner: int) -> None:
    check(rows, columns, inner, True, 0)


@shapes
@given(inner2=st.integers(0, 70), **sizes)
def test_sums_of_two_products_equal_float64(
    path: DotPath, rows: int, columns: int, inner: int, inner2: int, at_end: bool, gap: int
) -> None:
    check_sums(rows, columns, inner, inner2, at_end, gap)


@pytest.mark.parametrize(
    ("rows", "columns", "inner", "inner2"), [(1, 1, 1, 1), (40, 65, 4097, 32), (33, 31, 8300, 48), (64, 64, 64, 0)]
)
def test_sums_of_two_products_at_the_edges_of_blocks(
    path: DotPath, rows: int, columns: int, inner: int, inner2: int
) -> None:
    check_sums(rows, columns, inner, inner2, True, 0)


@pytest.mark.skipif(not JIT_ENABLED, reason="only compiled code has blocks of rows")
def test_more_rows_than_a_block(path: DotPath) -> None:
    check(150, 33, 4100, True, 0)


@shapes
@given(**sizes)
def test_packed_layout(rows: int, columns: int, inner: int, at_end: bool, gap: int) -> None:
    rng = np.random.default_rng([columns, inner])
    pages, gap = Pages(at_end), gap_of_matrices(gap, columns, inner)
    floats = rng.standard_normal((inner, columns)).astype(np.float32)
    bits = nearest(floats)
    panels, pairs, width = packed_shape(inner, columns)
    whole = np.zeros((2 * pairs, panels * width), np.uint16)
    whole[:inner, :columns] = bits
    expected = whole.reshape(pairs, 2, panels, width).transpose(2, 0, 3, 1)
    for source in (bits, floats):
        for op in Op:
            packed_b = packed(pages, pages.copy(source.T if op is Op.T else source, gap), op)
            assert (packed_b.view(np.uint16).reshape(expected.shape) == expected).all()
    assert (unpack_bf16(packed_b, inner, columns) == bits).all()
    transposed = pages.empty((columns, inner), np.uint16, gap)
    transpose_bf16(pages.copy(bits, gap), transposed)
    assert (transposed == bits.T).all()


def test_the_three_products_of_a_linear_layer(path: DotPath) -> None:
    rng = np.random.default_rng(3)
    pages = Pages(True)
    x, w, dy = random_bits(rng, 45, 70), random_bits(rng, 70, 50), random_bits(rng, 45, 50)
    y, dx, dw = (pages.empty(shape, np.float32) for shape in ((45, 50), (45, 70), (70, 50)))
    transposed = pages.empty((70, 45), np.uint16)
    transpose_bf16(x, transposed)
    gemm_bf16(x, packed(pages, w), y, False)
    gemm_bf16(dy, packed(pages, w, Op.T), dx, False)
    dw[...] = 1.0
    gemm_rows_bf16(transposed, dy, dw, True)
    for found, a, b in ((y, x, w), (dx, dy, w.T), (dw - 1.0, x.T, dy)):
        bound = 100 * EPS * (np.abs(numbers(a)) @ np.abs(numbers(b)) + 1.0)
        assert within(found, numbers(a) @ numbers(b), bound)


def test_nan_and_infinity(path: DotPath) -> None:
    pages = Pages(True)
    a, b = np.full((40, 71), 0x3F80, np.uint16), np.full((71, 40), 0x3F80, np.uint16)
    a[4, 70], a[5, 3], b[33, 7] = 0x7FC0, 0x7FC0, 0x7F80
    out, short = pages.empty((40, 40), np.float32), pages.empty((40, 40), np.uint16)
    packed_b = packed(pages, b)
    gemm_bf16(a, packed_b, out, False)
    linear_bf16(a, packed_b, *NO_SECOND, np.zeros(0, np.float32), short)
    for found in (out, numbers(short)):
        assert np.isnan(found[4:6]).all()
        rest = np.delete(found, [4, 5], 0)
        assert (rest[:, 7] == np.inf).all()
        assert np.isfinite(np.delete(rest, 7, 1)).all()


@pytest.mark.skipif(not JIT_ENABLED, reason="BLAS does not guarantee it")
def test_a_row_has_the_same_bits_in_any_number_of_rows() -> None:
    rng = np.random.default_rng(4)
    a, b = random_bits(rng, 50, 90), random_bits(rng, 90, 40)
    packed_b = packed(Pages(True), b)
    whole, part = np.empty((50, 40), np.float32), np.empty((13, 40), np.float32)
    for other in (DotPath.FLOAT32, DotPath.AVX512):
        if other in paths_here():
            with on_path(other):
                gemm_bf16(a, packed_b, whole, False)
                gemm_bf16(a[20:33], packed_b, part, False)
            assert (whole[20:33] == part).all()


def test_concurrent_callers_get_the_same_bits(path: DotPath) -> None:
    rng = np.random.default_rng(5)
    a, b = random_bits(rng, 70, 200), random_bits(rng, 200, 90)
    packed_b, bias = packed(Pages(True), b), rng.standard_normal(90).astype(np.float32)
    barrier = Barrier(4)

    def work(_: int) -> list[bytes]:
        out, short = np.empty((70, 90), np.float32), np.empty((70, 90), np.uint16)
        found = []
        barrier.wait()
        for _repeat in range(5):
            gemm_bf16(a, packed_b, out, False)
            linear_bf16(a, packed_b, *NO_SECOND, bias, short)
            found.append(out.tobytes() + short.tobytes())
        return found

    with ThreadPoolExecutor(4) as pool:
        results = [bits for many in pool.map(work, range(4)) for bits in many]
    assert len(set(results)) == 1


@pytest.mark.skipif(not JIT_ENABLED, reason="NumPy allocates")
def test_no_allocation() -> None:
    prepare_bf16()
    rng = np.random.default_rng(7)
    floats = rng.standard_normal((40, 40)).astype(np.float32)
    bits, packed_b, bias = nearest(floats), np.zeros(packed_shape(40, 40), np.uint32), floats[0].copy()
    out, short, other = np.empty_like(floats), np.empty_like(bits), np.empty_like(bits)
    assert allocations(pack_float32, floats, Op.T, packed_b) == 0
    assert allocations(pack_bf16, bits, Op.N, packed_b) == 0
    assert allocations(transpose_bf16, bits, other) == 0
    assert allocations(gemm_bf16, bits, packed_b, out, True) == 0
    assert allocations(gemm_rows_bf16, bits, bits, out, True) == 0
    assert allocations(gemm_sum_bf16, bits, packed_b, bits, packed_b, out, True) == 0
    assert allocations(linear_bf16, bits, packed_b, bits, packed_b, bias, short) == 0
    assert allocations(linear_gelu_bf16, bits, packed_b, bits, packed_b, bias, other, short) == 0
