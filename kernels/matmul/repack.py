"""The packed transpose of a matrix, made from the packed matrix: for the backward pass of weights that are held once.

Both layouts (`kernels.matmul.pack`) consist of blocks of 32 x 32 elements, 2 KiB each in one piece, and the transpose
of a block is a block. The words of columns 2q and 2q + 1 in row p of a block are one element of 64 bits::

    16 bits of W (I, O)   [2p, 2q]  [2p + 1, 2q]  [2p, 2q + 1]  [2p + 1, 2q + 1]     row p, element q of the packed W
                          [2p, 2q]  [2p, 2q + 1]  [2p + 1, 2q]  [2p + 1, 2q + 1]     row q, element p of the transpose

So a block is transposed as 16 x 16 elements of 64 bits, in which the middle two of the four numbers change places.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from threadloom.kernels.compiling import JIT_ENABLED, jit_strict_fp
from threadloom.kernels.matmul.operands import address_of
from threadloom.kernels.matmul.pack import DEPTH_STEP, PANEL, PackedBits, packed_shape
from threadloom.kernels.simd import INT16, INT32, INT64, LANES, exchange_lanes, int64, pointer

_PART_WORDS = 1 << 17
"""Words of the packed transpose that are made at a time: 512 KiB, a part of the L2 cache."""
_PAIRS = DEPTH_STEP // 2
_BLOCK_BYTES = _PAIRS * PANEL * 4
_SIDE = LANES // 2
"""Elements of 64 bits in a vector."""
_VECTOR = ir.VectorType(INT64, _SIDE)
_HALVES = ir.VectorType(INT16, 4 * _SIDE)
_SWAP_MIDDLE = ir.Constant(
    ir.VectorType(INT32, 4 * _SIDE), [4 * (i // 4) + (0, 2, 1, 3)[i % 4] for i in range(4 * _SIDE)]
)


@intrinsic
def _transpose_block(typing_context: Any, source: Any, target: Any) -> Any:
    """Write the transpose of the packed block at the address `source` to the address `target`."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, target = arguments

        def place(base: Any, row: int, element: int) -> Any:
            return pointer(builder, _VECTOR, base, int64(4 * PANEL * row + 8 * element))

        def load(row: int, element: int) -> Any:
            halves = builder.bitcast(builder.load(place(source, row, element), align=4), _HALVES)
            return builder.bitcast(builder.shuffle_vector(halves, halves, _SWAP_MIDDLE), _VECTOR)

        for p in range(0, _PAIRS, _SIDE):
            for q in range(0, _PAIRS, _SIDE):
                square = exchange_lanes(builder, [load(p + i, q) for i in range(_SIDE)])
                for i, row in enumerate(square):
                    builder.store(row, place(target, q + i, p), align=4)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), codegen


def transposed_part_size(inner: int, columns: int) -> int:
    """Return the words of the panels of the packed transpose of an (inner, columns) matrix that are made at a time."""
    panels, pairs, _ = packed_shape(columns, inner)
    return min(panels, max(_PART_WORDS // (pairs * PANEL), 1)) * pairs * PANEL


@jit_strict_fp
def _repack_compiled(packed: PackedBits, first: int, out: PackedBits) -> None:
    panels, blocks = packed.shape[0], packed.shape[1] // _PAIRS
    for i in range(out.shape[0]):
        for j in range(panels):
            source = address_of(packed) + (j * blocks + first + i) * _BLOCK_BYTES
            _transpose_block(source, address_of(out) + (i * panels + j) * _BLOCK_BYTES)


def _repack_numpy(packed: PackedBits, first: int, out: PackedBits) -> None:
    panels, blocks = packed.shape[0], packed.shape[1] // _PAIRS
    halves = packed.view(np.uint16).reshape(panels, blocks, _PAIRS, PANEL // 2, 2, 2)  # j, i, p, q, column, row
    turned = halves.transpose(1, 0, 3, 2, 5, 4)[first : first + out.shape[0]]
    out.view(np.uint16).reshape(turned.shape)[...] = turned


_repack = _repack_compiled if JIT_ENABLED else _repack_numpy


@jit_strict_fp
def transpose_packed(packed: PackedBits, first: int, out: PackedBits) -> None:
    """Write the panels `first` and following of the packed transpose to `out`.

    `packed` is of ``packed_shape(K, N)``; `out` has the rows of ``packed_shape(N, K)`` and as many panels as are
    wanted, at most those from `first` on. Both are contiguous. The result has the bits of packing the transposed
    matrix, padding included.
    """
    _repack(packed, first, out)
