"""A blocked float32 matrix product in Numba alone: for machines without a BLAS, and a second opinion on those with one.

The scheme is Goto and van de Geijn's (Anatomy of High-Performance Matrix Multiplication, ACM TOMS 34(3), 2008): a panel
of B, `_DEPTH` rows deep and `_WIDTH` columns wide, is packed side by side on the stack, where it stays in the L1 cache
while every tile of `_HEIGHT` rows of A is multiplied with it. The tile of the result is held in vector registers, by
LLVM vectors written out. Edges are packed with zeros, computed in full, and stored by element.

On an AMD Zen 5 it runs at the speed of OpenBLAS's AVX-512 kernels, and at twice that of its AVX2 ones.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from threadloom.kernels.compiling import TARGET, jit_kernel


def _tile_shape() -> tuple[int, int, int]:
    """Return the floats of a vector, and the columns and rows of a tile, so that it fits the target's registers."""
    wide = TARGET.get("avx512f", False)
    # AVX-512: 16 accumulators of 32 registers. AVX2: 12 of 16. NEON: 24 of 32, each vector being two registers.
    return (16, 32, 8) if wide else (8, 16, 6)


_LANES, _WIDTH, _HEIGHT = _tile_shape()  # Numba's cache on disk is told apart by the host's features, too
_DEPTH = 256  # rows of a packed panel: 32 KiB at most, on the stack
_ROWS = 512  # rows of A that all panels of a block meet before the next ones: half a MiB of A stays in the L2 cache
_COLUMNS = 512  # columns of the result that are finished before the next ones

_FLOAT = ir.FloatType()
_WORD = ir.IntType(64)
_VECTOR = ir.VectorType(_FLOAT, _LANES)


def _stack_space(count: int) -> Any:
    """Return an intrinsic that gives the address of `count` floats on its caller's stack, aligned to 64 bytes."""

    @intrinsic
    def space(typing_context: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            with builder.goto_entry_block():
                floats = builder.alloca(ir.ArrayType(_FLOAT, count))
                floats.align = 64
            return builder.ptrtoint(floats, _WORD)

        return types.intp(), codegen

    return space


_panel_space = _stack_space(_DEPTH * _WIDTH)
_tile_space = _stack_space(_HEIGHT * _WIDTH)
_edge_space = _stack_space(_HEIGHT * _DEPTH)


def _element(builder: Any, base: Any, index: Any) -> Any:
    """Return a pointer to float number `index` from the address `base`."""
    return builder.gep(builder.inttoptr(base, _FLOAT.as_pointer()), [index])


def _vector(builder: Any, base: Any, index: Any) -> Any:
    """Return a pointer to the vector that starts there."""
    return builder.bitcast(_element(builder, base, index), _VECTOR.as_pointer())


def _spread(builder: Any, value: Any) -> Any:
    """Return the vector that has `value` in every lane."""
    nothing = ir.Constant(_VECTOR, ir.Undefined)
    first = builder.insert_element(nothing, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(ir.IntType(32), _LANES), None))


def _fused_multiply_add(builder: Any) -> Any:
    """Return LLVM's function of three vectors, a * b + c, fused where the machine can."""
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    return cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{_LANES}f32")


@intrinsic
def _load(typing_context: Any, base: Any, index: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_element(builder, *arguments))

    return types.float32(types.intp, types.intp), codegen


@intrinsic
def _store(typing_context: Any, base: Any, index: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        base, index, value = arguments
        builder.store(value, _element(builder, base, index))
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.float32), codegen


