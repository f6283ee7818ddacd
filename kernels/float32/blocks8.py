"""Matrices in 8 bits by blocks of 32, for generation: the numbers of llama.cpp's Q8_0, with a bfloat16 as scale.

Each 32 weights of one output, along the summed dimension, have numbers from -127 to 127, and a scale that they are
multiplied with: 34 bytes. The last block of an output is filled with zeros. The scale is the largest weight of the
block over 127, rounded up to a bfloat16, by 2**-7 of it at most. A weight is off by half of the scale at most: by 0.4 %
of the largest weight of its block (`LARGEST_ERROR`).

A matrix W (I, O) is stored as (panels, blocks, 1088) bytes. A panel has 32 outputs, as those of `kernels.matmul.pack`,
and is one stream of memory; its sums stay in registers::

    block b of a panel:  W[32b,0] … W[32b,31] | W[32b+1,0] … W[32b+1,31] | … | W[32b+31,31] | 32 scales of 2 bytes
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

from threadloom.kernels.compiling import OVERLOAD_OPTIONS, Floats, jit_kernel, jit_strict_fp
from threadloom.kernels.matmul import PANEL, address_of
from threadloom.kernels.simd import (
    FLOAT32,
    FLOAT32_VECTOR,
    INT8,
    INT16_VECTOR,
    INT32_VECTOR,
    LANES,
    broadcast,
    float32_vector,
    from_bf16,
    fused_multiply_add,
    int32_vector,
    int64,
    load_float32,
    pointer,
    stack_buffer,
    store_float32,
    to_bf16,
)

Blocks8 = NDArray[np.int8]
"""Blocks of a matrix, or of one for each layer."""

BLOCK = 32
BLOCK_BYTES = BLOCK * PANEL + 2 * PANEL
"""Bytes of one block of each output of a panel."""
LARGEST_ERROR = (1.0 + 2.0**-7) / 254.0
"""Bound on the error of a weight, relative to the largest one of its block."""
_SCALES = BLOCK * PANEL
_VECTORS = PANEL // LANES
_LARGEST = np.float32(127.0)
_SMALLEST = np.float32(2.0**-120)  # a smaller scale would be subnormal, or nearly: its block becomes zeros
_ZERO = np.float32(0.0)
_sums_space, _input_space = stack_buffer(4 * PANEL), stack_buffer(4 * BLOCK)


def blocks8_shape(inner: int, columns: int) -> tuple[int, int, int]:
    """Return the shape (panels, blocks, bytes) of a matrix of (inner, columns) in 8 bits."""
    return -(-columns // PANEL), -(-inner // BLOCK), BLOCK_BYTES


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
    """Write the matrix (I, O) whose columns are `rows` (O, I) as blocks: rounded to nearest, ties to even."""
    outputs = rows.shape[0]
    out[...] = 0
    for o in range(outputs):
        panel, column = out[o // PANEL], o % PANEL
        for b in range(panel.shape[0]):
            block, target = rows[o, b * BLOCK : (b + 1) * BLOCK], panel[b]
            bits = _scale(block)
            scale = from_bf16(bits)
            if scale > _ZERO and scale < np.inf:
                for k in range(block.shape[0]):
                    target[k * PANEL + column] = np.int8(np.rint(block[k] / scale))
            target[_SCALES + 2 * column] = np.uint8(bits & np.uint16(0xFF)).view(np.int8)
            target[_SCALES + 2 * column + 1] = np.uint8(bits >> np.uint16(8)).view(np.int8)


@jit_strict_fp
def scale_of(block: Blocks8, column: int) -> np.float32:
    """Return the scale of an output of a block (1088,)."""
    place = _SCALES + 2 * column
    low, high = np.int8(block[place]).view(np.uint8), np.int8(block[place + 1]).view(np.uint8)
    return from_bf16(np.uint16(np.uint16(low) | np.uint16(np.uint16(high) << np.uint16(8))))


@jit_strict_fp
def copy_blocks8_column(blocks: Blocks8, number: int, target: Floats) -> None:
    """Write column `number` of a matrix (I, O) to `target` (I,)."""
    panel, column = blocks[number // PANEL], number % PANEL
    for b in range(panel.shape[0]):
        scale, first = scale_of(panel[b], column), b * BLOCK
        for k in range(min(BLOCK, target.shape[0] - first)):
            target[first + k] = scale * np.float32(panel[b, k * PANEL + column])


@jit_kernel
def add_blocks8(x: Floats, blocks: Blocks8, out: Floats) -> None:
    """Add ``x @ W`` to `out`: x (I,), W (I, O), out (O,)."""
    _add_panels(x, blocks, out)


def _add_panels(x: Floats, blocks: Blocks8, out: Floats) -> None:
    """Add ``x @ W`` to `out`; replaced when it is compiled."""
    column = np.empty_like(x)
    for j in range(len(out)):
        copy_blocks8_column(blocks, j, column)
        out[j] += x @ column


@overload(_add_panels, jit_options=OVERLOAD_OPTIONS)
def _add_panels_compiled(x: Any, blocks: Any, out: Any) -> Any:
    def compiled(x: Any, blocks: Any, out: Any) -> Any:
        whole, rest = x.shape[0] // BLOCK, x.shape[0] % BLOCK
        panel_bytes = blocks.shape[1] * BLOCK_BYTES
        last, sums = _input_space(), _sums_space()
        for k in range(BLOCK):  # the last block of the input, filled with zeros as those of the matrix are
            store_float32(last, k, x[whole * BLOCK + k] if k < rest else _ZERO)
        for panel in range(blocks.shape[0]):
            place, first = address_of(blocks) + panel * panel_bytes, panel * PANEL
            width = min(PANEL, out.shape[0] - first)
            for c in range(PANEL):
                store_float32(sums, c, _ZERO)
            _add_panel(place, address_of(x), whole, sums)
            if rest:
                _add_panel(place + whole * BLOCK_BYTES, last, 1, sums)
            for c in range(width):
                out[first + c] += load_float32(sums, c)

    return compiled


@intrinsic
def _add_panel(typing_context: Any, blocks: Any, x: Any, count: Any, sums: Any) -> Any:
    """Add the products of one panel's first `count` blocks to 32 sums; all but `count` are addresses.

    Within a block the numbers are summed without their scales, in two sums for each output, so that the multiply-adds
    wait for each other half as long.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        blocks, x, count, sums = arguments
        lanes = range(_VECTORS)
        targets = [pointer(builder, FLOAT32_VECTOR, sums, int64(4 * LANES * v)) for v in lanes]
        zero = float32_vector(0.0)
        totals = [cgutils.alloca_once(builder, FLOAT32_VECTOR) for _ in lanes]
        parts = [[cgutils.alloca_once_value(builder, zero) for _ in lanes] for _ in range(2)]
        for total, target in zip(totals, targets, strict=True):
            builder.store(builder.load(target, align=4), total)
        with cgutils.for_range(builder, count) as loop:
            block = builder.add(blocks, builder.mul(loop.index, int64(BLOCK_BYTES)))
            row = builder.add(x, builder.mul(loop.index, int64(4 * BLOCK)))
            for part in (*parts[0], *parts[1]):
                builder.store(zero, part)
            with cgutils.for_range(builder, int64(BLOCK // 2)) as pair:
                for half in range(2):
                    k = builder.add(builder.mul(pair.index, int64(2)), int64(half))
                    element = builder.load(pointer(builder, FLOAT32, row, builder.mul(k, int64(4))), align=4)
                    factor = broadcast(builder, element, FLOAT32_VECTOR)
                    line = builder.add(block, builder.mul(k, int64(PANEL)))
                    for v in lanes:
                        product = fused_multiply_add(
                            builder, _numbers(builder, line, v), factor, builder.load(parts[half][v])
                        )
                        builder.store(product, parts[half][v])
            for v in lanes:
                part = builder.fadd(builder.load(parts[0][v]), builder.load(parts[1][v]))
                total = fused_multiply_add(builder, part, _scales(builder, block, v), builder.load(totals[v]))
                builder.store(total, totals[v])
        for total, target in zip(totals, targets, strict=True):
            builder.store(builder.load(total), target, align=4)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp, types.intp), codegen


def _numbers(builder: Any, line: Any, v: int) -> Any:
    """Return the numbers of a vector of outputs as float32."""
    bytes_ = builder.load(pointer(builder, ir.VectorType(INT8, LANES), line, int64(LANES * v)), align=1)
    return builder.sitofp(builder.sext(bytes_, INT32_VECTOR), FLOAT32_VECTOR)


def _scales(builder: Any, block: Any, v: int) -> Any:
    """Return the scales of a vector of outputs."""
    bits = builder.load(pointer(builder, INT16_VECTOR, block, int64(_SCALES + 2 * LANES * v)), align=1)
    return builder.bitcast(builder.shl(builder.zext(bits, INT32_VECTOR), int32_vector(16)), FLOAT32_VECTOR)
