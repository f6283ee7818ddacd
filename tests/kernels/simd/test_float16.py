"""float16: conversions against NumPy's type, every number one way; products against float64; guard pages; threads."""

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numba.core.runtime import _nrt_python, rtsys
from numpy.typing import NDArray

from tests.kernels.bits16.support import Pages
from tests.kernels.machine_code import converts_vectors, half_conversions, innermost_loops
from tests.reference import Array
from threadloom.kernels.compiling.jit import JIT_ENABLED, jit_strict_fp
from threadloom.kernels.matmul.backend import GemmBackend, gemm, gemm_backend
from threadloom.kernels.matmul.fp16 import fp16_scratch_sizes, fp16_sums_size, gemm_fp16, linear_fp16
from threadloom.kernels.matmul.operands import Op
from threadloom.kernels.simd.float16 import (
    float32_from_fp16,
    fp16_from_float32,
    from_fp16,
    from_fp16_integer,
    to_fp16,
    to_fp16_integer,
)
from threadloom.kernels.simd.scalar import load16, store16
from threadloom.kernels.simd.vector import HAS_F16C

EPS = 2.0**-23
ROUNDING = 2.0**-11  # half a unit in the last place of float16, relative
SUBNORMAL = 2.0**-25  # and of a subnormal one, absolute
NAN = 0x7E01

EVERY = np.arange(1 << 16, dtype=np.uint16).view(np.int16)


@jit_strict_fp
def by_integers_to(source: Any, out: Any) -> None:
    for i in range(source.shape[0]):
        out[i] = to_fp16_integer(source[i])


@jit_strict_fp
def by_integers_from(source: Any, out: Any) -> None:
    for i in range(source.shape[0]):
        out[i] = from_fp16_integer(source[i])


@jit_strict_fp
def by_elements_to(source: Any, out: Any) -> None:
    for i in range(source.shape[0]):
        store16(out, i, source[i])


@jit_strict_fp
def by_elements_from(source: Any, out: Any) -> None:
    for i in range(source.shape[0]):
        out[i] = load16(source, i)


compiled = [by_integers_to, by_elements_to] if JIT_ENABLED else [by_elements_to]
to_kernels = pytest.mark.parametrize("convert", [fp16_from_float32, *compiled])
from_kernels = pytest.mark.parametrize(
    "widen", [float32_from_fp16, by_elements_from, *([by_integers_from] if JIT_ENABLED else [])]
)


def numbers(bits: NDArray[np.int16]) -> Array:
    """Return what float16 bits stand for, in float64."""
    return bits.view(np.float16).astype(np.float64)


def halves(values: NDArray[Any]) -> NDArray[np.int16]:
    """Return the nearest float16 bits, by NumPy; a NaN keeps the upper bits of its fraction and becomes quiet."""
    single = np.asarray(values, np.float32)
    with np.errstate(over="ignore"):
        bits = single.astype(np.float16).view(np.uint16)
    wide = single.view(np.uint32)
    nan = (wide >> 16 & 0x8000) | 0x7E00 | (wide >> 13 & 0x3FF)
    return np.where(np.isnan(single), nan, bits).astype(np.uint16).view(np.int16)


def check_rounding(convert: Any, values: NDArray[np.float32]) -> None:
    out = np.full(values.size + 2, 0x2BCD, np.int16)
    convert(values, out[1:-1])
    assert out[0] == out[-1] == 0x2BCD
    assert (out[1:-1] == halves(values)).all()


@from_kernels
def test_every_float16_is_widened_as_numpy_does(widen: Any) -> None:
    wide = np.empty(EVERY.size, np.float32)
    widen(EVERY, wide)
    expected = EVERY.view(np.float16).astype(np.float32)
    bits = expected.view(np.uint32) | np.where(np.isnan(expected), np.uint32(0x400000), np.uint32(0))
    assert (wide.view(np.uint32) == bits).all()


@to_kernels
def test_every_float16_comes_back(convert: Any) -> None:
    wide = EVERY.view(np.float16).astype(np.float32)
    out = np.empty(EVERY.size, np.int16)
    convert(wide, out)
    assert (out == np.where(np.isnan(wide), EVERY | 0x200, EVERY)).all()