@intrinsic
def _tile(
    typing_context: Any,
    a: Any,
    row_stride: Any,
    k_stride: Any,
    panel: Any,
    depth: Any,
    out: Any,
    ldc: Any,
    alpha: Any,
    beta: Any,
) -> Any:
    """Multiply `_HEIGHT` rows of A with a packed panel: ``out = alpha * product + beta * out``, a tile at an address.

    The strides of A, between rows and along k, and `ldc` count floats. With ``beta == 0`` the tile is not read.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a, row_stride, k_stride, panel, depth, out, ldc, alpha, beta = arguments
        multiply_add = _fused_multiply_add(builder)
        zero = ir.Constant(_VECTOR, None)
        accumulators = [
            [cgutils.alloca_once(builder, _VECTOR) for _ in range(_WIDTH // _LANES)] for _ in range(_HEIGHT)
        ]
        for row in accumulators:
            for slot in row:
                builder.store(zero, slot)
        with cgutils.for_range(builder, depth) as loop:
            start = builder.mul(loop.index, ir.Constant(_WORD, _WIDTH))
            columns = [
                builder.load(_vector(builder, panel, builder.add(start, ir.Constant(_WORD, v))), align=_LANES * 4)
                for v in range(0, _WIDTH, _LANES)
            ]
            along_k = builder.mul(loop.index, k_stride)
            for i, row in enumerate(accumulators):
                index = builder.add(along_k, builder.mul(row_stride, ir.Constant(_WORD, i)))
                factor = _spread(builder, builder.load(_element(builder, a, index)))
                for column, slot in zip(columns, row, strict=True):
                    builder.store(builder.call(multiply_add, [factor, column, builder.load(slot)]), slot)
        alphas, betas = _spread(builder, alpha), _spread(builder, beta)
        overwrite = builder.fcmp_ordered("==", beta, ir.Constant(_FLOAT, 0.0))
        with builder.if_else(overwrite) as (then, otherwise):
            for branch, reads in ((then, False), (otherwise, True)):
                with branch:
                    for i, row in enumerate(accumulators):
                        for v, slot in enumerate(row):
                            index = builder.add(builder.mul(ldc, ir.Constant(_WORD, i)), ir.Constant(_WORD, v * _LANES))
                            place = _vector(builder, out, index)
                            value = builder.fmul(alphas, builder.load(slot))
                            if reads:
                                value = builder.call(multiply_add, [betas, builder.load(place, align=4), value])
                            builder.store(value, place, align=4)
        return context.get_dummy_value()

    word, single = types.intp, types.float32
    return types.void(word, word, word, word, word, word, word, single, single), codegen


@intrinsic
def _transpose(typing_context: Any, source: Any, stride: Any, target: Any) -> Any:
    """Store the transpose of the `_LANES` x `_LANES` floats at `source` to `target`, whose rows lie `_WIDTH` apart.

    Rows of the source lie `stride` floats apart. The classical exchange network: in round d each pair of vectors
    (i, i + d) swaps the lanes in which the bit d of lane and row differ.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, stride, target = arguments
        rows = [
            builder.load(_vector(builder, source, builder.mul(stride, ir.Constant(_WORD, i))), align=4)
            for i in range(_LANES)
        ]
        distance = _LANES // 2
        while distance:
            keep = [lane if not lane & distance else _LANES + lane - distance for lane in range(_LANES)]
            swap = [lane + distance if not lane & distance else _LANES + lane for lane in range(_LANES)]
            masks = [ir.Constant(ir.VectorType(ir.IntType(32), _LANES), lanes) for lanes in (keep, swap)]
            for i in range(_LANES):
                if not i & distance:
                    low, high = rows[i], rows[i + distance]
                    rows[i], rows[i + distance] = (builder.shuffle_vector(low, high, mask) for mask in masks)
            distance //= 2
        for i, row in enumerate(rows):
            builder.store(row, _vector(builder, target, ir.Constant(_WORD, i * _WIDTH)), align=4)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), codegen


