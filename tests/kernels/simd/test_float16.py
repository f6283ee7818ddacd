"""Conversions between float32 and float16 against NumPy's type: every float16, and float32 of all kinds."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.kernels.machine_code import converts_vectors, half_conversions, innermost_loops
from tests.reference import Array
from threadloom.kernels.compiling.jit import JIT_ENABLED, jit_strict_fp
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
    "upcast", [float32_from_fp16, by_elements_from, *([by_integers_from] if JIT_ENABLED else [])]
)


def numbers(bits: NDArray[np.int16]) -> Array:
    """Return the float16 numbers with these bits, in float64."""
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
def test_upcast_equals_numpy_for_every_float16(upcast: Any) -> None:
    wide = np.empty(EVERY.size, np.float32)
    upcast(EVERY, wide)
    expected = EVERY.view(np.float16).astype(np.float32)
    bits = expected.view(np.uint32) | np.where(np.isnan(expected), np.uint32(0x400000), np.uint32(0))
    assert (wide.view(np.uint32) == bits).all()


@to_kernels
def test_every_float16_is_restored(convert: Any) -> None:
    wide = EVERY.view(np.float16).astype(np.float32)
    out = np.empty(EVERY.size, np.int16)
    convert(wide, out)
    assert (out == np.where(np.isnan(wide), EVERY | 0x200, EVERY)).all()


@to_kernels
def test_rounding_is_to_nearest_ties_to_even(convert: Any) -> None:
    """At, just below and just above both neighbours and the middle, of every pair of neighbours, infinity included."""
    finite = np.arange(0x7C01, dtype=np.uint16).view(np.float16).astype(np.float64)
    finite[-1] = 65536.0  # the next number, if the exponent had no limit
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
def test_rounding_equals_numpy_for_random_float32(convert: Any) -> None:
    rng = np.random.default_rng(0)
    size = 200_000 if JIT_ENABLED else 5_000
    anything = rng.integers(0, 1 << 32, size, dtype=np.uint32)
    in_range = rng.integers(0x32000000, 0x48000000, size, dtype=np.uint32) | (anything & 0x80000000)
    edges = np.array([0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0x7F800000, 0x7F7FFFFF, 0, 1, 0x007FFFFF], np.uint32)
    bits = np.concatenate([anything, in_range, edges, edges | 0x80000000]).astype(np.uint32)
    check_rounding(convert, bits.view(np.float32))


@to_kernels
def test_same_bits_at_every_length(convert: Any) -> None:
    values = np.random.default_rng(1).standard_normal(70).astype(np.float32)
    for length in range(70):
        check_rounding(convert, values[:length])
        check_rounding(convert, values[length:])


def test_single_numbers() -> None:
    assert to_fp16(np.float32(1.0)) == 0x3C00
    assert to_fp16(np.float32(-65504.0)) == np.int16(-0x401)
    assert from_fp16(np.int16(1)) == 2.0**-24
    row = np.zeros(3, np.uint16)
    store16(row, 1, np.float32(-1.5))  # uint16: bfloat16
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
"""Functions of a C runtime that convert one number, called on targets without an instruction."""


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
def test_machine_code_is_vectorised_and_needs_no_f16c(features: str, has_half: bool | None, tmp_path: Path) -> None:
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
        # The loop over whole vectors has no scalar conversion. The remainder loop may have some.
        loops = innermost_loops(code)
        vector_loops = [loop for loop in loops if any(map(converts_vectors, half_conversions(loop)))]
        assert vector_loops, loops
        for loop in vector_loops:
            assert all(map(converts_vectors, half_conversions(loop))), loop
            assert not any(line.startswith("call") for line in loop), loop
