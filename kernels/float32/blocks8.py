"""Matrices in 8 bits by blocks of 32, for generation: the format of llama.cpp's Q8_0, with a bfloat16 as scale.

A row holds the weights of one output, along the summed dimension. Each 32 of them are stored as 34 bytes: numbers from
-127 to 127, and the scale that they are multiplied with. The last block of a row is filled with zeros. The scale is the
largest weight of the block over 127, rounded up to a bfloat16, by 2**-7 of it at most. A weight is off by half of the
scale at most: by 0.4 % of the largest weight of its block (`LARGEST_ERROR`).
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

from threadloom.kernels.compiling import OVERLOAD_OPTIONS, Floats, jit_kernel, jit_strict_fp
from threadloom.kernels.simd import FLOAT32, INT8, INT16, INT32, broadcast, from_bf16, int64, pointer, to_bf16

Blocks8 = NDArray[np.int8]
"""Rows of blocks."""

BLOCK, BLOCK_BYTES = 32, 34
LARGEST_ERROR = (1.0 + 2.0**-7) / 254.0
"""Bound on the error of a weight, relative to the largest one of its block."""
_LARGEST = np.float32(127.0)
_SMALLEST = np.float32(2.0**-120)  # a smaller scale would be subnormal, or nearly: its block becomes zeros
_ZERO = np.float32(0.0)
_VECTOR = ir.VectorType(FLOAT32, BLOCK)


def row_bytes(columns: int) -> int:
    """Return the bytes of a row of so many weights."""
    return -(-columns // BLOCK) * BLOCK_BYTES


@jit_strict_fp
def _scale(block: Floats) -> np.uint16:
    """Return the scale of a block: 0 if its weights are (nearly) 0, NaN or infinite if one of them is."""
    largest = _ZERO
    for j in range(block.shape[0]):
        size = abs(block[j])
        if size > largest or size != size:
            largest = size
    exact = np.float32(largest / _LARGEST)
    if exact < _SMALLEST:
        return np.uint16(0)
    bits = to_bf16(exact)
    return np.uint16(bits + 1) if from_bf16(bits) < exact else bits


@jit_strict_fp
def blocks8_from_float32(rows: Floats, out: Blocks8) -> None:
    """Write the rows (O, I) as blocks (O, `row_bytes` (I)): numbers rounded to nearest, ties to even."""
    columns = rows.shape[1]
    for r in range(rows.shape[0]):
        for b in range(-(-columns // BLOCK)):
            block, place = rows[r, b * BLOCK : (b + 1) * BLOCK], b * BLOCK_BYTES
            bits = _scale(block)
            scale = from_bf16(bits)
            for j in range(BLOCK):
                out[r, place + j] = np.int8(0)
            if scale > _ZERO and scale < np.inf:
                for j in range(block.shape[0]):
                    out[r, place + j] = np.int8(np.rint(block[j] / scale))
            out[r, place + BLOCK] = np.uint8(bits & np.uint16(0xFF)).view(np.int8)
            out[r, place + BLOCK + 1] = np.uint8(bits >> np.uint16(8)).view(np.int8)


@jit_strict_fp
def _scale_at(row: Blocks8, place: int) -> np.float32:
    low, high = np.int8(row[place]).view(np.uint8), np.int8(row[place + 1]).view(np.uint8)
    return from_bf16(np.uint16(np.uint16(low) | np.uint16(np.uint16(high) << np.uint16(8))))


@jit_strict_fp
def float32_from_blocks8(row: Blocks8, out: Floats) -> None:
    """Write the weights of a row to `out` (I,)."""
    for b in range(-(-out.shape[0] // BLOCK)):
        place, first = b * BLOCK_BYTES, b * BLOCK
        scale = _scale_at(row, place + BLOCK)
        for j in range(min(BLOCK, out.shape[0] - first)):
            out[first + j] = scale * np.float32(row[place + j])


@jit_kernel
def dot_blocks8(row: Blocks8, x: Floats) -> np.float32:
    """Return the dot product of a row of weights and `x` (I,)."""
    whole = x.shape[0] // BLOCK
    total = _whole_blocks(row, x, whole)
    place, rest = whole * BLOCK_BYTES, _ZERO
    if whole * BLOCK < x.shape[0]:
        for j in range(whole * BLOCK, x.shape[0]):
            rest += np.float32(row[place + j - whole * BLOCK]) * x[j]
        total += rest * _scale_at(row, place + BLOCK)
    return total


def _whole_blocks(row: Blocks8, x: Floats, count: int) -> np.float32:
    """Return the dot product of the first `count` blocks of a row and of `x`; replaced when it is compiled."""
    weights = np.empty(count * BLOCK, np.float32)
    float32_from_blocks8(row, weights)
    return np.float32(weights @ x[: count * BLOCK])


@overload(_whole_blocks, jit_options=OVERLOAD_OPTIONS)
def _whole_blocks_compiled(row: Any, x: Any, count: Any) -> Any:
    def compiled(row: Any, x: Any, count: Any) -> Any:
        return _dot(row.ctypes.data, x.ctypes.data, count)

    return compiled


@intrinsic
def _dot(typing_context: Any, blocks: Any, x: Any, count: Any) -> Any:
    """Return the dot product of `count` blocks and 32 `count` numbers, both at addresses.

    The sum of a block is not added up: its 32 products times the scale are added to 32 sums, so that a block costs no
    horizontal addition. LLVM splits the vectors of 32 into those of the processor.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        blocks, x, count = arguments
        sums = cgutils.alloca_once_value(builder, ir.Constant(_VECTOR, [0.0] * BLOCK))
        fma = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_VECTOR, [_VECTOR] * 3), f"llvm.fmuladd.v{BLOCK}f32"
        )

        with cgutils.for_range(builder, count) as loop:
            place = builder.add(blocks, builder.mul(loop.index, int64(BLOCK_BYTES)))
            bytes_ = builder.load(pointer(builder, ir.VectorType(INT8, BLOCK), place), align=1)
            numbers = builder.sitofp(builder.sext(bytes_, ir.VectorType(INT32, BLOCK)), _VECTOR)
            bits = builder.load(pointer(builder, INT16, place, int64(BLOCK)), align=1)
            scale = builder.bitcast(builder.shl(builder.zext(bits, INT32), ir.Constant(INT32, 16)), FLOAT32)
            factors = pointer(builder, _VECTOR, x, builder.mul(loop.index, int64(4 * BLOCK)))
            products = builder.fmul(numbers, builder.load(factors, align=4))
            scales = broadcast(builder, scale, _VECTOR)
            builder.store(builder.call(fma, [products, scales, builder.load(sums)]), sums)
        values = builder.load(sums)
        for half in (16, 8, 4, 2, 1):
            kind = ir.VectorType(INT32, half)
            nothing = ir.Constant(values.type, ir.Undefined)
            low = builder.shuffle_vector(values, nothing, ir.Constant(kind, list(range(half))))
            high = builder.shuffle_vector(values, nothing, ir.Constant(kind, list(range(half, 2 * half))))
            values = builder.fadd(low, high)
        return builder.extract_element(values, ir.Constant(INT32, 0))

    return types.float32(types.uintp, types.uintp, types.intp), codegen
