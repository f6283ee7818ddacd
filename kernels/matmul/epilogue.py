"""What follows a product before its one rounding to bfloat16, on a tile of sums: bias, GELU. LLVM vectors.

Numba's own vectors are 256 bits wide on some processors with AVX-512, and loops over addresses are checked for overlap
at each entry; written out, the epilogue of a tile costs a few percent of its product. The formulas, constants and the
rounding are those of `kernels.float32.gelu`, `kernels.simd.exponential` and `kernels.simd.bfloat16`.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from threadloom.kernels.matmul.pack import PANEL
from threadloom.kernels.simd import (
    FLOAT32_VECTOR,
    INT16_VECTOR,
    INT32_VECTOR,
    LANES,
    exponential,
    fused_multiply_add,
    int64,
    pointer,
)

_LINEAR = 1.5957691216057308  # 2 sqrt(2 / pi)
_CUBIC = 0.07135481282636  # 0.044715 * 2 sqrt(2 / pi)

_ROW_FLOATS, _ROW_SHORTS = 4 * PANEL, 2 * PANEL


def _floats(value: Any) -> Any:
    return ir.Constant(FLOAT32_VECTOR, [float(value)] * LANES)


def _ints(value: int) -> Any:
    return ir.Constant(INT32_VECTOR, [value] * LANES)


def round_vector(builder: Any, x: Any) -> Any:
    """Return the nearest bfloat16 numbers as a vector of shorts; see `kernels.simd.bfloat16`."""
    bits = builder.bitcast(x, INT32_VECTOR)
    upper = builder.lshr(bits, _ints(16))
    odd = builder.and_(upper, _ints(1))
    nearest = builder.lshr(builder.add(builder.add(bits, _ints(0x7FFF)), odd), _ints(16))
    is_nan = builder.fcmp_unordered("uno", x, x)
    return builder.trunc(builder.select(is_nan, builder.or_(upper, _ints(0x40)), nearest), INT16_VECTOR)


def _widen(builder: Any, shorts: Any) -> Any:
    return builder.bitcast(builder.shl(builder.zext(shorts, INT32_VECTOR), _ints(16)), FLOAT32_VECTOR)


def _exp(builder: Any, x: Any) -> Any:
    """Return e**x as `kernels.simd.exponential.exp32` does."""
    e = exponential
    y = builder.select(builder.fcmp_ordered("<", x, _floats(e._LOWEST)), _floats(e._LOWEST), x)
    y = builder.select(builder.fcmp_ordered(">", y, _floats(e._HIGHEST)), _floats(e._HIGHEST), y)
    t = fused_multiply_add(builder, y, _floats(e._LOG2_E), _floats(e._ROUNDER))
    n = builder.fsub(t, _floats(e._ROUNDER))
    r = fused_multiply_add(builder, n, _floats(-e._LN2_HIGH), y)
    r = fused_multiply_add(builder, n, _floats(-e._LN2_LOW), r)
    p = _floats(e._P0)
    for coefficient in (e._P1, e._P2, e._P3, e._P4, e._P5):
        p = fused_multiply_add(builder, p, r, _floats(coefficient))
    p = builder.fadd(fused_multiply_add(builder, p, builder.fmul(r, r), r), _floats(1.0))
    power = builder.add(builder.shl(builder.bitcast(t, INT32_VECTOR), _ints(23)), _ints(int(e._ONE_BITS)))
    return builder.fmul(p, builder.bitcast(power, FLOAT32_VECTOR))


def _gelu(builder: Any, v: Any) -> Any:
    """Return v / (1 + e**(-2u)), ``2u = v (_LINEAR + _CUBIC v**2)``."""
    factor = fused_multiply_add(builder, builder.fmul(v, v), _floats(-_CUBIC), _floats(-_LINEAR))
    return builder.fdiv(v, builder.fadd(_exp(builder, builder.fmul(v, factor)), _floats(1.0)))


Action = Callable[[Any, Any, Callable[[Any], None]], Any]
"""From builder, vector of sums, and how to write `other`, to the vector of shorts of the result."""


def _make_finish(action: Action) -> Any:
    @intrinsic
    def finish(
        typing_context: Any,
        tile: Any,
        rows: Any,
        bias: Any,
        other: Any,
        other_bytes: Any,
        out: Any,
        out_bytes: Any,
    ) -> Any:
        """Take `rows` rows of 32 sums at `tile`, side by side, to `out`; `bias` has 32 floats. All are addresses."""

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            tile, rows, bias, other, other_bytes, out, out_bytes = arguments
            with cgutils.for_range(builder, rows) as loop:
                row = loop.index
                for v in range(0, PANEL, LANES):
                    source = pointer(builder, FLOAT32_VECTOR, tile, builder.mul(row, int64(_ROW_FLOATS)), int64(4 * v))
                    beside = pointer(builder, INT16_VECTOR, other, builder.mul(row, other_bytes), int64(2 * v))
                    target = pointer(builder, INT16_VECTOR, out, builder.mul(row, out_bytes), int64(2 * v))
                    added = builder.load(pointer(builder, FLOAT32_VECTOR, bias, int64(4 * v)), align=4)
                    sums = builder.fadd(builder.load(source, align=4), added)

                    def write(value: Any, place: Any = beside) -> None:
                        builder.store(value, place, align=2)

                    builder.store(action(builder, sums, write), target, align=2)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 7), codegen

    return finish


def _rounded(builder: Any, sums: Any, write: Any) -> Any:
    return round_vector(builder, sums)


def _with_gelu(builder: Any, sums: Any, write: Any) -> Any:
    """Write the rounded sums beside, and return the GELU of them: of the rounded ones, which backward will have."""
    before = round_vector(builder, sums)
    write(before)
    return round_vector(builder, _gelu(builder, _widen(builder, before)))


finish_rounded = _make_finish(_rounded)
finish_gelu = _make_finish(_with_gelu)
