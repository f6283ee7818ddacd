"""float16 matrix products through float32: blocks of both operands are upcast and multiplied by the float32 GEMM.

x86-64 processors below AVX512-FP16 convert float16 but have no arithmetic on it, and float16 sums would lose too much
precision anyway; float16 saves memory. Each block is upcast into scratch of the caller, where it stays in or near the
L2 cache, and the float32 product runs on the blocks::

        op(B):   _COLUMNS wide            for each _DEPTH of k
               +------+------+              for each _ROWS of op(A): upcast, once
               |      |      | _DEPTH         for each _COLUMNS of op(B): upcast, unless it is there already
               +------+------+                  out += the product of the two
      op(A)    +------+------+
      _ROWS |  | out  |      |
            |  +------+------+

Upcasting is exact, so the result is that of the float32 product of the numbers, and has the error of float32 on any
backend. Blocks follow from the shapes alone: the bits are the same in any thread.
"""

from typing import NamedTuple

import numpy as np

from threadloom.kernels.compiling import JIT_ENABLED, Floats, jit_strict_fp
from threadloom.kernels.matmul.backend import gemm_at
from threadloom.kernels.matmul.operands import GemmArgs, MatrixRef, Op, address_of, gemm_args, matrix_ref, shifted
from threadloom.kernels.simd import (
    FP16Bits,
    from_fp16,
    load_float32,
    load_uint16,
    round_to_fp16,
    store_float32,
    store_uint16,
    to_fp16,
    upcast_fp16,
)

_ROWS = 512  # rows of op(A) that are multiplied by every block of op(B) before the next ones, as in matmul.float32
_COLUMNS = 512  # columns of op(B) in a block
_DEPTH = 2048  # of both; a multiple of the depth at which matmul.float32 splits sums: the bits are those of one product


class Fp16Operands(NamedTuple):
    """Operands of one product ``a @ op_b(b)``."""

    a: FP16Bits  # (M, K)
    b: FP16Bits  # op_b(b) is (K, N)
    op_b: Op


class _Part(NamedTuple):
    """Part of a result: from `row` and `column` on."""

    row: int
    column: int
    rows: int
    columns: int


def fp16_scratch_sizes(rows: int, columns: int, inner: int) -> tuple[int, int]:
    """Return the numbers of floats of `wide_a` and of `wide_b` for a product of (rows, inner) and (inner, columns).

    At most 1 Mi (4 MiB) each, for any shape; longer scratch, allocated for another product, may be used.
    """
    depth = min(inner, _DEPTH)
    return min(rows, _ROWS) * depth, min(columns, _COLUMNS) * depth


def fp16_sums_size(rows: int, columns: int) -> int:
    """Return the number of floats of `sums` that `linear_fp16` needs for a (rows, columns) result; at most 256 Ki."""
    return min(rows, _ROWS) * min(columns, _COLUMNS)


@jit_strict_fp
def _upcast(source: MatrixRef, rows: int, columns: int, out: int) -> None:
    """Write a block of a float16 matrix to the address `out`, row after row."""
    for i in range(rows):
        line, target = source.address + i * source.stride, out + 4 * columns * i
        for j in range(columns):
            store_float32(target, j, from_fp16(np.int16(load_uint16(line, j))))


@jit_strict_fp
def _upcast_block(matrix: MatrixRef, op: Op, i0: int, j0: int, rows: int, columns: int, out: int) -> MatrixRef:
    """Upcast op(matrix)[i0 : i0 + rows, j0 : j0 + columns] to the address `out`, as it is stored; return the copy."""
    if op == Op.T:
        _upcast(shifted(matrix, j0, 2 * i0), columns, rows, out)
        return MatrixRef(out, 4 * rows)
    _upcast(shifted(matrix, i0, 2 * j0), rows, columns, out)
    return MatrixRef(out, 4 * columns)


@jit_strict_fp
def _multiply(p: GemmArgs, wide_a: int, wide_b: int) -> None:
    """Compute the product of float16 operands; the upcast blocks are written to the addresses `wide_a` and `wide_b`."""
    for k0 in range(0, p.inner, _DEPTH):
        depth = min(_DEPTH, p.inner - k0)
        beta = p.beta if k0 == 0 else np.float32(1.0)
        b = MatrixRef(wide_b, 0)
        for i in range(0, p.rows, _ROWS):
            height = min(_ROWS, p.rows - i)
            a = _upcast_block(p.a, p.op_a, i, k0, height, depth, wide_a)
            for j in range(0, p.columns, _COLUMNS):
                width = min(_COLUMNS, p.columns - j)
                if i == 0 or p.columns > _COLUMNS:
                    b = _upcast_block(p.b, p.op_b, k0, j, depth, width, wide_b)
                out = shifted(p.out, i, 4 * j)
                gemm_at(GemmArgs(a, p.op_a, b, p.op_b, out, height, width, depth, p.alpha, beta))


@jit_strict_fp
def _gemm_compiled(
    a: FP16Bits, b: FP16Bits, out: Floats, op_a: Op, op_b: Op, accumulate: bool, wide_a: Floats, wide_b: Floats
) -> None:
    args = gemm_args(a, b, out, op_a, op_b, 1.0, 1.0 if accumulate else 0.0)
    _multiply(args, address_of(wide_a), address_of(wide_b))


