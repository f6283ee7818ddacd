"""Epilogue of a bfloat16 product: bias, GELU and the one rounding of a tile of float32 sums, as LLVM vectors.

Numba's own vectors are 256 bits wide on some processors with AVX-512, and its loops over addresses are checked for
overlap at each entry; with explicit vectors, the epilogue of a tile costs a few percent of its product. Formulas,
constants and rounding are those of `kernels.bits16.gelu`, `kernels.simd.exponential` and `kernels.simd.bfloat16`.
"""

from collections.abc import Callable
from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from threadloom.kernels.compiling import numba_type
from threadloom.kernels.matmul.operands import MatrixRef
from threadloom.kernels.matmul.pack import PANEL
from threadloom.kernels.simd import (
    EXP2_HIGHEST,
    FLOAT32_VECTOR,
    GELU_CUBIC_LOG2,
    GELU_LINEAR_LOG2,
    INT16_VECTOR,
    INT32_VECTOR,
    LANES,
    exp2_vector,
    float32_vector,
    fused_multiply_add,
    int32_vector,
    int64,
    pointer,
    round_result,
)


def _upcast(builder: Any, bits: Any) -> Any:
    return builder.bitcast(builder.shl(builder.zext(bits, INT32_VECTOR), int32_vector(16)), FLOAT32_VECTOR)


def _gelu(builder: Any, v: Any) -> Any:
    """Return v / (1 + 2**t), ``t = -v (GELU_LINEAR_LOG2 + GELU_CUBIC_LOG2 v**2)``; t is bounded, as 2**t would wrap."""
    squared = builder.fmul(v, v)
    factor = fused_multiply_add(builder, squared, float32_vector(-GELU_CUBIC_LOG2), float32_vector(-GELU_LINEAR_LOG2))
    t = builder.fmul(v, factor)
    t = builder.select(builder.fcmp_ordered(">", t, float32_vector(EXP2_HIGHEST)), float32_vector(EXP2_HIGHEST), t)
    return builder.fdiv(v, builder.fadd(exp2_vector(builder, t), float32_vector(1.0)))


Action = Callable[[Any, Any, Callable[[Any], None]], Any]
"""Emitter from (builder, vector of sums, store_pre_gelu) to the vector of int16 of the result."""


def _make_finish(action: Action) -> Any:
    """Return the intrinsic ``finish(tile, rows, bias, pre_gelu, out)``.

    It applies `action` to `rows` rows of 32 contiguous sums at the address `tile`, after adding the 32 floats at the
    address `bias`, and writes the results to `out`; `pre_gelu` and `out` are of type `MatrixRef`.
    """

    @intrinsic
    def finish(typing_context: Any, tile: Any, rows: Any, bias: Any, pre_gelu: Any, out: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            tile, rows, bias, pre_gelu, out = arguments
            with cgutils.for_range(builder, rows) as loop:
                for v in range(0, PANEL, LANES):
                    source = pointer(
                        builder, FLOAT32_VECTOR, tile, builder.mul(loop.index, int64(4 * PANEL)), int64(4 * v)
                    )
                    added = builder.load(pointer(builder, FLOAT32_VECTOR, bias, int64(4 * v)), align=4)
                    sums = builder.fadd(builder.load(source, align=4), added)
                    before, target = (_place(builder, matrix, loop.index, v) for matrix in (pre_gelu, out))

                    def store_pre_gelu(value: Any, place: Any = before) -> None:
                        builder.store(value, place, align=2)

                    builder.store(action(builder, sums, store_pre_gelu), target, align=2)
            return context.get_dummy_value()

        matrix = numba_type(MatrixRef)
        return types.void(types.intp, types.intp, types.intp, matrix, matrix), codegen

    return finish


def _place(builder: Any, matrix: Any, row: Any, column: int) -> Any:
    """Return a pointer to the 16-bit vector at `row` and `column` of a matrix."""
    address, stride = cgutils.unpack_tuple(builder, matrix, 2)
    return pointer(builder, INT16_VECTOR, address, builder.mul(row, stride), int64(2 * column))


def _round(builder: Any, sums: Any, store_pre_gelu: Callable[[Any], None]) -> Any:
    return round_result(builder, sums)


def _round_and_gelu(builder: Any, sums: Any, store_pre_gelu: Callable[[Any], None]) -> Any:
    """Store the rounded sums and return the GELU of those, which are all that backward will have."""
    rounded = round_result(builder, sums)
    store_pre_gelu(rounded)
    return round_result(builder, _gelu(builder, _upcast(builder, rounded)))


finish_rounded = _make_finish(_round)
finish_gelu = _make_finish(_round_and_gelu)