@jit_kernel
def _pack(panel: int, b: int, ldb: int, transpose_b: bool, k0: int, depth: int, j0: int, width: int) -> None:
    """Copy op(b)[k0 : k0 + depth, j0 : j0 + width] to the panel, row after row of `_WIDTH`, with zeros to the right."""
    if transpose_b:
        whole_k = depth - depth % _LANES
        whole_j = width - width % _LANES
        for j in range(0, whole_j, _LANES):
            for k in range(0, whole_k, _LANES):
                _transpose(b + 4 * ((j0 + j) * ldb + k0 + k), ldb, panel + 4 * (k * _WIDTH + j))
        for j in range(width):
            source = b + 4 * ((j0 + j) * ldb + k0)
            for k in range(whole_k if j < whole_j else 0, depth):
                _store(panel, k * _WIDTH + j, _load(source, k))
    else:
        for k in range(depth):
            source = b + 4 * ((k0 + k) * ldb + j0)
            if width == _WIDTH:
                for j in range(_WIDTH):
                    _store(panel, k * _WIDTH + j, _load(source, j))
            else:
                for j in range(width):
                    _store(panel, k * _WIDTH + j, _load(source, j))
    if width < _WIDTH:
        for k in range(depth):
            for j in range(width, _WIDTH):
                _store(panel, k * _WIDTH + j, 0.0)


@jit_kernel
def _copy_edge(edge: int, a: int, row_stride: int, k_stride: int, height: int, depth: int) -> None:
    """Copy the last `height` rows of op(A) to `edge`, k after k of `_HEIGHT`, with the last row in the missing ones."""
    for k in range(depth):
        for i in range(_HEIGHT):
            _store(edge, k * _HEIGHT + i, _load(a, min(i, height - 1) * row_stride + k * k_stride))


@jit_kernel
def _merge(tile: int, out: int, ldc: int, height: int, width: int, beta: np.float32) -> None:
    """Store ``tile + beta * out`` for the part of the tile that lies inside `out`."""
    for i in range(height):
        source, target = tile + 4 * i * _WIDTH, out + 4 * i * ldc
        if beta == 0.0:
            for j in range(width):
                _store(target, j, _load(source, j))
        else:
            for j in range(width):
                _store(target, j, _load(source, j) + beta * _load(target, j))


@jit_kernel
def gemm_blocked(
    a: int,
    lda: int,
    transpose_a: bool,
    b: int,
    ldb: int,
    transpose_b: bool,
    out: int,
    ldc: int,
    rows: int,
    columns: int,
    inner: int,
    alpha: float,
    beta: float,
) -> None:
    """Compute ``out = alpha * op(a) @ op(b) + beta * out`` on addresses; the leading dimensions count floats.

    `out` is (rows, columns) and `inner` the length of the sums. With ``beta == 0`` `out` is never read. Reached through
    `kernels.matmul.blas.gemm`, which takes arrays.
    """
    panel, tile, edge = _panel_space(), _tile_space(), _edge_space()
    row_stride, k_stride = (1, lda) if transpose_a else (lda, 1)
    for rows0 in range(0, rows, _ROWS):
        rows1 = min(rows0 + _ROWS, rows)
        for columns0 in range(0, columns, _COLUMNS):
            columns1 = min(columns0 + _COLUMNS, columns)
            for k0 in range(0, inner, _DEPTH):
                depth = min(_DEPTH, inner - k0)
                factor = np.float32(beta if k0 == 0 else 1.0)
                for j0 in range(columns0, columns1, _WIDTH):
                    width = min(_WIDTH, columns1 - j0)
                    _pack(panel, b, ldb, transpose_b, k0, depth, j0, width)
                    for i0 in range(rows0, rows1, _HEIGHT):
                        height = min(_HEIGHT, rows1 - i0)
                        source, step, k_step = a + 4 * (i0 * row_stride + k0 * k_stride), row_stride, k_stride
                        target = out + 4 * (i0 * ldc + j0)
                        if height < _HEIGHT:  # a full tile would read past the end of A
                            _copy_edge(edge, source, row_stride, k_stride, height, depth)
                            source, step, k_step = edge, 1, _HEIGHT
                        if height == _HEIGHT and width == _WIDTH:
                            _tile(source, step, k_step, panel, depth, target, ldc, np.float32(alpha), factor)
                        else:
                            _tile(source, step, k_step, panel, depth, tile, _WIDTH, np.float32(alpha), np.float32(0.0))
                            _merge(tile, target, ldc, height, width, factor)
