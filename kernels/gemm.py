"""A blocked float32 matrix product in Numba alone: for machines without a BLAS, and a second opinion on those with one.

The scheme is Goto and van de Geijn's (Anatomy of High-Performance Matrix Multiplication, ACM TOMS 34(3), 2008): a panel
of B, `_DEPTH` rows deep and `_WIDTH` columns wide, is packed side by side on the stack, where it stays in the L1 cache
while every tile of `_HEIGHT` rows of A is multiplied with it. The tile of the result is held in vector registers; it is
written as LLVM vectors of 16 floats, which LLVM splits where the machine's vectors are shorter. Edges are packed with
zeros, computed in full, and stored by element.

Every element is the sum over k in rising order within a panel, whatever the position of its tile.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels.jit import kernel

_LANES = 16  # floats of one LLVM vector
_WIDTH = 32  # columns of a tile, two vectors
_HEIGHT = 8  # rows of a tile: 16 accumulators, as many as AVX2 has registers' worth in pairs and half of AVX-512's
_DEPTH = 256  # rows of a packed panel: 32 KiB on the stack

_FLOAT = ir.FloatType()
_WORD = ir.IntType(64)
_VECTOR = ir.VectorType(_FLOAT, _LANES)


@intrinsic
def _panel(typing_context):  # type: ignore[no-untyped-def]
    """Return the address of `_DEPTH` x `_WIDTH` floats on the caller's stack, aligned to 64 bytes."""

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        with builder.goto_entry_block():
            space = builder.alloca(ir.ArrayType(_FLOAT, _DEPTH * _WIDTH))
            space.align = 64
        return builder.ptrtoint(space, _WORD)

    return types.intp(), codegen


def _element(builder: Any, base: Any, index: Any) -> Any:
    """Return a pointer to float number `index` from the address `base`."""
    return builder.gep(builder.inttoptr(base, _FLOAT.as_pointer()), [index])


@intrinsic
def _load(typing_context, base, index):  # type: ignore[no-untyped-def]
    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.load(_element(builder, *arguments))

    return types.float32(types.intp, types.intp), codegen


@intrinsic
def _store(typing_context, base, index, value):  # type: ignore[no-untyped-def]
    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        base, index, value = arguments
        builder.store(value, _element(builder, base, index))
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.float32), codegen


@intrinsic
def _tile(typing_context, a, row_stride, k_stride, panel, depth, out):  # type: ignore[no-untyped-def]
    """Multiply `_HEIGHT` rows of A with a packed panel into the `_HEIGHT` x `_WIDTH` floats at `out`, overwriting them.

    `a` and `out` are addresses; the strides of A, between rows and along k, count floats.
    """

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        a, row_stride, k_stride, panel, depth, out = arguments
        accumulators = [
            [cgutils.alloca_once_value(builder, ir.Constant(_VECTOR, None)) for _ in range(_WIDTH // _LANES)]
            for _ in range(_HEIGHT)
        ]
        for row in accumulators:
            for slot in row:
                builder.store(ir.Constant(_VECTOR, None), slot)
        undefined = ir.Constant(_VECTOR, ir.Undefined)
        everywhere = ir.Constant(ir.VectorType(ir.IntType(32), _LANES), None)
        multiply_add = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_VECTOR, [_VECTOR] * 3), f"llvm.fmuladd.v{_LANES}f32"
        )
        with cgutils.for_range(builder, depth) as loop:
            start = builder.mul(loop.index, ir.Constant(_WORD, _WIDTH))
            columns = []
            for v in range(_WIDTH // _LANES):
                place = _element(builder, panel, builder.add(start, ir.Constant(_WORD, v * _LANES)))
                columns.append(builder.load(builder.bitcast(place, _VECTOR.as_pointer()), align=64))
            along_k = builder.mul(loop.index, k_stride)
            for i, row in enumerate(accumulators):
                index = builder.add(along_k, builder.mul(row_stride, ir.Constant(_WORD, i)))
                one = builder.load(_element(builder, a, index))
                spread = builder.shuffle_vector(
                    builder.insert_element(undefined, one, ir.Constant(ir.IntType(32), 0)), undefined, everywhere
                )
                for column, slot in zip(columns, row, strict=True):
                    builder.store(builder.call(multiply_add, [spread, column, builder.load(slot)]), slot)
        for i, row in enumerate(accumulators):
            for v, slot in enumerate(row):
                place = _element(builder, out, ir.Constant(_WORD, i * _WIDTH + v * _LANES))
                builder.store(builder.load(slot), builder.bitcast(place, _VECTOR.as_pointer()), align=64)
        return context.get_dummy_value()

    word = types.intp
    return types.void(word, word, word, word, word, word), codegen


@kernel
def _pack(panel: int, b: int, ldb: int, transpose_b: bool, k0: int, depth: int, j0: int, width: int) -> None:
    """Copy op(b)[k0 : k0 + depth, j0 : j0 + width] to the panel, row after row of `_WIDTH`, with zeros to the right."""
    if transpose_b:
        for j in range(width):
            source = b + 4 * ((j0 + j) * ldb + k0)
            for k in range(depth):
                _store(panel, k * _WIDTH + j, _load(source, k))
    else:
        for k in range(depth):
            source = b + 4 * ((k0 + k) * ldb + j0)
            for j in range(width):
                _store(panel, k * _WIDTH + j, _load(source, j))
    for k in range(depth):
        for j in range(width, _WIDTH):
            _store(panel, k * _WIDTH + j, 0.0)


@kernel
def _merge(tile: int, out: int, ldc: int, height: int, width: int, alpha: float, beta: float) -> None:
    """Store ``alpha * tile + beta * out`` for the part of the tile that lies inside `out`."""
    for i in range(height):
        source, target = tile + 4 * i * _WIDTH, out + 4 * i * ldc
        if beta == 0.0:
            for j in range(width):
                _store(target, j, alpha * _load(source, j))
        else:
            for j in range(width):
                _store(target, j, alpha * _load(source, j) + beta * _load(target, j))


@kernel
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
    `kernels.blas.gemm`, which takes arrays.
    """
    panel, tile, edge = _panel(), _panel(), _panel()
    row_stride, k_stride = (1, lda) if transpose_a else (lda, 1)
    for k0 in range(0, inner, _DEPTH):
        depth = min(_DEPTH, inner - k0)
        factor = beta if k0 == 0 else 1.0
        for j0 in range(0, columns, _WIDTH):
            width = min(_WIDTH, columns - j0)
            _pack(panel, b, ldb, transpose_b, k0, depth, j0, width)
            for i0 in range(0, rows, _HEIGHT):
                height = min(_HEIGHT, rows - i0)
                start = a + 4 * (i0 * row_stride + k0 * k_stride)
                if height == _HEIGHT:
                    _tile(start, row_stride, k_stride, panel, depth, tile)
                else:  # the last rows: a full tile would read past the end of A
                    for k in range(depth):
                        for i in range(_HEIGHT):
                            inside = _load(start, min(i, height - 1) * row_stride + k * k_stride)
                            _store(edge, k * _HEIGHT + i, inside)
                    _tile(edge, 1, _HEIGHT, panel, depth, tile)
                _merge(tile, out + 4 * (i0 * ldc + j0), ldc, height, width, alpha, factor)
