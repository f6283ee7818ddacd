"""Packing of new weights in both directions while they are in the cache: a block of rows at a time.

A block is as many rows as a panel has columns. Whoever computes its rows also writes them, rounded, to a buffer of this
module. From there each square of 32 x 32 becomes 2 KiB of the panels of the matrix and 2 KiB of those of its transpose,
both contiguous. They are stored past the cache (non-temporally): nothing reads them before the next forward pass, and
an ordinary store would first read the line that it overwrites.

The numbers are results of arithmetic, of which none is subnormal. What is not a whole panel in both directions is
packed number by number; padding is not written, as it is zero since the memory was allocated.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from threadloom.kernels.bits16.tensors import PackedPair
from threadloom.kernels.compiling import JIT_ENABLED, Floats, jit_strict_fp, jit_strict_inline
from threadloom.kernels.matmul import PANEL, address_of, matrix_ref, shifted
from threadloom.kernels.simd import (
    INT16_VECTOR,
    INT32_VECTOR,
    LANES,
    exchange_lanes,
    int32_vector,
    int64,
    pointer,
    result_to_bf16,
    round_to_bf16,
    stack_buffer,
    store_uint16,
)

CHUNK = 4096
"""Columns of a block that are computed and packed at a time: rows are read from memory in long runs."""
_LINE = 64
_ROW_BYTES = 2 * CHUNK + _LINE  # rows a power of two apart would share the cache's sets
_PACKED_ROW = 4 * PANEL

_block_buffer = stack_buffer(PANEL * _ROW_BYTES)  # in the function that calls it: not to be wrapped in another


def _vector(builder: Any, kind: Any, rounded: Any, row: int, byte: int) -> Any:
    return builder.load(pointer(builder, kind, rounded, int64(row * _ROW_BYTES + byte)), align=2)


def _interleaved(builder: Any, rounded: Any) -> list[Any]:
    """Return the vectors of a square's rows as pairs of rows, in the order of memory."""
    vectors = []
    for r in range(0, PANEL, 2):
        for n in range(0, PANEL, LANES):
            low, high = (
                builder.zext(_vector(builder, INT16_VECTOR, rounded, r + i, 2 * n), INT32_VECTOR) for i in (0, 1)
            )
            vectors.append(builder.or_(low, builder.shl(high, int32_vector(16))))
    return vectors