@to_kernels
def test_what_lies_between_two_float16_goes_to_the_nearest_and_ties_to_even(convert: Any) -> None:
    """At, just below and just above both neighbours and the middle, of every pair of neighbours, infinity included."""
    finite = np.arange(0x7C01, dtype=np.uint16).view(np.float16).astype(np.float64)
    finite[-1] = 65536.0  # where the next number would be
    middle = ((finite[:-1] + finite[1:]) / 2).astype(np.float32)  # exact
    near = np.concatenate([middle, finite[:-1].astype(np.float32)])
    values = np.concatenate([near, np.nextafter(near, np.float32(np.inf)), np.nextafter(near, np.float32(-np.inf))])
    values = np.concatenate([values, -values]).astype(np.float32)
    check_rounding(convert, values)
    out = np.empty(middle.size, np.int16)
    convert(middle, out)
    even = np.arange(middle.size) + np.arange(middle.size) % 2
    assert (out == even).all()  # 0x7C00, infinity, is the even neighbour of 65520


@to_kernels
def test_any_float32_is_rounded_as_numpy_does(convert: Any) -> None:
    rng = np.random.default_rng(0)
    size = 200_000 if JIT_ENABLED else 5_000
    anything = rng.integers(0, 1 << 32, size, dtype=np.uint32)
    in_range = rng.integers(0x32000000, 0x48000000, size, dtype=np.uint32) | (anything & 0x80000000)
    edges = np.array([0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0x7F800000, 0x7F7FFFFF, 0, 1, 0x007FFFFF], np.uint32)
    bits = np.concatenate([anything, in_range, edges, edges | 0x80000000]).astype(np.uint32)
    check_rounding(convert, bits.view(np.float32))


@to_kernels
def test_every_length_gives_the_same_bits(convert: Any) -> None:
    values = np.random.default_rng(1).standard_normal(70).astype(np.float32)
    for length in range(70):
        check_rounding(convert, values[:length])
        check_rounding(convert, values[length:])


def test_single_numbers() -> None:
    assert to_fp16(np.float32(1.0)) == 0x3C00
    assert to_fp16(np.float32(-65504.0)) == np.int16(-0x401)
    assert from_fp16(np.int16(1)) == 2.0**-24
    row = np.zeros(3, np.uint16)
    store16(row, 1, np.float32(-1.5))  # a bfloat16, by its type
    assert row[1] == 0xBFC0 and load16(row, 1) == -1.5


COMPILE = """
import json
import sys
import numpy as np
from threadloom.kernels.simd.float16 import _from_fp16_compiled, _to_fp16_compiled
from threadloom.kernels.simd.vector import HAS_F16C
wide, short = np.arange(64, dtype=np.float32), np.zeros(64, np.int16)
_to_fp16_compiled(wide, short)
_from_fp16_compiled(short, wide)
assert (short == wide.astype(np.float16).view(np.int16)).all()
codes = ["".join(f.inspect_asm().values()) for f in (_to_fp16_compiled, _from_fp16_compiled)]
json.dump({"has_half": HAS_F16C, "codes": codes}, sys.stdout)
"""
RUNTIME_CONVERSION = re.compile(r"__(?:gnu_f2h_ieee|gnu_h2f_ieee|truncsfhf2|extendhfsf2)")
"""The functions of a C runtime that convert one number, for targets without an instruction."""