@jit_strict_fp
def _round_rows(total: MatrixRef, bias: int, rows: int, columns: int, out: MatrixRef) -> None:
    """Write ``total + bias``, rounded, to `out`; `bias` is an address, 0 for none."""
    for i in range(rows):
        source, target = total.address + i * total.stride, out.address + i * out.stride
        if bias != 0:
            for j in range(columns):
                store_uint16(target, j, np.uint16(to_fp16(load_float32(source, j) + load_float32(bias, j))))
        else:
            for j in range(columns):
                store_uint16(target, j, np.uint16(to_fp16(load_float32(source, j))))


@jit_strict_fp
def _multiply_part(
    operands: Fp16Operands, part: _Part, total: MatrixRef, beta: float, wide_a: int, wide_b: int
) -> None:
    """Write a part of the product to `total`, or add it to `total` if `beta` is 1."""
    a, b = shifted(matrix_ref(operands.a), part.row, 0), matrix_ref(operands.b)
    b = shifted(b, part.column, 0) if operands.op_b == Op.T else shifted(b, 0, 2 * part.column)
    scales = np.float32(1.0), np.float32(beta)
    args = GemmArgs(a, Op.N, b, operands.op_b, total, part.rows, part.columns, operands.a.shape[1], *scales)
    _multiply(args, wide_a, wide_b)


@jit_strict_fp
def _linear_compiled(
    first: Fp16Operands,
    second: Fp16Operands,
    bias: Floats,
    out: FP16Bits,
    sums: Floats,
    wide_a: Floats,
    wide_b: Floats,
) -> None:
    rows, columns = out.shape
    for i in range(0, rows, _ROWS):
        height = min(_ROWS, rows - i)
        for j in range(0, columns, _COLUMNS):
            width = min(_COLUMNS, columns - j)
            part, total = _Part(i, j, height, width), MatrixRef(address_of(sums), 4 * width)
            _multiply_part(first, part, total, 0.0, address_of(wide_a), address_of(wide_b))
            if second.a.shape[1] > 0:
                _multiply_part(second, part, total, 1.0, address_of(wide_a), address_of(wide_b))
            bias_address = address_of(bias) + 4 * j if bias.shape[0] > 0 else 0
            _round_rows(total, bias_address, height, width, shifted(matrix_ref(out), i, 2 * j))


def _gemm_numpy(
    a: FP16Bits, b: FP16Bits, out: Floats, op_a: Op, op_b: Op, accumulate: bool, wide_a: Floats, wide_b: Floats
) -> None:
    product = np.matmul(upcast_fp16(a.T if op_a == Op.T else a), upcast_fp16(b.T if op_b == Op.T else b))
    out[...] = out + product if accumulate else product


def _product_numpy(p: Fp16Operands) -> Floats:
    return np.matmul(upcast_fp16(p.a), upcast_fp16(p.b.T if p.op_b == Op.T else p.b))


def _linear_numpy(
    first: Fp16Operands,
    second: Fp16Operands,
    bias: Floats,
    out: FP16Bits,
    sums: Floats,
    wide_a: Floats,
    wide_b: Floats,
) -> None:
    total = _product_numpy(first)
    if second.a.shape[1]:
        total += _product_numpy(second)
    out[...] = round_to_fp16(total + bias if bias.size else total)


if JIT_ENABLED:
    _gemm, _linear = _gemm_compiled, _linear_compiled
else:
    _gemm, _linear = _gemm_numpy, _linear_numpy


@jit_strict_fp
def gemm_fp16(
    a: FP16Bits, b: FP16Bits, out: Floats, op_a: Op, op_b: Op, accumulate: bool, wide_a: Floats, wide_b: Floats
) -> None:
    """Write ``op_a(a) @ op_b(b)`` to `out` (M, N) in float32, or add it if `accumulate`.

    op_a(a) is (M, K), op_b(b) (K, N), both float16; K is at least 1. Elements are contiguous within a row; the rows
    need not be, in `out` either. Without `accumulate` the earlier content of `out` does not matter. The flat `wide_a`
    and `wide_b` have at least the lengths of ``fp16_scratch_sizes(M, N, K)``. Nothing may overlap.
    """
    _gemm(a, b, out, op_a, op_b, accumulate, wide_a, wide_b)


@jit_strict_fp
def linear_fp16(
    first: Fp16Operands,
    second: Fp16Operands,
    bias: Floats,
    out: FP16Bits,
    sums: Floats,
    wide_a: Floats,
    wide_b: Floats,
) -> None:
    """Write the sum of two products and `bias`, rounded to float16 once, to `out` (M, N).

    bias is (N,) float32, or (0,) for none. If the K of the second product is 0, there is none, and its b is not read.
    Other arrays as in `gemm_fp16`; the flat `sums` has at least ``fp16_sums_size(M, N)`` floats, and `wide_a` and
    `wide_b` are large enough for both products.
    """
    _linear(first, second, bias, out, sums, wide_a, wide_b)