def _transposed(builder: Any, rounded: Any) -> list[Any]:
    """Return the vectors of a square's columns as pairs of columns, in the order of memory."""
    vectors = []
    for p in range(0, PANEL // 2, LANES):
        parts = []
        for n in range(0, PANEL, LANES):
            rows = [_vector(builder, INT32_VECTOR, rounded, n + i, 4 * p) for i in range(LANES)]
            parts.append(exchange_lanes(builder, rows))
        vectors += [part[i] for i in range(LANES) for part in parts]
    return vectors


def _square_packer(vectors_of: Any) -> Any:
    """Return an intrinsic that writes a square of the rounded block to the address `target`."""

    @intrinsic
    def pack(typing_context: Any, rounded: Any, target: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            rounded, target = arguments
            vectors = vectors_of(builder, rounded)
            places = [pointer(builder, INT32_VECTOR, target, int64(4 * LANES * i)) for i in range(len(vectors))]
            aligned = builder.icmp_unsigned("==", builder.urem(target, int64(_LINE)), int64(0))
            with builder.if_else(aligned) as (then, otherwise):
                with then:  # as always in an arena
                    flag = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
                    for value, place in zip(vectors, places, strict=True):
                        builder.store(value, place, align=4 * LANES).set_metadata("nontemporal", flag)
                with otherwise:
                    for value, place in zip(vectors, places, strict=True):
                        builder.store(value, place, align=4)
            return context.get_dummy_value()

        return types.void(types.intp, types.intp), codegen

    return pack


_pack_square, _pack_square_transposed = _square_packer(_interleaved), _square_packer(_transposed)


@intrinsic
def _fence(typing_context: Any) -> Any:
    """Order stores past the cache before all later stores, so that who sees one of those sees the weights too."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


@jit_strict_fp
def _pack_squares(rounded: int, columns: int, first: int, row: int, pair: PackedPair) -> None:
    """Pack `PANEL` rows and a multiple of `PANEL` columns of the rounded block."""
    packed, packed_t = pair.packed, pair.packed_t
    for j in range(0, columns, PANEL):
        panel = matrix_ref(packed[(first + j) // PANEL])
        _pack_square(rounded + 2 * j, shifted(panel, row // 2, 0).address)
        if packed_t.shape[0] > 0:  # a matrix whose rows are only looked up has no packed transpose
            panel = matrix_ref(packed_t[row // PANEL])
            _pack_square_transposed(rounded + 2 * j, shifted(panel, (first + j) // 2, 0).address)


@jit_strict_fp
def _pack_numbers(weights: Floats, first: int, row: int, pair: PackedPair) -> None:
    """Do the same as `pack_block`, number by number."""
    packed, packed_t = pair.packed, pair.packed_t
    for i in range(weights.shape[0]):
        r = row + i
        for j in range(weights.shape[1]):
            c, bits = first + j, result_to_bf16(weights[i, j])
            word = ((c // PANEL) * packed.shape[1] + r // 2) * PANEL + c % PANEL
            store_uint16(address_of(packed), 2 * word + r % 2, bits)
            if packed_t.shape[0] > 0:
                word = ((r // PANEL) * packed_t.shape[1] + c // 2) * PANEL + r % PANEL
                store_uint16(address_of(packed_t), 2 * word + c % 2, bits)


@jit_strict_fp
def _pack_compiled(weights: Floats, rounded: int, first: int, row: int, pair: PackedPair) -> None:
    whole = weights.shape[1] // PANEL * PANEL if weights.shape[0] == PANEL else 0
    if whole > 0:
        _pack_squares(rounded, whole, first, row, pair)
    if whole < weights.shape[1]:
        _pack_numbers(weights[:, whole:], first + whole, row, pair)


def _pack_numpy(weights: Floats, rounded: int, first: int, row: int, pair: PackedPair) -> None:
    rows, columns = row + np.arange(weights.shape[0])[:, None], first + np.arange(weights.shape[1])
    bits = round_to_bf16(weights)
    pair.packed.view(np.uint16)[columns // PANEL, rows // 2, 2 * (columns % PANEL) + rows % 2] = bits
    if pair.packed_t.shape[0] > 0:
        pair.packed_t.view(np.uint16)[rows // PANEL, columns // 2, 2 * (rows % PANEL) + columns % 2] = bits


_pack = _pack_compiled if JIT_ENABLED else _pack_numpy


@jit_strict_fp
def pack_block(weights: Floats, rounded: int, first: int, row: int, pair: PackedPair) -> None:
    """Pack `weights` (rows, columns), a block of a matrix from its row `row` and its column `first` on.

    At most `PANEL` rows and `CHUNK` columns; `row` and `first` are multiples of `PANEL`. `rounded` is the buffer, which
    holds the same numbers.
    """
    _pack(weights, rounded, first, row, pair)


@jit_strict_inline
def _keep_compiled(rounded: int, row: int, column: int, x: np.float32) -> None:
    store_uint16(rounded + row * _ROW_BYTES, column, result_to_bf16(x))


def _buffer_numpy() -> int:
    return 0


def _keep_numpy(rounded: int, row: int, column: int, x: np.float32) -> None:
    pass  # `_pack_numpy` rounds


def _fence_numpy() -> None:
    pass


if JIT_ENABLED:
    rounded_buffer, keep_rounded, finish_stores = _block_buffer, _keep_compiled, _fence
else:
    rounded_buffer, keep_rounded, finish_stores = _buffer_numpy, _keep_numpy, _fence_numpy
