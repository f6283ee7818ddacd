"""float16 products against float64, between guard pages, in several threads; without allocation."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from numpy.typing import NDArray

from tests.kernels.allocations import allocations
from tests.kernels.bits16.support import Pages, gap_of_matrices
from tests.kernels.comparison import within
from tests.reference import Array
from threadloom.kernels.compiling.jit import JIT_ENABLED
from threadloom.kernels.matmul.backend import GemmBackend, gemm, gemm_backend
from threadloom.kernels.matmul.fp16 import (
    Fp16Operands,
    fp16_scratch_sizes,
    fp16_sums_size,
    gemm_fp16,
    linear_fp16,
)
from threadloom.kernels.matmul.operands import Op
from threadloom.kernels.simd.float16 import float32_from_fp16, fp16_from_float32

EPS = 2.0**-23
ROUNDING = 2.0**-11  # half a unit in the last place of float16, relative
SUBNORMAL = 2.0**-25  # half a unit in the last place of a subnormal float16, absolute
NAN = 0x7E01


def numbers(bits: NDArray[np.int16]) -> Array:
    """Return the float16 numbers with these bits, in float64."""
    return bits.view(np.float16).astype(np.float64)


def float16_bits(values: NDArray[Any]) -> NDArray[np.int16]:
    """Return the bits of the nearest float16 numbers."""
    return values.astype(np.float32).astype(np.float16).view(np.int16)


def random_float16(rng: np.random.Generator, *shape: int) -> NDArray[np.int16]:
    return float16_bits(rng.standard_normal(shape))


NO_SECOND = Fp16Operands(np.zeros((0, 0), np.int16), np.zeros((0, 0), np.int16), Op.N)
"""Operands of the second product of a layer that has none."""


def scratch(pages: Pages, rows: int, columns: int, inner: int) -> list[NDArray[np.float32]]:
    return [pages.empty((size,), np.float32) for size in fp16_scratch_sizes(rows, columns, inner)]


def check(rows: int, columns: int, inner: int, op_a: Op, op_b: Op, at_end: bool, gap: int) -> None:
    rng = np.random.default_rng([rows, columns, inner])
    pages, gap = Pages(at_end), gap_of_matrices(gap, rows, columns, inner)
    plain_a, plain_b = random_float16(rng, rows, inner), random_float16(rng, inner, columns)
    a = pages.copy(plain_a.T if op_a is Op.T else plain_a, gap)
    b = pages.copy(plain_b.T if op_b is Op.T else plain_b, gap)
    exact_sums = numbers(plain_a) @ numbers(plain_b)
    # The error of a float32 sum of K products is at most K half units in the last place of the sum of their absolutes.
    error = (inner + 2) * EPS / 2 * (np.abs(numbers(plain_a)) @ np.abs(numbers(plain_b)))
    wide = scratch(pages, rows, columns, inner)

    out = pages.empty((rows, columns), np.float32, gap)
    gemm_fp16(a, b, out, op_a, op_b, False, *wide)
    assert within(out, exact_sums, error)
    before = out.astype(np.float64)
    gemm_fp16(a, b, out, op_a, op_b, True, *wide)
    assert within(out, before + exact_sums, error + EPS * (np.abs(before) + np.abs(exact_sums) + error))

    if op_a is Op.N:
        sums = pages.empty((fp16_sums_size(rows, columns),), np.float32)
        short = pages.empty((rows, columns), np.int16, gap)
        for bias in (pages.copy(rng.standard_normal(columns).astype(np.float32)), np.zeros(0, np.float32)):
            short[...] = NAN
            linear_fp16(Fp16Operands(a, b, op_b), NO_SECOND, bias, short, sums, *wide)
            after = exact_sums + bias if bias.size else exact_sums
            unrounded = error + EPS * np.abs(after)
            assert within(numbers(short), after, unrounded + ROUNDING * (np.abs(after) + unrounded) + SUBNORMAL)


def check_sum(rows: int, columns: int, inner: int, inner2: int, ops: tuple[Op, Op], at_end: bool, gap: int) -> None:
    """Compare the sum of two products with float64; without a second one, with the bits of one product."""
    rng = np.random.default_rng([rows, columns, inner, inner2])
    pages, gap = Pages(at_end), gap_of_matrices(gap, rows, columns, inner, inner2)
    operands, exact, magnitude = [], np.zeros((rows, columns)), np.zeros((rows, columns))
    for depth, op in zip((inner, inner2), ops, strict=True):
        a, b = random_float16(rng, rows, depth), random_float16(rng, depth, columns)
        exact += numbers(a) @ numbers(b)
        magnitude += np.abs(numbers(a)) @ np.abs(numbers(b))
        operands.append(Fp16Operands(pages.copy(a, gap), pages.copy(b.T if op is Op.T else b, gap), op))
    first, second = operands
    error = (inner + inner2 + 2) * EPS / 2 * magnitude
    wide = scratch(pages, rows, columns, max(inner, inner2))
    sums = pages.empty((fp16_sums_size(rows, columns),), np.float32)
    short, single = pages.empty((rows, columns), np.int16, gap), pages.empty((rows, columns), np.int16, gap)
    for bias in (pages.copy(rng.standard_normal(columns).astype(np.float32)), np.zeros(0, np.float32)):
        linear_fp16(first, second, bias, short, sums, *wide)
        after = exact + bias if bias.size else exact
        unrounded = error + EPS * np.abs(after)
        assert within(numbers(short), after, unrounded + ROUNDING * (np.abs(after) + unrounded) + SUBNORMAL)
        linear_fp16(first, NO_SECOND, bias, single, sums, *wide)
        assert inner2 > 0 or (short == single).all()


@settings(
    max_examples=60 if JIT_ENABLED else 10,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    rows=st.integers(1, 75),
    columns=st.integers(1, 100),
    inner=st.integers(1, 140),
    op_a=st.sampled_from(Op),
    op_b=st.sampled_from(Op),
    at_end=st.booleans(),
    gap=st.sampled_from([0, 1, 7]),
)
def test_products_equal_float64(
    rows: int, columns: int, inner: int, op_a: Op, op_b: Op, at_end: bool, gap: int
) -> None:
    check(rows, columns, inner, op_a, op_b, at_end, gap)


@pytest.mark.parametrize("op_a", list(Op))
@pytest.mark.parametrize("op_b", list(Op))
@pytest.mark.parametrize(
    ("rows", "columns", "inner"), [(1, 1, 1), (513, 3, 2049), (5, 1025, 4100), (515, 514, 70), (512, 512, 33)]
)
def test_products_at_the_edges_of_blocks(rows: int, columns: int, inner: int, op_a: Op, op_b: Op) -> None:
    check(rows, columns, inner, op_a, op_b, True, 1)


@pytest.mark.parametrize("ops", [(Op.N, Op.N), (Op.T, Op.N)])
@pytest.mark.parametrize(
    ("rows", "columns", "inner", "inner2"),
    [(1, 1, 1, 1), (7, 33, 65, 0), (513, 3, 70, 5), (5, 1025, 40, 100), (70, 31, 2100, 48)],
)
def test_a_sum_of_two_products_equals_float64(
    rows: int, columns: int, inner: int, inner2: int, ops: tuple[Op, Op]
) -> None:
    for at_end, gap in ((True, 0), (False, 1)):
        check_sum(rows, columns, inner, inner2, ops, at_end, gap)


def test_scratch_has_a_bound() -> None:
    for shape in ((64, 50257, 768), (50257, 768, 64), (64, 768, 50257), (100_000, 100_000, 100_000)):
        assert max(fp16_scratch_sizes(*shape)) <= 1 << 20
        assert fp16_sums_size(*shape[:2]) <= 1 << 18
    assert fp16_scratch_sizes(3, 5, 7) == (21, 35)


@pytest.mark.skipif(not JIT_ENABLED, reason="NumPy's product has no blocks")
@pytest.mark.parametrize(("rows", "columns", "inner"), [(40, 1100, 2300), (600, 40, 300)])
def test_blocks_have_the_bits_of_one_float32_product(rows: int, columns: int, inner: int) -> None:
    rng = np.random.default_rng(2)
    a, b = random_float16(rng, rows, inner), random_float16(rng, columns, inner)
    found, expected = np.empty((rows, columns), np.float32), np.empty((rows, columns), np.float32)
    with gemm_backend(GemmBackend.NUMBA):
        gemm_fp16(a, b, found, Op.N, Op.T, False, *scratch(Pages(True), rows, columns, inner))
        wide = [numbers(bits).astype(np.float32) for bits in (a, b)]
        gemm(wide[0], wide[1], expected, Op.N, Op.T, 1.0, 0.0)
    assert (found == expected).all()


def test_nan_infinity_and_overflow() -> None:
    pages = Pages(True)
    a, b = float16_bits(np.ones((9, 10))), float16_bits(np.ones((10, 40)))
    a[4, 7] = NAN
    b[3, 5] = 0x7C00
    a[5, :] = b[:, 6] = float16_bits(np.array([200.0]))[0]  # 200 * 200 * 10 > 65504
    out = pages.empty((9, 40), np.int16)
    sums = pages.empty((fp16_sums_size(9, 40),), np.float32)
    operands = Fp16Operands(a, b, Op.N)
    linear_fp16(operands, NO_SECOND, np.zeros(0, np.float32), out, sums, *scratch(pages, 9, 40, 10))
    found = numbers(out)
    assert np.isnan(found[4]).all()
    rest = np.delete(found, 4, 0)
    assert (rest[:, 5] == np.inf).all() and found[5, 6] == np.inf
    assert (found[0, [0, 6]] == [10.0, 2000.0]).all()
    assert np.isfinite(np.delete(found, 4, 0)[:, :5]).all()


def test_concurrent_callers_get_the_same_bits() -> None:
    rng = np.random.default_rng(5)
    a, b = random_float16(rng, 70, 200), random_float16(rng, 200, 90)
    barrier = Barrier(4)

    def work(_: int) -> list[bytes]:
        pages, found = Pages(True), []
        out, short = np.empty((70, 90), np.float32), np.empty((70, 90), np.int16)
        wide = scratch(pages, 70, 90, 200)
        sums = pages.empty((fp16_sums_size(70, 90),), np.float32)
        barrier.wait()
        for _repeat in range(5):
            gemm_fp16(a, b, out, Op.N, Op.N, False, *wide)
            linear_fp16(Fp16Operands(a, b, Op.N), NO_SECOND, np.zeros(0, np.float32), short, sums, *wide)
            found.append(out.tobytes() + short.tobytes())
        return found

    with gemm_backend(GemmBackend.NUMBA), ThreadPoolExecutor(4) as pool:
        results = [bits for many in pool.map(work, range(4)) for bits in many]
    assert len(set(results)) == 1


@pytest.mark.skipif(not JIT_ENABLED, reason="NumPy allocates")
def test_no_allocation() -> None:
    rng = np.random.default_rng(7)
    bits, out, short = random_float16(rng, 40, 40), np.empty((40, 40), np.float32), np.empty((40, 40), np.int16)
    wide = scratch(Pages(True), 40, 40, 40)
    bias, sums = np.zeros(0, np.float32), np.empty(fp16_sums_size(40, 40), np.float32)
    assert allocations(fp16_from_float32, out.reshape(-1), short.reshape(-1)) == 0
    assert allocations(float32_from_fp16, short.reshape(-1), out.reshape(-1)) == 0
    assert allocations(gemm_fp16, bits, bits, out, Op.T, Op.N, True, *wide) == 0
    operands = Fp16Operands(bits, bits, Op.T)
    assert allocations(linear_fp16, operands, operands, bias, short, sums, *wide) == 0