@pytest.mark.skipif(not JIT_ENABLED, reason="there is no machine code")
@pytest.mark.parametrize(
    ("features", "has_half"),
    [
        pytest.param("", None, id="here"),
        pytest.param(
            "+avx2,+fma,+f16c,-avx512f",
            True,
            id="F16C alone",
            marks=pytest.mark.skipif(not HAS_F16C, reason="the processor has no F16C"),
        ),
        pytest.param("+avx2,+fma,-f16c,-avx512f", False, id="without F16C"),
    ],
)
def test_machine_code_is_vector_code_and_a_target_without_f16c_is_served(
    features: str, has_half: bool | None, tmp_path: Path
) -> None:
    root = Path(__file__).parents[3]
    environment = {"PYTHONPATH": str(root), "PATH": "", "NUMBA_CACHE_DIR": str(tmp_path)}
    if features:
        environment |= {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": features}
    command = [sys.executable, "-c", COMPILE]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert has_half is None or found["has_half"] is has_half
    for code in found["codes"]:
        assert not RUNTIME_CONVERSION.search(code)
        if not found["has_half"]:
            assert not half_conversions(code.split())
            continue
        # The loop over whole vectors converts nothing one by one. Another loop may, for the elements that remain.
        loops = innermost_loops(code)
        vector_loops = [loop for loop in loops if any(map(converts_vectors, half_conversions(loop)))]
        assert vector_loops, loops
        for loop in vector_loops:
            assert all(map(converts_vectors, half_conversions(loop))), loop
            assert not any(line.startswith("call") for line in loop), loop


def random_halves(rng: np.random.Generator, *shape: int) -> NDArray[np.int16]:
    return halves(rng.standard_normal(shape).astype(np.float32))


def scratch(pages: Pages, rows: int, columns: int, inner: int) -> list[NDArray[np.float32]]:
    return [pages.empty((size,), np.float32) for size in fp16_scratch_sizes(rows, columns, inner)]


def close(found: NDArray[Any], expected: NDArray[Any], bound: NDArray[Any]) -> bool:
    return bool((np.abs(found - expected) <= bound).all())  # False for a NaN


def check(rows: int, columns: int, inner: int, op_a: Op, op_b: Op, at_end: bool, gap: int) -> None:
    rng = np.random.default_rng([rows, columns, inner])
    pages = Pages(at_end)
    plain_a, plain_b = random_halves(rng, rows, inner), random_halves(rng, inner, columns)
    a = pages.copy(plain_a.T if op_a is Op.T else plain_a, gap)
    b = pages.copy(plain_b.T if op_b is Op.T else plain_b, gap)
    exact_sums = numbers(plain_a) @ numbers(plain_b)
    # A float32 sum of K products errs by at most K half units in the last place of the sum of their sizes.
    error = (inner + 2) * EPS / 2 * (np.abs(numbers(plain_a)) @ np.abs(numbers(plain_b)))
    wide = scratch(pages, rows, columns, inner)

    out = pages.empty((rows, columns), np.float32, gap)
    gemm_fp16(a, b, out, op_a, op_b, False, *wide)
    assert close(out, exact_sums, error)
    before = out.astype(np.float64)
    gemm_fp16(a, b, out, op_a, op_b, True, *wide)
    assert close(out, before + exact_sums, error + EPS * (np.abs(before) + np.abs(exact_sums) + error))

    if op_a is Op.N:
        sums = pages.empty((fp16_sums_size(rows, columns),), np.float32)
        short = pages.empty((rows, columns), np.int16, gap)
        for bias in (pages.copy(rng.standard_normal(columns).astype(np.float32)), np.zeros(0, np.float32)):
            short[...] = NAN
            linear_fp16(a, b, op_b, bias, short, sums, *wide)
            after = exact_sums + bias if bias.size else exact_sums
            unrounded = error + EPS * np.abs(after)
            assert close(numbers(short), after, unrounded + ROUNDING * (np.abs(after) + unrounded) + SUBNORMAL)


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


def test_scratch_is_bounded() -> None:
    for shape in ((64, 50257, 768), (50257, 768, 64), (64, 768, 50257), (100_000, 100_000, 100_000)):
        assert max(fp16_scratch_sizes(*shape)) <= 1 << 20
        assert fp16_sums_size(*shape[:2]) <= 1 << 18
    assert fp16_scratch_sizes(3, 5, 7) == (21, 35)


@pytest.mark.skipif(not JIT_ENABLED, reason="NumPy's product is not cut into blocks")
@pytest.mark.parametrize(("rows", "columns", "inner"), [(40, 1100, 2300), (600, 40, 300)])
def test_bits_are_those_of_one_float32_product(rows: int, columns: int, inner: int) -> None:
    rng = np.random.default_rng(2)
    a, b = random_halves(rng, rows, inner), random_halves(rng, columns, inner)
    found, expected = np.empty((rows, columns), np.float32), np.empty((rows, columns), np.float32)
    with gemm_backend(GemmBackend.NUMBA):
        gemm_fp16(a, b, found, Op.N, Op.T, False, *scratch(Pages(True), rows, columns, inner))
        wide = [numbers(bits).astype(np.float32) for bits in (a, b)]
        gemm(wide[0], wide[1], expected, Op.N, Op.T, 1.0, 0.0)
    assert (found == expected).all()


def test_nan_infinity_and_overflow_come_through() -> None:
    pages = Pages(True)
    a, b = halves(np.ones((9, 10))), halves(np.ones((10, 40)))
    a[4, 7] = NAN
    b[3, 5] = 0x7C00
    a[5, :] = b[:, 6] = halves(np.array([200.0]))[0]  # 200 * 200 * 10 is beyond 65504
    out = pages.empty((9, 40), np.int16)
    sums = pages.empty((fp16_sums_size(9, 40),), np.float32)
    linear_fp16(a, b, Op.N, np.zeros(0, np.float32), out, sums, *scratch(pages, 9, 40, 10))
    found = numbers(out)
    assert np.isnan(found[4]).all()
    rest = np.delete(found, 4, 0)
    assert (rest[:, 5] == np.inf).all() and found[5, 6] == np.inf
    assert (found[0, [0, 6]] == [10.0, 2000.0]).all()
    assert np.isfinite(np.delete(found, 4, 0)[:, :5]).all()


def test_threads_get_the_bits_of_one() -> None:
    rng = np.random.default_rng(5)
    a, b = random_halves(rng, 70, 200), random_halves(rng, 200, 90)
    barrier = Barrier(4)

    def work(_: int) -> list[bytes]:
        pages, found = Pages(True), []
        out, short = np.empty((70, 90), np.float32), np.empty((70, 90), np.int16)
        wide = scratch(pages, 70, 90, 200)
        sums = pages.empty((fp16_sums_size(70, 90),), np.float32)
        barrier.wait()
        for _repeat in range(5):
            gemm_fp16(a, b, out, Op.N, Op.N, False, *wide)
            linear_fp16(a, b, Op.N, np.zeros(0, np.float32), short, sums, *wide)
            found.append(out.tobytes() + short.tobytes())
        return found

    with gemm_backend(GemmBackend.NUMBA), ThreadPoolExecutor(4) as pool:
        results = [bits for many in pool.map(work, range(4)) for bits in many]
    assert len(set(results)) == 1


@pytest.mark.skipif(not JIT_ENABLED, reason="NumPy allocates")
def test_nothing_is_allocated() -> None:
    rng = np.random.default_rng(7)
    bits, out, short = random_halves(rng, 40, 40), np.empty((40, 40), np.float32), np.empty((40, 40), np.int16)
    wide = scratch(Pages(True), 40, 40, 40)
    bias, sums = np.zeros(0, np.float32), np.empty(fp16_sums_size(40, 40), np.float32)
    calls: list[tuple[Any, ...]] = [
        (fp16_from_float32, out.reshape(-1), short.reshape(-1)),
        (float32_from_fp16, short.reshape(-1), out.reshape(-1)),
        (gemm_fp16, bits, bits, out, Op.T, Op.N, True, *wide),
        (linear_fp16, bits, bits, Op.T, bias, short, sums, *wide),
    ]
    _nrt_python.memsys_enable_stats()
    try:
        for function, *arguments in calls:
            function(*arguments)
            before = rtsys.get_allocation_stats().alloc
            function(*arguments)
            # Numba keeps a small record of each array that crosses over from Python.
            records = sum(isinstance(argument, np.ndarray) for argument in arguments)
            assert rtsys.get_allocation_stats().alloc - before == records, function
    finally:
        _nrt_python.memsys_disable_stats()
