"""Passes of LayerNorm and RMS norm over one row, in bfloat16 as LLVM vectors.

Numba would make three loops of the forward pass, with a check at each entry whether rows overlap, and nine operations
of each rounding. Here a row is read once. The bits are those of the loops that float16 has.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from threadloom.kernels.compiling import OVERLOAD_OPTIONS, Floats
from threadloom.kernels.simd import (
    FLOAT32_VECTOR,
    INT16_VECTOR,
    INT32_VECTOR,
    LANES,
    VECTOR_BYTES,
    Bits16,
    broadcast,
    fused_multiply_add,
    int32_vector,
    int64,
    load16,
    load_floats,
    pointer,
    store16,
    store_bf16,
)

NO_BIAS = np.float32(-0.0)
"""Added to a number it leaves its bits as they are, also those of -0."""


def _upcast(builder: Any, bits: Any) -> Any:
    return builder.bitcast(builder.shl(builder.zext(bits, INT32_VECTOR), int32_vector(16)), FLOAT32_VECTOR)


@intrinsic
def _normalise_vectors(
    typing_context: Any, row: Any, mean: Any, rstd: Any, weight: Any, bias: Any, n: Any, out: Any, vectors: Any
) -> Any:
    """Write ``n = (row - mean) * rstd``, rounded, and ``n * weight + bias``; arrays are addresses, `bias` may be 0."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        row, mean, rstd, weight, bias, n, out, vectors = arguments
        means, factors = broadcast(builder, mean, FLOAT32_VECTOR), broadcast(builder, rstd, FLOAT32_VECTOR)
        absent = ir.Constant(FLOAT32_VECTOR, [float(NO_BIAS)] * LANES)

        def emit(*, with_bias: bool) -> None:
            with cgutils.for_range(builder, vectors) as loop:
                floats = builder.mul(loop.index, int64(VECTOR_BYTES))
                shorts = builder.mul(loop.index, int64(VECTOR_BYTES // 2))
                normed = builder.fmul(builder.fsub(load_floats(builder, row, floats), means), factors)
                kept = _upcast(builder, store_bf16(builder, normed, n, shorts))
                added = load_floats(builder, bias, floats) if with_bias else absent
                result = fused_multiply_add(builder, kept, load_floats(builder, weight, floats), added)
                store_bf16(builder, result, out, shorts)

        with builder.if_else(builder.icmp_signed("!=", bias, int64(0))) as (then, otherwise):
            with then:
                emit(with_bias=True)
            with otherwise:
                emit(with_bias=False)
        return context.get_dummy_value()

    address = types.intp
    signature = types.void(address, types.float32, types.float32, *[address] * 4, types.intp)
    return signature, codegen


@intrinsic
def _scale_vectors(typing_context: Any, row: Any, weight: Any, bias: Any, vectors: Any) -> Any:
    """Replace `vectors` vectors of bfloat16 at the address `row` by ``row * weight + bias``."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        row, weight, bias, vectors = arguments
        weights, biases = broadcast(builder, weight, FLOAT32_VECTOR), broadcast(builder, bias, FLOAT32_VECTOR)
        with cgutils.for_range(builder, vectors) as loop:
            offset = builder.mul(loop.index, int64(VECTOR_BYTES // 2))
            kept = _upcast(builder, builder.load(pointer(builder, INT16_VECTOR, row, offset), align=2))
            store_bf16(builder, fused_multiply_add(builder, kept, weights, biases), row, offset)
        return context.get_dummy_value()

    return types.void(types.intp, types.float32, types.float32, types.intp), codegen


def normalise_row(
    row: Floats, mean: np.float32, rstd: np.float32, weight: Floats, bias: Floats, n: Bits16, out: Bits16
) -> None:
    """Write ``n = (row - mean) * rstd``, rounded, and ``n * weight + bias`` to `out`; a bias of length 0 is none."""
    _normalise_elements(row, mean, rstd, weight, bias, n, out)


@overload(normalise_row, jit_options=OVERLOAD_OPTIONS)
def _normalise_row(row: Any, mean: Any, rstd: Any, weight: Any, bias: Any, n: Any, out: Any) -> Any:
    return _normalise_bf16 if n.dtype == types.uint16 else _normalise_elements


def _normalise_elements(row: Any, mean: Any, rstd: Any, weight: Any, bias: Any, n: Any, out: Any) -> None:
    for j in range(row.shape[0]):
        store16(n, j, (row[j] - mean) * rstd)
    if bias.shape[0] > 0:
        for j in range(row.shape[0]):
            store16(out, j, load16(n, j) * weight[j] + bias[j])
    else:
        for j in range(row.shape[0]):
            store16(out, j, load16(n, j) * weight[j])


def _normalise_bf16(row: Any, mean: Any, rstd: Any, weight: Any, bias: Any, n: Any, out: Any) -> None:
    vectors = row.shape[0] // LANES
    place = bias.ctypes.data if bias.shape[0] > 0 else 0
    _normalise_vectors(row.ctypes.data, mean, rstd, weight.ctypes.data, place, n.ctypes.data, out.ctypes.data, vectors)
    for j in range(vectors * LANES, row.shape[0]):
        store16(n, j, (row[j] - mean) * rstd)
        shift = bias[j] if bias.shape[0] > 0 else NO_BIAS
        store16(out, j, load16(n, j) * weight[j] + shift)


def scale_row(row: Bits16, weight: np.float32, bias: np.float32) -> None:
    """Replace a row by ``row * weight + bias``."""
    _scale_elements(row, weight, bias)


@overload(scale_row, jit_options=OVERLOAD_OPTIONS)
def _scale_row(row: Any, weight: Any, bias: Any) -> Any:
    return _scale_bf16 if row.dtype == types.uint16 else _scale_elements


def _scale_elements(row: Any, weight: Any, bias: Any) -> None:
    for j in range(row.shape[0]):
        store16(row, j, load16(row, j) * weight + bias)


def _scale_bf16(row: Any, weight: Any, bias: Any) -> None:
    vectors = row.shape[0] // LANES
    _scale_vectors(row.ctypes.data, weight, bias, vectors)
    for j in range(vectors * LANES, row.shape[0]):
        store16(row, j, load16(row, j) * weight + bias)
